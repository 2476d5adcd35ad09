"""Disturbances: ways of one caller, operator or scraper to delay all other callers.

Each is a coroutine without an end. As a program this runs one of them, so that its own cost does
not delay the measured callers: `python -m bench.neighbours.disturbances NAME PORT FILE`.
"""

import asyncio
import itertools
import resource
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import msgspec
import uvloop

from bench.testbed.callbacks import APPS, ENDPOINT, WORKSPACES, get_request, query, workspace_toml
from bench.testbed.client import Connection, head, post_request

SCRAPE_WORKSPACES = 2_000
RELOAD_APPS = 5_000
MEMBERS = 100_000
STRANGERS = 20
STRANGERS_NAMES = 16_000
LARGE_BODIES = 6
WRONG_DATES = 32
HEADS = 9_000
HEAD_BYTES = 60_000
# About the gateway's time limit of a head; each connection begins at another moment.
HOLD_S = 10.0
RESERVED_FILES = 256
SCRAPE_S = 0.5
TIMEOUT_S = 60.0
# Longer than a gateway takes to load a file.
RELOAD_S = 6.0
APP = next(iter(APPS))


class Target(NamedTuple):
    """A gateway: its port, and the workspaces file that it watches."""

    port: int
    file: Path


def workspaces(number: int, note: int = 0) -> str:
    """Return a file of the bench's own workspaces and so many others; `note` changes its bytes."""
    events = {"g3mz3t": "purchase", "bkrfgq": "coins"}
    others = (workspace_toml(f"ws_{n}", f"other{n:07}", events=events) for n in range(number))
    return f"# {note}\n{WORKSPACES}{''.join(others)}"


async def scrape(target: Target) -> None:
    """Frequent scrapes of the metrics of 2,000 workspaces."""
    target.file.write_text(workspaces(SCRAPE_WORKSPACES))
    await _call(target, itertools.repeat(head("GET", "/metrics")), pause_s=SCRAPE_S)


async def reload(target: Target) -> None:
    """A workspaces file of 5,000 apps, changed as often as it is read."""
    for note in itertools.count():
        target.file.write_text(workspaces(RELOAD_APPS, note))
        await asyncio.sleep(RELOAD_S)


async def strangers(target: Target) -> None:
    """Callers without the secret, with 64 KB of encoded names each time."""
    names = "&".join(["%41"] * STRANGERS_NAMES)
    request = head("GET", f"{ENDPOINT}?secret=x&{names}")
    await asyncio.gather(*(_call(target, itertools.repeat(request)) for _ in range(STRANGERS)))


async def large_bodies(target: Target) -> None:
    """Forms and JSON objects of 100,000 members."""
    members = {f"n{number}": "1" for number in range(MEMBERS)}
    requests = [
        _post("application/x-www-form-urlencoded", urlencode(members).encode()),
        _post("application/json", msgspec.json.encode(members)),
    ]
    orders = itertools.cycle([requests, requests[::-1]])
    callers = [_call(target, itertools.cycle(next(orders))) for _ in range(LARGE_BODIES)]
    await asyncio.gather(*callers)


async def wrong_dates(target: Target) -> None:
    """A device with a wrong clock: each event occurs on another day of the past."""
    days = itertools.count()
    await asyncio.gather(*(_call(target, _events(days)) for _ in range(WRONG_DATES)))


async def unfinished_heads(target: Target) -> None:
    """Thousands of connections with an unfinished long head (slowloris), again and again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    number = HEADS if hard == resource.RLIM_INFINITY else min(HEADS, hard - RESERVED_FILES)
    await asyncio.gather(*(_hold(target, HOLD_S * n / number) for n in range(number)))


DISTURBANCES: dict[str, Callable[[Target], Awaitable[None]]] = {
    work.__name__: work
    for work in (scrape, reload, strangers, large_bodies, wrong_dates, unfinished_heads)
}


async def _call(target: Target, requests: Iterator[bytes], *, pause_s: float = 0) -> None:
    """Send one request after the other, on a connection that is reopened after its end."""
    connection = Connection(target.port)
    for request in requests:
        if connection.is_closed:
            await asyncio.sleep(pause_s or 0.01)
            connection = Connection(target.port)
        await connection.send(request, TIMEOUT_S)
        await asyncio.sleep(pause_s)


async def _hold(target: Target, delay_s: float) -> None:
    unfinished = b"GET /ingest/adjust?" + b"a" * HEAD_BYTES
    await asyncio.sleep(delay_s)
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
            writer.write(unfinished)
            await reader.read()
            writer.close()
        await asyncio.sleep(HOLD_S)


def _events(days: Iterator[int]) -> Iterator[bytes]:
    newest = datetime.now(UTC) - timedelta(days=90)
    span = (newest - datetime(2010, 1, 2, tzinfo=UTC)).days
    for day in days:
        moment = newest - timedelta(days=day % span)
        yield get_request(
            {
                "app_token": APP,
                "event_token": "g3mz3t",
                "created_at": str(int(moment.timestamp())),
                "user_id": f"old{day}",
            }
        )


def _post(content_type: str, body: bytes) -> bytes:
    return post_request(f"{ENDPOINT}?{query({'app_token': APP})}", body, content_type)


def main(name: str, port: str, file: str) -> None:
    """Disturb until a signal."""
    uvloop.run(_until_ended(DISTURBANCES[name](Target(int(port), Path(file)))))


async def _until_ended(work: Awaitable[None]) -> None:
    await work


if __name__ == "__main__":
    main(*sys.argv[1:])
