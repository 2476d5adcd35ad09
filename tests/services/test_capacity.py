"""Capacity: arithmetic that can be done by hand, a simulation that loses nothing, the command."""

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.capacity import costs as measuring
from bench.capacity.autoscaler import CPU, Seen, Spec, Target
from bench.capacity.command import assumptions
from bench.capacity.costs import WIRES, Cost, Costs, fit
from bench.capacity.manifests import IN_FLIGHT, IN_FLIGHT_CAPPED, Deployed
from bench.capacity.model import Assumptions, Model, described
from bench.capacity.scenarios import SLOW_UNTIL_S, Story, stories, tell, usual_rate
from bench.capacity.simulation import Curve, Moment, Pod, Scenario, World, fair_shares, simulate
from bench.testbed.gateway import BenchError
from tests.gateways import ROOT
from tests.unit.test_autoscaler import MANIFEST

# Round figures: a commit takes 1 ms whatever is in it, so a batch at N,000/s has N events.
COSTS = Costs(
    gateway_us=Cost(50, 400),
    database_us=Cost(10, 200),
    redis_us=Cost(5, 50),
    refused_us=50,
    commit_us=Cost(0, 1000),
    wal_bytes=Cost(500, 100),
    sent_bytes={name: Cost(100, 400) for names in WIRES for name in names},
    table_bytes=400,
    index_bytes=50,
    redis_bytes=150,
)
NO_RETRIES = Assumptions(round_trip_ms=0, retries_s=())
TARGETS = (Target(CPU, 0.6), Target(IN_FLIGHT_CAPPED, 200))


def model(
    *,
    least: int = 3,
    most: int = 10,
    targets: Sequence[Target] = TARGETS,
    assumed: Assumptions = NO_RETRIES,
    buffer_max: int = 5000,
) -> Model:
    """A gateway of round figures."""
    deployed = Deployed(Spec(least, most, targets), 1.0, 1.0, "1", buffer_max, 500)
    return Model(COSTS, deployed, assumed)


RETRYING = Assumptions(round_trip_ms=0)


def test_fit_of_costs() -> None:
    """What an event costs is told from what a batch costs; neither becomes negative."""
    batches = (1, 4, 32, 126)
    found = fit([(events, 50 + 400 / events) for events in batches])
    assert (found.per_event, found.per_batch) == pytest.approx((50, 400))
    assert found.at(8) == pytest.approx(100)
    only_event = fit([(1, 40), (10, 50)])
    assert (only_event.per_event, only_event.per_batch) == pytest.approx((43.9, 0), abs=0.1)
    only_batch = fit([(1, 400), (10, 1)])
    assert only_batch.per_event == 0
    assert only_batch.per_batch > 0
    assert fit([(1, 0), (10, 0)]) == Cost(0, 0)
    assert fit([(10, 7)]) == Cost(7, 0)


def test_a_batch_finds_its_size() -> None:
    """A batch has what comes while the one before is committed: at least 1, at most its limit."""
    ours = model()
    assert [ours.batch(rate).events for rate in (0, 500, 10_000, 900_000)] == [1, 1, 10, 500]
    # With 10 µs more for each event, 1 ms grows: n = 50 (1 + n / 100), so n = 100 and 2 ms.
    slower = ours._replace(costs=msgspec.structs.replace(COSTS, commit_us=Cost(10, 1000)))
    batch = slower.batch(50_000)
    assert (batch.events, batch.commit_s) == pytest.approx((100, 0.002))
    # At 100,000/s they would come faster than they are committed, whatever the size.
    assert slower.batch(100_000).events == 500


def test_round_trips_are_part_of_a_commit() -> None:
    """Three of them: the claim, and the two of a COPY."""
    far = model(assumed=Assumptions(round_trip_ms=2))
    assert far.batch(0).commit_s == pytest.approx(0.007)


def test_pods() -> None:
    """By hand: N,000/s cost a pod 0.05 N + 0.4 cores, so at most 4,000/s for 0.6 of them."""
    ours = model()
    assert ours.pod_cores(4_000) == pytest.approx(0.6)
    assert [ours.pods(rate) for rate in (1_000, 12_000, 12_001, 100_000)] == [3, 3, 4, 25]
    # Callbacks in flight ask for more only where they are not capped: 1.5 commits of 4 each.
    raw = model(targets=[Target(CPU, 0.6), Target(IN_FLIGHT, 3)])
    assert ours.pod_in_flight(4_000) == pytest.approx(6)
    assert raw.pods(12_000) == 6
    with pytest.raises(BenchError, match="no number of pods"):
        model(targets=[Target(CPU, 0.6), Target(IN_FLIGHT, -1)]).pods(1_000)


