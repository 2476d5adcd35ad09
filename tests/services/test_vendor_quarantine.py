"""AppsFlyer and Branch end to end: secrets in bodies, explanations, replays, and wrong clocks."""

import json
import shlex
from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import urlencode

import asyncpg
import pytest

from app.commands.explain.explainer import Explainer
from app.commands.explain.explanation import Verdict
from app.ingest import utc_now
from app.settings import read_settings
from bench.testbed.callbacks import workspace_toml
from bench.testbed.client import Answer, post
from bench.testbed.process import PATIENCE_S
from sinks.timescale.sink import TimescaleSink
from tests.gateways import SECRET, Gateways, Running, environment
from tests.replays import Replays
from tests.services.test_explain import outcome_of
from tests.services.test_vectors import receipt
from tests.vectors import APP, vectors_of

VENDORS = ("appsflyer", "branch")
SECRETS = {f"{vendor.upper()}_CALLBACK_SECRET": SECRET for vendor in VENDORS}
NAMES = ("app_start", "af_purchase", "install", "loyal_click", "OPEN", "INSTALL")
GOOD: Mapping[str, Mapping[str, object]] = {
    "appsflyer": {
        "event_name": "app_start", "event_time": "2025-06-21 10:00:00.000",
        "event_value": '{"af_content":"c"}',
    },
    "branch": {"name": "OPEN", "timestamp": 1750500000000, "user_data": {"os": "IOS"}},
}  # fmt: skip
JSON = "application/json"


def workspaces(*names: str) -> str:
    """A workspaces file with an app of each vendor, whose events have these names."""
    events = {name: name.lower() for name in names}
    return "\n".join(workspace_toml(f"ws_{v}", APP, vendor=v, events=events) for v in VENDORS)


async def started(gateways: Gateways, *names: str) -> Running:
    """A gateway with the two vendors."""
    (gateways.folder / "workspaces.toml").write_text(workspaces(*names))
    return await gateways.start(APPSFLYER_CALLBACK_SECRET=SECRET, BRANCH_CALLBACK_SECRET=SECRET)


async def sent(gateway: Running, vendor: str, body: bytes, **more: str) -> Answer:
    """Send a body, with more parameters in the URL."""
    query = urlencode({"secret": SECRET, "app_token": APP, **more})
    return await post(gateway.port, f"/ingest/{vendor}?{query}", body, JSON)


ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in SECRET)
NESTED = f'{{"a":"{ESCAPED}"}}'
# Members that hold the secret, in JSON.
HELD = {
    "plain": f'"x":"{SECRET}"',
    "within a text": f'"x":"https://h/?secret={SECRET}&a=1"',
    "escaped": f'"x":"{ESCAPED}"',
    "within an object": f'"custom_data":{{"a":["{SECRET}"]}}',
    "within JSON in a text": f'"event_value":{json.dumps(json.dumps({"secret": SECRET}))}',
    "escaped within JSON in a text": f'"event_value":{json.dumps(NESTED)}',
    "as a name": f'"{SECRET}":1',
    "as a name within an object": f'"user_data":{{"{ESCAPED}":1,"idfv":"d2"}}',
    "under its own name": f'"secret":"{SECRET}"',
    "as the user": f'"customer_user_id":"{SECRET}","user_data":{{"developer_identity":"{SECRET}"}}',
}


@pytest.mark.parametrize("vendor", VENDORS)
async def test_secret_in_a_body_is_stored_nowhere(
    gateways: Gateways,
    connection: asyncpg.Connection,
    vendor: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A secret in a body, however it is spelt, is in no row of events or of quarantine, or log."""
    gateway = await started(gateways, *NAMES)
    name = next(iter(GOOD[vendor]))
    for number, (how, held) in enumerate(HELD.items()):
        good = json.dumps({**GOOD[vendor], "number": number})
        body = f"{good[:-1]},{held}}}".encode()
        assert (await sent(gateway, vendor, body)).json == receipt("written"), how
        unmapped = {**GOOD[vendor], name: "unmapped", "number": number}
        body = f"{json.dumps(unmapped)[:-1]},{held}}}".encode()
        assert (await sent(gateway, vendor, body)).json == receipt("dropped"), how
    rows = await connection.fetch("SELECT e::text FROM events e")
    kept = await connection.fetch("SELECT convert_from(body, 'UTF8') || query::text FROM dropped")
    assert len(rows) == len(kept) == len(HELD)
    for text in (caplog.text, *(row[0] for row in (*rows, *kept))):
        assert SECRET not in text
        assert ESCAPED not in text


@pytest.mark.parametrize("vendor", VENDORS)
async def test_explanation_and_replay_agree_with_http(
    gateways: Gateways,
    replays: Replays,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    vendor: str,
) -> None:
    """Of every vector, `explain` has the outcome of HTTP, and `replay` its event."""
    monkeypatch.setattr("app.commands.explain.records.TIMEOUT_S", PATIENCE_S)
    gateway = await started(gateways, "nothing")
    vectors = [vector for vector in vectors_of(vendor) if vector["method"] == "POST"]
    bodies = [vector["body"].encode() for vector in vectors]
    for body in bodies:
        assert (await sent(gateway, vendor, body)).status in {200, 400}
    await gateway.stop()
    replays.write(workspaces(*NAMES))
    report = replays.run().report
    gateway = await started(gateways, *NAMES)
    environ = environment(replays.database_url, replays.redis_url, gateways.folder, **SECRETS)
    explainer = Explainer(read_settings(environ), vendor="", address=None, at=None)
    await explainer.start()
    for body in bodies:
        answer = await sent(gateway, vendor, body)
        url = f"https://h/ingest/{vendor}?secret={SECRET}&app_token={APP}"
        curl = ["curl", "-H", f"content-type: {JSON}", "--data-binary", body.decode(), url]
        found = await explainer.explain(1, shlex.join(curl))
        assert found.verdict is outcome_of(answer)
        assert found.status == answer.status
        if found.verdict is Verdict.EVENT:
            assert answer.json == receipt("duplicate")
            query = "SELECT count(*) FROM events WHERE event_id::text = $1"
            assert await connection.fetchval(query, found.event_id) == 1
    await explainer.close()
    assert report["written"] == await connection.fetchval("SELECT count(*) FROM events") > 0


@pytest.mark.parametrize("vendor", VENDORS)
async def test_wrong_clock_loses_nothing_of_a_vendor_that_does_not_retry(
    gateways: Gateways,
    replays: Replays,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    vendor: str,
) -> None:
    """While the clock is slow, an event is kept, and answered dropped; a replay writes it."""
    slow = timedelta(hours=48)
    monkeypatch.setattr(TimescaleSink, "clock_ahead_s", -slow.total_seconds())
    gateways.now = lambda: utc_now() - slow
    gateway = await started(gateways, *NAMES)
    times = {
        "appsflyer": f"{utc_now():%Y-%m-%d %H:%M:%S.%f}",
        "branch": f"{utc_now().timestamp():.0f}000",
    }
    time = {"appsflyer": "event_time", "branch": "timestamp"}[vendor]
    body = json.dumps({**GOOD[vendor], time: times[vendor]}).encode()
    assert (await sent(gateway, vendor, body)).json == receipt("dropped")
    kept = await connection.fetchrow("SELECT reason, now() - received_at AS age FROM dropped")
    assert kept is not None
    assert kept["reason"] == "invalid_timestamp"
    assert abs(kept["age"]) < timedelta(hours=1)
    assert replays.run().report["written"] == 1
