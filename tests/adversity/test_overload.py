"""More callbacks than the sink takes: who is refused, who is not, and what it costs the others."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.claims import Claim, Claims
from app.event import Event, Outcome
from bench.overload.command import print_verdict, run
from bench.overload.verdict import Limits, judge
from bench.testbed.client import Answer
from bench.testbed.console import Progress
from tests.adversity.test_exactly_once import AlwaysBusy, AlwaysHeld
from tests.gateways import Gateways, Running, workspaces_toml
from tests.services.test_vectors import receipt

# What a machine may do to the figures that has other things to do as well.
PATIENT = Limits(
    refused_p99_s=3,
    probe_max_s=10,
    place_bytes=64 * 1024,
    plateau_bytes=16 * 1024 * 1024,
    goodput_ratio=0.75,
    wait_ratio=3,
    small_wait_ratio=0.75,
    light_ratio=5,
)


@pytest.mark.services
async def test_overload(tmp_path: Path) -> None:
    """Six times what the sink takes, for ten seconds: every promise of the bench is kept."""
    with Progress(1, "runs") as progress:
        measured = await run(
            progress,
            duration_s=10,
            offered=600,
            capacity=100,
            buffer_max=500,
            batch_max=25,
            folder=tmp_path,
        )
    claims = judge(measured, PATIENT)
    print_verdict(measured, claims)
    assert [claim for claim in claims if not claim.holds] == []


class Slow:
    """A sink that writes nothing until it is let, and then everything."""

    generation = None
    clock_ahead_s = 0.0

    def __init__(self) -> None:
        self.batches: list[Counter[str]] = []
        self.is_let = asyncio.Event()

    async def write(self, events: Sequence[Event]) -> Sequence[Outcome]:
        self.batches.append(Counter(event.workspace_id for event in events))
        await self.is_let.wait()
        return [Outcome.WRITTEN] * len(events)

    async def write_contested(self, event: Event) -> Outcome:
        return (await self.write([event]))[0]

    async def ping(self) -> None:
        pass

    async def close(self) -> None:
        pass


class HeldUp(AlwaysBusy):
    """Claims that are not answered until they are let, and are busy then."""

    def __init__(self) -> None:
        self.is_let = asyncio.Event()

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        await self.is_let.wait()
        return await super().claim(event_ids)


async def start(
    gateways: Gateways, sink: Slow, claims: Claims | None = None, **settings: str
) -> Running:
    """Start a gateway with two workspaces, of one app each."""
    small = workspaces_toml("small").replace("ws_test", "ws_small")
    (gateways.folder / "workspaces.toml").write_text(workspaces_toml("big") + small)
    return await gateways.start(
        claims=claims or AlwaysHeld(), sink=sink, quarantine=None, **settings
    )


def send(
    gateway: Running, app: str, number: int, size_bytes: int = 0
) -> list[asyncio.Task[Answer]]:
    """Send so many callbacks of an app at once, each of them new."""
    return [
        asyncio.create_task(
            gateway.callback(app_token=app, user_id=f"{app}{place}", more="x" * size_bytes)
        )
        for place in range(number)
    ]


async def until_held(gateway: Running, number: int) -> None:
    """Return when so many events are in the buffer."""
    async with asyncio.timeout(20):
        while len(gateway.gateway.buffer) < number:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("size_bytes", [0, 20_000], ids=["many", "large"])
async def test_one_workspace_does_not_starve_another(gateways: Gateways, size_bytes: int) -> None:
    """Who sends most is refused first; who sends little is let in, and is in the next batch."""
    sink = Slow()
    gateway = await start(gateways, sink, BUFFER_MAX_EVENTS="50", BATCH_MAX_EVENTS="10")
    big = send(gateway, "big", 60, size_bytes)
    async with asyncio.timeout(20):
        while sum(task.done() for task in big) < 20:
            await asyncio.sleep(0.01)
    refused = [task.result() for task in big if task.done()]
    assert [(answer.status, answer.headers["retry-after"]) for answer in refused] == [
        (503, "1")
    ] * 20
    small = send(gateway, "small", 4)
    await until_held(gateway, 44)
    sink.is_let.set()
    assert [answer.json for answer in await asyncio.gather(*small)] == [receipt("written")] * 4
    assert sum(answer.status == 200 for answer in await asyncio.gather(*big)) == 40
    assert [batch["ws_small"] for batch in sink.batches[:3]] == [0, 4, 0]


async def test_twins_of_several_workspaces_all_have_their_place(gateways: Gateways) -> None:
    """What was let in is not refused half-way, when it turns out to be busy elsewhere."""
    sink, claims = Slow(), HeldUp()
    gateway = await start(gateways, sink, claims, BUFFER_MAX_EVENTS="10", BATCH_MAX_EVENTS="10")
    tasks = send(gateway, "big", 1)
    await until_held(gateway, 1)
    tasks += send(gateway, "big", 7)
    await until_held(gateway, 8)
    tasks += send(gateway, "small", 2)
    await until_held(gateway, 10)
    claims.is_let.set()
    async with asyncio.timeout(20):
        # One of the ten is being written.
        while sum(len(queue.undecided) for queue in gateway.gateway.buffer._queues.values()) < 9:
            await asyncio.sleep(0.01)
    sink.is_let.set()
    assert [answer.status for answer in await asyncio.gather(*tasks)] == [200] * 10


async def test_wait_that_is_too_long(gateways: Gateways, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller is told 503 in the end; what it sent stays, is written, and the room is free."""
    monkeypatch.setattr("app.http.app.RESPONSE_TIMEOUT_S", 0.2)
    sink = Slow()
    gateway = await start(gateways, sink)
    (answer,) = await asyncio.gather(*send(gateway, "big", 1))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert len(gateway.gateway.buffer) == 1
    before = await gateway.metrics()
    sink.is_let.set()
    async with asyncio.timeout(20):
        while len(gateway.gateway.buffer):
            await asyncio.sleep(0.01)
    written = 'flokit_callbacks_written_total{vendor="adjust",workspace="ws_test"}'
    assert (await gateway.metrics())[written] == before.get(written, 0) + 1
