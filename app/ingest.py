"""A request becomes a callback, an event or a drop, and a receipt once the event is committed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import msgspec
from msgspec.structs import replace

from app.access import WRONG_SECRET, sent_app_token, sent_secrets
from app.bodies import Bodies
from app.callbacks import make_callback
from app.dropped import SUBJECT_MAX, Dropped, encode_event
from app.drops import Drops
from app.errors import (
    Malformed,
    Rejected,
    Unavailable,
    UnknownVendor,
    Unverified,
    WriteFailed,
)
from app.event import App, Callback, Drop, DropReason, Event, Outcome, Retries
from app.normalize import clean
from app.parameters import NO_BODY
from app.readiness import corrected, is_clock_right
from app.telemetry.metrics import IDENTIFIERS_IGNORED, REJECTED
from app.telemetry.observer import Submit, Verifier
from app.telemetry.outcomes import count_drop, count_failure
from app.vendor import Vendor, Vendors
from app.workspaces import Workspaces

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
    method: str = "GET"


# The wall clock.
utc_now = partial(datetime.now, UTC)


class Ingest:
    """Turns each request into a committed event or a drop, and a receipt."""

    def __init__(
        self,
        *,
        vendors: Vendors,
        access: Verifier,
        workspaces: Workspaces,
        submit: Submit,
        drops: Drops,
        hint: Callable[[str, Sequence[bytes]], str],
        clock_ahead_s: Callable[[], float | None],
        retention_d: int = 0,
        cell: str = "",
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._vendors = vendors
        self._access = access
        self._workspaces = workspaces
        self._submit = submit
        self._drops = drops
        self._hint = hint
        self._clock_ahead_s = clock_ahead_s
        self._read = partial(make_callback, retention_d=retention_d)
        self._cell = cell
        self._now = now
        self.in_flight = 0
        self.bodies = Bodies()

    async def handle(self, request: Request) -> bytes:
        """Return the receipt of a callback once it is committed or dropped; raises GatewayError."""
        if (vendor := self._vendors.get(request.vendor)) is None:
            raise self._traced(request, UnknownVendor(request.vendor))
        try:
            # Nothing of the request is parsed before its secret is verified.
            app = self._workspaces.find(request.vendor, sent_app_token(request.query))
            owner = app.workspace_id if app else None
            sent = sent_secrets(request.query, request.headers)
            self._access.verify(request.vendor, owner, sent, request.address)
        except Unverified as error:
            await _pause(self._traced(request, error))
            raise
        self.in_flight += 1  # not before: unverified callers must not look like load
        body = b""
        try:
            body, app = await self._receive(request, app) if request.read_body else (body, app)
            if self._cell and app is not None and app.cell != self._cell:
                return await self._turn_away(request, vendor, app, body)
            parsed = await self.bodies.read(request.headers, body, sent) if body else NO_BODY
            callback = self._read(vendor, request.query, parsed, request.headers, self._now(), sent)
            event = self._event(request, vendor, callback, app)
            if isinstance(event, Drop):
                return await self._drop(request, app, event, callback.received_at, body)
            size_bytes = len(request.query) + len(body)
            body, parsed = b"", NO_BODY  # up to megabytes, unused while the event waits
            del callback
            outcome = await self._submit(event, owner or "", size_bytes)
            if (receipt := RECEIPTS.get(outcome)) is None:
                raise WriteFailed("too_late" if outcome is Outcome.TOO_LATE else "write_failed")
            if outcome is Outcome.REFUSED:
                await self._keep_refused(request, event)
            return receipt
        except Malformed as error:
            drop = Drop(DropReason.MALFORMED, error.reason)
            await self._drop(request, app, drop, self._now(), body)
            raise
        except Unavailable as error:  # no write was attempted
            count_failure(request.vendor, owner or "", error.reason)
            raise
        finally:
            self.in_flight -= 1

    async def _receive(self, request: Request, app: App | None) -> tuple[bytes, App | None]:
        """Return the body of a request, and its app as the workspaces file has it after the body.

        A body may take half a minute, in which the app moves to another cell. The secret was
        verified for one workspace: of an app that is another's now, only the cell is new.
        """
        body = await request.read_body() if request.read_body else b""
        found = self._workspaces.find(request.vendor, sent_app_token(request.query))
        if found is None or app is None:
            return body, app
        is_same = found.workspace_id == app.workspace_id
        return body, found if is_same else replace(app, cell=found.cell)

    def _traced(self, request: Request, error: Rejected) -> Rejected:
        """Return the error of a request that is turned away; its trace is kept, within limits."""
        if self._drops.wants_rejected:
            vendor = request.vendor if request.vendor in self._vendors else ""
            hint = ""
            if error.reason == WRONG_SECRET:
                hint = self._hint(vendor, sent_secrets(request.query, request.headers))
            self._drops.reject(error.reason, request.address, vendor, hint)
        return error

    async def _turn_away(self, request: Request, vendor: Vendor, app: App, body: bytes) -> bytes:
        """Keep the callback of an app of another cell, or raise Unavailable if it comes again.

        Its body is not parsed: the app's own cell judges it.
        """
        if vendor.retries is Retries.AFTER_5XX:
            raise Unavailable("other_cell")
        drop = Drop(DropReason.OTHER_CELL, app.cell)
        return await self._drop(request, app, drop, self._now(), body)

    async def _drop(
        self, request: Request, app: App | None, drop: Drop, received_at: datetime, body: bytes
    ) -> bytes:
        """Return the receipt of a drop once it is in quarantine, or if it is ignored; counts it."""
        if drop.reason is DropReason.IGNORED and app is not None:
            count_drop(app.vendor, app.workspace_id, drop.reason, drop.subject)
            return DROPPED
        app_token = app.app_token if app else sent_app_token(request.query) or ""
        dropped = Dropped(
            # A replay accepts times by it.
            received_at=corrected(received_at, self._clock_ahead_s()), vendor=request.vendor,
            workspace_id=app.workspace_id if app else "", app_token=app_token[:SUBJECT_MAX],
            reason=drop.reason, subject=drop.subject[:SUBJECT_MAX], method=request.method,
            query=request.query, body=body,
            content_type=clean(request.headers.get("content-type", ""))[:SUBJECT_MAX],
        )  # fmt: skip
        await self._drops.keep(dropped, app.omit if app else ())
        return DROPPED

    async def _keep_refused(self, request: Request, event: Event) -> None:
        """Keep the event itself: its callback is not held while the event waits."""
        dropped = Dropped(
            received_at=event.received_at, vendor=event.vendor, workspace_id=event.workspace_id,
            app_token=event.app_token, reason=DropReason.REFUSED,
            subject=event.event_type[:SUBJECT_MAX], method=request.method,
            event=encode_event(event),
        )  # fmt: skip
        await self._drops.keep(dropped)

    def _event(
        self, request: Request, vendor: Vendor, callback: Callback, app: App | None
    ) -> Event | Drop:
        """Return the event of a callback, or the reason to drop it; raises Unavailable."""
        if app is None:
            return Drop(DropReason.UNKNOWN_APP, sent_app_token(request.query) or "")
        try:
            event = vendor.parse(callback, app)
            if isinstance(event, Event):
                for name in event.ignored:
                    IDENTIFIERS_IGNORED.labels(app.vendor, name).inc()
                return event
            # Dropped for its time alone while our clock may be wrong: answered 503 instead, where
            # the vendor then tries again.
            depends_on_clock = (
                event.reason is DropReason.INVALID_TIMESTAMP
                and vendor.retries is Retries.AFTER_5XX
                and not is_clock_right(self._clock_ahead_s())
                and isinstance(vendor.parse(replace(callback, any_time=True), app), Event)
            )
        except Exception:
            count_failure(app.vendor, app.workspace_id, "adapter_error")
            raise
        if depends_on_clock:
            raise Unavailable("clock_differs")
        return event


async def _pause(error: Rejected) -> None:
    """Delay the answer, so that guessing secrets is slow."""
    try:
        await asyncio.sleep(UNVERIFIED_PAUSE_S)
    except asyncio.CancelledError:
        REJECTED.labels(error.reason).inc()  # a caller that hangs up meanwhile is counted too
        raise
