"""Settings: one struct, read once from the environment."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Network = IPv4Network | IPv6Network
LogLevel = Literal["debug", "info", "warning", "error"]

SECRET_SUFFIX = "_CALLBACK_SECRET"  # noqa: S105 - part of a name
ALLOWLIST_SUFFIX = "_IP_ALLOWLIST"
# <VENDOR>_CALLBACK_SECRET__<WORKSPACE> holds the secrets of one workspace.
OWNER_SEPARATOR = "__"
_VENDOR = re.compile(r"[A-Z][A-Z0-9_]*")
_VENDOR_SETTING = re.compile(rf"({_VENDOR.pattern})(?:{SECRET_SUFFIX}|{ALLOWLIST_SUFFIX})")

# Bounds the cost of verifying a caller.
SECRET_MAX = 1024

# The lease must outlive a commit with room for clocks and pauses.
LEASE_PER_COMMIT = 2
# PostgreSQL checks for a deadlock after `deadlock_timeout`; a commit must outlast a few checks.
COMMIT_PER_DEADLOCK = 3
# A row becomes visible within this time of its `received_at`, or never does: readers that follow
# `received_at` look back so far.
VISIBLE_WITHIN_S = 90.0
# The time from the start of a write until its rows are visible, in COMMIT_TIMEOUT_S: its own
# time-out, the delivery of its last bytes after that, and their statement in the server.
COMMITS_PER_WRITE = 3
# With a retention, events older than RETENTION_D less these days are dropped, so that every row is
# kept for at least as many days.
ROW_LIFE_MIN_D = 31
RETENTION_MIN_D = 2 * ROW_LIFE_MIN_D
# The name of a cell: also that of a backend of the proxy in front. `\Z`: `$` allows a line break.
CELL = r"^[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\Z"
# If the gateway's clock and the database's are further apart, one of them is wrong.
CLOCK_TOLERANCE_S = 300.0
_SCHEMES = {
    "DATABASE_URL": ("postgresql", "postgres"),
    "REDIS_URL": (
        "redis",
        "rediss",
        "unix",
        "redis+cluster",
        "rediss+cluster",
        "redis+sentinel",
        "rediss+sentinel",
    ),
}


class SettingsError(Exception):
    """A wrong value; the message is one line that names the variable."""


class VendorAccess(msgspec.Struct, frozen=True):
    """The valid secrets of a vendor, and the networks it may call from.

    `workspaces` holds the secrets of single workspaces, by `secret_owner`.
    """

    secrets: tuple[str, ...] = ()
    allowlist: tuple[Network, ...] = ()
    workspaces: Mapping[str, tuple[str, ...]] = {}

    @property
    def has_secret(self) -> bool:
        """Whether any secret is configured."""
        return bool(self.secrets or self.workspaces)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set; each field is the environment variable of the same name.

    The addresses and the file have no default, but not every command needs all of them.
    """

    host: str = "0.0.0.0"  # noqa: S104 - a server in a container listens on every interface
    port: Annotated[int, Meta(ge=1, le=65535)] = 8000
    database_url: str = ""
    redis_url: str = ""
    workspaces_file: str = ""
    cell: Annotated[str, Meta(pattern=CELL)] = ""
    proxies_count: Annotated[int, Meta(ge=0, le=10)] = 0
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    log_level: LogLevel = "info"
    batch_max_events: Annotated[int, Meta(ge=1, le=10_000)] = 500
    buffer_max_events: Annotated[int, Meta(ge=1, le=100_000)] = 5_000
    commit_timeout_s: Annotated[float, Meta(gt=0, le=60)] = 5.0
    claim_lease_s: Annotated[float, Meta(gt=0, le=600)] = 15.0
    seen_window_d: Annotated[float, Meta(ge=0.01, le=365)] = 30.0
    retention_d: Annotated[int, Meta(ge=0, le=36_500)] = 0
    quarantine_d: Annotated[int, Meta(ge=0, le=365)] = 14
    quarantine_max_mb: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_024
    drain_pause_s: Annotated[float, Meta(ge=0, le=300)] = 5.0
    vendors: Mapping[str, VendorAccess] = {}

    @property
    def secrets(self) -> frozenset[str]:
        """All configured secrets, of any vendor and workspace."""
        return frozenset(
            secret
            for access in self.vendors.values()
            for secrets in (access.secrets, *access.workspaces.values())
            for secret in secrets
        )

    @property
    def event_age_max(self) -> timedelta:
        """The age up to which an event is written: its row is then visible in time."""
        return timedelta(seconds=VISIBLE_WITHIN_S - COMMITS_PER_WRITE * self.commit_timeout_s)


def read_settings(
    environ: Mapping[str, str] = os.environ,
    required: Sequence[str] = ("DATABASE_URL", "REDIS_URL", "WORKSPACES_FILE"),
) -> Settings:
    """Return the settings of an environment; an empty variable counts as not set.

    Raises SettingsError for the first wrong value, and for a `required` variable without one.
    """
    values: dict[str, Any] = {"vendors": _read_vendors(environ)}
    for field in msgspec.structs.fields(Settings):
        name = field.name.upper()
        if field.name == "vendors":
            continue
        if text := environ.get(name, ""):
            values[field.name] = _read_value(name, text, field.type)
        elif name in required:
            raise SettingsError(f"{name}: not set, and there is no default")
    settings = Settings(**values)
    _check_relations(settings)
    return settings


