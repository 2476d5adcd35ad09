"""The manifests as Kubernetes would get them: rendered by the real kustomize."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from app.dev.embedded import EmbeddedError, unpack
from bench.testbed.process import ROOT

K8S = ROOT / "k8s"
OVERLAY = K8S / "overlays/example"

Document = dict[str, Any]


def find_kubectl() -> str:
    """The program: Debian's, or else the host's. Raises `EmbeddedError`."""
    try:
        return str(unpack(["kubernetes-client"]) / "usr/bin/kubectl")
    except EmbeddedError:
        found = shutil.which("kubectl")
        if found is None:
            raise
        return found


@cache
def rendered(overlay: Path = OVERLAY) -> tuple[Document, ...]:
    """Every document of an overlay; by default of the example."""
    # It needs no cluster: it reads files only.
    command = [find_kubectl(), "kustomize", str(overlay)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return tuple(yaml.safe_load_all(ended.stdout))


def of_kind(kind: str) -> dict[str, Document]:
    """The rendered documents of a kind, by name."""
    return {d["metadata"]["name"]: d for d in rendered() if d["kind"] == kind}


def the(kind: str, name: str = "flokit-gateway") -> Document:
    """The `spec` of the document of this kind and name."""
    spec: Document = of_kind(kind)[name]["spec"]
    return spec


def pods() -> dict[str, Document]:
    """The pod template of each workload, by its component."""
    workloads = [*of_kind("Deployment").values(), *of_kind("Job").values()]
    workloads += [job["spec"]["jobTemplate"] for job in of_kind("CronJob").values()]
    templates = (workload["spec"]["template"] for workload in workloads)
    return {t["metadata"]["labels"]["app.kubernetes.io/component"]: t for t in templates}


def container(component: str = "gateway") -> Document:
    """The one container of a workload's pods."""
    (only,) = pods()[component]["spec"]["containers"]
    found: Document = only
    return found


def environment_of(component: str = "gateway") -> dict[str, str]:
    """The environment of a workload's container, from its ConfigMaps and Secrets."""
    environ: dict[str, str] = {}
    for source in container(component)["envFrom"]:
        if "configMapRef" in source:
            environ |= of_kind("ConfigMap")[source["configMapRef"]["name"]]["data"]
        else:
            environ |= of_kind("Secret")[source["secretRef"]["name"]]["stringData"]
    return environ


def yaml_files(folder: Path) -> list[Path]:
    """Every YAML file in a folder and below."""
    return sorted(folder.rglob("*.yaml"))
