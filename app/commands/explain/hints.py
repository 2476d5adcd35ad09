"""Hints: the likely cause of a verdict, and its remedy."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime

import msgspec

from app import normalize
from app.access import CREDENTIAL_HEADERS, WRONG_SECRET, sent_app_token, sent_secrets
from app.commands.explain.dry_run import Trace
from app.commands.explain.http_request import HttpRequest
from app.commands.explain.vendors import VendorNames
from app.commands.likeness import is_alike
from app.commands.output import toml_key, toml_string
from app.errors import MalformedBody, NotConfigured, UnknownVendor, Unverified
from app.event import AHEAD_MAX, Drop, DropReason
from app.gateway import Gateway
from app.http.head import HEAD_MAX_BYTES, HEADER_LINES_MAX
from app.http.protocol import BODY_MAX_BYTES
from app.normalize import clean
from app.parameters import decode
from app.secret_hints import SecretHints
from app.settings import SECRET_SUFFIX
from app.workspaces_file import Apps

ESCAPED_AMPERSAND = re.compile(r"&(?:amp|#38|#x26);|\\u0026", re.IGNORECASE)
# Names that the gateway searches in the raw query.
_LITERAL = ("secret", "app_token")
_REPEATED_MAX = 5


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that hints are made of.

    `read_apps` reads the workspaces file, `shown` makes a sent text fit to be shown.
    """

    request: HttpRequest
    trace: Trace
    gateway: Gateway
    names: VendorNames
    arrival: datetime
    read_apps: Callable[[], Apps]
    shown: Callable[[str], str]

    @property
    def raw_query(self) -> bytes:
        """The query as it is sent."""
        return self.request.target.partition("?")[2].encode("utf-8", "surrogateescape")

    @property
    def drop(self) -> Drop | None:
        """The drop that the adapter returned."""
        return self.trace.result if isinstance(self.trace.result, Drop) else None

    @property
    def other_cell(self) -> str:
        """The cell of the app, if it is not that of the gateway."""
        request, cell = self.trace.request, self.gateway.settings.cell
        if request is None or not cell:
            return ""
        app = self.gateway.workspaces.find(request.vendor, sent_app_token(request.query))
        return app.cell if app and app.cell != cell else ""


def hints(facts: Facts) -> Iterator[str]:
    """Yield the hints for a request."""
    for hint in (
        _escaped, _names, _target, _body, _repeated, _secret, _app, _unmapped, _time,
    ):  # fmt: skip
        yield from hint(facts)
    if facts.trace.callback is not None:
        sent = facts.trace.callback.parameters.items()
        parameters = {facts.shown(name): facts.shown(value) for name, value in sent}
        for of_vendor in facts.names.hints:
            yield from of_vendor(parameters)


def pairs(query: bytes) -> Iterator[tuple[bytes, str, str]]:
    """Yield the parameters of a query: raw name, clean name, clean value."""
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        yield name, clean(decode(name)), clean(decode(value))


def _escaped(facts: Facts) -> Iterator[str]:
    if found := ESCAPED_AMPERSAND.search(facts.request.target):
        yield (
            f"the URL has {found[0]} in place of &, as a page or a log shows it: sent like this, "
            "all names but the first begin with it"
        )


def _names(facts: Facts) -> Iterator[str]:
    for raw, name, _ in pairs(facts.raw_query):
        if name in _LITERAL and raw != name.encode():
            yield f"a name that only decodes to {name} counts for nothing: send it unescaped"
        elif name not in _LITERAL and name.lower() in _LITERAL:
            yield f"names are case-sensitive: {facts.shown(name)} is not {name.lower()}"


def _target(facts: Facts) -> Iterator[str]:
    path = facts.request.target.partition("?")[0]
    answer = facts.trace.answer
    vendors = ", ".join(f"/ingest/{vendor}" for vendor in sorted(facts.gateway.vendors))
    if isinstance(facts.trace.error, UnknownVendor):
        yield f"callbacks of the vendors with an adapter go to {vendors}"
    elif facts.trace.request is None and answer is not None:
        if answer.status == 405:  # noqa: PLR2004 - Method Not Allowed
            yield "callbacks are sent with GET or POST"
        elif "/ingest/" in path.lstrip("/")[1:]:
            yield "the path has a prefix: a proxy must remove it, or the URL must not have it"
        else:
            yield f"the path of a callback is {vendors}"


def _body(facts: Facts) -> Iterator[str]:
    if isinstance(facts.trace.error, MalformedBody):
        yield "the body must be a form or one flat JSON object, without compression"
    elif facts.trace.answer is None and facts.trace.answered.reason == "too_large":
        yield (
            f"request line and headers have room for {HEAD_MAX_BYTES:,} bytes and "
            f"{HEADER_LINES_MAX} lines, the body for {BODY_MAX_BYTES // 1024**2} MB"
        )


