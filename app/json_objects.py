"""JSON objects as clean parameters: the text that was sent, and the first of a repeated name."""

import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from app.errors import TooManyParameters
from app.normalize import clean

# An adapter decodes nested values where less of the stack is left: msgspec refuses near 1,000.
DEPTH_MAX = 500


def is_ordinary(text: bytes) -> bool:
    """Whether msgspec reads a JSON object whole: valid UTF-8, no lone surrogate, not deep."""
    if text.count(b"[") + text.count(b"{") > DEPTH_MAX:
        return False
    try:
        text.decode()
        msgspec.json.decode(text, type=msgspec.Raw)
    except ValueError:
        return False
    return True


def mend(text: str) -> bytes:
    """Return a JSON object without lone surrogates, as msgspec reads it; empty if too deep."""
    mended = _LONE_ESCAPE.sub(_without_lone, text).encode()
    return mended if _depth(mended) <= DEPTH_MAX else b""


def _without_lone(escape: re.Match[str]) -> str:
    return "" if escape[1] else escape[0]


def _depth(text: bytes) -> int:
    """Return the depth of nesting of valid JSON."""
    marks = (token[0] for token in _BRACKET.finditer(text) if not token[0].startswith(b'"'))
    steps = (1 if mark in b"[{" else -1 for mark in marks)
    return max(itertools.accumulate(steps), default=0)


def parse_object(text: str, members_max: int) -> dict[str, str] | None:
    """Return the clean members of a JSON object, of a repeated name the first; None for other text.

    Numbers and nested values keep the text that was sent. Raises TooManyParameters.
    """
    try:
        members: Sequence[tuple[str, object]] = _pairs.decode(text)
    except (ValueError, RecursionError):
        members = ()  # the scan decides: it may be an object with too many members
    if members and not any(isinstance(value, list) for _, value in members):
        return _texts(members, members_max)
    try:
        return _texts(_scan_object(text), members_max)
    except (ValueError, RecursionError):
        return None


def inner_members(text: str, names: Collection[str]) -> Sequence[tuple[str, str]]:
    """Return the members of these names in the objects of a JSON value, at any depth, as texts."""
    found: list[tuple[str, str]] = []

    def collect(members: list[tuple[str, object]]) -> object:
        for name, value in members:
            if clean(name) in names:
                found.append((clean(name), value if isinstance(value, str) else json.dumps(value)))
        return members

    decoder = json.JSONDecoder(
        parse_float=str, parse_int=str, parse_constant=_reject_constant, object_pairs_hook=collect
    )
    try:
        decoder.decode(text)
    except (ValueError, RecursionError):
        return []
    return found


def _texts(members: Iterable[tuple[str, object]], members_max: int) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for number, (name, value) in enumerate(members):
        if number == members_max:
            raise TooManyParameters
        text = value if isinstance(value, str) else _CONSTANTS[value]
        parameters.setdefault(clean(name), clean(text))
    return parameters


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Numbers are only skipped over: as text they cannot overflow.
_json = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_reject_constant)
_pairs = json.JSONDecoder(
    parse_float=str, parse_int=str, parse_constant=_reject_constant, object_pairs_hook=list
)
_CONSTANTS: Mapping[object, str] = {None: "", True: "true", False: "false"}
_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[][{}]', re.DOTALL)
# Escapes within JSON, of which group 1 is a surrogate that is no part of a pair.
_LONE_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\[^u]|\\u"
)
_MARK = re.compile(r"[ \t\n\r]*([{:,}])[ \t\n\r]*")


def _scan_object(text: str) -> Iterator[tuple[str, object]]:
    """Yield the members of a JSON object in order, nested values as text.

    `json.loads` would lose the text of nested values. Raises ValueError if `text` is anything else.
    """
    mark, position = _next_mark(text, 0, "{")
    if text[position:] == "}":
        return
    while mark != "}":
        if not text.startswith('"', position):
            raise ValueError("a name must be a string")
        name, end = _json.raw_decode(text, position)
        _, position = _next_mark(text, end, ":")
        value, end = _json.raw_decode(text, position)
        if isinstance(value, list | dict):
            value = text[position:end]
        yield name, value
        mark, position = _next_mark(text, end, ",}")
    if position < len(text):
        raise ValueError("more than one value")


def _next_mark(text: str, position: int, expected: str) -> tuple[str, int]:
    match = _MARK.match(text, position)
    if match is None or match[1] not in expected:
        raise ValueError(f"expected one of {expected} at {position}")
    return match[1], match.end()