def test_needs() -> None:
    """By hand, for 100,000/s: 25 pods of 4,000/s each, in batches of 4."""
    need = model().need(100_000)
    assert (need.pods, need.pods_surged, need.is_beyond_most) == (25, 26, True)
    assert (need.batch.events, need.copies, need.connections) == pytest.approx((4, 25_000, 208))
    assert need.database_cores == pytest.approx(6)  # 60 µs each
    assert need.wal_bytes == pytest.approx(52.5e6)
    assert need.redis_bytes["1 day"] == pytest.approx(100_000 * 86_400 * 150)
    assert need.redises["1 day"] == math.ceil(1_296 / 25)
    assert need.disk_day_bytes == pytest.approx(100_000 * 86_400 * 450)
    assert need.disk_bytes == pytest.approx(62 * need.disk_day_bytes + 3_600 * 52.5e6)
    assert need.disk_full_d == pytest.approx((30e12 - 3_600 * 52.5e6) / need.disk_day_bytes)
    assert need.disk_full_d == pytest.approx(7.7, abs=0.05)
    assert need.sent_bytes["vendor to gateway"] == pytest.approx(100_000 * 200)


@pytest.mark.parametrize(
    ("name", "value", "databases"),
    [
        ("database_cores", 5, 3),  # 6 cores, of which each gives 2.5
        ("database_wal_mb_s", 10, 6),  # 52.5 MB/s
        ("database_connections", 80, 3),  # 208
        ("database_disk_tb", 100, 3),  # 3.9 TB a day for 62 days
        ("kept_d", 300, 2),  # and 1,000 TB
        ("wal_kept_h", 10_000, 3),  # 189 GB an hour
        ("redis_gb", 1, 1),
    ],
)
def test_one_database_is_not_enough(name: str, value: float, databases: int) -> None:
    """Cores, log, connections and disk each may be what is missing."""
    limited = msgspec.structs.replace(NO_RETRIES, **{"database_disk_tb": 1_000, name: value})
    assert model(assumed=limited).need(100_000).databases == databases


