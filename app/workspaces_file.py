"""The workspaces file: its form and its checks. As a program, the reader of a running gateway.

Decoding 50,000 apps takes seconds, and holds the interpreter's lock: hence another process.
"""

import os
import re
import signal
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from app.event import App, StableName
from app.parameters import WHITE_SPACE
from app.settings import secret_owner

FILE_MAX_BYTES = 64 * 1024 * 1024
APPS_MAX = 50_000
PIECE_BYTES = 32 * 1024
# The gateway has precedence where they share a core.
NICE = 10

# Values that end up in an index or a metric are short, and can be stored.
Name = Annotated[str, Meta(min_length=1, max_length=200)]
# Without these an event could not be identified, valued or placed in time.
NEVER_OMITTED = frozenset({
    "app_token", "created_at", "event_token", "event", "activity_kind", "revenue", "currency",
})  # fmt: skip

OUTSIDE = " (is it an entry of `events` outside of its braces?)"

Apps = Mapping[tuple[str, str], App]

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNKNOWN_IN_APP = re.compile(r"unknown field .* - at `\$\.workspaces\[[^]]*\]\.apps\[[^]]*\]`")
_PLACEHOLDER = re.compile(r"\{[A-Za-z0-9_|. -]{1,80}\}")


class WorkspacesError(Exception):
    """The file is wrong; the message is one line that names the place in it."""


