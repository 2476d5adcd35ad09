"""`bench capacity`: manifests, arithmetic that can be done by hand, and the command."""

import math
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.capacity import costs as measuring
from bench.capacity.command import assumptions
from bench.capacity.costs import NETWORKS, Cost, Costs, fit
from bench.capacity.manifests import MANIFESTS, Deployed, quantity, read
from bench.capacity.model import Assumptions, Model, described
from bench.testbed.process import ROOT, BenchError

# Round figures: a commit takes 1 ms for any batch, so a batch at N,000/s has N events.
COSTS = Costs(
    gateway_us=Cost(50, 400),
    database_us=Cost(10, 200),
    redis_us=Cost(5, 50),
    refused_us=50,
    commit_us=Cost(0, 1000),
    wal_bytes=Cost(500, 100),
    sent_bytes={name: Cost(100, 400) for names in NETWORKS for name in names},
    table_bytes=400,
    index_bytes=50,
    redis_bytes=150,
)
AT_ONCE = Assumptions(round_trip_ms=0)


def model(assumed: Assumptions = AT_ONCE, cores_target: float = 0.6) -> Model:
    """Return a gateway of round figures."""
    return Model(COSTS, Deployed(3, 10, cores_target, "1"), assumed)


def test_costs_are_split_into_event_and_batch() -> None:
    """The cost of an event is separated from that of a batch; neither is negative."""
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


def test_batch_grows_with_the_rate() -> None:
    """A batch has the events of the commit before it: at least 1, at most BATCH_MAX_EVENTS."""
    ours = model()
    assert [ours.batch(rate).events for rate in (0, 500, 10_000, 900_000)] == [1, 1, 10, 500]
    # With 10 µs more for each event, 1 ms grows: n = 50 (1 + n / 100), so n = 100 and 2 ms.
    slower = ours._replace(costs=msgspec.structs.replace(COSTS, commit_us=Cost(10, 1000)))
    batch = slower.batch(50_000)
    assert (batch.events, batch.commit_s) == pytest.approx((100, 0.002))
    # At 100,000/s they would come faster than they are committed, whatever the size.
    assert slower.batch(100_000).events == 500


def test_round_trips_are_part_of_a_commit() -> None:
    """Three of them: the claim, and two of a COPY."""
    far = model(Assumptions(round_trip_ms=2))
    assert far.batch(0).commit_s == pytest.approx(0.007)


def test_pods_follow_the_cpu_target() -> None:
    """By hand: N,000/s cost a pod 0.05 N + 0.4 cores, so at most 4,000/s for 0.6 of them."""
    ours = model()
    assert ours.pod_cores(4_000) == pytest.approx(0.6)
    assert [ours.pods(rate) for rate in (1_000, 12_000, 12_001, 100_000)] == [3, 3, 4, 25]
    with pytest.raises(BenchError, match="no number of pods"):
        model(cores_target=0).pods(1_000)


def test_needs_of_a_rate() -> None:
    """By hand, for 100,000/s: 25 pods of 4,000/s each, in batches of 4."""
    need = model().need(100_000)
    assert (need.pods, need.pods_surged, need.is_beyond_max) == (25, 26, True)
    assert (need.batch.events, need.copies, need.connections) == pytest.approx((4, 25_000, 310))
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
    ("name", "value", "cells"),
    [
        ("database_cores", 5, 3),  # 6 cores, of which each gives 2.5
        ("database_wal_mb_s", 10, 6),  # 52.5 MB/s
        ("database_connections", 80, 4),  # 310
        ("database_disk_tb", 100, 3),  # 3.9 TB a day for 62 days
        ("kept_d", 300, 2),  # and 1,000 TB
        ("wal_kept_h", 10_000, 3),  # 189 GB an hour
        ("redis_gb", 1, 1),
    ],
)
def test_scarcest_resource_decides_the_cells(name: str, value: float, cells: int) -> None:
    """Cores, WAL, connections or disk may be the scarcest."""
    limited = msgspec.structs.replace(AT_ONCE, **{"database_disk_tb": 1_000, name: value})
    need = model(limited).need(100_000)
    assert need.cells == cells == max(need.cells_by.values())
    assert need.cell_pods == model().pods(100_000 / cells)


def test_columnstore_shrinks_the_days_that_it_has_taken_over() -> None:
    """By hand: of 62 days 7 are rows, and 55 take a fourth of their disk, as do 13.75 days."""
    plain, shrunk = (
        msgspec.structs.replace(AT_ONCE, columnstore_factor=factor, wal_kept_h=0)
        for factor in (1, 4)
    )
    rows, columns = model(plain).need(100_000), model(shrunk).need(100_000)
    assert columns.disk_day_bytes == rows.disk_day_bytes
    assert columns.disk_bytes == pytest.approx(20.75 * rows.disk_day_bytes)
    assert (rows.cells, columns.cells) == (9, 3)
    assert columns.cells_by == rows.cells_by | {"disk": 3}
    # 30 TB are 7.7 days of rows: 7 days, and the rest four times as long.
    assert rows.disk_full_d == pytest.approx(30e12 / rows.disk_day_bytes)
    assert columns.disk_full_d == pytest.approx(7 + 4 * (rows.disk_full_d - 7))
    at_once = msgspec.structs.replace(shrunk, columnstore_after_d=0)
    assert model(at_once).need(100_000).disk_bytes == pytest.approx(rows.disk_bytes / 4)
    never = msgspec.structs.replace(shrunk, columnstore_after_d=62)
    assert model(never).need(100_000).disk_bytes == rows.disk_bytes


