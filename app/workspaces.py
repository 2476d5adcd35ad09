"""(vendor, app token) -> workspace and mapping: decode the file, watch it, swap it."""

import asyncio
import logging
import os
import re
import time
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from app.callback import WHITE_SPACE
from app.event import StableName, Workspace
from app.metrics import WORKSPACES_LOADED, WORKSPACES_REFUSED, WORKSPACES_VERSION, begin
from app.settings import secret_owner

POLL_S = 1.0
LOOK_TIMEOUT_S = 5.0
FILE_MAX_BYTES = 16 * 1024 * 1024

# Values that end up in an index or a metric are short, and can be stored.
Name = Annotated[str, Meta(min_length=1, max_length=200)]
# What is never stored would leave an event that nobody can identify or place in time.
NEVER_OMITTED = frozenset({
    "app_token", "created_at", "event_token", "event", "activity_kind", "revenue", "currency",
})  # fmt: skip

Apps = Mapping[tuple[str, str], Workspace]

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLACEHOLDER = re.compile(r"\{[A-Za-z0-9_|. -]{1,80}\}")

log = logging.getLogger(__name__)


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
        # tomllib tells line and column of a mistake in the notation, msgspec the path to a wrong
        # value.
        file = msgspec.convert(tomllib.loads(text.decode()), _File)
    except RecursionError:
        raise WorkspacesError("nested too deeply") from None
    except (ValueError, msgspec.ValidationError) as error:
        raise WorkspacesError(str(error)) from None
    apps: dict[tuple[str, str], Workspace] = {}
    owners: dict[str, str] = {}
    for w, workspace in enumerate(file.workspaces):
        _check_text(workspace.id, f"$.workspaces[{w}].id")
        # Of the same name in another spelling, neither could have secrets of its own.
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
                    f"{apps[key].id!r} - at `{place}.app_token`"
                )
            apps[key] = Workspace(id=workspace.id, **msgspec.structs.asdict(app))
    return apps


def _check_app(app: _App, vendors: Collection[str], place: str) -> None:
    """Raise WorkspacesError for an entry without effect, or with an effect that nobody wants."""
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
    """Yield every text of an app that is compared or stored, behind its place in the app."""
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
    return decode(_read_bytes(path), vendors)


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > FILE_MAX_BYTES:
                raise WorkspacesError(f"larger than {FILE_MAX_BYTES} bytes")
            # Not up to the limit: a buffer of 16 MB each second, cut to the size of the file, let
            # the allocator's heap grow by two files a second, up to 30 MB.
            return file.read(size)
    except OSError as error:
        raise WorkspacesError(error.strerror or str(error)) from None


class Workspaces:
    """The apps of the file as it is now; a wrong file leaves the last good one in use."""

    def __init__(self, path: Path, vendors: Collection[str]) -> None:
        """Read the file; raises WorkspacesError."""
        self._path = path
        self._vendors = vendors
        text = _read_bytes(path)
        self._judged: bytes | str = text
        self._apps = self._use(text)

    def find(self, vendor: str, app_token: str | None) -> Workspace | None:
        """Return the workspace of an app; None where it belongs to none."""
        return self._apps.get((vendor, app_token)) if app_token else None

    async def watch(self) -> None:
        """Look at the file again and again, and use what it says; never returns."""
        seen = self._judged
        while True:
            await asyncio.sleep(POLL_S)
            # The file may be on a slow volume: the callbacks do not wait for it.
            looking = asyncio.create_task(asyncio.to_thread(self._look))
            if not (await asyncio.wait([looking], timeout=LOOK_TIMEOUT_S))[0]:
                WORKSPACES_REFUSED.set(1)
                log.error("the workspaces file is not read", extra={"file": str(self._path)})
                self._judged = ""  # whatever it says is judged anew
            look = await looking
            # A file that is being written may be good, and not whole: it counts when it has
            # stayed the same from one look to the next.
            if look == seen and look != self._judged:
                self._judge(look)
            seen = look

    def _look(self) -> bytes | str:
        """Return what the file holds, or why it cannot be read."""
        try:
            return _read_bytes(self._path)
        except WorkspacesError as error:
            return str(error)

    def _use(self, text: bytes) -> Apps:
        """Return what the file says, and tell the metrics; raises WorkspacesError."""
        apps = decode(text, self._vendors)
        begin({(app.vendor, app.id) for app in apps.values()})
        WORKSPACES_LOADED.set(time.time())
        # 32 bits: any float holds them, and people can compare them.
        WORKSPACES_VERSION.set(int.from_bytes(blake2b(text, digest_size=4).digest()))
        return apps

    def _judge(self, look: bytes | str) -> None:
        self._judged = look
        try:
            if isinstance(look, str):
                raise WorkspacesError(look)
            self._apps = self._use(look)
        except WorkspacesError as error:
            WORKSPACES_REFUSED.set(1)
            log.error(
                "workspaces file refused, the last good one stays in use",
                extra={"file": str(self._path), "error": str(error)},
            )
        else:
            WORKSPACES_REFUSED.set(0)
            log.info("workspaces file read again", extra={"apps": len(self._apps)})
