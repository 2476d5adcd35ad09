"""Quarantine on a real database: drops and their sizes are there together, or not at all."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.dropped import Dropped, RejectedRequest, encode_event
from app.event import DropReason
from app.shares import SMALL_BYTES
from bench.testbed.gateway import through
from bench.testbed.process import PATIENCE_S, POLL_S
from bench.testbed.proxy import Proxy
from sinks import Account
from sinks.timescale import schema
from sinks.timescale.quarantine import REJECTED_MAX, TimescaleQuarantine
from tests.adversity import test_out_of_reach
from tests.drops import counted, drop, rows_of, sizes_of
from tests.events import event
from tests.gateways import Services, is_without_secret
from tests.services.test_timescale import skip_without_timescaledb

Connection = asyncpg.Connection
proxy = test_out_of_reach.proxy


on_both_kinds = pytest.mark.parametrize(
    "database_url", ["hypertable", "plain table"], indirect=True
)


@pytest.fixture
async def database_url(request: pytest.FixtureRequest, database_url: str) -> str:
    """The test's database; for the parameter "plain table" as without TimescaleDB."""
    if getattr(request, "param", "hypertable") == "hypertable":
        return database_url
    connection = await asyncpg.connect(database_url)
    name = urlsplit(database_url).path.strip("/")
    await connection.execute(
        f"CREATE SCHEMA plain; ALTER DATABASE {name} SET search_path = plain; "
        "SET search_path = plain; CREATE TABLE schema_migrations (name text)"
    )
    for migration, sql in schema.migrations().items():
        await connection.execute(sql.replace("'timescaledb'", "'absent'"))
        await connection.execute("INSERT INTO schema_migrations VALUES ($1)", migration)
    await connection.close()
    return database_url


@pytest.fixture
async def quarantine(database_url: str) -> AsyncIterator[TimescaleQuarantine]:
    """Quarantine on it."""
    quarantine = TimescaleQuarantine(database_url, commit_timeout_s=5)
    yield quarantine
    await quarantine.close()


async def test_every_column_arrives(
    quarantine: TimescaleQuarantine, connection: Connection
) -> None:
    """A drop is stored field for field; of a refused event its encoding is."""
    sent = drop(method="POST", content_type="application/json", body=b'{"a": 1}', account="")
    refused = drop(reason=DropReason.REFUSED, query=b"", event=encode_event(event("a")))
    await quarantine.keep([sent, refused])
    rows = await connection.fetch("SELECT * FROM dropped ORDER BY drop_id")
    for row, kept in zip(rows, (sent, refused), strict=True):
        fields = msgspec.structs.asdict(kept) | {"reason": kept.reason.value}
        del fields["account"]
        assert {name: row[name] for name in fields} == fields
        assert len(row) == len(fields) + 1  # its ID
    assert await counted(connection) == sizes_of([sent, refused])
    assert await rows_of(connection) == 2


# As the gateway cleans them: no NUL, no lone surrogate.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=200).filter(
    is_without_secret
)
BYTES = st.binary(max_size=300).filter(is_without_secret) | st.sampled_from(
    (b"\x00" * 65_536, bytes(range(256)) * 256)
)


async def test_any_clean_text_and_any_bytes_are_kept(
    quarantine: TimescaleQuarantine, connection: Connection
) -> None:
    """The database takes every text without NUL and lone surrogates, and all bytes up to 64 KB."""
    batches: list[list[Dropped]] = []

    @settings(max_examples=50, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(
            st.builds(
                drop, workspace_id=TEXTS, app_token=TEXTS, subject=TEXTS, account=TEXTS,
                method=TEXTS, content_type=TEXTS, query=BYTES, body=BYTES,
                event=st.none() | BYTES, reason=st.sampled_from(DropReason),
            ),
            min_size=1,
            max_size=5,
        )
    )  # fmt: skip
    def collect(batch: list[Dropped]) -> None:
        batches.append(batch)

    collect()
    for batch in batches:
        await quarantine.keep(batch)
    drops = [kept for batch in batches for kept in batch]
    records = await connection.fetch(
        "SELECT workspace_id, app_token, reason, subject, method, query, content_type, body, event "
        "FROM dropped ORDER BY drop_id"
    )
    assert [tuple(record) for record in records] == [
        (kept.workspace_id, kept.app_token, kept.reason.value, kept.subject, kept.method,
         kept.query, kept.content_type, kept.body, kept.event)
        for kept in drops
    ]  # fmt: skip
    assert await counted(connection) == sizes_of(drops)


