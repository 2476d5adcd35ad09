"""One warm callback is a short walk: few calls of the product, and few moves between its files."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType

from bench.testbed.client import head
from bench.testbed.process import ROOT
from tests.gateways import Gateways, query

CALLS_MAX = 80
MOVES_MAX = 60
WARM = 20
# On a busy machine, timers and background tasks run during most of them.
WALKS = 100
PRODUCT = tuple(str(ROOT / room) + "/" for room in ("app", "adapters", "sinks"))


@contextmanager
def calls_of_the_product() -> Iterator[list[tuple[str, str]]]:
    """Collect file and function of each call of the product; a resumed coroutine is a call."""
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PRODUCT):
            path = Path(frame.f_code.co_filename).relative_to(ROOT)
            calls.append((str(path), frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


async def test_warm_get_is_a_short_walk(gateways: Gateways) -> None:
    """A written callback makes at most 80 calls of the product and 30 moves between files."""
    gateway = await gateways.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)

    async def get(number: int) -> bytes:
        writer.write(head("GET", f"/ingest/adjust?{query(user_id=f'u{number}')}"))
        async with asyncio.timeout(10):
            return await reader.readuntil(b"}")

    for number in range(WARM):
        await get(number)
    walks = []
    for number in range(WARM, WARM + WALKS):
        with calls_of_the_product() as calls:
            assert b'"written":1' in await get(number)
        walks.append(calls)
    writer.close()
    shortest = min(walks, key=len)
    walk = "\n".join(f"{path} {function}" for path, function in shortest)
    moves = sum(before != after for (before, _), (after, _) in pairwise(shortest))
    assert len(shortest) <= CALLS_MAX, walk
    assert moves <= MOVES_MAX, walk
