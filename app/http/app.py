"""create_app(): the only place where the parts are put together."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from sanic import Request, Sanic
from sanic.config import Config
from sanic.response import HTTPResponse

import adapters
from app.access import Access, counted_address
from app.buffer import WriteBuffer
from app.claims import Claims
from app.claims.redis import RedisClaims
from app.commit import commit, commit_contested, hand_over
from app.errors import Unverified, WriteFailed
from app.event import Event, Outcome
from app.http import lifecycle as life
from app.http import probes
from app.http.config import sanic_config
from app.http.connection_limits import ReceiveBudget
from app.http.fast_path import LazyHeaders, UsualCallback
from app.http.protocol import GatewayErrors, read_body
from app.ingest import Ingest
from app.ingest import Request as IngestRequest
from app.settings import Settings
from app.telemetry import traces
from app.telemetry.metrics import REJECTED
from app.workspaces import Workspaces
from sinks import Sink
from sinks.timescale.sink import TimescaleSink

LIMITS = {"batch_max_bytes": 64 * 1024, "buffer_max_bytes": 64 * 1024 * 1024}
CLOSE_PER_COMMIT = 2
# Before a 401 is answered, so that a stranger's connection costs next to nothing.
UNVERIFIED_PAUSE_S = 0.1

log = logging.getLogger(__name__)

SanicApp = Sanic[Config, SimpleNamespace]
Result = Outcome | WriteFailed | asyncio.Task[Outcome]


def create_app(
    settings: Settings, *, claims: Claims | None = None, sink: Sink | None = None
) -> SanicApp:
    """Return the gateway as a Sanic application, ready to be served with `GatewayProtocol`.

    Tests hand in another claim store or sink. Raises WorkspacesError and SettingsError.
    """
    gateway = Gateway(settings, adapters.load(), claims, sink)
    app = Sanic("flokit-gateway", config=sanic_config(settings), configure_logging=False)
    app.error_handler = GatewayErrors()
    app.ctx.draining = False
    app.ctx.receive_budget = ReceiveBudget()
    app.ctx.gateway = gateway
    app.ctx.receipt = _receipt
    for part in (probes, traces, life):
        part.add(app)
    app.route("/ingest/<vendor>", ["GET", "POST"], ignore_body=True, unquote=True)(_ingest)
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
            generation=lambda: self.sink.generation,
            lease_s=settings.claim_lease_s,
            seen_window_d=settings.seen_window_d,
        )
        batch_max, buffer_max = settings.batch_max_events, settings.buffer_max_events
        self.buffer = WriteBuffer(
            self._commit, batch_max=batch_max, buffer_max=buffer_max, **LIMITS
        )
        # A twin keeps its place in `buffer`, and that is its limit: here none is turned away.
        self.twins = WriteBuffer(
            self._commit_alone, batch_max=1, buffer_max=2 * buffer_max, **LIMITS
        )
        self.access = Access(settings.vendors)
        self.ingest = Ingest(
            adapters=vendors,
            access=self.access,
            workspaces=self.workspaces,
            buffer=self.buffer,
            clock_ahead_s=lambda: self.sink.clock_ahead_s,
            retention_d=settings.retention_d,
        )
        self.commit, self.commit_contested = commit, commit_contested
        self.in_flight = 0
        self.sink_answered = False
        self.tasks: list[asyncio.Task[None]] = []

    async def _commit(self, events: Sequence[Event]) -> Sequence[Result]:
        outcomes = await self.commit(events, self.claims, self.sink)
        return [
            asyncio.create_task(hand_over(event, self.twins, self.claims))
            if outcome is Outcome.CONTESTED
            else outcome
            for event, outcome in zip(events, outcomes, strict=True)
        ]

    async def _commit_alone(self, events: Sequence[Event]) -> Sequence[Result]:
        return await self.commit_contested(events, self.claims, self.sink)

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


async def _ingest(request: Request, vendor: str) -> HTTPResponse:
    return HTTPResponse(await _receipt(request, vendor), content_type="application/json")


async def _receipt(request: Request, vendor: str) -> bytes:
    try:
        return await _verified_receipt(request, vendor)
    except Unverified as error:
        # Who guesses, or floods, on some connections has no more of the loop than others.
        try:
            await asyncio.sleep(UNVERIFIED_PAUSE_S)
        except asyncio.CancelledError:
            REJECTED.labels(error.reason).inc()  # who hangs up meanwhile counts too
            raise
        raise


async def _verified_receipt(request: Request, vendor: str) -> bytes:
    gateway: Gateway = request.app.ctx.gateway
    usual = isinstance(request, UsualCallback)
    gateway.in_flight += 1
    try:
        return await gateway.ingest.handle(
            IngestRequest(
                vendor,
                # Not `query_string`: that ends at a `#`, which some senders do not encode.
                request.raw_url.partition(b"?")[2],
                _address(request, gateway.settings.proxies_count),
                LazyHeaders(request) if usual else request.headers,
                None if usual else partial(read_body, request),
            )
        )
    finally:
        gateway.in_flight -= 1


def _address(request: Request, proxies: int) -> str:
    # Not `remote_addr`, which leaves empty entries out of the count.
    if proxies:
        return counted_address(request.headers.getall("x-forwarded-for", []), proxies)
    return str(request.ip)
