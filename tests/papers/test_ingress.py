"""The example of an ingress, on a real nginx: no secret in its logs, and no 4xx of its own."""

import asyncio
from pathlib import Path

import pytest

from bench.testbed.client import exchange, get, head, post
from bench.testbed.ports import free_port
from tests.gateways import Gateways, query
from tests.nginx import nginx

WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}
# Not a real secret: it may be in the log of a test that shows how one gets there.
MARK = "nobodys"
SHORT_S = {"header_timeout_s": "1"}


async def test_proxy_logs_the_path_without_the_query(gateways: Gateways, tmp_path: Path) -> None:
    """A callback passes, and the proxy logs its path without the query."""
    gateway = await gateways.start()
    with nginx(tmp_path, [gateway.port]) as port:
        assert (await get(port, f"/ingest/adjust?{query()}")).json == WRITTEN
        assert (await get(port, "/ingest/adjust?secret=wrong")).status == 401
    lines = (tmp_path / "access.log").read_text().splitlines()
    assert [line.partition("] ")[2].split()[:5] for line in lines] == [
        ["GET", "gateway", "/ingest/adjust", "HTTP/1.1", "200"],
        ["GET", "gateway", "/ingest/adjust", "HTTP/1.1", "401"],
    ]
    assert "secret" not in "".join(lines)


@pytest.mark.parametrize(("level", "leaks"), [("error", True), ("alert", False)])
async def test_proxy_logs_no_url_at_the_level_of_the_example(
    *, level: str, leaks: bool, tmp_path: Path
) -> None:
    """With no gateway there the answer is 502; only at the example's level is no URL logged."""
    with nginx(tmp_path, [free_port()], **{"error-log-level": level}) as port:
        assert (await get(port, f"/ingest/adjust?secret={MARK}")).status == 502
    assert (MARK in (tmp_path / "error.log").read_text()) is leaks
    assert MARK not in (tmp_path / "access.log").read_text()


async def test_proxy_never_answers_4xx(gateways: Gateways, tmp_path: Path) -> None:
    """Too large, too slow, or not HTTP: nginx closes the connection, or answers 5xx, never 4xx."""
    gateway = await gateways.start()
    with nginx(tmp_path, [gateway.port], **SHORT_S) as port:
        refused = [
            get(port, "/ingest/adjust?" + "a" * 70_000),
            get(port, "/ingest/adjust", headers={f"X-{n}": "a" * 60_000 for n in range(5)}),
            post(port, f"/ingest/adjust?{query()}", b"a" * (2 * 2**20 + 1)),
            exchange(port, b"\x16\x03\x01\x02\x00\r\n\r\n"),
            exchange(port, b"GET /ingest/adjust HTTP/1.1\r\nHost"),
        ]
        statuses = [answer.status for answer in await asyncio.gather(*refused)]
        assert [status for status in statuses if 0 < status < 500] == [], statuses
        largest = f"/ingest/adjust?{query()}&rest={'a' * 60_000}"
        assert (await get(port, largest)).json == WRITTEN


async def test_proxy_passes_answers_unchanged(gateways: Gateways, tmp_path: Path) -> None:
    """A 4xx or 5xx of the gateway comes through as it is, and the request is not repeated."""
    gateway = await gateways.start(ADJUST_CALLBACK_SECRET="")
    other = await gateways.start()
    with nginx(tmp_path, [gateway.port]) as port:
        answer = await get(port, f"/ingest/adjust?{query()}")
        assert (answer.status, answer.json) == (503, {"error": "Service Unavailable"})
        assert (await get(port, "/ingest/nobody?secret=x")).json == {
            "error": "Unknown vendor: nobody"
        }
        assert (await get(port, "/readyz")).status == (await get(port, "/metrics")).status == 404
        assert (await get(port, "/healthz")).json == {"status": "ok"}
    with nginx(tmp_path, [free_port(), other.port]) as port:
        # Only one of the two gateways is there.
        answers = [await get(port, f"/ingest/adjust?{query(user_id=f'u{n}')}") for n in range(4)]
        assert [answer.json for answer in answers] == [WRITTEN] * 4


async def test_address_is_the_one_that_the_proxy_reports(
    gateways: Gateways, tmp_path: Path
) -> None:
    """With PROXIES_COUNT=1 the caller's address is the proxy's entry, not the caller's own."""
    here = await gateways.start(PROXIES_COUNT="1", ADJUST_IP_ALLOWLIST="127.0.0.1/32")
    there = await gateways.start(PROXIES_COUNT="1", ADJUST_IP_ALLOWLIST="192.0.2.1/32")
    request = head("GET", f"/ingest/adjust?{query()}", headers={"X-Forwarded-For": "192.0.2.1"})
    with nginx(tmp_path, [here.port]) as port:
        assert (await exchange(port, request)).status == 200
    with nginx(tmp_path, [there.port]) as port:
        assert (await exchange(port, request)).status == 401
