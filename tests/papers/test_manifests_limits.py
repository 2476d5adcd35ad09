"""The manifests: numbers that must fit each other, the code, and the database."""

import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from app.commands.check_database import CONNECTIONS_PER_WORKER
from app.dev.embedded import unpack
from app.gateway import CLOSE_PER_COMMIT
from app.http.app import KEEP_ALIVE_TIMEOUT_S, RESPONSE_TIMEOUT_S
from app.http.server import PATIENCE_PER_COMMIT
from app.settings import read_settings
from app.telemetry import metrics
from tests.kustomize import K8S, container, environment_of, of_kind, pods, the

# The parts that `Gateway.close` gives time to, one after the other: buffers, claims, sink,
# quarantine. Without traces the observer takes none.
CLOSED_IN_TURN = 4
# PostgreSQL's `superuser_reserved_connections`.
RESERVED = 3
# `migrate`, `retain`, `check`, and an operator with psql.
OPERATORS = 4
# The autoscaler leaves it be where a metric is so close to its target.
TOLERANCE = 0.1
ADAPTER = yaml.safe_load((K8S / "cluster/prometheus-adapter.yaml").read_text())


def settings() -> Any:
    """The settings of the gateway's pods."""
    return read_settings(environment_of())


def test_grace_period_covers_the_drain() -> None:
    """The grace period covers preStop, drain, callbacks in flight, and the closing of each part."""
    pod, now = pods()["gateway"]["spec"], settings()
    pre_stop_s = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    in_flight_s = PATIENCE_PER_COMMIT * now.commit_timeout_s
    closing_s = CLOSED_IN_TURN * CLOSE_PER_COMMIT * now.commit_timeout_s
    needed_s = pre_stop_s + now.drain_pause_s + in_flight_s + closing_s
    assert pod["terminationGracePeriodSeconds"] > needed_s


def test_probe_fails_before_the_listener_closes() -> None:
    """A load balancer that goes by the probe has found the pod red before its listener closes."""
    probe = container()["readinessProbe"]
    found_s = probe["failureThreshold"] * probe["periodSeconds"] + probe["timeoutSeconds"]
    assert probe["httpGet"]["path"] == "/readyz"
    assert found_s < settings().drain_pause_s


def test_liveness_depends_on_the_process_alone() -> None:
    """The liveness probe depends on no service, is patient, and begins after the start."""
    live, start = container()["livenessProbe"], container()["startupProbe"]
    assert live["httpGet"]["path"] == start["httpGet"]["path"] == "/healthz"
    # Longer than any work that holds the loop at a stretch, such as the largest batch.
    assert live["failureThreshold"] * live["periodSeconds"] >= 2 * settings().claim_lease_s
    # A process that does not answer will not drain either, and holds locks in the database.
    assert live["terminationGracePeriodSeconds"] <= 10
    assert start["failureThreshold"] * start["periodSeconds"] >= 60


def test_roll_out_keeps_capacity() -> None:
    """A pod leaves only when another is ready, and not many drain at the same time."""
    deployment = the("Deployment")
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    pre_stop_s = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert deployment["minReadySeconds"] >= pre_stop_s + settings().drain_pause_s
    assert "replicas" not in deployment, "applying it would undo what the autoscaler did"


def test_node_can_be_drained() -> None:
    """At the least number of replicas one may leave, and two stay."""
    allowed = the("PodDisruptionBudget")["maxUnavailable"]
    assert 1 <= allowed <= the("HorizontalPodAutoscaler")["minReplicas"] - 2


def test_database_has_enough_connections() -> None:
    """At the most replicas, in the middle of a roll-out, the database still has connections.

    The worst: every pod of the old version still drains beside a full set of new ones and the
    surge; each holds its connections twice, since a lost one may linger beside its
    successor; and all of the operator's commands run.
    """
    autoscaler = of_kind("HorizontalPodAutoscaler")["flokit-gateway"]
    annotations = autoscaler["metadata"]["annotations"]
    most = int(annotations["flokit.example.com/database-max-connections"])
    replicas = autoscaler["spec"]["maxReplicas"]
    surge = the("Deployment")["strategy"]["rollingUpdate"]["maxSurge"]
    processes = (2 * replicas + surge) * settings().workers
    assert 2 * CONNECTIONS_PER_WORKER * processes + OPERATORS <= most - RESERVED


def test_full_buffer_fits_into_memory() -> None:
    """The memory limit holds the process and twice a full buffer of 24 KB for each place."""
    limit = container()["resources"]["limits"]["memory"]
    buffer_mib = settings().buffer_max_events * 24 / 1024
    assert int(limit.removesuffix("Mi")) >= 64 + 2 * buffer_mib
    assert "cpu" not in container()["resources"]["limits"]


def adapter_rule() -> Any:
    """The one rule of prometheus-adapter."""
    (rule,) = yaml.safe_load(ADAPTER["data"]["config.yaml"])["rules"]
    return rule


