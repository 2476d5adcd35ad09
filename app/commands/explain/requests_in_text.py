"""The request in a URL, a line of an access log, or a curl command."""

import re
from collections.abc import Iterator, Mapping

import msgspec

from app.commands.explain.curl import read_curl
from app.commands.explain.http_request import HttpRequest, UnreadableInput, target_of

_METHOD = r"[A-Z]{3,16}"
_REQUEST_LINE = re.compile(rf"({_METHOD}) (\S.*?)(?: HTTP/[0-9.]+)?", re.DOTALL)
# As nginx, Apache, HAProxy, Envoy and load balancers log it.
_QUOTED = re.compile(rf'"({_METHOD}) ((?:[^"\\]|\\.)+?) HTTP/[0-9.]+"', re.DOTALL)
# The log has cut the end, or the writer of the line logs the target alone.
_CUT = re.compile(rf'"({_METHOD}) (/(?:[^"\\]|\\.)+)"?')
# A method, a path and a query in fields of their own, as IIS logs them.
_FIELDS = re.compile(rf"(?<!\S)({_METHOD})[ \t]+(/[^\s?]*)[ \t]+([^\s=]+=\S*)")
_WORD = re.compile(r"[\s\"'<>]+")
_TARGET_IN_WORD = re.compile(r"(?:[\w.-]+[=:])?[(\[]?((?:https?:/)?/.*\?.*)", re.DOTALL)
_METHOD_IN_WORD = re.compile(rf"(?:[\w.-]+=)?({_METHOD})")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S", re.IGNORECASE)
_HOST_AND_PATH = re.compile(r"[\w.-]+(?::[0-9]+)?/|\[[0-9a-fA-F:.]+\](?::[0-9]+)?/")
_QUERY = re.compile(r"\??[^\s=&?/]+=")
_WHITE_SPACE = re.compile(r"\s")
_LINE_BREAKS = re.compile(r"[\r\n]+")
_WRAPPINGS = {'"': '"', "'": "'", "`": "`", "<": ">"}

_TIMERS = re.compile(r" -?[0-9]+(?:/[-+]?[0-9]+){4} ")
_HASHED = re.compile(b"#([0-9A-Fa-f]{2})")
_ESCAPED = re.compile(rb'\\(?:x([0-9A-Fa-f]{2})|([\\"nrtbvf]))')
_NAMED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"v": b"\v", b"f": b"\f"}

# Names in JSON logs, without case and separators.
_TARGETS = (
    "uri", "url", "requesturi", "requesturl", "clientrequesturi", "clientrequesturl", "target",
    "path", "requestpath", "clientrequestpath", "rawpath", "urlpath", "csuristem",
)  # fmt: skip
_QUERIES = (
    "query", "querystring", "args", "requestquery", "clientrequestquery", "rawquerystring",
    "urlquery", "csuriquery",
)  # fmt: skip
_METHODS = ("method", "requestmethod", "clientrequestmethod", "httpmethod", "verb", "csmethod")
_JSON_VALUES_MAX = 1_000

CUT = "the log line ends within the request: explained as far as it goes"
NO_BODY = "a log line has no body: parameters that the POST carried there are not known"
REST_OF_URL = "begins with &, the rest of a URL: join its lines into one"
JOINED = "line breaks within the URL were removed"


def read_request(text: str, vendor: str = "") -> HttpRequest:
    """Return the request in a text; `vendor` is that of a query without a path.

    Raises UnreadableInput.
    """
    text = text.strip().removeprefix("$ ")
    if not text.startswith('"') or not (found := _in_quotes(text)):
        text = _unwrapped(text)
        if re.match(r"curl(\.exe)?\s", text):
            return read_curl(text)
        if text.startswith("{") and (values := _json_values(text)):
            return _in_json(values)
        found = None if _URL.match(text) else _in_log(text)
    return found or _in_target(text, vendor)


def _in_target(text: str, vendor: str) -> HttpRequest:
    """Return the request of a URL, a request line or a query; raises UnreadableInput."""
    lines = _LINE_BREAKS.split(text)
    notes = (JOINED,) if len(lines) > 1 else ()
    text = "".join(line.strip() for line in lines)
    if _URL.match(text) or text.startswith("/") or _HOST_AND_PATH.match(text):
        return HttpRequest("GET", target_of(text), notes=notes)
    if line := _REQUEST_LINE.fullmatch(text):
        return _logged(line[1], line[2])
    if _QUERY.match(text):
        if not vendor:
            raise UnreadableInput("a query without a path: --vendor names its vendor")
        return HttpRequest("GET", f"/ingest/{vendor}?{text.removeprefix('?')}", notes=notes)
    if text.startswith("&"):
        raise UnreadableInput(REST_OF_URL)
    raise UnreadableInput("no URL, log line or curl command")