def test_assumption_is_set_by_name() -> None:
    """Each assumption can be set; a wrong one is refused."""
    set_to = assumptions(["database_cores=64", "redis_use=0.7"])
    assert (set_to.database_cores, set_to.redis_use) == (64, 0.7)
    for wrong in ("nonsense=1", "redis_use=2", "kept_d=long", "database_cores"):
        with pytest.raises(BenchError, match="--assume"):
            assumptions([wrong])
    assert all(text and meaning for _, text, meaning in described(Assumptions()))


MANIFEST = """
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: gateway}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: gateway}
  minReplicas: 2
  maxReplicas: 40
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: 60}}
    - type: Pods
      pods:
        metric: {name: flokit_callbacks_in_flight_capped}
        target: {type: AverageValue, averageValue: 200}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: gateway}
spec:
  template:
    spec:
      containers:
        - {name: gateway, resources: {requests: {cpu: 500m}, limits: {cpu: "2"}}}
"""


def test_manifests_give_target_and_limits(tmp_path: Path) -> None:
    """Target and limits come from the manifests, missing fields from Kubernetes' defaults."""
    (tmp_path / "all.yaml").write_text(MANIFEST)
    deployed = read(tmp_path)
    assert deployed == Deployed(2, 40, 0.3, "25%")
    assert deployed.with_surge(10) == 13


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind: Deployment\nmetadata", "kind: StatefulSet\nmetadata"),
        ("cpu: 500m", "cpu: half"),
        ("name: cpu,", "name: memory,"),
        ("maxReplicas: 40", "maxReplica: 40"),
    ],
)
def test_manifests_without_a_cpu_target_are_refused(tmp_path: Path, old: str, new: str) -> None:
    """Manifests without the figures of the arithmetic are refused."""
    assert old in MANIFEST
    (tmp_path / "all.yaml").write_text(MANIFEST.replace(old, new))
    with pytest.raises(BenchError):
        read(tmp_path)


def test_manifests_of_the_project_are_read() -> None:
    """`k8s/base` has an autoscaler with a CPU target."""
    assert 0 < read(MANIFESTS).cores_target < 1


@pytest.mark.parametrize(
    ("text", "number"), [("500m", 0.5), ("2", 2), (2, 2), ("1.5", 1.5), ("1k", 1000)]
)
def test_quantity_has_a_suffix(text: str | int, number: float) -> None:
    """A quantity of Kubernetes is a number with a suffix, or without."""
    assert quantity(text) == number


def command(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    words = [sys.executable, "-m", "bench", "capacity", *options]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_command_computes_from_a_costs_file(tmp_path: Path) -> None:
    """Every table, each need beyond a limit, a report with its picture, and the document."""
    (tmp_path / "all.yaml").write_text(MANIFEST)
    (tmp_path / "costs.json").write_bytes(msgspec.json.encode(COSTS))
    page = tmp_path / "capacity.md"
    markers = [f"<!-- {word}: python -m bench capacity -->" for word in ("begin", "end")]
    page.write_text("\n".join(["# Capacity", markers[0], "old", markers[1], "rest", ""]))
    options = [f"--manifests={tmp_path}", f"--costs={tmp_path}/costs.json", f"--document={page}"]
    ended = command(*options, f"--results={tmp_path}/results", "--assume=redis_gb=50")
    assert ended.returncode == 0, ended.stderr
    beyond = (
        "100,000/s is too much for one PostgreSQL, first of all in disk, with a disk full after"
        " 7.7 days: 9 cells"
    )
    for words in ("pods", "COPY statements/s", "a disk of 30 TB is full after, days", beyond):
        assert words in ended.stdout
    (folder,) = (tmp_path / "results").iterdir()
    names = {"report.md", "results.json", "costs.json", "capacity.svg"}
    assert {path.name for path in folder.iterdir()} == names
    assert measuring.load(folder / "costs.json") == COSTS
    assert "redis_gb = 50" in (folder / "report.md").read_text()
    assert "columnstore_factor = 1" in (folder / "report.md").read_text()
    text = page.read_text()
    assert text.startswith(f"# Capacity\n{markers[0]}\nCommit ")
    assert text.endswith(f"{markers[1]}\nrest\n")
    assert "| pods (0.3 cores each, at least 2) |" in re.sub(" +", " ", text)
    assert "\nold\n" not in text
    shrunk = command(*options[:2], f"--results={tmp_path}/shrunk", "--assume=columnstore_factor=4")
    assert "disk for 62 days (after 7: 1/4, columnstore), and 1 h of WAL" in shrunk.stdout
    assert "100,000/s is too much for one PostgreSQL" in shrunk.stdout
    assert " 3 cells, each with a database, Redis and " in shrunk.stdout
    wrong = command(f"--manifests={tmp_path}", f"--costs={tmp_path}/none.json")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "none.json" in wrong.stderr


@pytest.mark.services
async def test_short_run_measures_every_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch has a cost of its own, and sizes are plausible."""
    for name, value in {"CALLERS": (1, 32), "WARM_UP_S": 1, "SHORT_S": 1}.items():
        monkeypatch.setattr(measuring, name, value)
    costs = await measuring.measure(1, tmp_path / "data")
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
