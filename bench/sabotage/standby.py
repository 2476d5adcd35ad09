"""Sabotages of commits that a synchronous standby must have, and of the generation of the data."""

from collections.abc import Callable
from functools import partial

from bench.sabotage.sabotage import Found, Sabotage, Scenario, patch
from sinks.timescale import schema, search
from sinks.timescale import session as sessions

_TIMELINE = "left(pg_walfile_name(pg_current_wal_lsn()), 8)"
_START = "(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8"


def _duplicates_not_confirmed() -> None:
    message = f", {vars(search)['_MESSAGE']}"
    for name in ("_ROWS", "_STABLE"):
        query: str = vars(search)[name]
        assert message in query, f"{name} has no {message}"
        patch(search, name, query.replace(message, ""))


def _cancelled_wait_ignored() -> None:
    patch(sessions, "_note_cancelled_wait", lambda *_: None)


def _generation_without(*parts: str) -> Callable[[], None]:
    """Return a patch that makes these parts of the generation constant."""
    identity: str = vars(schema)["_IDENTITY"]
    for part in parts:
        assert part in identity, f"the generation has no {part}"
        identity = identity.replace(part, "0")
    return partial(patch, schema, "_IDENTITY", identity)


def _lacking(name: str, sentence: str, apply: Callable[[], None]) -> Sabotage:
    return Sabotage(name, sentence, Found.LOST, apply, scenario=Scenario.LACKING_STANDBY)


SABOTAGES = (
    _lacking(
        "duplicate-not-confirmed", "A duplicate writes a message into the WAL.",
        _duplicates_not_confirmed,
    ),
    _lacking(
        "cancelled-wait-ignored", "A cancelled wait for replication is an unknown outcome.",
        _cancelled_wait_ignored,
    ),
    _lacking(
        "commit-without-standby", "A synchronous standby has each row that is answered.",
        partial(patch, sessions, "DURABLE", "SET synchronous_commit = local"),
    ),
    Sabotage(
        "generation-without-start", "Generation: the start of the server",
        Found.LOST, _generation_without(_START), scenario=Scenario.REPLACED_DATA,
    ),
    Sabotage(
        "generation-without-timeline", "Generation: the timeline, and the start of the server",
        Found.LOST, _generation_without(_TIMELINE, _START), ["recovered_to_a_moment"],
        callbacks=4_000,
    ),
)  # fmt: skip
