"""The workspaces file: its form and its checks, and its apps as rows."""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from msgspec.structs import asdict, replace

from app.event import App, StableName
from app.normalize import WHITE_SPACE
from app.settings import CELL, secret_owner
from app.vendor import Vendor, Vendors

FILE_MAX_BYTES = 64 * 1024 * 1024
APPS_MAX = 50_000
PIECE_BYTES = 32 * 1024

# Values that end up in an index or a metric are short, and can be stored.
Name = Annotated[str, Meta(min_length=1, max_length=200)]
# Without these an event could not be identified, valued or placed in time.
NEVER_OMITTED = frozenset({
    "app_token", "created_at", "event_token", "event", "activity_kind", "revenue", "currency",
})  # fmt: skip

CELL_NEEDED = "the app needs a `cell`"
OUTSIDE = " (is it an entry of `events` outside of its braces?)"

Apps = Mapping[tuple[str, str], App]

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNKNOWN_IN_APP = re.compile(r"unknown field .* - at `\$\.workspaces\[[^]]*\]\.apps\[[^]]*\]`")


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
    options: Mapping[str, object] = {}
    cell: Annotated[str, Meta(pattern=CELL)] = ""


class _Row(msgspec.Struct, frozen=True):
    """An app as JSON: only its vendor knows the type of its options."""

    app: App
    options: msgspec.Raw


_decode_row = msgspec.json.Decoder(_Row).decode


class _Workspace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Name
    apps: Annotated[tuple[_App, ...], Meta(min_length=1)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    workspaces: Annotated[tuple[_Workspace, ...], Meta(min_length=1)]


def decode(text: bytes, vendors: Vendors) -> Apps:
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
    _check_cells(file)
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
            vendor = vendors.get(app.vendor)
            if vendor is None:
                raise WorkspacesError(f"No adapter for vendor {app.vendor!r} - at `{place}.vendor`")
            _check_app(app, vendor, place)
            if key in apps:
                raise WorkspacesError(
                    f"App token {app.app_token!r} of {app.vendor} is also in workspace "
                    f"{apps[key].workspace_id!r} - at `{place}.app_token`"
                )
            fields = asdict(app) | {"options": _options(app, vendor, f"{place}.options")}
            apps[key] = App(workspace_id=workspace.id, **fields)
    return apps


def _check_cells(file: _File) -> None:
    """Raise WorkspacesError if some apps have a cell, and one has none."""
    cells = {
        f"$.workspaces[{w}].apps[{a}]": app.cell
        for w, workspace in enumerate(file.workspaces)
        for a, app in enumerate(workspace.apps)
    }
    if any(cells.values()):
        for place, cell in cells.items():
            if not cell:
                raise WorkspacesError(f"{CELL_NEEDED}, as others have one - at `{place}`")


def require_cell(apps: Apps, cell: str) -> None:
    """Raise WorkspacesError if a gateway with this setting CELL cannot serve the apps of a file."""
    cells = cells_of(apps)
    if cell and not cells:
        raise WorkspacesError(f"{CELL_NEEDED}, since CELL is set - at `$.workspaces[0].apps[0]`")
    # With one cell the setting may follow the file: so they are introduced without a pause.
    if not cell and len(cells) > 1:
        raise WorkspacesError(f"the apps live in {len(cells)} cells: CELL must name this one's")


def cells_of(apps: Apps) -> Sequence[str]:
    """Return the cells of a file in order; none where its apps have no cell."""
    return sorted({app.cell for app in apps.values() if app.cell})


def _options(app: _App, vendor: Vendor, place: str) -> msgspec.Struct | None:
    """Return the options of an app, in the vendor's own struct; raises WorkspacesError."""
    if vendor.options is None:
        if app.options:
            raise WorkspacesError(f"Vendor {app.vendor!r} has no options - at `{place}`")
        return None
    try:
        return msgspec.convert(app.options, vendor.options)
    except msgspec.ValidationError as error:
        # The path ends the message, and begins with the options as its root.
        message, _, path = str(error).rpartition(" - at `$")
        raise WorkspacesError(
            f"{message or path} - at `{place}{path if message else '`'}"
        ) from None


def _check_app(app: _App, vendor: Vendor, place: str) -> None:
    """Raise WorkspacesError for an entry without effect, or with a harmful one."""
    for name, text in _entries(app):
        _check_text(text, f"{place}.{name}")
        if vendor.unfilled.fullmatch(text):
            raise WorkspacesError(
                f"{text!r} is a placeholder, which counts as absent - at `{place}.{name}`"
            )
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


def read(path: Path, vendors: Vendors) -> Apps:
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
        options = msgspec.Raw(msgspec.json.encode(app.options))
        row = _Row(app=replace(app, options=None), options=options)
        yield key_of(vendor, app_token), msgspec.json.encode(row)


def decode_row(row: bytes, vendor: Vendor) -> App:
    """Return the app of a row, with the options in the vendor's own struct."""
    decoded = _decode_row(row)
    if vendor.options is None:
        return decoded.app
    return replace(decoded.app, options=msgspec.json.decode(decoded.options, type=vendor.options))