@on_both_kinds
async def test_writers_count_the_rows_of_all(database_url: str, connection: Connection) -> None:
    """Several writers at once lose no row and no size, and each of them reports those of all."""
    writers = [TimescaleQuarantine(database_url, commit_timeout_s=5) for _ in range(3)]
    now = datetime.now(UTC)
    batches = [
        [
            drop(subject=f"s{number % 7}", received_at=now - timedelta(days=number % 2))
            for number in range(first, first + 40)
        ]
        for first in range(24)
    ]
    await asyncio.gather(*(writers[place % 3].keep(batch) for place, batch in enumerate(batches)))
    drops = [kept for batch in batches for kept in batch]
    assert await rows_of(connection) == len(drops)
    assert await counted(connection) == sizes_of(drops)
    for writer in writers:
        assert await writer.usage(SMALL_BYTES) == {
            Account("ws_test", "", ""): sizes_of(drops).total()
        }
        await writer.close()
    assert await connection.fetchval("SELECT count(DISTINCT writer) FROM quarantine_usage") == 3


async def test_small_accounts_come_as_one(
    quarantine: TimescaleQuarantine, connection: Connection
) -> None:
    """An account below 1 MB, of all writers and days, is reported with those of its workspace."""
    assert await quarantine.usage(SMALL_BYTES) == {}
    await connection.executemany(
        "INSERT INTO quarantine_usage VALUES ($1, current_date - $2::int, $3, $4, $5, 1, $6)",
        [
            ("one", 0, "ws_a", "refused", "large", SMALL_BYTES - 1),
            ("two", 1, "ws_a", "refused", "large", 1),
            ("one", 0, "ws_a", "refused", "small", SMALL_BYTES - 1),
            ("one", 0, "ws_a", "unmapped_event", "", SMALL_BYTES - 2),
            ("replay", 0, "ws_a", "unmapped_event", "", -100),
            ("one", 0, "ws_b", "refused", "large", 7),
        ],
    )
    assert await quarantine.usage(SMALL_BYTES) == {
        Account("ws_a", "refused", "large"): SMALL_BYTES,
        Account("ws_a", "", ""): 2 * SMALL_BYTES - 103,
        Account("ws_b", "", ""): 7,
    }