@given(st.floats(0, 100), st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_fair_shares(total: float, wanted: list[float]) -> None:
    """All that there is is given, nobody gets more than wanted, and nobody is envious."""
    shares = fair_shares(total, wanted)
    assert sum(shares) == pytest.approx(min(total, sum(wanted)), abs=1e-9)
    assert all(0 <= share <= want for share, want in zip(shares, wanted, strict=True))
    short = [share for share, want in zip(shares, wanted, strict=True) if share < want - 1e-9]
    assert all(share >= max(shares) - 1e-9 for share in short)


def test_curve() -> None:
    """One rate, another one for a while, and straight edges."""
    curve = Curve(10, 110, from_s=100, until_s=200, edge_s=10)
    assert [curve.at(s) for s in (0, 100, 105, 110, 200, 205, 300)] == [
        10, 10, 60, 110, 110, 60, 10,
    ]  # fmt: skip


scenarios = st.builds(
    Scenario,
    st.just("any"),
    st.builds(
        Curve, st.floats(0, 50_000), st.floats(0, 200_000), st.just(20), st.just(80), st.just(9)
    ),
    st.builds(
        Curve, st.floats(0, 50_000), st.floats(0, 200_000), st.just(40), st.just(120), st.just(1)
    ),
    st.one_of(st.just(math.inf), st.floats(1, 20_000)),
)


@settings(max_examples=25, deadline=None)
@given(scenarios, st.sampled_from([(), (3,), (2, 7, 30)]), st.integers(500, 5000))
def test_nothing_is_lost_or_made(
    scenario: Scenario, retries_s: tuple[int, ...], buffer_max: int
) -> None:
    """At every second: offered = written + waiting in pods and at the vendor + given up."""
    assumed = Assumptions(retries_s=retries_s)
    world = World(model(least=1, assumed=assumed, buffer_max=buffer_max), scenario)
    offered = written = 0.0
    for now_s in range(200):
        moment = world.step(now_s)
        offered += moment.offered
        written += moment.written
        known = written + moment.in_pods + moment.at_vendor + moment.given_up
        assert known == pytest.approx(offered, abs=1e-3)
        assert min(moment.in_pods, moment.at_vendor, moment.refused) > -1e-6
        assert moment.in_pods <= (buffer_max + 10 * assumed.pod_connections) * 10
        assert 1 <= moment.replicas <= 10


@settings(max_examples=25, deadline=None)
@given(st.floats(1_000, 100_000), st.floats(1_000, 100_000), st.floats(0, 50_000))
def test_a_faster_database_refuses_nobody_more(offered: float, rate: float, more: float) -> None:
    """With as many pods, and nobody who comes again."""
    fixed = model(least=2, most=2)

    def refused(database: float) -> float:
        scenario = Scenario("any", Curve(offered, offered), Curve(database, database))
        world = World(fixed, scenario)
        return sum(world.step(now_s).refused for now_s in range(60))

    assert refused(rate + more) <= refused(rate) + 1e-6


def test_a_pod_at_its_limits() -> None:
    """By hand: 12,000/s for one pod keep its CPU busy, and its buffer holds 5,000."""
    one = model(least=1, most=1)
    assert one.reading_rate() == pytest.approx(12_000)  # 50 µs each, and 400 µs a thousand times
    assert one.lane_rate() == pytest.approx(500_000)  # 500 in 1 ms
    slow = Scenario("slow", Curve(2_000, 2_000), Curve(1_000, 1_000))
    moments = _first(one, slow, 10)
    # 1,000 more each second, until after five of them there is no room.
    assert [moment.refused for moment in moments] == pytest.approx([0] * 5 + [1_000] * 5)
    assert [moment.in_flight for moment in moments[:2]] == pytest.approx([1_001.5, 2_001.5], abs=1)
    assert moments[-1].cores == pytest.approx(0.05 + 0.4 + 0.05)  # 1,000 taken, 1,000 refused


def test_what_is_known_of_a_new_pod() -> None:
    """Nothing while it is pending; its CPU after a whole period, and believed from one after that.

    Metrics are taken every 15 s and seen 5 s later; it runs from 5 s on, and is ready at 20 s.
    """
    pod = Pod(model(), 5, 20)
    seen = {}
    for now_s in range(60):
        if now_s % 15 == 0:
            pod.sample(now_s)
        seen[now_s] = pod.seen(now_s)
    assert seen[4] == Seen({}, is_pending=True, is_unready=True)
    assert seen[19] == Seen({}, is_unready=True)
    assert set(seen[20].values) == {IN_FLIGHT, IN_FLIGHT_CAPPED}
    assert set(seen[34].values) == {IN_FLIGHT, IN_FLIGHT_CAPPED}
    assert set(seen[35].values) == {CPU, IN_FLIGHT, IN_FLIGHT_CAPPED}
    assert [seen[now_s].is_unready for now_s in (35, 49, 50)] == [True, True, False]


def test_capped_metric_looks_back() -> None:
    """It tells the most of the last minute, and never more than its target."""
    pod, told = Pod(model(), -1_000, -1_000), []
    for number, in_flight in enumerate((10, 900, 50, 20, 20, 20, 20)):
        pod.in_flight = in_flight
        pod.sample(15 * number)
        told.append(pod.seen(15 * number + 5).values[IN_FLIGHT_CAPPED])
    assert told == [10, 200, 200, 200, 200, 50, 20]


def _first(ours: Model, scenario: Scenario, seconds: int) -> Sequence[Moment]:
    world = World(ours, scenario)
    return [world.step(now_s) for now_s in range(seconds)]


@pytest.fixture(scope="module")
def told() -> dict[str, Story]:
    """What became of every story, at round figures."""
    retrying = msgspec.structs.replace(RETRYING, retries_s=(60, 240, 960, 3840))
    ours = model(most=20, assumed=retrying)
    usual = usual_rate(ours)
    assert usual == 8_000  # a tenth of twenty pods' 4,000/s
    return {scenario.name: tell(m, scenario)[0] for m, scenario in stories(ours, usual)}


def test_spike(told: dict[str, Story]) -> None:
    """A tenfold spike is refused in part until there are pods for it, and all of it is written."""
    story = told["spike"]
    assert (story.replicas_before, story.replicas_most) == (3, 20)
    assert story.refused > 0
    assert story.retried == pytest.approx(story.refused)
    assert story.scaled_s is not None
    assert 15 <= story.scaled_s < story.recovered_s < 240
    assert (round(story.given_up), round(story.left)) == (0, 0)
    assert story.written == pytest.approx(story.offered)


def test_database_that_is_too_small_for_a_spike(told: dict[str, Story]) -> None:
    """More pods do not help; what is refused comes back long after the spike."""
    assert told["spike, tight database"].recovered_s > 600
    assert told["spike, tight database"].refused > 10 * told["spike"].refused


def test_slow_database_while_callers_wait() -> None:
    """Capped callbacks in flight keep the pods; CPU alone scales in, uncapped ones scale out."""
    ours = model(most=20, assumed=RETRYING)
    replicas = {}
    for variant, scenario in stories(ours, 8_000)[2:]:
        moments = _first(variant, scenario, SLOW_UNTIL_S)
        assert sum(moment.refused for moment in moments) == 0
        before = moments[scenario.offered.from_s - 1].replicas
        after = [moment.replicas for moment in moments[scenario.offered.from_s :]]
        replicas[scenario.name] = (min(after), before, max(after))
    # 40,000/s in ten pods, of which 8,000/s are left: 800/s each cost 0.36 cores, of 0.6.
    assert replicas["slow database"] == (10, 10, 10)
    assert replicas["slow, CPU alone"][0] <= 6
    assert replicas["slow, not capped"] == (10, 10, 20)


def test_a_day_ends() -> None:
    """Where nothing is ever written, all retries are made, and everything is given up."""
    assumed = msgspec.structs.replace(RETRYING, retries_s=(5, 10), patience_s=1)
    ours = model(least=1, most=1, assumed=assumed, buffer_max=500)
    dead = Scenario("dead", Curve(0, 100, until_s=400), Curve(0, 0))
    moments = []
    for moment in simulate(ours, dead):
        moments.append(moment)
        if moment.at_s == 3_700:
            break
    arrived, offered = (sum(getattr(m, name) for m in moments) for name in ("arrived", "offered"))
    assert moments[-1].in_pods == pytest.approx(500)
    assert moments[-1].given_up == pytest.approx(offered - 500)
    assert arrived == pytest.approx(3 * offered - 2 * 500)


def test_assumptions_on_the_command_line() -> None:
    """Each can be set, by its name; what is wrong is named."""
    set_to = assumptions(["database_cores=64", "retries_s=1,2", "redis_use=0.7"])
    assert (set_to.database_cores, set_to.retries_s, set_to.redis_use) == (64, (1, 2), 0.7)
    for wrong in ("nonsense=1", "redis_use=2", "sync_s=often", "database_cores"):
        with pytest.raises(BenchError, match="--assume"):
            assumptions([wrong])
    assert all(text and meaning for _, text, meaning in described(Assumptions()))


def command(*options: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    words = [sys.executable, "-m", "bench", "capacity", *options]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_command_with_costs_of_elsewhere(tmp_path: Path) -> None:
    """From a costs file: every table, what is beyond a limit in words, a report and a picture."""
    (tmp_path / "all.yaml").write_text(MANIFEST)
    (tmp_path / "costs.json").write_bytes(msgspec.json.encode(COSTS))
    picture = tmp_path / "autoscaler.png"
    options = [f"--manifests={tmp_path}", f"--costs={tmp_path}/costs.json", f"--picture={picture}"]
    ended = command(*options, f"--results={tmp_path}/results", "--assume=retries_s=60,240")
    assert ended.returncode == 0, ended.stderr
    beyond = (
        "100,000/s is too much for one PostgreSQL, whose disk would be full after 7.7 days: 9 of"
    )
    for words in ("pods", "COPY statements/s", "one disk is full after, days", beyond):
        assert words in ended.stdout
    (folder,) = (tmp_path / "results").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "report.md", "results.json", "costs.json", "moments.json", "autoscaler.svg",
    }  # fmt: skip
    assert measuring.load(folder / "costs.json") == COSTS
    assert "not a cluster" in (folder / "report.md").read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    wrong = command(f"--manifests={tmp_path}", f"--costs={tmp_path}/none.json")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "none.json" in wrong.stderr


@pytest.mark.services
async def test_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run measures every cost; a batch costs something, and rows are as large as rows."""
    for name, value in {"CALLERS": (1, 32), "WARM_UP_S": 1, "SHORT_S": 1}.items():
        monkeypatch.setattr(measuring, name, value)
    costs = await measuring.measure(1, tmp_path / "stage")
    assert [level.callers for level in costs.levels] == [1, 32]
    assert costs.levels[0].batch_events == pytest.approx(1, abs=0.2)
    assert costs.levels[1].batch_events > 3
    assert costs.gateway_us.per_batch > 0
    assert costs.refused_us > 0
    assert 200 < costs.table_bytes < 2_000
    assert 10 < costs.index_bytes < 500
    assert 50 < costs.redis_bytes < 500
    assert costs.wal_bytes.at(32) > costs.table_bytes
    # Status line and head alone are longer than 100 bytes, a URL as Adjust's longer than 300.
    assert costs.sent_bytes["gateway to vendor"].at(32) > 100
    assert 300 < costs.sent_bytes["vendor to gateway"].at(32) < 1_000
    assert costs.sent_bytes["gateway to database"].at(32) > 200
    assert costs.sent_bytes["Redis to gateway"].at(32) >= 1
