"""The path of a callback: access, adapter, buffer, commit (claim, write, settle), receipt."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from adapters import Adapter
from app import metrics
from app.access import Access
from app.buffer import WriteBuffer
from app.callback import clean_form, decode, parse_body, split_form
from app.claims import Claims
from app.errors import MalformedBody, Unavailable, UnknownVendor, WriteFailed
from app.event import OLDEST_OCCURRED_AT, Callback, Claim, Drop, DropReason, Event, Outcome
from app.settings import ROW_LIFE_MIN_D
from app.workspaces import Workspaces
from sinks import Sink

BODY_AT_ONCE_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class Receipt(msgspec.Struct, frozen=True):
    """The body of every 200: what became of the events of one request."""

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
_COUNTED = {
    Outcome.WRITTEN: (metrics.WRITTEN, None),
    Outcome.DUPLICATE: (metrics.DUPLICATE, None),
    Outcome.REFUSED: (metrics.DROPPED, DropReason.REFUSED.value),
}
_COMMITTED = (Outcome.WRITTEN, Outcome.DUPLICATE)


class Request(msgspec.Struct, frozen=True):
    """What the HTTP server hands over: bytes as they came, and the address of the caller.

    `read_body` is asked only when the caller is verified; without it there is no body.
    """

    vendor: str
    query: bytes
    address: str
    headers: Mapping[str, str]
    read_body: Callable[[], Awaitable[bytes]] | None


class Ingest:
    """Handles one callback at a time, many at once."""

    def __init__(
        self,
        *,
        adapters: Mapping[str, Adapter],
        access: Access,
        workspaces: Workspaces,
        buffer: WriteBuffer[Event, Outcome],
        retention_d: int = 0,
    ) -> None:
        self._adapters = adapters
        self._access = access
        self._workspaces = workspaces
        self._buffer = buffer
        self._retention_d = retention_d

    async def handle(self, request: Request) -> bytes:
        """Return the receipt of a callback once it is committed or dropped; raises GatewayError."""
        adapter = self._adapters.get(request.vendor)
        if adapter is None:
            raise UnknownVendor(request.vendor)
        query = self._verified_query(request)
        body = await request.read_body() if request.read_body else b""
        callback = await self._callback(query, request.headers, body)
        workspace, event = self._parsed(request.vendor, adapter, callback)
        if isinstance(event, Drop):
            metrics.count(metrics.DROPPED, request.vendor, workspace, event.reason.value)
            return DROPPED
        try:
            size_bytes = len(request.query) + len(body)
            del query, body, callback  # up to megabytes, which nobody needs while it waits
            outcome = await self._buffer.submit(event, workspace, size_bytes)
        except Unavailable as error:  # not even tried: nobody else counts it
            metrics.count(metrics.FAILED, request.vendor, workspace, error.reason)
            raise
        return RECEIPTS[outcome]

    def _verified_query(self, request: Request) -> dict[str, str]:
        """Return the clean parameters of the URL, without the secret that they were sent with."""
        query = split_form(request.query)
        secret = decode(query.pop("secret", ""))
        self._access.verify(request.vendor, secret, request.address)
        return clean_form(query)

    async def _callback(
        self, query: dict[str, str], headers: Mapping[str, str], body: bytes
    ) -> Callback:
        parameters = query
        if body:
            content_type = headers.get("content-type", "")
            if len(body) <= BODY_AT_ONCE_BYTES:
                in_body = parse_body(content_type, body)
            else:  # it may take the better part of a second: the others do not wait for it
                in_body = await asyncio.to_thread(parse_body, content_type, body)
            if in_body is None:
                raise MalformedBody("malformed_body")
            in_body.pop("secret", None)
            parameters = in_body | query
        received_at = datetime.now(UTC)
        return Callback(
            query=query,
            parameters=parameters,
            received_at=received_at,
            occurred_from=self._occurred_from(received_at),
            headers=headers,
            body=body,
        )

    def _occurred_from(self, received_at: datetime) -> datetime:
        if not self._retention_d:
            return OLDEST_OCCURRED_AT
        retained_from = received_at - timedelta(days=self._retention_d)
        return max(OLDEST_OCCURRED_AT, retained_from + timedelta(days=ROW_LIFE_MIN_D))

    def _parsed(
        self, vendor: str, adapter: Adapter, callback: Callback
    ) -> tuple[str, Event | Drop]:
        """Return the ID of the workspace, empty where there is none, and what the adapter says."""
        workspace_id = ""
        try:
            workspace = self._workspaces.find(vendor, adapter.app_token(callback))
            if workspace is None:
                return workspace_id, Drop(DropReason.UNKNOWN_APP)
            workspace_id = workspace.id
            return workspace_id, adapter.parse(callback, workspace)
        except Exception:
            metrics.count(metrics.FAILED, vendor, workspace_id, "adapter_error")
            raise


async def commit(
    events: Sequence[Event], claims: Claims, sink: Sink
) -> Sequence[Outcome | WriteFailed]:
    """Commit one batch, and return what became of each event, in order.

    Repeats of one event become one. A CONTESTED event goes on to `commit_contested`; a failed
    one may be tried again.
    """
    metrics.BATCH_EVENTS.observe(len(events))
    with metrics.COMMIT_SECONDS.time():
        unique = {event.event_id: event for event in reversed(events)}
        with metrics.CLAIM_SECONDS.time():
            claimed = dict(zip(unique, await claims.claim(list(unique)), strict=True))
        outcomes: dict[bytes, Outcome | WriteFailed] = {
            event_id: Outcome.DUPLICATE if claim is Claim.SEEN else Outcome.CONTESTED
            for event_id, claim in claimed.items()
        }
        held = [event for event_id, event in unique.items() if claimed[event_id] is Claim.HELD]
        if held:
            outcomes |= await _write(held, claims, sink, contested=False)
    return _tell(events, outcomes)


async def commit_contested(
    events: Sequence[Event], claims: Claims, sink: Sink
) -> Sequence[Outcome | WriteFailed]:
    """Commit events that must be written alone: the database decides, without a claim."""
    return _tell(events, await _write(events, claims, sink, contested=True))


async def hand_over(event: Event, twins: WriteBuffer[Event, Outcome], claims: Claims) -> Outcome:
    """Give a CONTESTED event to the buffer of those that are written alone."""
    try:
        return await twins.submit(event, event.workspace_id)
    except Unavailable as error:
        await claims.release([event.event_id])
        metrics.count(metrics.FAILED, event.vendor, event.workspace_id, error.reason)
        raise WriteFailed(error.reason) from None


async def _write(
    events: Sequence[Event], claims: Claims, sink: Sink, *, contested: bool
) -> dict[bytes, Outcome | WriteFailed]:
    """Write, then settle what is committed and release what is not."""
    ids = [event.event_id for event in events]
    try:
        with metrics.WRITE_SECONDS.time():
            outcomes = dict(zip(ids, await sink.write(events, contested=contested), strict=True))
    except asyncio.CancelledError:
        await claims.release(ids)
        raise
    except Exception as error:  # noqa: BLE001 - whatever it was, a retry is safe and wanted
        await claims.release(ids)
        log.error(
            "batch failed",
            # Only the first line: in those that follow PostgreSQL shows the row.
            extra={
                "events": len(events),
                "error": type(error).__name__,
                "detail": str(error).partition("\n")[0],
            },
        )
        return dict.fromkeys(ids, WriteFailed("write_failed"))
    with metrics.SETTLE_SECONDS.time():
        if contested:
            # Another connection wrote it, maybe to other data than the claims are about. The next
            # delivery finds the row, and settles.
            await claims.release(ids)
        else:
            await claims.settle([id_ for id_ in ids if outcomes[id_] in _COMMITTED])
            await claims.release([id_ for id_ in ids if outcomes[id_] is Outcome.REFUSED])
    return dict(outcomes)


def _tell(
    events: Sequence[Event], outcomes: dict[bytes, Outcome | WriteFailed]
) -> list[Outcome | WriteFailed]:
    """Return each event's own outcome, and count it: of repeats, only the first was written."""
    answers = []
    for event in events:
        answers.append(outcome := outcomes[event.event_id])
        if outcome is Outcome.WRITTEN:
            outcomes[event.event_id] = Outcome.DUPLICATE  # for those that repeat it
    tally = Counter(
        (event.vendor, event.workspace_id, answer)
        for event, answer in zip(events, answers, strict=True)
    )
    for (vendor, workspace_id, answer), number in tally.items():
        if isinstance(answer, WriteFailed):
            metrics.count(metrics.FAILED, vendor, workspace_id, answer.reason, number=number)
        elif answer is not Outcome.CONTESTED:  # not decided yet: counted when it is
            metric, reason = _COUNTED[answer]
            metrics.count(metric, vendor, workspace_id, reason, number=number)
    return answers
