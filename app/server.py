"""create_app(): the only place where the parts are put together."""

import asyncio
import logging
import multiprocessing
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from sanic import Request, Sanic
from sanic.config import Config
from sanic.response import HTTPResponse

import adapters
from app import metrics, probes
from app.access import Access, counted_address
from app.buffer import WriteBuffer
from app.claims import Claims, RedisClaims
from app.edge import BODY_MAX_BYTES, GatewayErrors, read_body
from app.errors import WriteFailed
from app.event import Event, Outcome
from app.ingest import Ingest, commit, commit_contested, hand_over
from app.ingest import Request as IngestRequest
from app.settings import Settings, VendorAccess
from app.workspaces import Workspaces
from sinks import Sink
from sinks.timescale import TimescaleSink

BATCH_MAX_BYTES = 64 * 1024
BUFFER_MAX_BYTES = 64 * 1024 * 1024
RESPONSE_TIMEOUT_S = 60.0
KEEP_ALIVE_TIMEOUT_S = 75.0
PROBE_S = 1.0
CLOSE_PER_COMMIT = 2

log = logging.getLogger(__name__)

App = Sanic[Config, SimpleNamespace]
Result = Outcome | WriteFailed | asyncio.Task[Outcome]
Commit = Callable[[Sequence[Event]], Awaitable[Sequence[Result]]]


def create_app(
    settings: Settings, *, claims: Claims | None = None, sink: Sink | None = None
) -> App:
    """Return the gateway as a Sanic application, ready to be served with `GatewayProtocol`.

    Tests hand in another claim store or sink. Raises WorkspacesError.
    """
    gateway = Gateway(settings, adapters.load(), claims, sink)
    app = Sanic("flokit-gateway", config=_config(settings), configure_logging=False)
    app.error_handler = GatewayErrors()
    app.ctx.draining = False
    app.ctx.gateway = gateway
    probes.add(app)
    app.route("/ingest/<vendor>", ["GET", "POST"], ignore_body=True, unquote=True)(_ingest)
    app.after_server_start(_start)
    app.before_server_stop(_drain)
    app.after_server_stop(_stop)
    return app


class Gateway:
    """The parts of one running gateway, in the order in which a callback meets them."""

    def __init__(
        self,
        settings: Settings,
        vendors: Mapping[str, adapters.Adapter],
        claims: Claims | None,
        sink: Sink | None,
    ) -> None:
        self.settings = settings
        self.workspaces = Workspaces(Path(settings.workspaces_file), vendors.keys())
        self.sink = sink or TimescaleSink(
            settings.database_url, commit_timeout_s=settings.commit_timeout_s
        )
        self.claims = claims or RedisClaims(
            settings.redis_url,
            # A sink that does not name its data gets no help from Redis: slower, never wrong.
            generation=lambda: getattr(self.sink, "generation", None),
            lease_s=settings.claim_lease_s,
            seen_window_d=settings.seen_window_d,
        )
        buffer_max = settings.buffer_max_events
        self.buffer = self._write_buffer(self._commit, settings.batch_max_events, buffer_max)
        # A twin keeps its place in `buffer`, and that is its limit: here none is turned away.
        self.twins = self._write_buffer(self._commit_alone, 1, 2 * buffer_max)
        self.ingest = Ingest(
            adapters=vendors,
            access=Access(settings.vendors),
            workspaces=self.workspaces,
            buffer=self.buffer,
            retention_d=settings.retention_d,
        )
        self.sink_answered = False
        self.tasks: list[asyncio.Task[None]] = []

    def _write_buffer(
        self, commit: Commit, batch_max: int, buffer_max: int
    ) -> WriteBuffer[Event, Outcome]:
        return WriteBuffer(
            commit,
            batch_max=batch_max,
            buffer_max=buffer_max,
            batch_max_bytes=BATCH_MAX_BYTES,
            buffer_max_bytes=BUFFER_MAX_BYTES,
        )

    async def _commit(self, events: Sequence[Event]) -> Sequence[Result]:
        outcomes = await commit(events, self.claims, self.sink)
        return [
            asyncio.create_task(hand_over(event, self.twins, self.claims))
            if outcome is Outcome.CONTESTED
            else outcome
            for event, outcome in zip(events, outcomes, strict=True)
        ]

    async def _commit_alone(self, events: Sequence[Event]) -> Sequence[Result]:
        return await commit_contested(events, self.claims, self.sink)

    async def probe(self) -> None:
        """Ask the sink until it has answered once: from then on the gateway is ready."""
        while not self.sink_answered:
            try:
                await self.sink.write([], contested=False)
                self.sink_answered = True
            except Exception as error:  # noqa: BLE001 - asked again, whatever it was
                log.warning("not ready: the sink does not answer", extra={"error": str(error)})
                await asyncio.sleep(PROBE_S)

    async def measure(self) -> None:
        """Keep the gauge of the buffers; never returns."""
        while True:
            metrics.BUFFER_EVENTS.set(len(self.buffer))
            await asyncio.sleep(PROBE_S)

    async def close(self) -> None:
        """Commit what was accepted, then close the parts."""
        for task in self.tasks:
            task.cancel()
        try:
            # By now nobody waits for an answer: a database that hangs is not waited for either.
            async with asyncio.timeout(CLOSE_PER_COMMIT * self.settings.commit_timeout_s):
                await self.buffer.close()
                await self.twins.close()
        except TimeoutError:
            log.error("events given up, unanswered", extra={"events": len(self.buffer)})
        for part in (self.claims, self.sink):
            with suppress(TimeoutError):  # the end of the process closes what is left
                async with asyncio.timeout(CLOSE_PER_COMMIT * self.settings.commit_timeout_s):
                    await part.close()


