"""A synchronous standby that is away: no event is answered before it has the row."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from app.dev.embedded import EmbeddedError
from app.dev.processes import Server
from bench.testbed.pgbouncer import find_pgbouncer, pgbouncer
from bench.testbed.process import PATIENCE_S
from bench.topologies.pair import Pair
from bench.topologies.servers import (
    HYPERTABLE,
    OWNER,
    PASSWORD,
    PLAIN,
    execute,
    fetch_value,
    until_waiting,
    url_of,
)
from tests.gateways import PATIENT, Process, Services, environment
from tests.outcomes import COMMITTED, Parameters, callbacks, forget, outcome, serving, until_told
from tests.services.test_commands import run

# Soon over; the servers look for a deadlock after 100 ms.
HASTY = {"COMMIT_TIMEOUT_S": "1", "CLAIM_LEASE_S": "2"}
COUNT = "SELECT count(*) FROM events WHERE user_id = $1"


class Route(NamedTuple):
    """The way of gateways to a database of the pair."""

    name: str  # as it may stand in a URL
    url: str
    database: str


ROUTES = {"hypertable": HYPERTABLE, "plain table": PLAIN, "behind PgBouncer": PLAIN}
on_each_route = pytest.mark.parametrize("route", ROUTES, indirect=True)


@pytest.fixture
def route(request: pytest.FixtureRequest, pair: Pair, tmp_path: Path) -> Iterator[Route]:
    """The way to a table of each kind, and to one through a pooler."""
    name, database = request.param.replace(" ", "-"), ROUTES[request.param]
    url = url_of(pair.primary, database=database)
    if request.param != "behind PgBouncer":
        yield Route(name, url, database)
        return
    try:
        program = find_pgbouncer()
    except EmbeddedError as why:
        pytest.skip(str(why))
    with pgbouncer(program, tmp_path / "pgbouncer", url, OWNER, PASSWORD) as bouncer:
        yield Route(name, bouncer.url_of(database), database)


@pytest.fixture
def hasty(services: Services, tmp_path: Path, route: Route) -> Iterator[Process]:
    """A gateway that soon gives up."""
    with serving(route.url, services.redis_url, tmp_path, **HASTY) as gateway:
        gateway.wait_until_ready()
        yield gateway


@pytest.fixture
def patient(services: Services, tmp_path: Path, route: Route) -> Iterator[Process]:
    """A gateway that waits for a standby longer than any test does."""
    with serving(route.url, services.redis_url, tmp_path, **PATIENT) as gateway:
        gateway.wait_until_ready()
        yield gateway


async def assert_waits(pair: Pair, answer: asyncio.Task[str]) -> None:
    """Fail unless a commit waits for the standby, and its callback has no answer."""
    waiting = asyncio.create_task(until_waiting(pair.primary))
    await asyncio.wait([waiting, answer], return_when=asyncio.FIRST_COMPLETED)
    assert not answer.done(), f"told {answer.result()} without a standby"
    await waiting


async def assert_standby_has(pair: Pair, route: Route, *sent: Parameters) -> None:
    """Fail unless one row of each is there when the primary burns down now."""
    pair.primary.kill()
    await pair.promote()
    for callback in sent:
        assert await rows(pair.primary, route, callback) == 1, callback


async def rows(server: Server, route: Route, callback: Parameters) -> int:
    """How many rows of a callback are visible on a server."""
    return int(await fetch_value(server, COUNT, callback["user_id"], database=route.database))


async def fail_until_visible(
    pair: Pair, gateway: Process, route: Route, callback: Parameters
) -> None:
    """Send a callback until its row is there to be read; fail unless it is a 500 each time."""
    async with asyncio.timeout(PATIENCE_S):
        while not await rows(pair.primary, route, callback):
            assert await outcome(gateway, callback) == "500"


@on_each_route
async def test_retry_waits_for_the_standby(
    pair: Pair, hasty: Process, services: Services, route: Route
) -> None:
    """A row that is visible and on no standby is a 500 at each retry, then a duplicate for good."""
    sent = list(callbacks(f"retried-{route.name}").values())
    pair.standby.pause()
    for callback in sent:
        await fail_until_visible(pair, hasty, route, callback)
        assert await outcome(hasty, callback) == "500"
        await forget(services.redis_url)
        assert await outcome(hasty, callback) == "500"
    pair.standby.resume()
    assert {await until_told(hasty, callback) for callback in sent} == {"duplicate"}
    await assert_standby_has(pair, route, *sent)


@on_each_route
async def test_batch_of_duplicates_waits_for_the_standby(
    pair: Pair, hasty: Process, route: Route
) -> None:
    """Retries of many at once get no answer either, beside repeats and new events."""
    sent: list[Parameters] = [
        callback for number in range(5)
        for callback in callbacks(f"many-{number}-{route.name}").values()
    ]  # fmt: skip
    pair.standby.pause()
    for some in (sent[:-2], sent):
        answers = await asyncio.gather(*(outcome(hasty, callback) for callback in some * 2))
        assert set(answers) == {"500"}
    pair.standby.resume()
    told = await asyncio.gather(*(until_told(hasty, callback) for callback in sent))
    assert set(told) <= COMMITTED
    assert {await rows(pair.primary, route, callback) for callback in sent} == {1}


@on_each_route
@pytest.mark.parametrize("way", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_ended_wait_is_a_500(pair: Pair, patient: Process, route: Route, way: str) -> None:
    """A wait for the standby that an administrator ends is a 500, and the retry waits too."""
    for kind, callback in callbacks(f"{way}-{route.name}").items():
        pair.standby.pause()
        answer = asyncio.create_task(outcome(patient, callback))
        await assert_waits(pair, answer)
        for pid in await until_waiting(pair.primary):
            await execute(pair.primary, f"SELECT {way}({pid})")
        assert await answer == "500", kind
        retry = asyncio.create_task(until_told(patient, callback))
        await assert_waits(pair, retry)
        pair.standby.resume()
        assert await retry == "duplicate", kind
        await pair.until_synchronous()
        assert await rows(pair.standby, route, callback) == 1


@on_each_route
async def test_crash_of_the_primary_ends_no_wait(
    pair: Pair, patient: Process, route: Route
) -> None:
    """Commits that waited when the primary crashed are there after it; their retries wait."""
    sent = callbacks(f"crashed-{route.name}")
    for callback in sent.values():
        pair.standby.pause()
        answer = asyncio.create_task(outcome(patient, callback))
        await assert_waits(pair, answer)
        pair.primary.kill()
        assert await answer == "500"
        await asyncio.to_thread(pair.primary.start)
        assert await rows(pair.primary, route, callback) == 1
        retry = asyncio.create_task(until_told(patient, callback))
        await assert_waits(pair, retry)
        pair.standby.resume()
        assert await retry == "duplicate"
    await assert_standby_has(pair, route, *sent.values())


@pytest.mark.parametrize("route", ["hypertable"], indirect=True)
async def test_retry_waits_for_a_killed_standby(pair: Pair, hasty: Process, route: Route) -> None:
    """A retry waits for a standby that is gone, until it is back."""
    [callback, _] = callbacks("killed").values()
    pair.standby.kill()
    await fail_until_visible(pair, hasty, route, callback)
    assert await outcome(hasty, callback) == "500"
    await asyncio.to_thread(pair.standby.start)
    assert await until_told(hasty, callback) == "duplicate"
    await assert_standby_has(pair, route, callback)


LESS = ("local", "remote_write")


@pytest.mark.parametrize("level", LESS)
async def test_commits_wait_for_the_flush_under_any_role(
    pair: Pair, services: Services, tmp_path: Path, level: str
) -> None:
    """For any setting of the role, commits of the gateway wait for the flush of the standby."""
    await execute(
        pair.primary,
        "CREATE TABLE levels (level text);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO levels VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$;"
        "CREATE TRIGGER note BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION note()",
        f"ALTER ROLE {OWNER} SET synchronous_commit = '{level}'",
    )
    try:
        with serving(url_of(pair.primary), services.redis_url, tmp_path, **PATIENT) as gateway:
            gateway.wait_until_ready()
            pair.standby.pause()
            for callback in callbacks(f"{level}").values():
                answer = asyncio.create_task(until_told(gateway, callback))
                await assert_waits(pair, answer)
                pair.standby.resume()
                assert await answer == "written"
                pair.standby.pause()
        assert await fetch_value(pair.primary, "SELECT array_agg(DISTINCT level) FROM levels") == [
            "on"
        ]
    finally:
        await execute(
            pair.primary,
            f"ALTER ROLE {OWNER} RESET synchronous_commit",
            "DROP TABLE levels; DROP FUNCTION note CASCADE",
        )


async def line_of_check(pair: Pair, services: Services, folder: Path, subject: str) -> str:
    """The first line of `check` about a setting of the database."""
    environ = environment(url_of(pair.primary), services.redis_url, folder)
    ended = await asyncio.to_thread(run, "check", **environ)
    lines = ended.stdout.splitlines()
    return next(line for line in lines if f"database setting {subject}:" in line)


async def test_check_reports_whether_the_standby_is_there(
    pair: Pair, services: Services, tmp_path: Path
) -> None:
    """A configured standby that confirms is ok; one that is away is a failure."""
    subject = "synchronous_standby_names"
    line = await line_of_check(pair, services, tmp_path, subject)
    assert (line.split()[0], "confirmed" in line) == ("ok", True)
    pair.standby.pause()
    line = await line_of_check(pair, services, tmp_path, subject)
    assert (line.split()[0], "500" in line) == ("FAILED", True)


@pytest.mark.parametrize("level", LESS)
async def test_check_names_a_role_that_waits_for_less(
    pair: Pair, services: Services, tmp_path: Path, level: str
) -> None:
    """A setting of the role is a failure where it is weaker than the gateway's promise."""
    await execute(pair.primary, f"ALTER ROLE {OWNER} SET synchronous_commit = '{level}'")
    try:
        line = await line_of_check(pair, services, tmp_path, "synchronous_commit")
        assert (line.split()[0], level in line) == ("FAILED", True)
    finally:
        await execute(pair.primary, f"ALTER ROLE {OWNER} RESET synchronous_commit")