def _read_value(name: str, text: str, type_: Any) -> Any:
    if name in _SCHEMES:
        return _checked_url(name, text)
    if name == "LOG_LEVEL":
        text = text.lower()
    try:
        return msgspec.convert(text, type_, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{name}: {error}, got {text!r}") from None


def _checked_url(name: str, text: str) -> str:
    # The text may hold a password: it is never printed.
    scheme, _, rest = text.partition("://")
    if scheme not in _SCHEMES[name] or not rest.strip("/"):
        form = f"{_SCHEMES[name][0]}://user:password@host:port/database"
        raise SettingsError(f"{name}: expected an address of the form {form}")
    return text


@lru_cache(maxsize=4096)
def secret_owner(workspace: str) -> str:
    """Return a workspace's ID as spelled at the end of the variable with its secrets."""
    return re.sub(r"[^A-Z0-9_]", "_", workspace.upper())


def _read_vendors(environ: Mapping[str, str]) -> dict[str, VendorAccess]:
    own_secrets: defaultdict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    vendors: set[str] = set()
    for name in environ:
        vendor, is_own, owner = name.partition(SECRET_SUFFIX + OWNER_SEPARATOR)
        if is_own and _VENDOR.fullmatch(vendor):
            if not owner or owner != secret_owner(owner):
                wanted = vendor + is_own + (secret_owner(owner) or "<WORKSPACE>")
                raise SettingsError(f"{name}: the name must be {wanted}")
            if secrets := _read_secrets(name, environ):
                own_secrets[vendor][owner] = secrets
        elif match := _VENDOR_SETTING.fullmatch(name):
            vendors.add(match[1])
    return {
        vendor.lower(): VendorAccess(
            _read_secrets(vendor + SECRET_SUFFIX, environ),
            _read_allowlist(vendor + ALLOWLIST_SUFFIX, environ),
            own_secrets[vendor],
        )
        for vendor in sorted(vendors | own_secrets.keys())
    }


def _read_secrets(name: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    text = environ.get(name, "")
    secrets = tuple(text.split(",")) if text else ()
    for place, secret in enumerate(secrets, 1):
        # The secret itself is never printed.
        if not secret:
            raise SettingsError(f"{name}: secret {place} of {len(secrets)} is empty")
        if secret != secret.strip():
            raise SettingsError(f"{name}: secret {place} begins or ends with white space")
        if len(secret) > SECRET_MAX:
            raise SettingsError(f"{name}: secret {place} is longer than {SECRET_MAX} characters")
        # Python decodes invalid UTF-8 in the environment to lone surrogates.
        if any("\ud800" <= character <= "\udfff" for character in secret):
            raise SettingsError(f"{name}: secret {place} is not UTF-8")
    return secrets


def _read_allowlist(name: str, environ: Mapping[str, str]) -> tuple[Network, ...]:
    text = environ.get(name, "")
    try:
        return tuple(ip_network(entry.strip()) for entry in text.split(",")) if text else ()
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from None


def _check_relations(settings: Settings) -> None:
    if settings.claim_lease_s < LEASE_PER_COMMIT * settings.commit_timeout_s:
        raise SettingsError(
            f"CLAIM_LEASE_S: {settings.claim_lease_s:g} is less than {LEASE_PER_COMMIT} times "
            f"COMMIT_TIMEOUT_S ({settings.commit_timeout_s:g})"
        )
    # An event may wait for the batch ahead of it.
    if (1 + COMMITS_PER_WRITE) * settings.commit_timeout_s > VISIBLE_WITHIN_S:
        raise SettingsError(
            f"COMMIT_TIMEOUT_S: {settings.commit_timeout_s:g} is more than "
            f"{VISIBLE_WITHIN_S / (1 + COMMITS_PER_WRITE):g}: rows would not become visible "
            f"within {VISIBLE_WITHIN_S:g} s of their arrival"
        )
    if settings.buffer_max_events < settings.batch_max_events:
        raise SettingsError(
            f"BUFFER_MAX_EVENTS: {settings.buffer_max_events} is less than "
            f"BATCH_MAX_EVENTS ({settings.batch_max_events})"
        )
    if 0 < settings.retention_d < RETENTION_MIN_D:
        raise SettingsError(
            f"RETENTION_D: {settings.retention_d} is neither 0 (keep for ever) nor "
            f"at least {RETENTION_MIN_D}"
        )
    if settings.retention_d and settings.seen_window_d > ROW_LIFE_MIN_D:
        raise SettingsError(
            f"SEEN_WINDOW_D: {settings.seen_window_d:g} is more than the {ROW_LIFE_MIN_D} days "
            "that every row is kept for when RETENTION_D is set"
        )
    if settings.retention_d and settings.quarantine_d > ROW_LIFE_MIN_D:
        raise SettingsError(
            f"QUARANTINE_D: {settings.quarantine_d} is more than the {ROW_LIFE_MIN_D} days that "
            "every row is kept for when RETENTION_D is set"
        )


def check_deadlock_timeout(commit_timeout_s: float, deadlock_timeout_s: float) -> None:
    """Raise SettingsError if the server checks for a deadlock too late for a commit."""
    if commit_timeout_s <= COMMIT_PER_DEADLOCK * deadlock_timeout_s:
        raise SettingsError(
            f"COMMIT_TIMEOUT_S: {commit_timeout_s:g} must be above {COMMIT_PER_DEADLOCK} times the "
            f"server's deadlock_timeout ({deadlock_timeout_s:g} s)"
        )