class _App(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    vendor: Name
    app_token: Name
    events: dict[Name, Name] = {}
    activities: dict[Name, Name] = {}
    ignore: tuple[Name, ...] = ()
    keep: tuple[Name, ...] | None = None
    omit: tuple[Name, ...] = ()
    stable_id: tuple[Name | Annotated[tuple[Name, ...], Meta(min_length=1)], ...] | None = None


class _Workspace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Name
    apps: Annotated[tuple[_App, ...], Meta(min_length=1)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    workspaces: Annotated[tuple[_Workspace, ...], Meta(min_length=1)]


def decode(text: bytes, vendors: Collection[str]) -> Apps:
    """Return the apps of a workspaces file; `vendors` are those that have an adapter.

    Raises WorkspacesError.
    """
    try:
        # tomllib reports line and column of a syntax error, msgspec the path to a wrong value.
        file = msgspec.convert(tomllib.loads(text.decode()), _File)
    except RecursionError:
        raise WorkspacesError("nested too deeply") from None
    except (ValueError, msgspec.ValidationError) as error:
        hint = OUTSIDE if _UNKNOWN_IN_APP.search(str(error)) else ""
        raise WorkspacesError(f"{error}{hint}") from None
    apps: dict[tuple[str, str], App] = {}
    owners: dict[str, str] = {}
    if sum(len(workspace.apps) for workspace in file.workspaces) > APPS_MAX:
        raise WorkspacesError(f"more than {APPS_MAX} apps - at `$.workspaces`")
    for w, workspace in enumerate(file.workspaces):
        _check_text(workspace.id, f"$.workspaces[{w}].id")
        # Neither of two IDs with one name for their secrets could have its own.
        if (other := owners.setdefault(secret_owner(workspace.id), workspace.id)) != workspace.id:
            raise WorkspacesError(
                f"Workspaces {other!r} and {workspace.id!r} would share the name of a setting, "
                f"{secret_owner(workspace.id)} - at `$.workspaces[{w}].id`"
            )
        for a, app in enumerate(workspace.apps):
            place = f"$.workspaces[{w}].apps[{a}]"
            key = (app.vendor, app.app_token)
            _check_app(app, vendors, place)
            if key in apps:
                raise WorkspacesError(
                    f"App token {app.app_token!r} of {app.vendor} is also in workspace "
                    f"{apps[key].workspace_id!r} - at `{place}.app_token`"
                )
            apps[key] = App(workspace_id=workspace.id, **msgspec.structs.asdict(app))
    return apps


def _check_app(app: _App, vendors: Collection[str], place: str) -> None:
    """Raise WorkspacesError for an entry without effect, or with a harmful one."""
    if app.vendor not in vendors:
        raise WorkspacesError(f"No adapter for vendor {app.vendor!r} - at `{place}.vendor`")
    for name, text in _entries(app):
        _check_text(text, f"{place}.{name}")
        if text == "secret" and name.startswith(("keep", "stable_id")):
            raise WorkspacesError(f"The secret is never kept - at `{place}.{name}`")
        if name.startswith("ignore") and (text in app.events or text in app.activities):
            raise WorkspacesError(f"{text!r} is mapped as well - at `{place}.{name}`")
        if name.startswith("omit") and text in NEVER_OMITTED:
            raise WorkspacesError(f"{text!r} cannot be left out - at `{place}.{name}`")


def _entries(app: _App) -> Iterator[tuple[str, str]]:
    """Yield every text of an app that is compared or stored, after its path in the app."""
    yield "app_token", app.app_token
    for name, mapping in (("events", app.events), ("activities", app.activities)):
        for sent, event_type in mapping.items():
            yield name, sent
            yield name, event_type
    lists: tuple[tuple[str, Sequence[StableName] | None], ...] = (
        ("ignore", app.ignore), ("keep", app.keep), ("omit", app.omit),
        ("stable_id", app.stable_id),
    )  # fmt: skip
    for name, entries in lists:
        for number, entry in enumerate(entries or ()):
            for text in (entry,) if isinstance(entry, str) else entry:
                yield f"{name}[{number}]", text


def _check_text(text: str, place: str) -> None:
    """Raise WorkspacesError for a text that is never sent, or that cannot be stored."""
    if _CONTROL.search(text):
        raise WorkspacesError(f"{text!r} holds a control character - at `{place}`")
    if text != text.strip(WHITE_SPACE):
        raise WorkspacesError(f"{text!r} begins or ends with white space - at `{place}`")
    if _PLACEHOLDER.fullmatch(text):
        raise WorkspacesError(f"{text!r} is a placeholder, which counts as absent - at `{place}`")


def read(path: Path, vendors: Collection[str]) -> Apps:
    """Return the apps of the workspaces file at `path`; raises WorkspacesError."""
    return decode(read_bytes(path), vendors)


def read_bytes(path: Path) -> bytes:
    """Return the content of the file; raises WorkspacesError."""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > FILE_MAX_BYTES:
                raise WorkspacesError(f"larger than {FILE_MAX_BYTES} bytes")
            return file.read(size_bytes)
    except OSError as error:
        raise WorkspacesError(error.strerror or str(error)) from None


def read_digest(path: Path) -> tuple[bytes, int]:
    """Return the digest of the file's content, and its size in bytes; raises WorkspacesError."""
    digest, size_bytes = _digest(), 0
    try:
        with path.open("rb", buffering=0) as file:
            # In small pieces: a large buffer for each poll lets the allocator's heap grow.
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
                size_bytes += len(piece)
                if size_bytes > FILE_MAX_BYTES:
                    raise WorkspacesError(f"larger than {FILE_MAX_BYTES} bytes")
    except OSError as error:
        raise WorkspacesError(error.strerror or str(error)) from None
    return digest.digest(), size_bytes


def digest_of(text: bytes) -> bytes:
    """Return the digest of a content, equal to that of `read_digest`."""
    return _digest(text).digest()


_digest = partial(blake2b, digest_size=16)


def key_of(vendor: str, app_token: str) -> str:
    """Return the key of an app; the name of a vendor has no slash."""
    return f"{vendor}/{app_token}"


def rows(apps: Apps) -> Iterator[tuple[str, bytes]]:
    """Yield key and JSON of each app."""
    for (vendor, app_token), app in apps.items():
        yield key_of(vendor, app_token), msgspec.json.encode(app)


def main(path: str, *vendors: str) -> int:
    """Write the decoded file to standard output, in lines of tab-separated fields.

    First `digest`; then `callbacks` with vendor and workspace, and `app` with key and JSON; last
    `end`. For a wrong file, only `error` with the message.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the gateway
    os.nice(NICE)
    write = sys.stdout.buffer.write
    try:
        text = read_bytes(Path(path))
        digest = digest_of(text)
        apps = decode(text, vendors)
    except WorkspacesError as error:
        write(f"error\t{error}\n".encode())
        return 1
    write(f"digest\t{digest.hex()}\n".encode())
    for vendor, workspace in {(app.vendor, app.workspace_id) for app in apps.values()}:
        write(f"callbacks\t{vendor}\t{workspace}\n".encode())
    for key, row in rows(apps):
        write(b"app\t%b\t%b\n" % (key.encode(), row))
    write(b"end\t\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