def _repeated(facts: Facts) -> Iterator[str]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for _, name, value in pairs(facts.raw_query):
        found[name].append(value)
    repeated = [
        name
        for name, values in found.items()
        if len(values) > 1 and name and (name in _LITERAL or len(set(values)) > 1)
    ]
    for name in repeated[:_REPEATED_MAX]:
        yield (
            f"{facts.shown(name)} is sent {len(found[name])} times, and the first counts: "
            "later ones may come from the app's own users"
        )


def _secret(facts: Facts) -> Iterator[str]:
    request, error = facts.trace.request, facts.trace.error
    if request is None:
        return
    sent_in_url = any(name == b"secret" for name, _, _ in pairs(request.query))
    for header in CREDENTIAL_HEADERS:
        if sent_in_url and request.headers.get(header, ""):
            yield f"the header {header} is not read: the URL has a secret"
    if isinstance(error, NotConfigured):
        setting = request.vendor.upper() + SECRET_SUFFIX
        yield f"set {setting}, or for one workspace {setting}__<WORKSPACE>"
    if not isinstance(error, Unverified) or error.reason != WRONG_SECRET:
        return
    candidates = sent_secrets(request.query, request.headers)
    if not candidates:
        yield "add secret=... to the URL, or send the header x-flokit-secret" + _not_of_body(
            facts, b"secret"
        )
        return
    hints = SecretHints(facts.gateway.settings.vendors)
    hint = hints.hint(request.vendor, candidates).removeprefix("wrong secret: ")
    yield f"secret: {hint}"


def _not_of_body(facts: Facts, name: bytes) -> str:
    return ": it is not read from the body" if name in facts.request.body else ""


def _app(facts: Facts) -> Iterator[str]:
    request = facts.trace.request
    if request is None or isinstance(facts.trace.error, UnknownVendor):
        return
    token = sent_app_token(request.query) or ""
    if facts.other_cell:
        yield (
            f"this is cell {facts.gateway.settings.cell}: the proxy must send this app to "
            f"{facts.other_cell} (`python -m app cells` prints its map); CELL={facts.other_cell} "
            "before this command shows what becomes of the callback there"
        )
    if facts.gateway.workspaces.find(request.vendor, token):
        return
    if not token:
        yield "add app_token=... to the URL" + _not_of_body(facts, b"app_token")
        return
    if facts.gateway.vendors[request.vendor].unfilled.fullmatch(token):
        yield f"{facts.shown(token)} came unfilled: write the app token itself into the URL"
        return
    apps = facts.read_apps()
    others = [vendor for vendor, known in apps if known == token]
    near = [known for vendor, known in apps if vendor == request.vendor and is_alike(known, token)]
    shown = facts.shown(token)
    if near:
        yield f"the app token {shown} differs from {near[0]} only in case or white space"
    elif others:
        yield f"{shown} is an app of {others[0]}, not of {request.vendor}"
    elif shown == token:
        yield (
            f"add the app to the workspaces file: [[workspaces.apps]] vendor = "
            f"{toml_string(request.vendor)}, app_token = {toml_string(shown)}"
        )


def _unmapped(facts: Facts) -> Iterator[str]:
    drop, app, callback = facts.drop, facts.trace.app, facts.trace.callback
    if drop is None or app is None or callback is None:
        return
    if drop.reason is not DropReason.UNMAPPED_EVENT or not drop.subject:
        return
    sent = drop.subject
    shown = facts.shown(sent)
    is_type = any(
        callback.parameters.get(name) == sent
        for name in facts.names.types
        if name not in facts.names.activities
    )
    mapping, section = (app.events, "events") if is_type else (app.activities, "activities")
    near = [known for known in mapping if is_alike(known, sent)]
    if near:
        yield f"{shown} differs from the mapped {near[0]} only in case or white space"
    yield (
        f"to map it, add to `{section}` of app {app.app_token} in the workspaces file: "
        f'{toml_key(shown)} = "..."; to drop it on purpose, add it to `ignore`'
    )


def _time(facts: Facts) -> Iterator[str]:
    callback = facts.trace.callback
    if callback is None:
        return
    name = next((name for name in facts.names.times if callback.parameters.get(name)), "")
    if not name:
        if facts.drop and facts.drop.reason is DropReason.INVALID_TIMESTAMP and facts.names.times:
            yield f"{facts.names.times[0]} is missing: without it an event has no time"
        return
    value = callback.parameters[name]
    moment = normalize.time(value)
    if moment is None:
        if not callback.unfilled.fullmatch(value):
            yield f"{name} must be Unix seconds, Unix milliseconds or ISO 8601 with a time of day"
    elif moment > facts.arrival:
        ahead = str(moment - facts.arrival).partition(".")[0]
        yield f"{name} is {ahead} ahead of the arrival; up to {AHEAD_MAX} is accepted"
    elif moment < callback.occurred_from:
        yield f"{name} is too old: accepted from {callback.occurred_from:%Y-%m-%d} on"
