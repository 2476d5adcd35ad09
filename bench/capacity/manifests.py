"""The autoscaler and the Deployment of the gateway, as the Kubernetes manifests declare them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import yaml

from bench.testbed.process import ROOT, BenchError

MANIFESTS = ROOT / "k8s" / "base"
CPU = "cpu"
# One process has one event loop, which uses one core.
CORES_MAX = 1.0
_SUFFIXES = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6}

Manifest = TypeVar("Manifest", bound=msgspec.Struct)


class Deployed(msgspec.Struct, frozen=True):
    """The limits of the gateway's pods. `surge` is the manifest's `maxSurge`."""

    replicas_min: int
    replicas_max: int
    cores_target: float  # of a pod, on average; above it the autoscaler adds pods
    surge: str

    def with_surge(self, pods: int) -> int:
        """Return the most pods of a roll-out."""
        if self.surge.endswith("%"):
            return pods + math.ceil(pods * int(self.surge[:-1]) / 100)
        return pods + int(self.surge)


class _Struct(msgspec.Struct, rename="camel"):
    """A part of a manifest; fields that are not declared here are ignored."""


class _Target(_Struct):
    average_utilization: int


class _Resource(_Struct):
    name: str
    target: _Target


class _Metric(_Struct):
    resource: _Resource | None = None
    container_resource: _Resource | None = None


class _Named(_Struct):
    name: str


class _AutoscalerSpec(_Struct):
    scale_target_ref: _Named
    max_replicas: int
    metrics: list[_Metric]
    min_replicas: int = 1


class _Autoscaler(_Struct):
    spec: _AutoscalerSpec


class _RollingUpdate(_Struct):
    max_surge: int | str = "25%"  # the default of Kubernetes


class _Strategy(_Struct):
    rolling_update: _RollingUpdate = msgspec.field(default_factory=_RollingUpdate)


class _Resources(_Struct):
    requests: dict[str, str | int]


class _Container(_Struct):
    resources: _Resources


class _PodSpec(_Struct):
    containers: list[_Container]


class _Template(_Struct):
    spec: _PodSpec


class _DeploymentSpec(_Struct):
    template: _Template
    strategy: _Strategy = msgspec.field(default_factory=_Strategy)


class _Deployment(_Struct):
    metadata: _Named
    spec: _DeploymentSpec


def read(folder: Path) -> Deployed:
    """Read the autoscaler and its Deployment below a folder; raises BenchError."""
    try:
        return _deployed(folder)
    except (LookupError, ValueError, yaml.YAMLError) as error:
        raise BenchError(f"{folder}: {error}") from None


def _deployed(folder: Path) -> Deployed:
    documents = list(_documents(folder))
    [autoscaler] = _of_kind("HorizontalPodAutoscaler", _Autoscaler, documents)
    spec = autoscaler.spec
    deployments = _of_kind("Deployment", _Deployment, documents)
    [deployment] = [d for d in deployments if d.metadata.name == spec.scale_target_ref.name]
    cpu_request = deployment.spec.template.spec.containers[0].resources.requests[CPU]
    [share] = [
        resource.target.average_utilization / 100
        for metric in spec.metrics
        for resource in (metric.resource, metric.container_resource)
        if resource is not None and resource.name == CPU
    ]
    return Deployed(
        replicas_min=spec.min_replicas,
        replicas_max=spec.max_replicas,
        cores_target=min(quantity(cpu_request) * share, CORES_MAX),
        surge=str(deployment.spec.strategy.rolling_update.max_surge),
    )


def quantity(text: str | int) -> float:
    """Return the number of a quantity in Kubernetes' notation; raises LookupError, ValueError."""
    word = str(text)
    digits = word.rstrip("".join(_SUFFIXES))
    return float(digits) * _SUFFIXES[word[len(digits) :]]


def _documents(folder: Path) -> Iterator[dict[str, object]]:
    for path in sorted(folder.rglob("*.yaml")):
        with path.open() as file:
            documents = yaml.safe_load_all(file)
            yield from (document for document in documents if isinstance(document, dict))


def _of_kind(
    kind: str, structure: type[Manifest], documents: list[dict[str, object]]
) -> list[Manifest]:
    found = [document for document in documents if document.get("kind") == kind]
    return [msgspec.convert(document, structure) for document in found]