def metric_of(kind: str) -> Any:
    """The autoscaler's metric of this type."""
    (found,) = [m for m in the("HorizontalPodAutoscaler")["metrics"] if m["type"] == kind]
    return found[kind.lower()]


def test_metric_of_the_autoscaler_exists() -> None:
    """Its metric is the one that the adapter's rule makes of a metric of the gateway."""
    rule = adapter_rule()
    series = re.match(r"\w+", rule["seriesQuery"])
    assert series
    declared = {m._name for m in vars(metrics).values() if isinstance(m, MetricWrapperBase)}
    assert series[0] in declared
    name = rule["name"]
    template = name["as"].replace("${1}", r"\1")
    assert metric_of("Pods")["metric"]["name"] == re.sub(name["matches"], template, series[0])


def test_stalled_database_leaves_the_autoscaler_alone() -> None:
    """Where every pod's callers wait, the number of pods stays as it is."""
    cap = float(adapter_rule()["metricsQuery"].rpartition(", ")[2].rstrip(")"))
    target = float(metric_of("Pods")["target"]["averageValue"])
    assert 1 - TOLERANCE < cap / target <= 1
    for replicas in range(1, the("HorizontalPodAutoscaler")["maxReplicas"] + 1):
        assert math.ceil(replicas * cap / target) == replicas
    # Reached long before the buffer refuses, by one workspace alone too.
    assert target <= settings().buffer_max_events / 10


def test_autoscaler_grows_fast_and_shrinks_slowly() -> None:
    """Out: at once, doubling every 15 s. In: after ten minutes, one a minute."""
    behavior = the("HorizontalPodAutoscaler")["behavior"]
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert {"type": "Percent", "value": 100, "periodSeconds": 15} in behavior["scaleUp"]["policies"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 300
    assert behavior["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 60}]
    assert metric_of("Resource")["target"]["averageUtilization"] <= 70
    assert "cpu" in container()["resources"]["requests"], "what CPU is a percentage of"


def promtool(*arguments: str, folder: Path) -> None:
    """Run Debian's promtool, and expect success."""
    command = [str(unpack(["prometheus"]) / "usr/bin/promtool"), *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


SERIES = 'flokit_callbacks_in_flight{namespace="flokit",pod="%s"}'


@pytest.mark.parametrize(
    ("in_flight", "told"),
    [("40x8", 40), ("4000x8", 200), ("4000 4000 4000 4000 4000 3900 0 0 3", 200)],
    ids=["healthy", "stalled", "callers give up in waves"],
)
def test_query_of_the_adapter_is_capped(in_flight: str, told: int, tmp_path: Path) -> None:
    """The adapter's query gives each pod's callbacks in flight, and never more than the cap."""
    words = {"<<.Series>>": "flokit_callbacks_in_flight", "<<.GroupBy>>": "pod"}
    query = adapter_rule()["metricsQuery"]
    for placeholder, word in (words | {"<<.LabelMatchers>>": 'namespace="flokit"'}).items():
        query = query.replace(placeholder, word)
    case = {
        "interval": "15s",
        "input_series": [
            {"series": SERIES % "one", "values": in_flight},
            {"series": SERIES % "two", "values": "7x8"},
        ],
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": "2m",
                "exp_samples": [
                    {"labels": '{pod="one"}', "value": told},
                    {"labels": '{pod="two"}', "value": 7},
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"tests": [case]}))
    promtool("test", "rules", "test.yaml", folder=tmp_path)


def test_prometheus_finds_the_pods(tmp_path: Path) -> None:
    """The scrape configuration is one, and keeps just the gateway's pods by their labels."""
    path = K8S / "cluster/prometheus-scrape.yaml"
    promtool("check", "config", "--syntax-only", str(path), folder=tmp_path)
    (job,) = yaml.safe_load(path.read_text())["scrape_configs"]
    keep = job["relabel_configs"][0]
    labels, port = pods()["gateway"]["metadata"]["labels"], container()["ports"][0]["name"]
    values = [labels["app.kubernetes.io/name"], labels["app.kubernetes.io/component"], port]
    assert keep["regex"] == ";".join(values)
    ended = job["relabel_configs"][1]
    assert (ended["regex"], ended["action"]) == ("Running", "keep")
    targets = {rule.get("target_label") for rule in job["relabel_configs"][2:]}
    assert targets == {"instance", *adapter_rule()["resources"]["overrides"]}


def test_proxy_is_more_patient_than_the_gateway() -> None:
    """The proxy waits for each answer, ends idle connections first, and sends only the address."""
    annotations = of_kind("Ingress")["flokit-gateway"]["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert float(annotations[prefix + "proxy-read-timeout"]) > RESPONSE_TIMEOUT_S
    assert annotations[prefix + "ssl-redirect"] == "false"
    controller = yaml.safe_load((K8S / "cluster/ingress-nginx.yaml").read_text())["data"]
    assert float(controller["upstream-keepalive-timeout"]) < KEEP_ALIVE_TIMEOUT_S
    assert controller["use-forwarded-headers"] == "false"
    assert settings().proxies_count == 1
    assert "custom-http-errors" not in controller
