"""Alert rules and dashboard: on a real Prometheus that scrapes gateways which have seen trouble."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from itertools import chain
from math import isnan
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from app.telemetry import metrics
from bench.dashboard import command as dashboard
from bench.dashboard.command import expressions_of, fill, read
from bench.testbed.client import exchange, get, head
from bench.testbed.console import Progress
from bench.testbed.process import PATIENCE_S, POLL_S, ROOT
from bench.testbed.prometheus import MONITORING, Prometheus, find_program, run
from tests.gateways import Gateways, Process, query, workspaces_toml

SCRAPE_S = 0.25
ALERTS = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
ALERT_RULES = [rule for rule in RULES if "alert" in rule]
TESTS = sorted(MONITORING.glob("alerts*_test.yaml"))
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
# `up` and `ALERTS` come from Prometheus itself, those of a process from its client library.
OTHERS = {
    "up", "ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes",
    "process_open_fds", "process_max_fds",
}  # fmt: skip
BY_SERVICE_DISCOVERY = {"namespace", "pod", "instance"}


def promtool(*arguments: str) -> None:
    """Run promtool, which must succeed."""
    command = [str(find_program("promtool")), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_rules_are_well_formed() -> None:
    """Promtool accepts the rules."""
    promtool("check", "rules", "--lint-fatal", str(MONITORING / "alerts.yaml"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_alerts_fire_only_when_they_should(path: Path) -> None:
    """Each alert fires when it should, with the right texts, and not when it should not."""
    promtool("test", "rules", str(path))


def test_every_alert_is_tested_both_ways() -> None:
    """There is a test in which each alert fires, and one in which it does not."""
    checks = [
        check
        for path in TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for check in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in ALERT_RULES}
    assert {check["alertname"] for check in checks if check.get("exp_alerts")} == names
    assert {check["alertname"] for check in checks if not check.get("exp_alerts")} == names


def test_factors_follow_from_the_objective() -> None:
    """A window's factor is its share of the budget x two weeks / the window."""
    for hours, share in {1: 0.02, 6: 0.05, 24: 0.10}.items():
        window = "1d" if hours == 24 else f"{hours}h"
        factor = f"{share * 14 * 24 / hours:g}"
        rule = next(r for r in ALERT_RULES if f"ratio{window} >" in r["expr"])
        assert re.findall(r"ratio\w+ > ([\d.]+) \* 0.0001", rule["expr"]) == [factor, factor]
        assert f"[{window}]) * {hours * 3600} >= 10" in rule["expr"]


@pytest.mark.parametrize("rule", ALERT_RULES, ids=lambda rule: rule["alert"])
def test_every_alert_leads_to_the_runbook(rule: dict[str, Any]) -> None:
    """Each alert has a summary, a severity, and a heading of the runbook."""
    assert rule["labels"]["severity"] in ("page", "ticket", "info")
    assert {"summary", "description", "runbook"} == rule["annotations"].keys()
    path, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert path == "k8s/README.md"
    assert anchor
    runbook = ROOT / path
    if runbook.exists():
        headings = re.findall(r"^#+ (.*)$", runbook.read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def test_every_panel_explains_itself() -> None:
    """Each panel has an ID of its own, a title, an explanation, a unit, and a place of its own."""
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert [target["refId"] for target in panel["targets"]] == list("ABCD")[
            : len(panel["targets"])
        ]
        assert all(target["legendFormat"] for target in panel["targets"])


def expressions() -> Iterator[str]:
    """Every expression of rules and dashboard, and of the autoscaler's rule where there is one."""
    yield from (rule["expr"] for rule in RULES)
    yield from map(fill, expressions_of(read()))
    for path in (ROOT / "k8s").rglob("prometheus-adapter.yaml"):
        for rule in yaml.safe_load(yaml.safe_load(path.read_text())["data"]["config.yaml"])[
            "rules"
        ]:
            yield rule["seriesQuery"]
            yield (
                rule["metricsQuery"]
                .replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
                .replace("<<.LabelMatchers>>", 'namespace="flokit"')
                .replace("<<.GroupBy>>", "pod")
            )


def test_every_metric_and_label_exists() -> None:
    """Rules and dashboard name only metrics and labels that exist."""
    declared = {
        metric._name: set(metric._labelnames)
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
    }
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for expression in expressions():
        named = re.findall(
            r"\b(flokit\w+(?::\w+)*|up|ALERTS|process_\w+)(?:\{([^}]*)\})?", expression
        )
        for name, labels in named:
            metric = re.sub(r"_(total|bucket|count|sum)$", "", name)
            if name not in OTHERS | recorded and name != "flokit-gateway":
                assert metric in declared, name
                known = declared[metric] | BY_SERVICE_DISCOVERY
                assert set(re.findall(r"(\w+) *[=!]", labels)) <= known, expression


def outspoken(expression: str) -> str:
    """The expression with comparisons that return 0 or 1, in place of nothing or the value.

    An alert's expression is empty as long as all is well; its operands must not be. `absent` and
    `unless` are empty because there is something: this is queried in their place.
    """
    asked = re.sub(r"\bunless\b", "or", expression.replace("absent(", "("))
    parts = re.split(r"(\{[^}]*\})", asked)
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"(==|!=|>=|<=|>|<)", r"\1 bool", parts[number])
    return "".join(parts)


