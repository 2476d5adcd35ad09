"""Secrets: their places in a request, and the workspaces that each of them opens."""

import asyncio
import time

import pytest

from app import ingest
from app.ingest import UNVERIFIED_PAUSE_S
from app.telemetry.metrics import REJECTED
from bench.testbed.client import exchange, get, head, post
from tests.gateways import SECRET, Gateways, query
from tests.unit.test_access import WORKSPACES


async def test_customer_cannot_write_for_another(gateways: Gateways) -> None:
    """Over HTTP each secret opens the apps of its workspace, in the URL and in a header."""
    (gateways.folder / "workspaces.toml").write_text(WORKSPACES)
    gateway = await gateways.start(
        ADJUST_CALLBACK_SECRET__OURS="hush", ADJUST_CALLBACK_SECRET__THEIRS="hush-hush"
    )

    async def status(app: str, secret: str) -> int:
        in_url = await gateway.callback(app_token=app, secret=secret)
        without = query(app_token=app).replace(f"secret={SECRET}&", "")
        for headers in ({"X-FloKit-Secret": secret}, {"authorization": f"bearer {secret}"}):
            answer = await get(gateway.port, f"/ingest/adjust?{without}", headers=headers)
            assert answer.status == in_url.status
        target = f"/ingest/adjust?app_token={app}"
        sent = head("POST", target, headers={"X-FloKit-Secret": secret, "Content-Length": "0"})
        assert (await exchange(gateway.port, sent)).status == in_url.status
        return in_url.status

    assert [await status("ours", secret) for secret in ("hush", SECRET, "hush-hush")] == [
        200, 401, 401,
    ]  # fmt: skip
    assert await status("third", SECRET) == 200
    assert await status("third", "hush") == 401
    assert await status("nobody's", "hush") == 200


@pytest.mark.parametrize("name", ["secret", "%73ecret", "s%65cret", "+secret%00"])
async def test_secret_under_any_name_is_not_stored(gateways: Gateways, name: str) -> None:
    """A name that only decodes to `secret` opens nothing, and its value is stored nowhere."""
    gateway = await gateways.start()
    encoded = query().replace("secret=", f"{name}=", 1)
    if name != "secret":
        assert (await gateway.send(encoded)).status == 401
    # Every test searches its database for the secret when it ends.
    assert (await gateway.send(f"{query(user_id='u')}&{name}={SECRET}")).status == 200
    body = f"{name}={SECRET}&user_id=v".encode()
    for kind in ("application/x-www-form-urlencoded", None):
        answer = await gateway.post(
            body, kind, event_token="g3mz3t", created_at="1750500000", adid=str(kind)
        )
        assert answer.status == 200
    assert (await post(gateway.port, f"/ingest/adjust?{name}=", b"")).status == 401


async def test_stranger_takes_little_of_the_loop(gateways: Gateways) -> None:
    """A 401 comes after a pause, so that a connection that guesses or floods costs little."""
    gateway = await gateways.start()
    started = time.monotonic()
    for _ in range(3):
        assert (await gateway.callback(secret="guess")).status == 401
    # uvloop's timers count in whole milliseconds.
    assert time.monotonic() - started >= 3 * (UNVERIFIED_PAUSE_S - 0.001)


async def test_stranger_that_hangs_up_is_counted(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that does not wait for the answer is counted as refused all the same."""
    monkeypatch.setattr(ingest, "UNVERIFIED_PAUSE_S", 60.0)
    gateway = await gateways.start()
    refused = REJECTED.labels("wrong_secret")._value.get
    before = refused()
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head("GET", f"/ingest/adjust?{query(secret='guess')}"))
    async with asyncio.timeout(10):
        while not any(map(bool, (each.http for each in gateway.server.connections))):
            await asyncio.sleep(0.01)
        writer.transport.abort()
        while refused() == before:
            await asyncio.sleep(0.01)
