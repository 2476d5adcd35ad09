"""The doings of operators: triggers, indexes, retention, secrets and the workspaces file."""

import asyncio
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random

import asyncpg

from bench.faults.fault import Fault, ServerLog, restart
from bench.testbed.callbacks import (
    IGNORED,
    IGNORING,
    SECRET,
    VENDORS,
    WORKSPACES,
    get_request,
    parameters,
    workspace_toml,
)
from bench.testbed.client import exchange, metrics
from bench.testbed.deliveries import FIRST_DAY
from bench.testbed.environment import Environment
from bench.testbed.gateway import Gateway
from bench.testbed.process import OK, BenchError, Program, inherited
from bench.testbed.waits import until_true
from bench.topologies.servers import until

# No transaction that is undone takes a number back.
_SWALLOWED = "CREATE SEQUENCE bench_swallowed"
_HAS_SWALLOWED = "SELECT is_called FROM bench_swallowed"
_SWALLOW = """
CREATE FUNCTION bench_swallow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.country IN ('US', 'DE') THEN
        PERFORM nextval('bench_swallowed');
        RETURN NULL;
    END IF;
    RETURN NEW;
END $$
"""
_SWALLOW_TRIGGER = (
    "CREATE TRIGGER bench_swallow BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION "
    "bench_swallow()"
)
# The trigger first: CASCADE locks the function before the table, a writer after it.
_SWALLOW_NO_MORE = (
    "DROP TRIGGER bench_swallow ON events",
    "DROP FUNCTION bench_swallow",
    "DROP SEQUENCE bench_swallowed",
)
# A new event is refused that occurred in the same second as another new one.
_FOREIGN_INDEX = (
    "CREATE UNIQUE INDEX bench_foreign ON events (occurred_at) "
    "WHERE received_at >= '{:%Y-%m-%d %H:%M:%S}+00'"
)
# In the server's log, with the name of the chunk's own index.
_REFUSED = rb'violates unique constraint "\w*bench_foreign"'
# Rows that are older than any of the run: of another vendor, and gone with the retention.
_EXPIRED_DAYS = 10
_EXPIRED = """
INSERT INTO events (event_id, occurred_at, received_at, workspace_id, vendor, app_token, event_type,
                    properties)
SELECT gen_random_uuid(), day, day, '', '', '', '', '{{}}'
FROM generate_series('{0:%Y-%m-%d} 00:00Z'::timestamptz, '{1:%Y-%m-%d} 00:00Z',
                     interval '1 day') AS day
"""
_EXPIRED_LEFT = "SELECT count(*) FROM events WHERE occurred_at < '{:%Y-%m-%d} 00:00Z'"
_UNAUTHORIZED = 401
_NEW_SECRET = "n3w-of-the-bench"  # noqa: S105 - opens nothing but the bench's own gateways


async def foreign_trigger(environment: Environment, _: Gateway, random: Random) -> None:
    """A trigger leaves out some rows for a while: nobody is answered for them."""
    await environment.execute(_SWALLOWED, _SWALLOW, _SWALLOW_TRIGGER)
    await asyncio.sleep(random.uniform(1, 2))
    async with environment.connected() as connection:
        await until(lambda: connection.fetchval(_HAS_SWALLOWED))
    await environment.execute(*_SWALLOW_NO_MORE)


async def foreign_unique_index(environment: Environment, _: Gateway, random: Random) -> None:
    """A unique index of the operator refuses some of the new rows for a while."""
    log = ServerLog(environment.servers.postgres)
    is_made = False
    while not is_made:
        since = datetime.now(UTC) + timedelta(seconds=1)
        # Two new events were in the table before the lock of the index.
        with suppress(asyncpg.UniqueViolationError):
            await environment.execute(_FOREIGN_INDEX.format(since))
            is_made = True
    await asyncio.sleep(random.uniform(3, 4))
    # Certain in the end: many new events occurred in the same few seconds.
    await log.until(_REFUSED)
    await environment.execute("DROP INDEX bench_foreign")


async def retention_run(environment: Environment, _: Gateway, __: Random) -> None:
    """`python -m app retain` drops chunks that have expired, beside the callbacks."""
    last = FIRST_DAY - timedelta(days=200)
    first = last - timedelta(days=_EXPIRED_DAYS)
    await environment.execute(_EXPIRED.format(first, last))
    kept_d = (datetime.now(UTC) - last).days - 1
    environ = inherited() | dict(environment.environ) | {"RETENTION_D": str(kept_d)}
    command = [sys.executable, "-m", "app", "retain"]
    retain = Program(command, environment.folder / "retain.log", environ=environ)
    retain.start()
    if await asyncio.to_thread(retain.wait):
        raise BenchError(f"`retain` fails, see {retain.log}")
    async with environment.connected() as connection:
        left = await connection.fetchval(_EXPIRED_LEFT.format(last))
    if left:
        raise BenchError(f"`retain` leaves {left} rows, see {retain.log}")


async def secret_rotated(environment: Environment, _: Gateway, random: Random) -> None:
    """Gateways restart one by one with a second secret, and once more without it."""
    both = {f"{vendor.upper()}_CALLBACK_SECRET": f"{_NEW_SECRET},{SECRET}" for vendor in VENDORS}
    for more, expected in ((both, OK), ({}, _UNAUTHORIZED)):
        for gateway in environment.gateways:
            await restart(gateway, **more)
            answer = await exchange(gateway.port, _ignored(_NEW_SECRET, random))
            if answer.status != expected:
                raise BenchError(f"answered {answer.status} to the other secret, not {expected}")


async def workspaces_swapped(environment: Environment, gateway: Gateway, _: Random) -> None:
    """The workspaces file gets another workspace, in front of all, and loses it again."""
    more = workspace_toml("ws_m0re", "more4ndroid1")
    for text in (more + WORKSPACES, WORKSPACES):
        before = await _version(gateway)
        _write(environment, text)
        await _until_changed(gateway, "flokit_workspaces_version", before)


async def workspaces_broken(environment: Environment, gateway: Gateway, _: Random) -> None:
    """The workspaces file is cut off within a line, and whole again later."""
    for text, refused in ((WORKSPACES[: WORKSPACES.rindex('"')], 0.0), (WORKSPACES, 1.0)):
        _write(environment, text)
        await _until_changed(gateway, "flokit_workspaces_refused", refused)


def _ignored(secret: str, random: Random) -> bytes:
    """Return a callback without a row in any table."""
    sent = parameters(0, random, app=IGNORING, token=IGNORED)
    return get_request(sent | {"created_at": str(int(FIRST_DAY.timestamp()))}, secret)


def _write(environment: Environment, text: str) -> None:
    """Replace the workspaces file, as `kubectl apply` does."""
    file = environment.folder / "workspaces.toml"
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


async def _version(gateway: Gateway) -> float:
    return (await metrics(gateway.port))["flokit_workspaces_version"]


async def _until_changed(gateway: Gateway, name: str, before: float) -> None:
    async def has_changed() -> bool:
        return (await metrics(gateway.port))[name] != before

    await until_true(has_changed)


QUICK: tuple[Fault, ...] = (foreign_trigger, foreign_unique_index, retention_run)
FAULTS: tuple[Fault, ...] = (*QUICK, secret_rotated, workspaces_swapped, workspaces_broken)