@pytest.fixture
async def prometheus(gateways: Gateways, tmp_path: Path) -> AsyncIterator[Prometheus]:
    """A Prometheus of two gateways, one of them without Redis, that have seen trouble."""
    settings = {"ADJUST_CALLBACK_SECRET": "new-one,s3cr3t"}
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        apps = workspaces_toml("abc123token", more='ignore = ["click"]\n')
        (folder / "workspaces.toml").write_text(apps)
    database_url = gateways.database_url
    with (
        Process(database_url, gateways.redis_url, here, **settings) as first,
        Process(database_url, "redis://127.0.0.1:1/0", there, WORKERS="2") as second,
    ):
        for process in (first, second):
            await asyncio.to_thread(process.wait_until_ready)
        async with run(tmp_path, [first.port, second.port], SCRAPE_S) as prometheus:
            await trouble(first, second, gateways)
            yield prometheus


async def trouble(first: Process, second: Process, gateways: Gateways) -> None:
    """Give both every outcome that a callback can have."""
    for process in (first, second):
        for number in range(20):
            await process.callback(user_id=f"u{number}")
        for _ in range(10):
            await process.callback()
            await process.callback(app_token="nobodys")
            await process.callback(event_token="{event}")
            await process.callback(event_token="", activity_kind="click")
            await process.callback(event_token="zzzzzz")
            await process.callback(created_at="")
            await process.callback(user_id="null", adid="a1")
            await process.callback(secret="a-wrong-one")
            await get(process.port, f"/ingest/nobody?{query()}")
            await exchange(process.port, b"no HTTP at all\r\n\r\n")
        await process.post(b"{", "application/json")
        await exchange(process.port, head("PUT", "/ingest/adjust"))
    await gateways.execute("ALTER TABLE events RENAME TO elsewhere")
    for number in range(40):
        await first.callback(user_id=f"lost{number}")
    await gateways.execute("ALTER TABLE elsewhere RENAME TO events")
    cast = "CREATE INDEX cast_ ON events (((properties ->> 'revenue')::numeric))"
    await gateways.execute(cast)
    for process in (first, second):
        await process.callback(user_id="comma", revenue="12,50")
    await gateways.execute("DROP INDEX cast_")


async def test_every_expression_has_a_value(prometheus: Prometheus) -> None:
    """Every expression of rules, dashboard and autoscaler has a number for an answer."""
    deadline = time.monotonic() + PATIENCE_S
    unanswered = sorted({outspoken(expression) for expression in expressions()})
    assert len(unanswered) > 60
    while unanswered and time.monotonic() < deadline:
        answers = [await prometheus.query(expression) for expression in unanswered]
        unanswered = [
            expression
            for expression, answer in zip(unanswered, answers, strict=True)
            if all(isnan(value) for _, value in answer)
        ]
        await asyncio.sleep(POLL_S)
    assert not unanswered
    rules = msgspec.json.decode(await prometheus.get("rules"))["groups"]
    for rule in chain.from_iterable(group["rules"] for group in rules):
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
    [workspaces] = [
        msgspec.json.decode(await prometheus.get(f"label/{name}/values", {"match[]": metric}))
        for variable in DASHBOARD["templating"]["list"]
        if variable["type"] == "query"
        for metric, name in re.findall(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
    ]
    assert "ws_test" in workspaces


async def test_every_panel_of_the_picture_is_drawn(tmp_path: Path) -> None:
    """The bench draws every panel, in seconds if need be, and none of them is empty."""
    picture = tmp_path / "dashboard.png"
    with Progress(1, "pictures") as progress:
        assert await dashboard.run(progress, picture, duration_s=6) == []
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_grafana_finds_its_source_and_dashboard() -> None:
    """Grafana finds its data source, and the dashboard where compose mounts it."""
    folder = MONITORING / "grafana"
    [source] = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    [provider] = yaml.safe_load((folder / "dashboards/flokit.yaml").read_text())["providers"]
    compose = ROOT / "compose.yaml"
    if compose.exists():
        services = yaml.safe_load(compose.read_text())["services"]
        mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
        mounted = mounts["./k8s/monitoring/dashboard.json"]
        assert Path(mounted).parent == Path(provider["options"]["path"])
        assert source["url"].partition("://")[2].split(":")[0] in services