def _config(settings: Settings) -> Config:
    # No prefix: nothing but `Settings` is read from the environment.
    config = Config(env_prefix="")
    config.update(
        ACCESS_LOG=False,
        AUTO_EXTEND=False,
        FALLBACK_ERROR_FORMAT="json",
        KEEP_ALIVE_TIMEOUT=KEEP_ALIVE_TIMEOUT_S,
        MOTD=False,
        REQUEST_MAX_SIZE=BODY_MAX_BYTES,
        RESPONSE_TIMEOUT=RESPONSE_TIMEOUT_S,
        # What is in flight gets its answer, so this is longer than any commit.
        GRACEFUL_SHUTDOWN_TIMEOUT=settings.commit_timeout_s * 3,
    )
    return config


async def _ingest(request: Request, vendor: str) -> HTTPResponse:
    gateway: Gateway = request.app.ctx.gateway

    async def body() -> bytes:
        # That of a GET means nothing, but it is there, before the next request.
        sent = await read_body(request)
        return sent if request.method == "POST" else b""

    receipt = await gateway.ingest.handle(
        IngestRequest(
            vendor=vendor,
            # Not `query_string`: that ends at a `#`, which some senders do not encode.
            query=request.raw_url.partition(b"?")[2],
            address=_address(request, gateway.settings.proxies_count),
            headers=request.headers,
            read_body=body,
        )
    )
    return HTTPResponse(receipt, content_type="application/json")


def _address(request: Request, proxies: int) -> str:
    # Not `remote_addr`, which leaves empty entries out of the count.
    if proxies:
        return counted_address(request.headers.getall("x-forwarded-for", []), proxies)
    return str(request.ip)


async def _start(app: App) -> None:
    gateway: Gateway = app.ctx.gateway
    # Not `app.add_task`: Sanic cancels its own tasks before it stops to accept connections.
    for vendor in adapters.load():
        if not gateway.settings.vendors.get(vendor, VendorAccess()).secrets:
            log.warning("no secret: every callback is answered 503", extra={"vendor": vendor})
    for work in (gateway.probe(), gateway.measure(), gateway.workspaces.watch()):
        gateway.tasks.append(asyncio.create_task(work))

    log.info("serving", extra={"pid": os.getpid()})


async def _drain(app: App) -> None:
    """Turn readiness red and go on serving, until nobody sends new callbacks here."""
    app.ctx.draining = True
    parent = multiprocessing.parent_process()
    # Workers whose parent was killed make way: whoever starts all of it again needs the port.
    if parent is None or parent.is_alive():
        await asyncio.sleep(app.ctx.gateway.settings.drain_pause_s)


async def _stop(app: App) -> None:
    await app.ctx.gateway.close()
