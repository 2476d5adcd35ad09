"""The manifests: documents that Kubernetes accepts, settings that exist, names that resolve."""

import re
from copy import deepcopy

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

import adapters
from app import workspaces_file
from app.settings import ALLOWLIST_SUFFIX, SECRET_SUFFIX, Settings, read_settings
from app.version import VERSION
from tests.kustomize import (
    K8S,
    OVERLAY,
    Document,
    container,
    environment_of,
    of_kind,
    pods,
    rendered,
    the,
    yaml_files,
)

# The oldest that the manifests are for (`preStop: sleep`), one in between, and the newest known.
VERSIONS = ("1.30", "1.33", kubernetes_validate.latest_version().removesuffix(".0"))
# Read by other programs than Kubernetes, and tested with these elsewhere.
FOREIGN = {K8S / "cluster/prometheus-scrape.yaml"}
NAME = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"


def documents() -> list[Document]:
    """The rendered documents, and those for the cluster's other programs."""
    others = [path for path in yaml_files(K8S / "cluster") if path not in FOREIGN]
    return [*rendered(), *(yaml.safe_load(path.read_text()) for path in others)]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_fits_the_schema_of_kubernetes(version: str) -> None:
    """Every document has only fields that this version of Kubernetes has, each of its type."""
    for document in documents():
        used = kubernetes_validate.validate(document, version, strict=True)
        assert used == version, "it falls back to an older one without a word"