BROKEN = {
    "nul": drop(subject="nul \x00"),
    "no encoding": drop(subject="surrogate \ud800"),
    "too long for the index": drop(subject="".join(map(chr, range(300, 9_000)))),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
async def test_failed_batch_leaves_nothing(
    quarantine: TimescaleQuarantine, connection: Connection, broken: Dropped
) -> None:
    """A batch that the database refuses leaves neither rows nor sizes, and harms no later one."""
    await quarantine.keep([drop()])
    with pytest.raises((asyncpg.PostgresError, UnicodeEncodeError)):
        await quarantine.keep([drop(), broken])
    assert await rows_of(connection) == 1
    await quarantine.keep([drop()])
    assert await rows_of(connection) == 2
    assert await counted(connection) == sizes_of([drop(), drop()])


HOLDS = {
    "dropped": "LOCK TABLE dropped",
    "quarantine_usage": "UPDATE quarantine_usage SET rows = rows",
}
WAITS = """
SELECT pid FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))
"""


@on_both_kinds
@pytest.mark.parametrize("table", HOLDS)
async def test_killed_transaction_leaves_nothing(
    quarantine: TimescaleQuarantine, connection: Connection, table: str
) -> None:
    """A transaction that is killed in its middle leaves neither rows nor sizes."""
    await quarantine.keep([drop()])
    async with connection.transaction():
        await connection.execute(HOLDS[table])
        keeping = asyncio.create_task(quarantine.keep([drop(), drop()]))
        async with asyncio.timeout(PATIENCE_S):
            while (pid := await connection.fetchval(WAITS)) is None:
                await asyncio.sleep(POLL_S)
        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises((asyncpg.PostgresError, OSError)):
            await keeping
    assert await rows_of(connection) == 1
    await quarantine.keep([drop()])
    assert await rows_of(connection) == 2


async def test_database_out_of_reach_fails_in_time(
    proxy: Proxy, database_url: str, connection: Connection
) -> None:
    """A wire that is cut without a packet ends in a TimeoutError, and the next drop is kept."""
    quarantine = TimescaleQuarantine(through([proxy], database_url), commit_timeout_s=4)
    await quarantine.keep([drop()])
    proxy.blackhole()
    with pytest.raises(TimeoutError):
        await quarantine.keep([drop()])
    proxy.restore()
    await quarantine.keep([drop()])
    assert await rows_of(connection) in (2, 3)  # the outcome of a time-out is unknown
    await quarantine.close()


async def test_rejected_requests_are_capped(database_url: str, connection: Connection) -> None:
    """The newest traces stay, however many writers there are; the oldest go."""
    writers = [TimescaleQuarantine(database_url, commit_timeout_s=5) for _ in range(2)]
    first = RejectedRequest(
        received_at=datetime.now(UTC), vendor="", reason="not_found", address="203.0.113.7"
    )
    last = msgspec.structs.replace(
        first, vendor="adjust", reason="wrong_secret", hint="15 characters, ours have 16"
    )
    await writers[0].reject([first])
    for _ in range(3):
        await asyncio.gather(*(writer.reject([first] * 2_000) for writer in writers))
    await writers[1].reject([last])
    rows = await connection.fetch("SELECT * FROM rejected ORDER BY rejected_id")
    assert len(rows) == REJECTED_MAX
    assert dict(rows[-1]) == {"rejected_id": 12_002} | msgspec.structs.asdict(last)
    for writer in writers:
        await writer.reject([])
        await writer.keep([])
        await writer.close()


async def test_chunks_are_made_before_midnight(
    services: Services, database_url: str, connection: Connection
) -> None:
    """The chunks of today and tomorrow are there before a drop needs them."""
    await skip_without_timescaledb(services, connection)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    quarantine = TimescaleQuarantine(database_url, commit_timeout_s=5, now=tomorrow.timestamp)
    await quarantine.usage(SMALL_BYTES)
    async with asyncio.timeout(PATIENCE_S):
        while not await connection.fetchval(
            "SELECT true FROM timescaledb_information.chunks WHERE hypertable_name = 'dropped' "
            "AND range_start <= $1 AND $1 < range_end",
            tomorrow + timedelta(days=1),
        ):
            await asyncio.sleep(POLL_S)
    await quarantine.close()
    assert await rows_of(connection) == 0


def long_text() -> str:
    """Return 200 letters of three bytes each."""
    return "".join(chr(0x4E00 + byte) for byte in os.urandom(200))


SHAPES: dict[str, Callable[[], Dropped]] = {
    "one subject": drop,
    "many subjects": lambda: drop(subject=os.urandom(4).hex()),
    "no query": lambda: drop(query=b""),
    "long subject": lambda: drop(subject=os.urandom(100).hex()),
    "not ASCII": lambda: drop(subject=long_text()),
    "medium body": lambda: drop(body=os.urandom(1_500)),
    "large body": lambda: drop(body=os.urandom(3_000)),
    "largest body": lambda: drop(body=os.urandom(64_000)),
}
SIZE = "SELECT sum(pg_total_relation_size(chunk)) FROM show_chunks('dropped') AS chunk"


async def test_size_of_a_drop_is_an_upper_estimate(
    services: Services, quarantine: TimescaleQuarantine, connection: Connection
) -> None:
    """The counted size is that of the table with its indexes at least, and at most twice that."""
    await skip_without_timescaledb(services, connection)
    for shape, make in SHAPES.items():
        await connection.execute("TRUNCATE dropped")
        await schema.keep_chunk_ahead(connection, "dropped", datetime.now(UTC))
        empty: int = await connection.fetchval(SIZE)
        drops = [make() for _ in range(200 if "largest" in shape else 3_000)]
        for first in range(0, len(drops), 500):
            await quarantine.keep(drops[first : first + 500])
        measured: int = await connection.fetchval(SIZE) - empty
        counted_bytes = sum(kept.size_bytes for kept in drops)
        assert measured <= counted_bytes <= 2 * measured, shape
