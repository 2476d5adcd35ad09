"""The product with one promise broken on purpose: a simulation must find each of them."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import NamedTuple
from unittest.mock import patch

import asyncpg
from asyncpg.exceptions import PostgresError, UniqueViolationError

from adapters import _url
from app import commit, event
from app.buffer import WriteBuffer
from app.claims import Claim, Claims, scripts
from app.claims.redis import RedisClaims
from app.event import Event, Outcome
from sinks import Sink
from sinks.timescale import connection, search, session, sink, statements, writes
from sinks.timescale.chunks import Chunks
from sinks.timescale.errors import Cause, classify
from sinks.timescale.schema import Identity, read_identity
from sinks.timescale.session import Session
from sinks.timescale.sink import TimescaleSink
from tests.simulation import history
from tests.simulation.database import Server
from tests.simulation.redis_server import RELEASE_OF_ANY

WRITTEN, DUPLICATE, REFUSED = Outcome.WRITTEN, Outcome.DUPLICATE, Outcome.REFUSED
_MESSAGE = f", {search._MESSAGE}"
_write, _write_contested = TimescaleSink.write, TimescaleSink.write_contested
_claim, _submit = RedisClaims.claim, WriteBuffer.submit
_commit_write, _write_batch, _write_one = commit._write, writes.write_batch, writes.write_one
_by_presence = statements._by_presence
_event_id, _copy_rows = event.event_id, statements._copy_rows


async def _settle_first(
    events: Sequence[Event], claims: Claims, into: Sink
) -> Mapping[bytes, Outcome]:
    await claims.settle([one.event_id for one in events])
    return await _commit_write(events, claims, into)


async def _written_when_unknown(self: TimescaleSink, events: Sequence[Event]) -> Sequence[Outcome]:
    try:
        return await _write(self, events)
    except (TimeoutError, OSError):
        return [WRITTEN] * len(events)


async def _write_later(self: TimescaleSink, events: Sequence[Event]) -> Sequence[Outcome]:
    asyncio.create_task(_write(self, events))  # noqa: RUF006 - forgotten on purpose
    return [WRITTEN] * len(events)


async def _in_another_order(self: TimescaleSink, events: Sequence[Event]) -> Sequence[Outcome]:
    return list(reversed(await _write(self, events)))


async def _seen_without_redis(self: RedisClaims, event_ids: Sequence[bytes]) -> Sequence[Claim]:
    claims = await _claim(self, event_ids)
    return [Claim.SEEN] * len(claims) if self.is_bypassed else claims


async def _contested_is_seen(self: RedisClaims, event_ids: Sequence[bytes]) -> Sequence[Claim]:
    claims = await _claim(self, event_ids)
    return [Claim.SEEN if claim is Claim.CONTESTED else claim for claim in claims]


async def _no_final_refusal(self: TimescaleSink, refused: Event) -> Outcome:
    outcome = await _write_contested(self, refused)
    if outcome is REFUSED:
        raise LookupError("no final answer")
    return outcome


async def _conflict_is_of_all(
    using: Session, events: Sequence[Event], chunks: Chunks
) -> dict[bytes, Outcome]:
    try:
        return await statements.copy_events(using, events)
    except UniqueViolationError:
        return {one.event_id: DUPLICATE for one in events}
    except PostgresError:
        return await _write_batch(using, events, chunks)


async def _refused_for_any_error(using: Session, sent: Event) -> Outcome:
    try:
        return await _write_one(using, sent)
    except PostgresError:
        return REFUSED


async def _locked_is_duplicate(using: Session, sent: Event) -> Outcome:
    try:
        return await _write_one(using, sent)
    except PostgresError as error:
        if classify(error).cause is Cause.LOCKED:
            return DUPLICATE
        raise


async def _same_identity(using: asyncpg.Connection) -> Identity:
    return (await read_identity(using))._replace(generation="always")


async def _as_many_as_sent(using: Session, events: Sequence[Event]) -> int:
    await _copy_rows(using, events)
    return len(events)


def _found_is_written(
    events: Sequence[Event], rows: Collection[bytes], _found: Outcome
) -> dict[bytes, Outcome]:
    return _by_presence(events, rows, WRITTEN)


def _all_written(events: Sequence[Event], outcomes: dict[bytes, Outcome]) -> Sequence[Outcome]:
    return [outcomes[one.event_id] for one in events]


@contextmanager
def _repeats_at_once() -> Iterator[None]:
    """Answer a repeat of an event that is in the buffer before its commit."""
    under_way: set[tuple[int, bytes]] = set()

    async def submit(
        self: WriteBuffer[Event, Outcome], item: Event, owner: str, size_bytes: int = 0
    ) -> Outcome:
        key = (id(self), item.event_id)
        if key in under_way:
            return DUPLICATE
        under_way.add(key)
        try:
            return await _submit(self, item, owner, size_bytes)
        finally:
            under_way.discard(key)

    with patch.object(WriteBuffer, "submit", submit):
        yield


@contextmanager
def _identity_without(**changed: Callable[[object], object]) -> Iterator[None]:
    """Leave a part out of the event ID."""

    def event_id(**parts: object) -> bytes:
        for name, change in changed.items():
            parts[name] = change(parts[name])
        return _event_id(**parts)  # type: ignore[arg-type]

    with patch.object(_url, "event_id", event_id):
        yield


@contextmanager
def _together(*patches: AbstractContextManager[object]) -> Iterator[None]:
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        yield


def _unconfirmed() -> AbstractContextManager[object]:
    return _together(
        patch.object(search, "_ROWS", search._ROWS.replace(_MESSAGE, "")),
        patch.object(search, "_STABLE", search._STABLE.replace(_MESSAGE, "")),
    )


def _stable_ids_apart() -> AbstractContextManager[object]:
    return _together(
        patch.object(statements, "transaction", lambda _session: nullcontext()),
        patch.object(statements, "unit", lambda _session, *, is_whole: nullcontext(is_whole)),
    )


def _replace(place: object, name: str, by: object) -> Callable[[], AbstractContextManager[object]]:
    return lambda: patch.object(place, name, by)


SABOTAGES: Mapping[str, Callable[[], AbstractContextManager[object]]] = {
    "claims are seen before the write": _replace(commit, "_write", _settle_first),
    "claims are seen after a failure": _replace(RedisClaims, "release", RedisClaims.settle),
    "a release gives back any claim": _replace(scripts, "_RELEASE", RELEASE_OF_ANY),
    "a contested event is a duplicate": _replace(RedisClaims, "claim", _contested_is_seen),
    "without Redis every event is a duplicate": _replace(RedisClaims, "claim", _seen_without_redis),
    "the generation never changes": _replace(connection, "read_identity", _same_identity),
    "repeats are answered before the commit": _repeats_at_once,
    "repeats of a written event are written": _replace(commit, "_unfold", _all_written),
    "a batch is answered before its commit": _replace(TimescaleSink, "write", _write_later),
    "an unknown outcome is written": _replace(TimescaleSink, "write", _written_when_unknown),
    "outcomes are of other events": _replace(TimescaleSink, "write", _in_another_order),
    "a conflict makes its batch duplicates": _replace(sink, "write_batch", _conflict_is_of_all),
    "a locked event is a duplicate": _replace(sink, "write_one", _locked_is_duplicate),
    "any error refuses an event": _replace(sink, "write_one", _refused_for_any_error),
    "a refusal is never final": _replace(TimescaleSink, "write_contested", _no_final_refusal),
    "duplicates are not confirmed in the WAL": _unconfirmed,
    "a cancelled wait for the standby is ignored": _replace(
        session, "_note_cancelled_wait", lambda *_: None
    ),
    "commits do not wait for the standby": _replace(session, "DURABLE", "SET lock_timeout = 100"),
    "stable IDs are committed apart from their rows": _stable_ids_apart,
    "copied rows are not counted": _replace(statements, "_copy_rows", _as_many_as_sent),
    "events that were there before are written": _replace(
        statements, "_by_presence", _found_is_written
    ),
    "there is no unique index": _replace(Server, "is_unique", by=False),
    "the event ID lacks the app": lambda: _identity_without(app_token=lambda _: ""),
    "the event ID lacks the kind of user": lambda: _identity_without(
        user=lambda user: ("", user[1] if isinstance(user, tuple) else user)
    ),
    "the event ID lacks the event token": lambda: _identity_without(raw_event_id=lambda _: ""),
    "the event ID lacks the stable ID": lambda: _identity_without(stable_id=lambda _: None),
}


class Found(NamedTuple):
    """The first history that shows a sabotage."""

    result: history.Result
    histories: int


def find(name: str, seeds: Iterable[int]) -> Found | None:
    """Return the first history of these seeds that shows a sabotage; None where none does."""
    with SABOTAGES[name]():
        for number, seed in enumerate(seeds, 1):
            result = history.run(seed)
            if not result.is_sound:
                return Found(result, number)
    return None