def test_misspelt_field_is_found() -> None:
    """The schemas are strict: an unknown field is found at any depth."""
    document = deepcopy(of_kind("Deployment")["flokit-gateway"])
    document["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(document, VERSIONS[0], strict=True)


def test_every_manifest_is_in_its_kustomization() -> None:
    """Every file of base and overlay is named by the kustomization beside it."""
    for folder in (K8S / "base", OVERLAY):
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        files = {path.name for path in yaml_files(folder)} - {"kustomization.yaml"}
        assert files == {name for name in kustomization["resources"] if name.endswith(".yaml")}


def matches(selector: Document, template: Document) -> bool:
    """Whether a selector by labels chooses the pods of a template."""
    wanted = selector.get("matchLabels", selector)
    return bool(wanted) and wanted.items() <= template["metadata"]["labels"].items()


def test_selectors_choose_the_right_pods() -> None:
    """A selector for the gateway's pods chooses these, and not those of the jobs."""
    deployment = the("Deployment")
    spread = deployment["template"]["spec"]["topologySpreadConstraints"]
    selectors = [
        deployment["selector"],
        the("Service")["selector"],
        the("PodDisruptionBudget")["selector"],
        the("NetworkPolicy", "flokit-calls-in-gateway")["podSelector"],
        *(constraint["labelSelector"] for constraint in spread),
    ]
    for selector in selectors:
        assert [name for name, pod in pods().items() if matches(selector, pod)] == ["gateway"]
    for name in ("flokit-calls-in", "flokit-calls-out"):
        assert all(
            matches(the("NetworkPolicy", name)["podSelector"], pod) for pod in pods().values()
        )
    target = the("HorizontalPodAutoscaler")["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "flokit-gateway")


def test_every_port_leads_to_the_gateway() -> None:
    """Ingress, Service, probes and policy lead to the port on which the gateway listens."""
    (port,) = container()["ports"]
    assert port["containerPort"] == read_settings(environment_of()).port
    (service,) = the("Service")["ports"]
    assert service["targetPort"] == port["name"]
    for path in the("Ingress")["rules"][0]["http"]["paths"]:
        assert path["backend"]["service"] == {
            "name": "flokit-gateway",
            "port": {"name": service["name"]},
        }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["httpGet"]["port"] == port["name"]
    (rule,) = the("NetworkPolicy", "flokit-calls-in-gateway")["ingress"]
    assert rule["ports"] == [{"port": port["name"]}]


def test_ingress_exposes_only_callbacks_and_the_health_check() -> None:
    """The ingress exposes `/ingest` and `/healthz`, on hosts that its certificate covers."""
    (rule,) = the("Ingress")["rules"]
    paths = {(path["path"], path["pathType"]) for path in rule["http"]["paths"]}
    assert paths == {("/ingest", "Prefix"), ("/healthz", "Exact")}
    assert rule["host"] in the("Ingress")["tls"][0]["hosts"]


@pytest.mark.parametrize("component", ["gateway", "migrate", "retain"])
def test_every_variable_is_a_valid_setting(component: str) -> None:
    """Every variable is a setting, or belongs to a vendor's adapter, and has a valid value."""
    environ = environment_of(component)
    known = {name.upper() for name in Settings.__struct_fields__} - {"VENDORS"}
    for vendor in adapters.load():
        known |= {vendor.upper() + SECRET_SUFFIX, vendor.upper() + ALLOWLIST_SUFFIX}
    assert environ.keys() <= known
    required = ["DATABASE_URL"] if component != "gateway" else ["DATABASE_URL", "REDIS_URL"]
    read_settings(environ, required)


def test_gateway_does_not_own_the_tables() -> None:
    """`migrate` and `retain` run as the owner; the gateway has another role."""
    owner = environment_of("migrate")["DATABASE_URL"]
    assert environment_of("retain")["DATABASE_URL"] == owner
    assert environment_of()["DATABASE_URL"] != owner
    assert environment_of("migrate").keys() == {"DATABASE_URL"}
    for name in ("RETENTION_D", "QUARANTINE_D"):
        assert environment_of("retain")[name] == environment_of()[name]


def test_container_runs_one_process() -> None:
    """A container runs one process, so that Kubernetes replaces one that ends."""
    assert read_settings(environment_of()).workers == 1
    assert container()["args"] == ["serve"]


def test_workspaces_reload_without_a_restart() -> None:
    """The workspaces are valid, and their ConfigMap keeps its name and is mounted as a folder."""
    environ = environment_of()
    (mount,) = container()["volumeMounts"]
    (volume,) = pods()["gateway"]["spec"]["volumes"]
    assert mount["name"] == volume["name"]
    assert "subPath" not in mount
    assert volume["configMap"] == {"name": "flokit-workspaces"}
    (file,) = of_kind("ConfigMap")["flokit-workspaces"]["data"].items()
    assert environ["WORKSPACES_FILE"] == f"{mount['mountPath']}/{file[0]}"
    assert workspaces_file.decode(file[1].encode(), adapters.load())


def test_changed_setting_rolls_out() -> None:
    """Settings are read once, so their ConfigMap has another name with other content.

    But the Job does not name it: Kubernetes refuses to change a Job.
    """
    (reference, _) = container()["envFrom"]
    assert re.fullmatch(r"flokit-settings-\w{10}", reference["configMapRef"]["name"])
    assert not [source for source in container("migrate")["envFrom"] if "configMapRef" in source]


def test_every_version_has_its_own_migration() -> None:
    """All run the same image, and the Job has the name of its version: a new one for each."""
    images = {container(component)["image"] for component in pods()}
    (image,) = images
    tag = image.rpartition(":")[2]
    assert list(of_kind("Job")) == [f"flokit-migrate-{tag.replace('.', '-')}"]
    assert tag == VERSION


@pytest.mark.parametrize("component", ["gateway", "migrate", "retain"])
def test_pods_are_restricted(component: str) -> None:
    """Every pod fits the standard `restricted`, cannot write, and has no token of Kubernetes."""
    pod, only = pods()[component]["spec"], container(component)
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["serviceAccountName"] in of_kind("ServiceAccount")
    assert {"requests", "limits"} == only["resources"].keys()
    labels = of_kind("Namespace")["flokit"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_first_step_leaves_the_gateway_out() -> None:
    """Everything but the gateway is applied before the migration, as in the runbook."""
    first = {
        (document["kind"], document["metadata"]["name"])
        for document in rendered()
        if document["metadata"].get("labels", {}).get(COMPONENT) != "gateway"
    }
    assert {"Deployment", "HorizontalPodAutoscaler", "Ingress"}.isdisjoint(
        kind for kind, _ in first
    )
    kinds = {"Namespace", "Secret", "ConfigMap", "ServiceAccount", "NetworkPolicy", "Job"}
    assert kinds <= {kind for kind, _ in first}
    names = {pod["metadata"]["labels"][NAME] for pod in pods().values()}
    assert names == {"flokit-gateway"}