def _unwrapped(text: str) -> str:
    closing = _WRAPPINGS.get(text[:1])
    is_wrapped = closing is not None and text.find(closing, 1) == len(text) - 1
    return text[1:-1].strip() if is_wrapped else text


def _in_quotes(text: str) -> HttpRequest | None:
    """Return the request line in quotes, as most access logs have it."""
    if quoted := _QUOTED.search(text):
        return _logged(quoted[1], _unescaped(quoted[2], text))
    if cut := _CUT.search(text):
        return _logged(cut[1], _unescaped(cut[2], text), CUT)
    return None


def _in_log(text: str) -> HttpRequest | None:
    """Return the request of a line of an access log."""
    if found := _in_quotes(text):
        return found
    if fields := _FIELDS.search(text):
        return _logged(fields[1], f"{fields[2]}?{fields[3]}")
    if text.startswith("/") or _HOST_AND_PATH.match(text) or _REQUEST_LINE.fullmatch(text):
        return None  # a target, in which blanks may stand
    is_query = _QUERY.match(text) and not _WHITE_SPACE.search(text)
    return None if is_query else _in_words(text)


def _in_words(text: str) -> HttpRequest | None:
    """Return the request of a log line without quotes; the method stands before the target."""
    method = "GET"
    for word in _WORD.split(text):
        if found := _METHOD_IN_WORD.fullmatch(word):
            method = found[1]
        elif found := _TARGET_IN_WORD.fullmatch(word):
            return _logged(method, found[1])
    return None


def _logged(method: str, target: str, *notes: str) -> HttpRequest:
    if method == "POST":
        notes += (NO_BODY,)
    target = target_of(target) if _URL.match(target) else target
    return HttpRequest(method, target, notes=notes)


def _unescaped(target: str, line: str) -> str:
    """Undo the escapes of a log: `#22` in HAProxy's, escapes with a backslash in others."""
    sent = target.encode("utf-8", "surrogateescape")
    is_haproxy = _TIMERS.search(line)
    sent = _HASHED.sub(_byte, sent) if is_haproxy else _ESCAPED.sub(_byte, sent)
    return sent.decode("utf-8", "surrogateescape")


def _byte(escape: re.Match[bytes]) -> bytes:
    if escape[1]:
        return bytes.fromhex(escape[1].decode())
    return _NAMED.get(escape[2], escape[2])


def _json_values(text: str) -> list[tuple[str, str]]:
    """Return the texts of a JSON object with their names; none if it is no object."""
    try:
        decoded: object = msgspec.json.decode(text.encode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return []
    found: list[tuple[str, str]] = []
    waiting: list[tuple[str, object]] = [("", decoded)]
    while waiting and len(found) < _JSON_VALUES_MAX:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(_plain(str(key)), value[key]) for key in reversed(list(value))]
        elif isinstance(value, str):
            found.append((name, value))
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _in_json(values: list[tuple[str, str]]) -> HttpRequest:
    """Return the request of a log in JSON; raises UnreadableInput."""
    for _, value in values:
        if quoted := _QUOTED.search(value):
            return _logged(quoted[1], _unescaped(quoted[2], value))
        if (line := _REQUEST_LINE.fullmatch(value)) and "HTTP/" in value:
            return _logged(line[1], line[2])
    method = next(_named(values, _METHODS), "GET")
    targets = [target for target in _named(values, _TARGETS) if "/" in target]
    target = next((each for each in targets if "?" in each), targets[0] if targets else "")
    if not target:
        raise UnreadableInput("JSON without a request: no `uri`, `url`, `path` or request line")
    if "?" not in target and (query := next(_named(values, _QUERIES), "")):
        target = f"{target}?{query.removeprefix('?')}"
    return _logged(method, target_of(target))


def _named(values: list[tuple[str, str]], names: tuple[str, ...]) -> Iterator[str]:
    """Yield the texts with one of these names, by precedence of the names."""
    for wanted in names:
        yield from (value for name, value in values if name == wanted)
