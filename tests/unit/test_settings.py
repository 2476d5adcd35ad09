"""Settings: the values that the environment may hold, and the message for a wrong one."""

from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest

from app.claims.redis import RedisClaims
from app.settings import (
    Settings,
    SettingsError,
    VendorAccess,
    check_deadlock_timeout,
    read_settings,
)
from sinks.timescale import hosts
from sinks.timescale.errors import AddressError

ENVIRON = {
    "DATABASE_URL": "postgresql://gateway:pa55w0rd@db:5432/events",
    "REDIS_URL": "rediss://:pa55w0rd@redis:6380/1",
    "WORKSPACES_FILE": "/etc/flokit/workspaces.toml",
}
SECRET = "hush-hush"  # noqa: S105 - not a real one


def read(**environ: str) -> Settings:
    """The settings of a complete environment with these variables as well."""
    return read_settings(ENVIRON | environ)


def complaint(**environ: str) -> str:
    """The one line that names the fault."""
    with pytest.raises(SettingsError) as raised:
        read(**environ)
    line = str(raised.value)
    assert len(line.splitlines()) == 1
    assert raised.value.__cause__ is None
    return line


DEFAULTS: dict[str, Any] = {
    "host": "0.0.0.0",  # noqa: S104 - as documented
    "port": 8000,
    "database_url": "",
    "redis_url": "",
    "workspaces_file": "",
    "cell": "",
    "proxies_count": 0,
    "workers": 1,
    "log_level": "info",
    "batch_max_events": 500,
    "buffer_max_events": 5000,
    "commit_timeout_s": 5.0,
    "claim_lease_s": 15.0,
    "seen_window_d": 30.0,
    "retention_d": 0,
    "quarantine_d": 14,
    "quarantine_max_mb": 1_024,
    "drain_pause_s": 5.0,
    "vendors": {},
}


def test_defaults_are_the_documented_ones() -> None:
    """Exactly the documented settings exist, with their documented defaults."""
    assert msgspec.structs.asdict(Settings()) == DEFAULTS
    assert msgspec.structs.asdict(read()) == DEFAULTS | {
        name.lower(): value for name, value in ENVIRON.items()
    }


SET: dict[str, tuple[str, Any]] = {
    "HOST": ("::1", "::1"),
    "PORT": ("65535", 65535),
    "DATABASE_URL": ("postgres://db/events?sslmode=require",) * 2,
    "REDIS_URL": ("redis://localhost",) * 2,
    "WORKSPACES_FILE": ("workspaces.toml",) * 2,
    "CELL": ("eu-2",) * 2,
    "PROXIES_COUNT": ("2", 2),
    "WORKERS": ("4", 4),
    "LOG_LEVEL": ("DEBUG", "debug"),
    "BATCH_MAX_EVENTS": ("1", 1),
    "BUFFER_MAX_EVENTS": ("100000", 100_000),
    "COMMIT_TIMEOUT_S": ("7.5", 7.5),
    "CLAIM_LEASE_S": ("10", 10.0),
    "SEEN_WINDOW_D": ("0.5", 0.5),
    "RETENTION_D": ("62", 62),
    "QUARANTINE_D": ("0", 0),
    "QUARANTINE_MAX_MB": ("1", 1),
    "DRAIN_PAUSE_S": ("0", 0.0),
}


@pytest.mark.parametrize(("name", "text", "value"), [(name, *pair) for name, pair in SET.items()])
def test_every_setting_is_read(name: str, text: str, value: object) -> None:
    """Every variable reaches the field of its name, and an empty one counts as not set."""
    assert getattr(read(**{name: text}), name.lower()) == value
    if name not in ENVIRON:
        assert read(**{name: ""}) == read()


def test_every_setting_is_tested() -> None:
    """A new setting fails here until it is tested above."""
    assert {name.lower() for name in SET} | {"vendors"} == DEFAULTS.keys()


def test_unknown_variables_are_ignored() -> None:
    """Variables of other programs, and other spellings of ours, have no effect."""
    others = {"port": "1", "SANIC_PORT": "1", "PGHOST": "x", "CALLBACK_SECRET": "x", "PORTS": "1"}
    others |= {"adjust_callback_secret": "x", "_CALLBACK_SECRET": "x", "MY-X_IP_ALLOWLIST": "x"}
    assert read(**others) == read()


