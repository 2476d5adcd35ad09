"""The ways in which one caller, operator or scraper could make all others wait.

Each is a coroutine that never ends by itself. As a program this runs one of them, so that its own
cost does not delay the callers that are measured:
`python -m bench.neighbours.disturbances NAME PORT FILE`.
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

from bench.testbed.callbacks import SECRET, WORKSPACES
from bench.testbed.caller import Caller

SCRAPE_WORKSPACES = 2_000
RELOAD_APPS = 5_000
MEMBERS = 100_000
STRANGERS = 20
STRANGERS_NAMES = 16_000
LARGE_BODIES = 6
WRONG_DATES = 32
HEADS = 9_000
HEAD_BYTES = 60_000
# About as long as a gateway waits for the rest; each connection begins at another moment.
HOLD_S = 10.0
RESERVED_FILES = 256
SCRAPE_S = 0.5
TIMEOUT_S = 60.0
# Longer than a gateway may take to use a file.
RELOAD_S = 6.0
APP = "shop4ndroid1"


class Target(NamedTuple):
    """A gateway: its port, and the workspaces file that it watches."""

    port: int
    file: Path


def workspaces(number: int, note: int = 0) -> str:
    """Return a file of the bench's own workspaces and so many others; `note` makes it another."""
    others = (
        f'[[workspaces]]\nid = "ws_{n}"\n[[workspaces.apps]]\nvendor = "adjust"\n'
        f'app_token = "other{n:07}"\nevents = {{ g3mz3t = "purchase", bkrfgq = "coins" }}\n'
        for n in range(number)
    )
    return f"# {note}\n{WORKSPACES}{''.join(others)}"


async def scrape(target: Target) -> None:
    """Prometheus reads the metrics of 2,000 workspaces, more often than it would."""
    target.file.write_text(workspaces(SCRAPE_WORKSPACES))
    await _call(target, itertools.repeat(_get("/metrics")), pause_s=SCRAPE_S)


async def reload(target: Target) -> None:
    """A workspaces file of 5,000 apps changes as often as it is read."""
    for note in itertools.count():
        target.file.write_text(workspaces(RELOAD_APPS, note))
        await asyncio.sleep(RELOAD_S)


async def strangers(target: Target) -> None:
    """Somebody who does not know the secret sends 64 KB of encoded names, again and again."""
    request = _get("/ingest/adjust?secret=x&" + "&".join(["%41"] * STRANGERS_NAMES))
    await asyncio.gather(*(_call(target, itertools.repeat(request)) for _ in range(STRANGERS)))


async def large_bodies(target: Target) -> None:
    """A sender posts forms and JSON objects of 100,000 members."""
    members = {f"n{number}": "1" for number in range(MEMBERS)}
    requests = [
        _post("application/x-www-form-urlencoded", urlencode(members).encode()),
        _post("application/json", msgspec.json.encode(members)),
    ]
    orders = itertools.cycle([requests, requests[::-1]])
    callers = [_call(target, itertools.cycle(next(orders))) for _ in range(LARGE_BODIES)]
    await asyncio.gather(*callers)


async def wrong_dates(target: Target) -> None:
    """A device whose clock is wrong sends each event with another day of the past."""
    days = itertools.count()
    await asyncio.gather(*(_call(target, _events(days)) for _ in range(WRONG_DATES)))


async def unfinished_heads(target: Target) -> None:
    """Thousands of connections send nearly all of a long head, and wait; then others do."""
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
    """Send one request after the other, on a connection that is opened anew where it is closed."""
    caller = Caller(target.port)
    for request in requests:
        if caller.is_closed:
            await asyncio.sleep(pause_s or 0.01)
            caller = Caller(target.port)
        await caller.send(request, TIMEOUT_S)
        await asyncio.sleep(pause_s)


async def _hold(target: Target, delay_s: float) -> None:
    head = b"GET /ingest/adjust?" + b"a" * HEAD_BYTES
    await asyncio.sleep(delay_s)
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
            writer.write(head)
            await reader.read()
            writer.close()
        await asyncio.sleep(HOLD_S)


def _events(days: Iterator[int]) -> Iterator[bytes]:
    newest = datetime.now(UTC) - timedelta(days=90)
    span = (newest - datetime(2010, 1, 2, tzinfo=UTC)).days
    for day in days:
        moment = newest - timedelta(days=day % span)
        sent = {
            "secret": SECRET, "app_token": APP, "event_token": "g3mz3t",
            "created_at": str(int(moment.timestamp())), "user_id": f"old{day}",
        }  # fmt: skip
        yield _get(f"/ingest/adjust?{urlencode(sent)}")


def _get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def _post(content_type: str, body: bytes) -> bytes:
    query = urlencode({"secret": SECRET, "app_token": APP})
    head = (
        f"POST /ingest/adjust?{query} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main(name: str, port: str, file: str) -> None:
    """Disturb until a signal ends it."""
    uvloop.run(_until_ended(DISTURBANCES[name](Target(int(port), Path(file)))))


async def _until_ended(work: Awaitable[None]) -> None:
    await work


if __name__ == "__main__":
    main(*sys.argv[1:])
