"""A request becomes a callback, an event or a drop, and a receipt once the event is committed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial

import msgspec
from msgspec.structs import replace

from adapters import Adapter
from app.access import PublicHeaders, sent_app_token, sent_secrets
from app.errors import (
    MalformedBody,
    TooManyParameters,
    Unavailable,
    UnknownVendor,
    Unverified,
    WriteFailed,
)
from app.event import OLDEST_OCCURRED_AT, App, Callback, Drop, DropReason, Event, Outcome
from app.parameters import PARAMETERS_MAX, parse_body, parse_form
from app.settings import ROW_LIFE_MIN_D
from app.telemetry.metrics import IDENTIFIERS_IGNORED, REJECTED
from app.telemetry.observer import Submit, Verifier
from app.telemetry.outcomes import count_drop, count_failure
from app.workspaces import Workspaces

# A larger body is parsed in a thread, since it would block the event loop too long.
BODY_AT_ONCE_BYTES = 16 * 1024
# Limit on large bodies that wait for the thread: the connections' budget counts them no longer.
WAITING_MAX_BYTES = 64 * 1024 * 1024
# Delay of the answer to an unverified callback.
UNVERIFIED_PAUSE_S = 0.1


class Receipt(msgspec.Struct, frozen=True):
    """The body of every 200: the outcome of the one callback of a request."""

    received: int = 1
    written: int = 0
    duplicate: int = 0
    dropped: int = 0


DROPPED = msgspec.json.encode(Receipt(dropped=1))
RECEIPTS = {
    Outcome.WRITTEN: msgspec.json.encode(Receipt(written=1)),
    Outcome.DUPLICATE: msgspec.json.encode(Receipt(duplicate=1)),
    Outcome.REFUSED: DROPPED,
}


class Request(msgspec.Struct, frozen=True):
    """A request as the HTTP server received it: raw bytes, and the address of the caller.

    `read_body` is called only once the caller is verified; None is a request without a body.
    """

    vendor: str
    query: bytes
    address: str
    headers: Mapping[str, str]
    read_body: Callable[[], Awaitable[bytes]] | None = None


# The wall clock.
utc_now = partial(datetime.now, UTC)


class Ingest:
    """Turns each request into a committed event or a drop, and a receipt."""

    def __init__(
        self,
        *,
        adapters: Mapping[str, Adapter],
        access: Verifier,
        workspaces: Workspaces,
        submit: Submit,
        is_clock_right: Callable[[], bool],
        retention_d: int = 0,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._adapters = adapters
        self._access = access
        self._workspaces = workspaces
        self._submit = submit
        self._is_clock_right = is_clock_right
        self._retention_d = retention_d
        self._now = now
        self.in_flight = 0
        # One thread: several would compete with the event loop for the interpreter's lock.
        self._large_bodies = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")
        self._waiting_bytes = 0

    async def handle(self, request: Request) -> bytes:
        """Return the receipt of a callback once it is committed or dropped; raises GatewayError."""
        adapter = self._adapters.get(request.vendor)
        if adapter is None:
            raise UnknownVendor(request.vendor)
        try:
            # Nothing of the request is parsed before its secret is verified.
            app = self._workspaces.find(request.vendor, sent_app_token(request.query))
            owner = app.workspace_id if app else None
            secrets = sent_secrets(request.query, request.headers)
            self._access.verify(request.vendor, owner, secrets, request.address)
        except Unverified as error:
            await _pause(error)
            raise
        workspace = owner or ""
        # Not before: unverified callers must not look like load.
        self.in_flight += 1
        try:
            body = await request.read_body() if request.read_body else b""
            in_body = await self.parameters_of_body(request, body) if body else {}
            event = self._event(adapter, self.callback(request, in_body, body), app)
            if isinstance(event, Drop):
                count_drop(request.vendor, workspace, event)
                return DROPPED
            size_bytes = len(request.query) + len(body)
            del body, in_body  # up to megabytes, unused while the event waits
            outcome = await self._submit(event, workspace, size_bytes)
            if (receipt := RECEIPTS.get(outcome)) is None:
                raise WriteFailed("too_late" if outcome is Outcome.TOO_LATE else "write_failed")
            return receipt
        except Unavailable as error:  # no write was attempted
            count_failure(request.vendor, workspace, error.reason)
            raise
        finally:
            self.in_flight -= 1

    def callback(self, request: Request, in_body: dict[str, str], body: bytes) -> Callback:
        """Return the decoded callback; the parameters of its URL win. Raises TooManyParameters."""
        query = parse_form(request.query)
        query.pop("secret", None)
        in_body.pop("secret", None)
        parameters = in_body | query if in_body else query
        if len(parameters) > PARAMETERS_MAX:
            raise TooManyParameters("too_many_parameters")
        received_at = self._now()
        occurred_from = OLDEST_OCCURRED_AT
        if self._retention_d:
            kept_d = self._retention_d - ROW_LIFE_MIN_D
            occurred_from = max(OLDEST_OCCURRED_AT, received_at - timedelta(days=kept_d))
        return Callback(
            query=query,
            parameters=parameters,
            received_at=received_at,
            occurred_from=occurred_from,
            headers=PublicHeaders(request.headers),
            body=body,
        )

    async def parameters_of_body(self, request: Request, body: bytes) -> dict[str, str]:
        """Return the parameters of a body; raises MalformedBody, TooManyParameters, Unavailable."""
        content_type = request.headers.get("content-type", "")
        if len(body) <= BODY_AT_ONCE_BYTES:
            parameters = parse_body(content_type, body)
        else:
            parameters = await self._parse_large(content_type, body)
        if parameters is None:
            raise MalformedBody("malformed_body")
        return parameters

    async def _parse_large(self, content_type: str, body: bytes) -> dict[str, str] | None:
        if self._waiting_bytes + len(body) > WAITING_MAX_BYTES:
            raise Unavailable("buffer_full")
        self._waiting_bytes += (size_bytes := len(body))

        def release(_: object) -> None:
            self._waiting_bytes -= size_bytes

        parsed = asyncio.get_running_loop().run_in_executor(
            self._large_bodies, parse_body, content_type, body
        )
        parsed.add_done_callback(release)
        # Shielded: the queued body stays in memory, and is counted, even if the caller hangs up.
        return await asyncio.shield(parsed)

    def _event(self, adapter: Adapter, callback: Callback, app: App | None) -> Event | Drop:
        """Return the event of a callback, or the reason to drop it; raises Unavailable."""
        if app is None:
            return Drop(DropReason.UNKNOWN_APP)
        try:
            event = adapter.parse(callback, app)
            if isinstance(event, Event):
                for name in event.ignored:
                    IDENTIFIERS_IGNORED.labels(app.vendor, name).inc()
                return event
            # Dropped for its time alone while our clock may be wrong: answered 503 instead.
            depends_on_clock = (
                event.reason is DropReason.INVALID_TIMESTAMP
                and not self._is_clock_right()
                and isinstance(adapter.parse(replace(callback, any_time=True), app), Event)
            )
        except Exception:
            count_failure(app.vendor, app.workspace_id, "adapter_error")
            raise
        if depends_on_clock:
            raise Unavailable("clock_differs")
        return event


async def _pause(error: Unverified) -> None:
    """Delay the answer, so that guessing secrets is slow."""
    try:
        await asyncio.sleep(UNVERIFIED_PAUSE_S)
    except asyncio.CancelledError:
        REJECTED.labels(error.reason).inc()  # a caller that hangs up meanwhile is counted too
        raise