@pytest.mark.parametrize("name", ENVIRON)
def test_missing_address_is_refused(name: str) -> None:
    """A setting without a default must be set, where a command needs it."""
    for environ in (ENVIRON | {name: ""}, {n: v for n, v in ENVIRON.items() if n != name}):
        with pytest.raises(SettingsError, match=f"^{name}: "):
            read_settings(environ)
        assert getattr(read_settings(environ, required=[]), name.lower()) == ""


WRONG = {
    "PORT": ["0", "65536", "-1", "80 ", "eighty", "0x50", "8_000", "8000.5", "1e400", "9" * 5000],
    "PROXIES_COUNT": ["-1", "11", "true", "nan"],
    "WORKERS": ["0", "65", "auto"],
    "LOG_LEVEL": ["trace", "10", "information", "info "],
    "BATCH_MAX_EVENTS": ["0", "10001", "many"],
    "BUFFER_MAX_EVENTS": ["0", "100001", "499"],
    "COMMIT_TIMEOUT_S": ["0", "-1", "60.1", "nan", "inf", "5s"],
    "CLAIM_LEASE_S": ["0", "601", "nan", "9.99"],
    "SEEN_WINDOW_D": ["0", "366", "30 days"],
    "RETENTION_D": ["-1", "1", "61", "36501", "62.5"],
    "QUARANTINE_D": ["-1", "366", "1.5"],
    "QUARANTINE_MAX_MB": ["0", "1000001", "1GB"],
    "DRAIN_PAUSE_S": ["-1", "301", "nan", "5 s"],
    "ADJUST_CALLBACK_SECRET": [",", "a,", ",a", "a,,b", " a", "a ", "a, b", "a\n", "\t"],
    "ADJUST_IP_ALLOWLIST": ["localhost", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/8,", " ", "::/129"],
    "DATABASE_URL": ["db", "db:5432/x", "mysql://db/x", "postgresql:db", "postgresql:///", "://"],
    "REDIS_URL": ["redis", "redis:6379", "http://redis", "redis://", "REDIS://redis"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_wrong_value_is_refused(name: str, value: str) -> None:
    """A wrong value is one line that names the variable; nothing is guessed or rounded."""
    assert complaint(**{name: value}).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("smaller", "greater"),
    [
        ({"COMMIT_TIMEOUT_S": "7.6"}, "CLAIM_LEASE_S"),
        ({"COMMIT_TIMEOUT_S": "22.6", "CLAIM_LEASE_S": "60"}, "within 90 s of their arrival"),
        ({"CLAIM_LEASE_S": "9.9"}, "COMMIT_TIMEOUT_S"),
        ({"BATCH_MAX_EVENTS": "5001"}, "BUFFER_MAX_EVENTS"),
        ({"BUFFER_MAX_EVENTS": "499"}, "BATCH_MAX_EVENTS"),
        ({"QUARANTINE_D": "32", "RETENTION_D": "62"}, "RETENTION_D"),
    ],
)
def test_contradicting_limits_are_refused(smaller: dict[str, str], greater: str) -> None:
    """Where a relation between two limits is broken, the line names both of them."""
    line = complaint(**smaller)
    assert greater in line
    assert next(iter(smaller)) in line


def test_edge_of_a_relation_is_accepted() -> None:
    """Limits that just fit each other are accepted."""
    assert read(COMMIT_TIMEOUT_S="7.5", CLAIM_LEASE_S="15").commit_timeout_s == 7.5
    assert read(BATCH_MAX_EVENTS="9", BUFFER_MAX_EVENTS="9").batch_max_events == 9
    slow = read(COMMIT_TIMEOUT_S="22.5", CLAIM_LEASE_S="45")
    assert slow.event_age_max == timedelta(seconds=slow.commit_timeout_s)


@pytest.mark.parametrize(
    ("commit_timeout_s", "deadlock_timeout_s", "fits"),
    [(5.0, 1.0, True), (3.0, 1.0, False), (3.001, 1.0, True), (5.0, 2.0, False), (0.5, 0.2, False)],
)
def test_commit_timeout_must_outlast_deadlock_detection(
    commit_timeout_s: float, deadlock_timeout_s: float, *, fits: bool
) -> None:
    """The commit time-out must be longer than three deadlock time-outs of the server."""
    if fits:
        return check_deadlock_timeout(commit_timeout_s, deadlock_timeout_s)
    with pytest.raises(SettingsError, match=r"^COMMIT_TIMEOUT_S: .*deadlock_timeout"):
        check_deadlock_timeout(commit_timeout_s, deadlock_timeout_s)
    return None


VENDORS: list[tuple[dict[str, str], dict[str, VendorAccess]]] = [
    ({"ADJUST_CALLBACK_SECRET": "one"}, {"adjust": VendorAccess(("one",))}),
    ({"ADJUST_CALLBACK_SECRET": "new,old"}, {"adjust": VendorAccess(("new", "old"))}),
    ({"ADJUST_CALLBACK_SECRET": "a b+%=é"}, {"adjust": VendorAccess(("a b+%=é",))}),
    ({"ADJUST_CALLBACK_SECRET": ""}, {"adjust": VendorAccess()}),
    (
        {"ADJUST_IP_ALLOWLIST": " 10.0.0.0/8, 192.0.2.7 ,2001:db8::/32"},
        {
            "adjust": VendorAccess(
                (), tuple(map(ip_network, ("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32")))
            )
        },
    ),
    (
        {"APPS_FLYER2_CALLBACK_SECRET": "x", "ADJUST_CALLBACK_SECRET": "y"},
        {"apps_flyer2": VendorAccess(("x",)), "adjust": VendorAccess(("y",))},
    ),
    (
        {"ADJUST_CALLBACK_SECRET": "x", "ADJUST_IP_ALLOWLIST": "::1"},
        {"adjust": VendorAccess(("x",), (ip_network("::1"),))},
    ),
]


@pytest.mark.parametrize(("environ", "vendors"), VENDORS)
def test_vendor_has_all_of_its_secrets_and_networks(
    environ: dict[str, str], vendors: dict[str, VendorAccess]
) -> None:
    """Each vendor has all of its own secrets and networks, and no other's."""
    assert read(**environ).vendors == vendors
    assert read(**dict(reversed(environ.items()))).vendors == vendors


LEAKS: list[dict[str, str]] = [
    {"ADJUST_CALLBACK_SECRET": f"{SECRET},"},
    {"ADJUST_CALLBACK_SECRET": f" {SECRET}"},
    {"ADJUST_CALLBACK_SECRET": f"{SECRET}\n"},
    {"ADJUST_CALLBACK_SECRET": f"{SECRET},,{SECRET}"},
    {"ADJUST_CALLBACK_SECRET": SECRET, "PORT": "x"},
    {"ADJUST_CALLBACK_SECRET": f"{SECRET}\udcff"},
    {"DATABASE_URL": f"u:{SECRET}@db/x"},
    {"DATABASE_URL": f"mysql://u:{SECRET}@db/x"},
    {"REDIS_URL": f"http://:{SECRET}@redis"},
]


@pytest.mark.parametrize("environ", LEAKS)
def test_secret_is_in_no_message(environ: dict[str, str]) -> None:
    """No message holds a secret or a password, from any place in an address."""
    line = complaint(**environ)
    assert SECRET not in line
    assert "pa55w0rd" not in line


@pytest.mark.parametrize(
    "address",
    ["u:{}@db:port/x", "u:{}/@db/x", "u:{}#@db/x", "u:{}?@db/x", "u:{}@[::1/x", "u:{}@db..x/x"],
)
async def test_error_of_the_driver_holds_no_password(address: str) -> None:
    """An address that only the driver finds wrong is reported without its contents."""
    address = address.format(SECRET)
    with pytest.raises(AddressError) as of_database:
        await hosts.connect(f"postgresql://{address}", timeout_s=1)
    assert SECRET not in str(of_database.value)
    assert of_database.value.__suppress_context__


@pytest.mark.parametrize("address", [":{}@redis:x", ":{}/x@redis", ":{}@[redis", ":{}@redis?db=x"])
def test_error_of_the_redis_client_holds_no_password(address: str) -> None:
    """An address that only the client of Redis finds wrong is reported without its password."""
    with pytest.raises(SettingsError, match=r"^REDIS_URL: ") as raised:
        RedisClaims(
            f"redis://{address.format(SECRET)}",
            generation=lambda: None,
            lease_s=1,
            seen_window_d=1,
        )
    assert SECRET not in str(raised.value)
    assert raised.value.__suppress_context__


def test_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, the settings are read from the environment of the process, as it is now."""
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PORT", "8001")
    assert read_settings().port == 8001
