"""The measured parts: each has a preparation, and a function that runs it so many times."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from hashlib import blake2b
from random import Random
from timeit import Timer

from adapters import adjust
from app.buffer import WriteBuffer
from app.claims.redis import RedisClaims
from app.event import App, Callback, Event, Outcome, event_id
from app.http import fast_path
from app.parameters import parse_form
from app.telemetry.outcomes import count_events
from bench.micro.index import CHUNKS, ROWS, in_server, reading, unindexed
from bench.micro.part import Part, Run
from bench.testbed.callbacks import APPS, EVENTS, get_request, parameters, query
from bench.testbed.environment import Environment
from sinks.timescale.encoding import encode_rows
from sinks.timescale.sink import TimescaleSink

BATCH = 32
NOW = datetime.now(UTC).replace(microsecond=0)
SENT = parameters(7, Random(7)) | {"created_at": str(int(NOW.timestamp()))}  # noqa: S311
APP = App(workspace_id="ws_shop", vendor="adjust", app_token=next(iter(APPS)), events=dict(EVENTS))


def _event(number: int) -> Event:
    return Event(
        event_id=blake2b(str(number).encode(), digest_size=16).digest(),
        occurred_at=NOW,
        received_at=NOW,
        workspace_id=APP.workspace_id,
        vendor=APP.vendor,
        app_token=APP.app_token,
        event_type="purchase",
        user_id=f"u{number}",
        adid=SENT["adid"],
        os_name="android",
        country="DE",
        properties={name: SENT[name] for name in ("revenue", "currency", "tracker_name")},
    )


def _in_process(work: Callable[[], object]) -> Callable[..., AbstractAsyncContextManager[Run]]:
    """Measure a plain function, in CPU time: a busy machine adds nothing to it."""

    @asynccontextmanager
    async def prepare(_: Environment | None) -> AsyncIterator[Run]:
        async def run(number: int) -> float:
            return Timer(work, timer=time.thread_time).timeit(number)

        yield run

    return prepare


def _parse_query() -> object:
    return parse_form(_QUERY)


def _recognise() -> object:
    return fast_path.CALLBACK.fullmatch(_REQUEST)


def _adapt() -> object:
    return adjust.parse(_CALLBACK, APP)


def _identify() -> object:
    return event_id(
        vendor="adjust",
        app_token=APP.app_token,
        user=("user_id", "u7"),
        event_type="purchase",
        occurred_at=NOW,
        raw_event_id="",
        stable_id=None,
    )


def _encode() -> object:
    return encode_rows(_ROWS)


def _count() -> None:
    count_events(_ROWS, _WRITTEN)


_QUERY = query(SENT).encode()
_REQUEST = get_request(SENT)
_CALLBACK = Callback(query=SENT, received_at=NOW)
_ROWS = [_event(number) for number in range(BATCH)]
_WRITTEN = [Outcome.WRITTEN] * BATCH
# Of a table into which several parts write.
_ROW = itertools.count()


@asynccontextmanager
async def _submitting(_: Environment | None) -> AsyncIterator[Run]:
    async def commit(items: Sequence[int]) -> Sequence[Outcome]:
        return [Outcome.WRITTEN] * len(items)

    async def commit_one(_: int) -> Outcome:
        return Outcome.WRITTEN

    buffer = WriteBuffer(
        commit,
        commit_one,
        undecided=Outcome.CONTESTED,
        batch_max=500,
        buffer_max=5_000,
        batch_max_bytes=2**20,
        buffer_max_bytes=2**24,
    )

    async def run(number: int) -> float:
        began = time.thread_time()
        for _ in range(number):
            await asyncio.gather(*(buffer.submit(item, "ws", 400) for item in range(BATCH)))
        return time.thread_time() - began

    yield run
    await buffer.close()


@asynccontextmanager
async def _claiming(environment: Environment | None) -> AsyncIterator[Run]:
    assert environment is not None
    url = environment.servers.redis_url
    claims = RedisClaims(url, generation=lambda: "micro", lease_s=15, seen_window_d=1)
    numbers = itertools.count()

    async def run(number: int) -> float:
        batches = [[_event(next(numbers)).event_id for _ in range(BATCH)] for _ in range(number)]
        began = time.perf_counter()
        for batch in batches:
            await claims.claim(batch)
            await claims.settle(batch)
        return time.perf_counter() - began

    yield run
    await claims.close()


@asynccontextmanager
async def _copying(environment: Environment | None) -> AsyncIterator[Run]:
    assert environment is not None
    sink = TimescaleSink(environment.servers.database_url, commit_timeout_s=5)

    async def run(number: int) -> float:
        batches = [[_event(next(_ROW)) for _ in range(BATCH)] for _ in range(number)]
        began = time.perf_counter()
        for batch in batches:
            outcomes = await sink.write(batch)
            assert set(outcomes) <= {Outcome.WRITTEN, Outcome.CONTESTED}, outcomes
        return time.perf_counter() - began

    yield run
    await sink.close()


PARTS = {
    part.name: part
    for part in (
        Part(
            "fast_path", "recognise a GET by the pattern of the fast path", _in_process(_recognise)
        ),
        Part("query", "parse a query", _in_process(_parse_query)),
        Part("adapter", "Adjust's adapter: parameters to event", _in_process(_adapt)),
        Part("event_id", "the ID of an event", _in_process(_identify)),
        Part("submit", f"submit to the buffer, {BATCH} at once", _submitting, BATCH),
        Part("metrics", f"count the outcomes of {BATCH} events", _in_process(_count), BATCH),
        Part("encode", f"encode {BATCH} rows for COPY", _in_process(_encode), BATCH),
        Part("claim", f"claim and settle {BATCH} events in Redis", _claiming, BATCH, True),
        Part("copy", f"write {BATCH} new events by COPY", _copying, BATCH, True),
        Part(
            "server",
            f"write {BATCH} new events by COPY: CPU time of the server",
            in_server(_copying),
            BATCH,
            True,
        ),
        Part(
            "unindexed",
            "the same without the index on `received_at`",
            unindexed(in_server(_copying)),
            BATCH,
            True,
        ),
        Part("read", f"read the last 90 s of {ROWS:,} rows in {CHUNKS} chunks", reading, 1, True),
        Part("read_unindexed", "the same without the index", unindexed(reading), 1, True),
    )
}
