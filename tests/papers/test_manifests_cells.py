"""The overlay for two cells: each a deployment of its own, and a router with the documented map."""

import re
import subprocess
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

import adapters
from app import workspaces_file
from app.commands.cells import haproxy_map
from app.settings import read_settings
from bench.testbed.haproxy import documented
from tests.kustomize import K8S, Document, of_kind, rendered, yaml_files
from tests.papers.test_manifests import VERSIONS

OVERLAY = K8S / "overlays/two-cells"
CELLS = ("eu-1", "eu-2")
ROUTER = "flokit-router"


def one(kind: str, namespace: str, name: str = "") -> Document:
    """The only document of a kind in a namespace, or the one whose name begins so."""
    [found] = [
        document
        for document in rendered(OVERLAY)
        if document["kind"] == kind
        and document["metadata"].get("namespace") == namespace
        and document["metadata"]["name"].startswith(name)
    ]
    return found


def environment_of(cell: str) -> dict[str, str]:
    """The settings of a cell's gateways."""
    settings: dict[str, str] = one("ConfigMap", f"flokit-{cell}", "flokit-settings")["data"]
    secrets: dict[str, str] = one("Secret", f"flokit-{cell}", "flokit-gateway")["stringData"]
    return settings | secrets


def container_of(namespace: str) -> Document:
    """The only container of a namespace's Deployment."""
    [container] = one("Deployment", namespace)["spec"]["template"]["spec"]["containers"]
    found: Document = container
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_fits_the_schema_of_kubernetes(version: str) -> None:
    """Every document has only fields that this version of Kubernetes has, each of its type."""
    for document in rendered(OVERLAY):
        assert kubernetes_validate.validate(document, version, strict=True) == version


def test_every_manifest_is_in_its_kustomization() -> None:
    """Every file is named by the kustomization beside it."""
    for path in OVERLAY.rglob("kustomization.yaml"):
        named = {
            name for name in yaml.safe_load(path.read_text())["resources"] if name.endswith(".yaml")
        }
        files = {file.name for file in yaml_files(path.parent) if file.parent == path.parent}
        assert files - {"kustomization.yaml"} == named


def test_cells_share_the_file_and_the_secrets_and_nothing_else() -> None:
    """Each cell has its own name, database and Redis; the file and the secrets are the same."""
    first, second = map(environment_of, CELLS)
    own = {name for name in first if first[name] != second[name]}
    assert first.keys() == second.keys()
    assert own == {"CELL", "DATABASE_URL", "REDIS_URL"}
    for cell in CELLS:
        settings = read_settings(environment_of(cell))
        file = one("ConfigMap", f"flokit-{cell}", "flokit-workspaces")["data"]["workspaces.toml"]
        apps = workspaces_file.decode(file.encode(), adapters.load())
        workspaces_file.require_cell(apps, settings.cell)
        assert settings.cell == cell
        assert workspaces_file.cells_of(apps) == list(CELLS)
        # The ingress controller and the router each append an address.
        assert settings.proxies_count == 2


def test_map_of_the_router_is_the_printed_one() -> None:
    """The map is that of `python -m app cells` for the file of the cells."""
    file = (OVERLAY / "cell/workspaces/workspaces.toml").read_bytes()
    apps = workspaces_file.decode(file, adapters.load())
    data = one("ConfigMap", ROUTER)["data"]
    assert data["cells.map"].splitlines() == list(haproxy_map(apps))


def test_router_has_the_documented_configuration(haproxy_program: Path, tmp_path: Path) -> None:
    """HAProxy takes the router's configuration, which has every documented line but the servers."""
    text = one("ConfigMap", ROUTER)["data"]["haproxy.cfg"]
    settings = documented("docs/deploying.md", "global\n    tune.bufsize").partition("frontend ")[0]
    frontend = documented("docs/cells.md", "frontend callbacks").partition("backend eu-1\n")[0]
    assert [line for line in (settings + frontend).splitlines() if line not in text] == []
    for cell in CELLS:
        [port] = one("Service", f"flokit-{cell}")["spec"]["ports"]
        address = f"flokit-gateway.flokit-{cell}.svc.cluster.local:{port['port']}"
        assert f"backend {cell}\n    server gateway {address} " in text
    (tmp_path / "cells.map").write_text(one("ConfigMap", ROUTER)["data"]["cells.map"])
    (tmp_path / "haproxy.cfg").write_text(text.replace("/etc/haproxy", str(tmp_path)))
    command = [str(haproxy_program), "-c", "-f", str(tmp_path / "haproxy.cfg")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_one_host_name_leads_to_the_router() -> None:
    """The only ingress is the router's, with the settings of a single cell's."""
    ingresses = [document for document in rendered(OVERLAY) if document["kind"] == "Ingress"]
    [ingress], example = ingresses, of_kind("Ingress")["flokit-gateway"]
    assert ingress["metadata"]["namespace"] == ROUTER
    assert ingress["metadata"]["annotations"] == example["metadata"]["annotations"]
    [rule], [expected] = ingress["spec"]["rules"], example["spec"]["rules"]
    service = {"name": ROUTER, "port": {"name": "http"}}
    for path in rule["http"]["paths"]:
        assert path.pop("backend") == {"service": service}
    assert rule["host"] == expected["host"]
    assert rule["http"]["paths"] == [
        {name: value for name, value in path.items() if name != "backend"}
        for path in expected["http"]["paths"]
    ]
    [port] = one("Service", ROUTER)["spec"]["ports"]
    [listening] = container_of(ROUTER)["ports"]
    assert (port["targetPort"], listening["containerPort"]) == (listening["name"], 8080)
    assert "bind :8080" in one("ConfigMap", ROUTER)["data"]["haproxy.cfg"]


def test_only_the_router_calls_the_cells() -> None:
    """The gateways of a cell take calls of the router, which may call no other port."""
    for cell in CELLS:
        policy = one("NetworkPolicy", f"flokit-{cell}", "flokit-calls-in-gateway")["spec"]
        [rule] = policy["ingress"]
        namespaces = [
            each["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for each in rule["from"]
        ]
        assert namespaces == [ROUTER, "monitoring"]
    [_, to_cells] = one("NetworkPolicy", ROUTER)["spec"]["egress"]
    [peer] = to_cells["to"]
    [expression] = peer["namespaceSelector"]["matchExpressions"]
    assert expression["values"] == [f"flokit-{cell}" for cell in CELLS]
    [gateway] = container_of("flokit-eu-1")["ports"]
    assert to_cells["ports"] == [{"port": gateway["containerPort"]}]


def test_changed_map_rolls_out() -> None:
    """The router's ConfigMap has another name with another map, and its Deployment uses it."""
    [volume] = one("Deployment", ROUTER)["spec"]["template"]["spec"]["volumes"]
    name = one("ConfigMap", ROUTER)["metadata"]["name"]
    assert volume["configMap"] == {"name": name}
    assert re.fullmatch(r"flokit-router-\w{10}", name)


def test_budget_is_that_of_the_router() -> None:
    """The pods that the budget of the router selects are the router's."""
    selector = one("PodDisruptionBudget", ROUTER)["spec"]["selector"]["matchLabels"]
    labels = one("Deployment", ROUTER)["spec"]["template"]["metadata"]["labels"]
    assert selector
    assert selector.items() <= labels.items()


def test_router_is_restricted() -> None:
    """The router fits the standard `restricted`, and cannot write."""
    pod = one("Deployment", ROUTER)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container_of(ROUTER)["securityContext"] == container_of("flokit-eu-1")["securityContext"]
    assert pod["automountServiceAccountToken"] is False
