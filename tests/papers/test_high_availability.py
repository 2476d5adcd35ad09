"""The page on high availability, its two files, and the profile `ha` of compose.yaml agree."""

import re
from pathlib import Path
from typing import Any

import yaml

from app.dev.programs import Programs
from bench.testbed.process import ROOT
from bench.topologies.node import DOCUMENTED, PACKAGES, Executables, Node
from bench.topologies.patroni import SCOPE

PAGE = (ROOT / "docs/high-availability.md").read_text()
PATRONI: dict[str, Any] = yaml.safe_load(DOCUMENTED.read_text())
DCS: dict[str, Any] = PATRONI["bootstrap"]["dcs"]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())[
    "services"
]
SERVERS = dict(
    re.findall(
        r"^    server (\w+) ([\d.]+:\d+) check port 8008$",
        (ROOT / "docs/high-availability/haproxy.cfg").read_text(),
        re.MULTILINE,
    )
)
# Of the tests alone: they stand for a login shell.
OF_TESTS = {"PATH", "LC_ALL"}


def test_no_answered_event_is_on_one_machine_alone() -> None:
    """A synchronous standby is required, and no other one is promoted."""
    assert (DCS["synchronous_mode"], DCS["synchronous_mode_strict"]) == ("quorum", True)
    assert "synchronous_commit" not in DCS["postgresql"]["parameters"]  # PostgreSQL's default, on


def test_times_keep_the_rule_of_patroni() -> None:
    """Patroni would change times that break its rule, and warn only in its log."""
    assert DCS["ttl"] >= 20
    assert DCS["loop_wait"] + 2 * DCS["retry_timeout"] <= DCS["ttl"]


def test_page_explains_settings_that_the_file_has() -> None:
    """Each setting in the page's table has the same value in the file."""
    text = DOCUMENTED.read_text()
    explained = re.findall(r"^\| `([a-z_]+: \w+)` \|", PAGE, re.MULTILINE)
    assert len(explained) >= 7
    assert [setting for setting in explained if f" {setting}\n" not in text] == []


def node_settings(tmp_path: Path, programs: Programs) -> set[str]:
    """The settings that a server of the tests has in its environment."""
    node = Node("one", tmp_path, Executables(programs, tmp_path), "")
    return set(node.environ) - OF_TESTS


def test_servers_of_the_tests_have_the_documented_environment(
    tmp_path: Path, postgres_programs: Programs
) -> None:
    """The page, compose.yaml and the tests set the same variables."""
    tested = node_settings(tmp_path, postgres_programs)
    assert set(re.findall(r"^(PATRONI_\w+)=", PAGE, re.MULTILINE)) == tested
    for name in SERVERS:
        assert set(SERVICES[f"database-{name}"]["environment"]) == tested


def test_compose_runs_the_documented_files() -> None:
    """Each server mounts the documented file, and has the address that HAProxy knows."""
    assert len(SERVERS) == 3
    for name, address in SERVERS.items():
        service = SERVICES[f"database-{name}"]
        environ, host = service["environment"], address.partition(":")[0]
        assert environ["PATRONI_NAME"] == name
        assert environ["PATRONI_POSTGRESQL_CONNECT_ADDRESS"] == address
        assert environ["PATRONI_RESTAPI_CONNECT_ADDRESS"] == f"{host}:8008"
        assert service["networks"]["ha"]["ipv4_address"] == host
        assert (
            service["volumes"][0] == f"./{DOCUMENTED.relative_to(ROOT)}:{service['command'][1]}:ro"
        )
        # The servers' etcd is the service of that name.
        etcd = f"{SERVICES['etcd']['networks']['ha']['ipv4_address']}:2379"
        assert environ["PATRONI_ETCD3_HOSTS"] == etcd
    assert SERVICES["database"]["volumes"][0].startswith("./docs/high-availability/haproxy.cfg:")
    assert {name for name, each in SERVICES.items() if each.get("profiles") == ["ha"]} == {
        "etcd", "database", "migrate-ha", "gateway-ha", *(f"database-{name}" for name in SERVERS)
    }  # fmt: skip


def test_compose_installs_the_packages_of_the_tests() -> None:
    """The image of a server has the packages that the tests unpack."""
    installed = SERVICES["database-one"]["build"]["dockerfile_inline"].split()
    assert {*PACKAGES, "haproxy", "postgresql-17-timescaledb"} <= set(installed)


def test_lock_of_the_page_is_that_of_the_file() -> None:
    """The page releases the lock of this cluster, as the tests do."""
    assert PATRONI["scope"] == SCOPE
    assert f"$ etcdctl del /service/{SCOPE}/leader\n" in PAGE
    assert "switchover --force\n" in PAGE
