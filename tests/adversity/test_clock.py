"""A clock that is wrong: events outside of the accepted times get a 503, and are not dropped."""

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import msgspec
import pytest

from app.dev.embedded import EmbeddedError
from bench.testbed.client import get
from bench.testbed.clocks import Clock, find_libfaketime, until_ahead
from bench.testbed.ports import free_port
from bench.testbed.process import PATIENCE_S, POLL_S
from tests.gateways import Process, Services, environment
from tests.outcomes import outcome, serving
from tests.services.test_commands import run

MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S
AHEAD = "flokit_clock_ahead_seconds"
RETENTION = {"RETENTION_D": "62", "SEEN_WINDOW_D": "30"}
# With it, older events are not accepted.
OLDEST_S = 31 * DAY_S
# Clocks are looked at every second, and a machine may be busy.
CLOSE_S = 20.0


@pytest.fixture(scope="session")
def library() -> Path:
    """The libfaketime to load."""
    try:
        return find_libfaketime()
    except EmbeddedError as why:
        pytest.skip(str(why))


@pytest.fixture
def clock(library: Path, tmp_path: Path) -> Clock:
    """The clock of processes started with its environment; right for now."""
    return Clock(library, tmp_path / "clock")


@pytest.fixture
def gateway(
    services: Services, database_url: str, tmp_path: Path, clock: Clock
) -> Iterator[Process]:
    """A gateway with that clock."""
    settings = RETENTION | clock.environ
    with serving(database_url, services.redis_url, tmp_path, **settings) as gateway:
        gateway.wait_until_ready()
        yield gateway


async def until_logged(gateway: Process, words: str) -> None:
    """Return when the gateway has logged the state of its clock."""
    async with asyncio.timeout(PATIENCE_S):
        while words not in gateway.log.read_text():
            await asyncio.sleep(POLL_S)


async def sent(gateway: Process, user: str, since_s: float) -> str:
    """Send a callback of an event that occurred so long after now; return the outcome."""
    callback = {"user_id": user, "created_at": f"{time.time() + since_s:.0f}"}
    return await outcome(gateway, callback)


async def clock_state(gateway: Process) -> tuple[int, str]:
    """The status of `/readyz`, and its word for the clock."""
    answer = await get(gateway.port, "/readyz")
    return answer.status, str(msgspec.json.decode(answer.body)["clock"]["state"])


# How far the clock is ahead, and a time inside and one outside of the accepted ones.
WRONG = {
    "25 hours slow": (-25 * HOUR_S, -2 * HOUR_S, 0),
    "25 hours fast": (25 * HOUR_S, 0, -OLDEST_S + 12 * HOUR_S),
    "6 minutes slow": (-6 * MINUTE_S, 0, DAY_S - 3 * MINUTE_S),
    "6 minutes fast": (6 * MINUTE_S, 0, -OLDEST_S + 3 * MINUTE_S),
}


@pytest.mark.parametrize("how", WRONG)
async def test_wrong_clock_drops_nothing(
    gateway: Process, clock: Clock, connection: asyncpg.Connection, how: str
) -> None:
    """While clocks differ, no event is dropped for its time; when they agree again, one is."""
    ahead_s, inside_s, outside_s = WRONG[how]
    assert await sent(gateway, "too-new", 25 * HOUR_S) == "dropped"
    assert await clock_state(gateway) == (200, "right")
    clock.set(ahead_s)
    await until_ahead(gateway.port, ahead_s)
    assert await sent(gateway, "outside", outside_s) == "503"
    assert await sent(gateway, "too-new", 3 * DAY_S) == "503"
    assert await sent(gateway, "too-old", -40 * DAY_S) == "503"
    assert await outcome(gateway, {"created_at": "yesterday"}) == "dropped"
    assert await sent(gateway, "inside", inside_s) == "written"
    assert await clock_state(gateway) == (200, "wrong")
    await until_logged(gateway, "the clock differs")
    clock.set(0)
    await until_ahead(gateway.port, 0)
    assert await clock_state(gateway) == (200, "right")
    assert await sent(gateway, "outside", outside_s) == "written"
    assert await sent(gateway, "too-new", 25 * HOUR_S) == "dropped"
    users = await connection.fetchval("SELECT array_agg(user_id ORDER BY user_id) FROM events")
    assert users == ["inside", "outside"]
    await until_logged(gateway, "the clock agrees")
    log = [line for line in gateway.log.read_text().splitlines() if "clock" in line]
    assert 0 < len(log) < 5, "said, and not for each callback"


@pytest.mark.parametrize("how", ["25 hours slow", "6 minutes fast"])
async def test_jump_of_the_clock_drops_nothing(gateway: Process, clock: Clock, how: str) -> None:
    """A clock that jumps is wrong from then on, not only from the next comparison on."""
    ahead_s, _, outside_s = WRONG[how]
    await until_ahead(gateway.port, 0)
    clock.set(ahead_s)
    assert await sent(gateway, "outside", outside_s) == "503"
    clock.set(0)
    await until_ahead(gateway.port, 0)
    assert await sent(gateway, "outside", outside_s) == "written"


async def test_clock_that_is_minutes_off_still_judges(gateway: Process, clock: Clock) -> None:
    """At a few minutes' difference, an event outside of the accepted times is dropped."""
    clock.set(-4 * MINUTE_S)
    await until_ahead(gateway.port, -4 * MINUTE_S)
    assert await sent(gateway, "too-new", 2 * DAY_S) == "dropped"
    assert await sent(gateway, "now", 0) == "written"


async def test_clock_without_comparison_drops_nothing(services: Services, tmp_path: Path) -> None:
    """Where no database has ever answered, nothing is dropped for its time."""
    url = f"postgresql://gateway@127.0.0.1:{free_port()}/events"
    with serving(url, services.redis_url, tmp_path, **RETENTION) as gateway:
        async with asyncio.timeout(PATIENCE_S):
            while gateway.status("/healthz") != 200:
                await asyncio.sleep(POLL_S)
        assert await sent(gateway, "too-new", 3 * DAY_S) == "503"
        assert await sent(gateway, "now", 0) == "500"
        assert await clock_state(gateway) == (503, "not known")


@pytest.mark.parametrize("how", ["25 hours slow", "6 minutes fast"])
async def test_check_compares_the_clocks(
    services: Services, database_url: str, tmp_path: Path, clock: Clock, how: str
) -> None:
    """`check` fails for a clock that is more than five minutes off, and prints the difference."""
    ahead_s, _, _ = WRONG[how]
    environ = environment(database_url, services.redis_url, tmp_path) | clock.environ
    clock.set(ahead_s)
    ended = await asyncio.to_thread(run, "check", **environ)
    [line] = [line for line in ended.stdout.splitlines() if "clock" in line]
    assert (ended.returncode, line.split()[0]) == (1, "FAILED")
    [said_s] = re.findall(r"([\d.]+) s", line)
    assert abs(float(said_s) - abs(ahead_s)) < CLOSE_S
