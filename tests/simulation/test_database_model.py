"""The model of the database beside a real PostgreSQL: the same operations, the same results."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import NamedTuple

import asyncpg
import pytest
from asyncpg.exceptions import PostgresError

from app.event import Event
from bench.testbed.process import PATIENCE_S
from sinks.timescale.session import Session
from tests import events
from tests.simulation.operations import in_the_model, perform, real_sessions
from tests.simulation.sql import POISON

SEQUENCES = 10
STEPS = 20
# The wait for a lock that is released, and for one that is not.
LONG_WAIT_S, SHORT_WAIT_S = 20.0, 0.02
KINDS = ("BEGIN", "COMMIT", "ROLLBACK", "copy", "copy", "insert", "insert", "stable", "find")


class Step(NamedTuple):
    """One operation of a session; `then` is that of the other one, while this one may wait."""

    place: int
    kind: str
    batch: Sequence[Event] = ()
    then: str = ""

    @property
    def label(self) -> str:
        """The operation in the results."""
        return f"{self.place} {self.kind} {' '.join(event.user_id or '' for event in self.batch)}"


def steps(seed: int) -> list[Step]:
    """A random sequence of operations of two sessions on a few events."""
    random = Random(seed)  # noqa: S311 - repeatable on purpose
    known = events.events(*(f"{seed}-{name}" for name in "abcde"), has_stable_id=True)
    known.append(events.event(f"{seed}-{POISON}\0"))
    drawn = []
    for _ in range(STEPS):
        batch = random.sample(known, random.choice((1, 1, 2, 3)))
        then = random.choice(("", "", "COMMIT", "ROLLBACK"))
        drawn.append(Step(random.randrange(2), random.choice(KINDS), batch, then))
    return drawn


async def results(
    sessions: Sequence[Session],
    sequence: Sequence[Step],
    until_waiting: Callable[[Session, "asyncio.Task[object]"], Awaitable[None]],
) -> list[object]:
    """The results of a sequence of operations."""
    found: list[object] = []
    for step in sequence:
        session, other = sessions[step.place], sessions[1 - step.place]
        if session.is_in_transaction() and step.kind == "BEGIN":
            continue  # PostgreSQL warns, and goes on with the transaction
        try:
            await session.wait_for_locks(LONG_WAIT_S if step.then else SHORT_WAIT_S)
        except PostgresError as error:  # the transaction has failed
            found.append(error.sqlstate)
        task = asyncio.create_task(perform(session, step.kind, step.batch))
        if step.then:
            await until_waiting(session, task)
            found.append((step.then, await perform(other, step.then, ())))
        found.append((step.label, await task))
    return [*found, *[await perform(session, "ROLLBACK", ()) for session in sessions]]


def waiting_on(
    connection: asyncpg.Connection,
) -> Callable[[Session, "asyncio.Task[object]"], Awaitable[None]]:
    """Return when a task is done, or its session waits for another one in the real server."""

    async def until_waiting(session: Session, task: "asyncio.Task[object]") -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not task.done() and not await connection.fetchval(
                "SELECT pg_blocking_pids($1) <> '{}'", session.get_server_pid()
            ):
                await asyncio.sleep(0.001)

    return until_waiting


async def wait_in_the_model(_: Session, task: "asyncio.Task[object]") -> None:
    """Return when a task is done, or waits in the model."""
    await asyncio.wait([task], timeout=LONG_WAIT_S / 2)


@pytest.fixture(scope="module")
def model_results() -> list[list[object]]:
    """The results of all sequences in the model."""

    def results_of(seed: int) -> list[object]:
        return in_the_model(lambda sessions: results(sessions, steps(seed), wait_in_the_model))

    return list(map(results_of, range(SEQUENCES)))


def test_sequences_have_all_kinds_of_results(model_results: list[list[object]]) -> None:
    """The sequences conflict, wait, are refused and fail: they compare more than successes."""
    text = str(model_results)
    for expected in ("23505", "55P03", "25P02", "22021", "COPY 3", "UUID", "ROLLBACK"):
        assert expected in text


async def test_model_gives_the_results_of_postgresql(
    database_url: str, connection: asyncpg.Connection, model_results: list[list[object]]
) -> None:
    """Two sessions with a real PostgreSQL have the results of the model, step by step."""
    async with real_sessions(database_url) as sessions:
        for seed, expected in enumerate(model_results):
            found = await results(sessions, steps(seed), waiting_on(connection))
            for real, modelled in zip(found, expected, strict=True):
                assert real == modelled, f"sequence {seed}: {found} and in the model {expected}"


async def deadlock(
    sessions: Sequence[Session],
    until_waiting: Callable[[Session, "asyncio.Task[object]"], Awaitable[None]],
) -> list[object]:
    """The results of two sessions, each of which waits for a row of the other; in any order."""
    batches = [[event] for event in events.events("first", "second")]
    for session, batch in zip(sessions, batches, strict=True):
        await session.wait_for_locks(LONG_WAIT_S)
        await perform(session, "BEGIN", ())
        await perform(session, "insert", batch)
    first = asyncio.create_task(perform(sessions[0], "insert", batches[1]))
    await until_waiting(sessions[0], first)
    second = asyncio.create_task(perform(sessions[1], "insert", batches[0]))
    found = [await first, await second]
    ends = [await perform(session, "COMMIT", ()) for session in sessions]
    texts = ["written" if isinstance(one, list) else str(one) for one in [*found, *ends]]
    return [*sorted(texts)]


@pytest.fixture
def modelled_deadlock() -> list[object]:
    """The results of a deadlock in the model."""
    return in_the_model(lambda sessions: deadlock(sessions, wait_in_the_model))


async def test_deadlock_has_one_victim_as_in_postgresql(
    database_url: str, connection: asyncpg.Connection, modelled_deadlock: list[object]
) -> None:
    """Of two sessions that wait for each other one fails, and the other has its rows."""
    assert modelled_deadlock == ["('40P01', None, True)", "COMMIT", "ROLLBACK", "written"]
    async with real_sessions(database_url) as sessions:
        assert await deadlock(sessions, waiting_on(connection)) == modelled_deadlock
