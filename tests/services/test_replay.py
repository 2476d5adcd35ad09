"""`replay`: dropped callbacks become the events that they would have been, once."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta

import asyncpg
import msgspec
import pytest

from app.dropped import encode_event
from app.event import DropReason
from app.redaction import redact_query
from tests.events import event
from tests.gateways import SECRET, Gateways, workspaces_toml
from tests.replays import ARRIVED_AT, Replays, arrivals, drop, drops, in_quarantine, keep
from tests.vectors import VECTORS, app_token, with_app

DROPPED = b'{"received":1,"written":0,"duplicate":0,"dropped":1}'
DUPLICATE = b'{"received":1,"written":0,"duplicate":1,"dropped":0}'
UNTOUCHED = ("events", "stable_events", "dropped", "quarantine_usage", "imports")


async def test_replayed_callbacks_are_the_events_of_their_arrival(
    replays: Replays, connection: asyncpg.Connection, gateways: Gateways
) -> None:
    """Each is one row under the identity and arrival that it had, and leaves quarantine."""
    kept = drops(120)
    await keep(replays.database_url, kept)
    ended = replays.run()
    assert (ended.exit_code, ended.errors) == (0, "")
    assert ended.counts == (120, 120, 0, 0, 0)
    assert await in_quarantine(connection) == 0
    assert await arrivals(connection) == {f"u{n}": d.received_at for n, d in enumerate(kept)}
    gateway = await gateways.start()
    for user in ("u0", "u119"):
        assert (await gateway.callback(user_id=user)).body == DUPLICATE
    record = await connection.fetchrow("SELECT * FROM imports")
    assert record is not None
    assert (record["kind"], record["read"], record["written"]) == ("replay", 120, 120)
    assert record["first_day"] == record["last_day"] == date(2025, 6, 21)
    assert record["started_at"] <= record["finished_at"]


async def test_second_replay_writes_nothing(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """After a replay nothing is selected, and the same callbacks kept again are duplicates."""
    await keep(replays.database_url, drops(60))
    assert replays.run().counts == (60, 60, 0, 0, 0)
    assert replays.run().counts == (0, 0, 0, 0, 0)
    assert await connection.fetchval("SELECT count(*) FROM imports") == 1
    await keep(replays.database_url, [*drops(60), *drops(60)])
    ended = replays.run()
    assert ended.counts == (120, 0, 120, 0, 0)
    assert ended.report["days"] == []
    assert len(await arrivals(connection)) == 60
    assert await in_quarantine(connection) == 0


async def test_omitted_users_stay_apart(
    replays: Replays, connection: asyncpg.Connection, gateways: Gateways
) -> None:
    """Callbacks that differ only in what the app omits are events of their own, twice as once."""
    omitting = 'omit = ["user_id", "adid"]\n'
    workspaces = gateways.folder / "workspaces.toml"
    workspaces.write_text(workspaces_toml("abc123token", more=omitting))
    gateway = await gateways.start()
    for user in ("u1", "u2", "u1"):
        assert (await gateway.callback(event_token="unmapped", user_id=user)).body == DROPPED
    kept = [bytes(row[0]) for row in await connection.fetch("SELECT query FROM dropped")]
    assert len(set(kept)) == 2
    assert not any(b"u1" in query or b"u2" in query for query in kept)
    mapped = workspaces_toml("abc123token", more=omitting).replace("g3mz3t", "unmapped")
    replays.write(mapped)
    assert replays.run().counts == (3, 2, 1, 0, 0)
    records = await connection.fetch("SELECT user_id, properties FROM events")
    assert [record["user_id"] for record in records] == [None, None]
    assert not any("omitted" in record["properties"] for record in records)


async def test_pages_of_any_arrival_are_all_read(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """More rows of one instant than a page holds, and gaps of days, leave nothing out."""
    at_once = [drop(f"same{n}") for n in range(1_100)]
    spread = [
        drop(f"day{n}", received_at=ARRIVED_AT + timedelta(days=n, microseconds=n))
        for n in range(12)
    ]
    await keep(replays.database_url, [*at_once, *spread])
    assert replays.run().counts == (1_112, 1_112, 0, 0, 0)
    assert await in_quarantine(connection) == 0
    assert len(await arrivals(connection)) == 1_112


async def test_every_vector_is_replayed_as_http_answers_it(
    replays: Replays, connection: asyncpg.Connection, gateways: Gateways
) -> None:
    """A replay writes exactly the callbacks that HTTP writes, with the same identity."""
    tokens = {vector["id"]: app_token(vector["id"]) for vector in VECTORS}
    replays.write_workspaces(*tokens.values())
    queries = {
        vector["id"]: with_app(vector["query"], tokens[vector["id"]])
        for vector in VECTORS
        if vector["expect"]["status"] == 200
    }
    now = datetime.now(UTC)
    await keep(
        replays.database_url,
        [
            drop(id_, received_at=now, query=redact_query(query.encode(), (), {SECRET}))
            for id_, query in queries.items()
        ],
    )
    report = replays.run().report
    gateway = await gateways.start()
    answers = [await gateway.send(query) for query in queries.values()]
    outcomes = Counter(answer.body for answer in answers)
    written = await connection.fetchval("SELECT count(*) FROM events")
    assert written == report["written"] > 0
    assert outcomes == {
        DUPLICATE: report["written"] + report["duplicate"],
        DROPPED: sum(report["dropped"].values()),
    }


async def test_bodies_are_read_as_http_reads_them(
    replays: Replays, connection: asyncpg.Connection, gateways: Gateways
) -> None:
    """A form and a JSON object come with their query; an unreadable body stays."""
    query = b"app_token=abc123token&created_at=1750500000"
    form = b"event_token=g3mz3t&user_id=form&label=a+b%26c"
    json = b'{"event_token": "g3mz3t", "user_id": "json", "score": 7.50, "nested": {"a": [1]}}'
    bodies = {"application/x-www-form-urlencoded": form, "application/json": json}
    await keep(
        replays.database_url,
        [
            drop("", method="POST", query=query, content_type=content_type, body=body)
            for content_type, body in (*bodies.items(), ("text/plain", b"hello"))
        ],
    )
    ended = replays.run()
    assert ended.counts == (3, 2, 0, 1, 0)
    assert ended.report["dropped"] == {"malformed": 1}
    assert await in_quarantine(connection) == 1
    gateway = await gateways.start()
    for content_type, body in bodies.items():
        answer = await gateway.post(body, content_type, created_at="1750500000")
        assert answer.body == DUPLICATE
    score = "SELECT properties ->> 'score' FROM events WHERE user_id = 'json'"
    assert await connection.fetchval(score) == "7.50"


async def test_sums_close_over_every_kind_of_drop(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """Each row is written, duplicate, dropped or left; ignored ones go, the other drops stay."""
    replays.write_workspaces("abc123token", more='ignore = ["click"]\n')
    newer = msgspec.msgpack.encode((99, event("newer")))
    click = {"event_token": "", "activity_kind": "click"}
    await keep(
        replays.database_url,
        [
            drop("mapped"),
            drop("mapped"),
            drop("unmapped", parameters={"event_token": "zzzzzz"}),
            drop("clicked", parameters=click),
            drop("timeless", parameters={"created_at": "yesterday"}),
            drop("ahead", parameters={"created_at": "1750600000"}),
            drop("stranger", parameters={"app_token": "nowhere"}),
            drop("", query=b"", event=encode_event(event("refused")), reason=DropReason.REFUSED),
            drop("", query=b"", event=newer, reason=DropReason.REFUSED),
        ],
    )
    ended = replays.run("--yes")
    assert (ended.exit_code, ended.errors) == (1, "")
    assert ended.output.splitlines() == [
        "9 in quarantine, from 2025-06-21 10:01 to 2025-06-21 10:01 UTC",
        "written 2  duplicate 1  dropped 5  left 1  = 9 read",
        "dropped: 2 invalid_timestamp, stay in quarantine",
        "dropped: 1 unmapped_event, stay in quarantine",
        "dropped: 1 ignored, taken out",
        "dropped: 1 unknown_app, stay in quarantine",
        "left: 1 an event in form 99; this version reads 1",
        "days touched (UTC): 2025-06-21, 2026-01-02",
    ]
    assert await in_quarantine(connection) == 5
    assert set(await arrivals(connection)) == {"mapped", "refused"}
    imports = "SELECT ARRAY[read, written, duplicate, dropped] FROM imports"
    assert await connection.fetchval(imports) == [9, 2, 1, 5]


async def test_app_that_was_added_gets_its_callbacks(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """Callbacks of an app that was unknown are written into its workspace."""
    replays.write_workspaces("newcomer")
    await keep(
        replays.database_url,
        [
            drop("u", parameters={"app_token": "newcomer"}, app_token="newcomer",
                 workspace_id="", reason=DropReason.UNKNOWN_APP, subject="newcomer"),
        ],
    )  # fmt: skip
    ended = replays.run("--yes", "--json", "--reason", "unknown_app", "--app", "newcomer")
    assert ended.counts == (1, 1, 0, 0, 0)
    owner = "SELECT workspace_id || ' ' || app_token FROM events"
    assert await connection.fetchval(owner) == "ws_test newcomer"


async def test_selection_leaves_the_others_alone(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """Only the rows of the reason, subject and time that were named are read."""
    await keep(
        replays.database_url,
        [
            drop("wanted"),
            drop("later", received_at=ARRIVED_AT + timedelta(hours=2)),
            drop("other", subject="bkrfgq"),
            drop("else", reason=DropReason.INVALID_TIMESTAMP),
        ],
    )
    ended = replays.run(
        "--yes", "--json", "--reason", "unmapped_event", "--subject", "g3mz3t",
        "--since", "2025-06-21T10:00", "--until", "2025-06-21T11:00",
    )  # fmt: skip
    assert ended.counts == (1, 1, 0, 0, 0)
    assert set(await arrivals(connection)) == {"wanted"}
    assert await in_quarantine(connection) == 3


@pytest.mark.parametrize("more", ["", 'keep = ["label"]\n'])
async def test_parameters_set_by_hand_are_visible(
    replays: Replays, connection: asyncpg.Connection, more: str
) -> None:
    """A parameter that was set counts as sent, and the property `replay_set` names it."""
    replays.write_workspaces("abc123token", more=more)
    unfilled = {"event_token": "{event_token}", "created_at": "{created_at}"}
    await keep(replays.database_url, [drop("u", parameters=unfilled)])
    assert replays.run().report["dropped"] == {"unfilled_placeholder": 1}
    words = ("--set", "event_token=g3mz3t", "--set", "created_at=@arrival")
    assert replays.run("--yes", "--json", *words).counts == (1, 1, 0, 0, 0)
    row = await connection.fetchrow("SELECT *, properties ->> 'replay_set' AS marked FROM events")
    assert row is not None
    assert (row["event_type"], row["occurred_at"]) == ("purchase", ARRIVED_AT)
    assert row["marked"] == "event_token,created_at"


async def test_time_is_judged_by_the_arrival(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """An event that was recent when it arrived is written, however old it is by now."""
    settings = replays.but(RETENTION_D="62")
    await keep(
        replays.database_url,
        [
            drop("recent"),
            drop("old", received_at=ARRIVED_AT + timedelta(days=32)),
        ],
    )
    ended = settings.run()
    assert ended.report["dropped"] == {"invalid_timestamp": 1}
    assert set(await arrivals(connection)) == {"recent"}


async def test_event_deleted_on_purpose_comes_back_past_redis(
    replays: Replays, connection: asyncpg.Connection, gateways: Gateways
) -> None:
    """An ID that Redis remembers is written where its row was deleted."""
    gateway = await gateways.start()
    await gateway.callback(user_id="u0")
    await gateway.stop()
    await connection.execute("DELETE FROM events")
    await keep(replays.database_url, drops(1))
    assert replays.run().counts == (1, 1, 0, 0, 0)
    assert set(await arrivals(connection)) == {"u0"}


async def test_dry_run_reports_what_the_replay_does(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """A dry run has the sums of the replay, and changes nothing in any table."""
    stable = {"transaction_id": "T1"}
    await keep(replays.database_url, [*drops(20), drop("s", parameters=stable)])
    replays.run()
    later = {**stable, "created_at": "1750500060"}
    unmapped = [drop(f"z{n}", parameters={"event_token": "zzzzzz"}) for n in range(3)]
    await keep(
        replays.database_url,
        [*drops(50), *drops(50), drop("s", parameters=later), *unmapped],
    )

    async def contents() -> list[object]:
        return [
            await connection.fetch(f"SELECT t::text FROM {table} AS t ORDER BY 1")
            for table in UNTOUCHED
        ]

    before = await contents()
    rehearsed = replays.run("--dry-run", "--json")
    assert await contents() == before
    assert rehearsed.counts == (104, 30, 71, 3, 0)
    ended = replays.run()
    assert ended.counts == rehearsed.counts
    assert ended.report["days"] == rehearsed.report["days"] == ["2025-06-21"]
    assert "would be written" in replays.run("--dry-run").output
