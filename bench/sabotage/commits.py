"""Sabotages of fold, claim, settle and release, and of the answers to a batch."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from asyncpg.exceptions import ConnectionDoesNotExistError

from app import commit, gateway
from app.claims import Claim, Claims, scripts, time_limit
from app.claims.redis import RedisClaims
from app.event import Event, Outcome
from bench.sabotage.sabotage import Found, Sabotage, Scenario, patch
from bench.testbed.deliveries import EventKind
from sinks import Sink
from sinks.timescale.connection import ReconnectingConnection
from sinks.timescale.sink import TimescaleSink

WRITES_LATER_S = 0.05
_CONTESTED = {EventKind.CONTESTED: 1_000, EventKind.STABLE: 400}
_REPEATED = {EventKind.REPEATED: 2_000}
_READ_ONLY = ["database_read_only"] * 2
_CUT = ["connection_cut_in_copy"] * 2

write_batch = commit._write  # noqa: SLF001 - the parts to be sabotaged
commit_contested: Callable[..., Awaitable[Outcome]] = commit.commit_contested
claim, sink_write, sink_write_contested = (
    RedisClaims.claim,
    TimescaleSink.write,
    TimescaleSink.write_contested,
)


def _fold_forgets() -> None:
    def unfold(events: Sequence[Event], outcomes: Mapping[bytes, Outcome]) -> Sequence[Outcome]:
        left = dict(outcomes)
        return [left.pop(event.event_id, Outcome.DUPLICATE) for event in events]

    patch(commit, "_unfold", unfold)


def _fold_repeats_written() -> None:
    def unfold(events: Sequence[Event], outcomes: Mapping[bytes, Outcome]) -> Sequence[Outcome]:
        return [outcomes[event.event_id] for event in events]

    patch(commit, "_unfold", unfold)


def _seen_when_claimed() -> None:
    async def claim_seen(claims: RedisClaims, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        answers = await claim(claims, event_ids)
        held = [id_ for id_, answer in zip(event_ids, answers, strict=True) if answer is Claim.HELD]
        await claims.settle(held)
        await claim(claims, [])  # takes the settlements along
        return answers

    patch(RedisClaims, "claim", claim_seen)


def _settle_before_commit() -> None:
    async def write(events: Sequence[Event], claims: Claims, sink: Sink) -> Mapping[bytes, Outcome]:
        await claims.settle([event.event_id for event in events])
        return await write_batch(events, claims, sink)

    patch(commit, "_write", write)


def _unknown_is_settled() -> None:
    async def write(events: Sequence[Event], claims: Claims, sink: Sink) -> Mapping[bytes, Outcome]:
        outcomes = await write_batch(events, claims, sink)
        await claims.settle([id_ for id_ in outcomes if outcomes[id_] is Outcome.FAILED])
        return outcomes

    patch(commit, "_write", write)


def _contested_is_duplicate() -> None:
    patch(scripts, "CLAIMS", scripts.CLAIMS | {ord("b"): Claim.SEEN})


def _contested_failure_is_settled() -> None:
    async def settled(event: Event, claims: Claims, sink: Sink, **more: object) -> Outcome:
        outcome = await commit_contested(event, claims, sink, **more)
        await claims.settle([event.event_id])
        return outcome

    patch(gateway, "commit_contested", settled)


def _unknown_is_written() -> None:
    async def write(sink: TimescaleSink, events: Sequence[Event]) -> Sequence[Outcome]:
        try:
            return await sink_write(sink, events)
        except (TimeoutError, OSError, ConnectionDoesNotExistError):
            return [Outcome.WRITTEN] * len(events)

    patch(TimescaleSink, "write", write)


def _slow_claim_fails() -> None:
    async def claim_in_time(claims: RedisClaims, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        begun = time.monotonic()
        answers = await claim(claims, event_ids)
        if time.monotonic() - begun > time_limit.CLAIM_TIMEOUT_S:
            raise TimeoutError
        return answers

    patch(RedisClaims, "claim", claim_in_time)


def _commit_is_failure() -> None:
    async def write(events: Sequence[Event], claims: Claims, sink: Sink) -> Mapping[bytes, Outcome]:
        outcomes = await write_batch(events, claims, sink)
        is_new = Outcome.WRITTEN
        return {id_: Outcome.FAILED if o is is_new else o for id_, o in outcomes.items()}

    patch(commit, "_write", write)


def _answers_before_commit() -> None:
    later: set[asyncio.Task[None]] = set()

    async def write_later(sink: TimescaleSink, events: Sequence[Event]) -> None:
        await asyncio.sleep(WRITES_LATER_S)
        await sink_write(sink, events)

    async def write(sink: TimescaleSink, events: Sequence[Event]) -> Sequence[Outcome]:
        task = asyncio.create_task(write_later(sink, events))
        later.add(task)
        task.add_done_callback(later.discard)
        return [Outcome.WRITTEN] * len(events)

    patch(TimescaleSink, "write", write)


def _never_written() -> None:
    def reported(outcome: Outcome) -> Outcome:
        return Outcome.DUPLICATE if outcome is Outcome.WRITTEN else outcome

    async def write(sink: TimescaleSink, events: Sequence[Event]) -> Sequence[Outcome]:
        return [reported(outcome) for outcome in await sink_write(sink, events)]

    async def write_contested(sink: TimescaleSink, event: Event) -> Outcome:
        return reported(await sink_write_contested(sink, event))

    patch(TimescaleSink, "write", write)
    patch(TimescaleSink, "write_contested", write_contested)


def _constant_generation() -> None:
    patch(ReconnectingConnection, "generation", property(lambda _: "always the same"))


SABOTAGES = (
    Sabotage(
        "fold-forgets", "Fold: repeats in a batch share its failure.",
        Found.LIED, _fold_forgets, _READ_ONLY, shares=_REPEATED,
    ),
    Sabotage(
        "fold-repeats-written", "Fold: repeats in a batch answer `duplicate`.",
        Found.LIED, _fold_repeats_written, shares=_REPEATED,
    ),
    Sabotage(
        "seen-when-claimed", "Claim: one short lease per event",
        Found.LOST, _seen_when_claimed, ["gateway_killed_between_claim_and_commit"] * 2,
    ),
    Sabotage(
        "contested-is-duplicate", "Contested: another writer has it under way.",
        Found.LIED, _contested_is_duplicate, shares=_CONTESTED,
    ),
    Sabotage(
        "claim-without-time-limit", "A claim that takes more than 100 ms is given up.",
        Found.STUCK, partial(patch, time_limit, "CLAIM_TIMEOUT_S", 3_600.0),
        scenario=Scenario.FROZEN_REDIS,
    ),
    Sabotage(
        "slow-claim-fails", "A batch whose claim is given up goes on as if held.",
        Found.FAILED, _slow_claim_fails, scenario=Scenario.FROZEN_REDIS,
    ),
    Sabotage(
        "settle-before-commit", "Settle: after the commit the claim becomes *seen*.",
        Found.LOST, _settle_before_commit, _READ_ONLY,
    ),
    Sabotage(
        "failure-is-settled", "Release: on failure the claim is given back.",
        Found.LOST, _unknown_is_settled, _READ_ONLY,
    ),
    Sabotage(
        "contested-failure-is-settled", "Release: on failure the claim is given back.",
        Found.LOST, _contested_failure_is_settled, ["table_locked", "database_full"],
        shares=_CONTESTED,
    ),
    Sabotage(
        "unknown-is-written", "An outcome that is not known is a 500.",
        Found.LOST, _unknown_is_written, ["connection_blackholed_in_copy", *_CUT],
    ),
    Sabotage(
        "commit-is-answered-500", "A committed event is answered `written`.",
        Found.FAILED, _commit_is_failure,
    ),
    Sabotage(
        "answers-before-commit", "200 means committed.", Found.LIED, _answers_before_commit,
    ),
    Sabotage(
        "never-written", "`written` for a new row", Found.LIED, _never_written,
    ),
    Sabotage(
        "constant-generation", "Generation: restored data inherits nothing from Redis.",
        Found.LOST, _constant_generation, scenario=Scenario.REPLACED_DATA,
    ),
)  # fmt: skip
