"""What the manifests say of the gateway: its autoscaler, its pods, how it is rolled out."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from bench.capacity.autoscaler import (
    CPU,
    DOWN,
    TOLERANCE,
    UP,
    Kind,
    Policy,
    Rules,
    Select,
    Spec,
    Target,
)
from bench.testbed.gateway import ROOT, BenchError

MANIFESTS = ROOT / "k8s" / "base"
IN_FLIGHT = "flokit_callbacks_in_flight"
# The most of the last minute, and never more than the target: it forbids to scale in while callers
# wait, and never asks for more pods (k8s/cluster/prometheus-adapter.yaml).
IN_FLIGHT_CAPPED = "flokit_callbacks_in_flight_capped"
# One process has one event loop: more than a core it cannot use.
CORES_MAX = 1.0
BUFFER_MAX_EVENTS = 5000
BATCH_MAX_EVENTS = 500
# Of a Deployment that says nothing.
SURGE = "25%"
_SUFFIXES = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6}


class Deployed(msgspec.Struct, frozen=True):
    """What runs, and what it may use."""

    autoscaler: Spec
    request_cores: float  # of a pod
    cores: float  # that a pod can use
    surge: str  # pods over and above the others while a new version is rolled out
    buffer_max: int
    batch_max: int

    def with_surge(self, pods: int) -> int:
        """Return how many pods there are at most during a roll-out."""
        if self.surge.endswith("%"):
            return pods + math.ceil(pods * int(self.surge[:-1]) / 100)
        return pods + int(self.surge)


def read(folder: Path) -> Deployed:
    """Read the autoscaler and its Deployment below a folder; raises BenchError."""
    documents = list(_documents(folder))
    autoscaler = _only(documents, "HorizontalPodAutoscaler", folder)
    name = autoscaler["spec"]["scaleTargetRef"]["name"]
    named = [d for d in documents if d.get("metadata", {}).get("name") == name]
    deployment = _only(named, "Deployment", folder)
    try:
        return _deployed(autoscaler["spec"], deployment["spec"], _settings(documents))
    except (KeyError, ValueError, TypeError) as error:
        raise BenchError(f"{folder}: not understood: {error!r}") from None


def quantity(text: object) -> float:
    """Return the number that a quantity of Kubernetes means; raises ValueError and KeyError."""
    word = str(text)
    digits = word.rstrip("".join(_SUFFIXES))
    return float(digits) * _SUFFIXES[word[len(digits) :]]


def _documents(folder: Path) -> Iterator[Any]:
    for path in sorted(folder.rglob("*.yaml")):
        with path.open() as file:
            documents = yaml.safe_load_all(file)
            yield from (document for document in documents if isinstance(document, dict))


def _only(documents: list[Any], kind: str, folder: Path) -> Any:
    found = [document for document in documents if document.get("kind") == kind]
    if len(found) != 1:
        raise BenchError(f"{folder}: {len(found)} documents of kind {kind}, not one")
    return found[0]


def _settings(documents: list[Any]) -> dict[str, str]:
    """Return the environment that ConfigMaps give, also those that kustomize makes."""
    settings: dict[str, str] = {}
    for document in documents:
        if document.get("kind") == "ConfigMap":
            settings |= document.get("data") or {}
        for made in document.get("configMapGenerator", []):
            settings |= dict(literal.split("=", 1) for literal in made.get("literals", []))
    return settings


def _deployed(
    autoscaler: Mapping[str, Any], deployment: Mapping[str, Any], settings: Mapping[str, str]
) -> Deployed:
    container = deployment["template"]["spec"]["containers"][0]
    resources = container["resources"]
    request_cores = quantity(resources["requests"]["cpu"])
    limit_cores = quantity(resources.get("limits", {}).get("cpu", CORES_MAX))
    given = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
    settings = dict(settings) | {name: value for name, value in given.items() if value}
    surge = deployment.get("strategy", {}).get("rollingUpdate", {}).get("maxSurge", SURGE)
    behavior = autoscaler.get("behavior", {})
    return Deployed(
        autoscaler=Spec(
            replicas_min=autoscaler.get("minReplicas", 1),
            replicas_max=autoscaler["maxReplicas"],
            targets=[_target(metric, request_cores) for metric in autoscaler["metrics"]],
            up=_rules(behavior.get("scaleUp", {}), UP),
            down=_rules(behavior.get("scaleDown", {}), DOWN),
        ),
        request_cores=request_cores,
        cores=min(limit_cores, CORES_MAX),
        surge=str(surge),
        buffer_max=int(settings.get("BUFFER_MAX_EVENTS", BUFFER_MAX_EVENTS)),
        batch_max=int(settings.get("BATCH_MAX_EVENTS", BATCH_MAX_EVENTS)),
    )


def _target(metric: Mapping[str, Any], request_cores: float) -> Target:
    match metric["type"]:
        case "Resource" | "ContainerResource" as kind:
            resource = metric[kind[0].lower() + kind[1:]]
            if resource["name"] != CPU:
                raise ValueError(f"resource {resource['name']}")
            return Target(CPU, request_cores * resource["target"]["averageUtilization"] / 100)
        case "Pods":
            name, target = metric["pods"]["metric"]["name"], metric["pods"]["target"]
            if name not in {IN_FLIGHT, IN_FLIGHT_CAPPED}:
                raise ValueError(f"metric {name}")
            return Target(name, quantity(target["averageValue"]))
        case kind:
            raise ValueError(f"metric of type {kind}")


def _rules(given: Mapping[str, Any], usual: Rules) -> Rules:
    policies = [
        Policy(Kind(policy["type"]), policy["value"], policy["periodSeconds"])
        for policy in given.get("policies", [])
    ]
    return Rules(
        window_s=given.get("stabilizationWindowSeconds", usual.window_s),
        policies=policies or usual.policies,
        select=Select(given.get("selectPolicy", usual.select)),
        tolerance=quantity(given.get("tolerance", TOLERANCE)),
    )
