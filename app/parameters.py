"""From bytes to clean parameters: percent-decoding, forms and flat JSON objects."""

import json
import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

import msgspec

from app.errors import TooManyParameters

# Far more than any vendor sends.
PARAMETERS_MAX = 4_000
WHITE_SPACE = " \t\n\r\x0b\x0c"
FORM = "application/x-www-form-urlencoded"

_SAFE = bytes(range(0x21, 0x7F))
_UNSAFE_BYTE = re.compile(rb"[\x00-\x20\x7f-\xff]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def escape(raw: bytes) -> bytes:
    """Percent-encode every byte that a URL may not contain, so that it decodes to itself."""
    return _UNSAFE_BYTE.sub(lambda match: b"%%%02X" % match[0][0], raw)


def clean(text: str) -> str:
    """Return text that any database can store: no NUL, no lone surrogate, no space around it."""
    if not text.isascii():
        text = _LONE_SURROGATE.sub("", text)
    return text.replace("\x00", "").strip(WHITE_SPACE)


def decode(value: bytes) -> str:
    """Undo form encoding. Broken escapes stay as they are, undecodable bytes become U+FFFD."""
    value = value.replace(b"+", b" ")
    return (unquote_to_bytes(value) if b"%" in value else value).decode("utf-8", "replace")


def parse_form(raw: bytes) -> dict[str, str]:
    """Return the clean parameters of a query string or form; the first of a name wins.

    Raises TooManyParameters.
    """
    if raw.count(b"&") >= PARAMETERS_MAX:
        raise TooManyParameters
    if raw.translate(None, _SAFE):  # raw bytes that RFC 3986 does not allow
        return _parse_encoded(raw)
    parameters: dict[str, str] = {}
    for pair in reversed(raw.decode("ascii").split("&")):
        name, _, value = pair.partition("=")
        # Most texts have no escapes, and are clean already.
        if "%" in pair or "+" in pair:
            if "%" in name or "+" in name:
                name = clean(decode(name.encode()))
            value = clean(decode(value.encode()))
        parameters[name] = value
    return parameters


def _parse_encoded(raw: bytes) -> dict[str, str]:
    pairs = (pair.partition(b"=") for pair in reversed(raw.split(b"&")))
    return {clean(decode(name)): clean(decode(value)) for name, _, value in pairs}


def parse_body(content_type: str, body: bytes) -> dict[str, str] | None:
    """Return the clean parameters of a body, or None where it is neither a form nor a JSON object.

    A JSON object is accepted under any content type, since some clients declare a form by default.
    A body without a content type is a form if it has at least one `=`. Raises TooManyParameters.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    text = body.decode("utf-8", "replace").removeprefix("\ufeff").strip(WHITE_SPACE)
    if not text:
        return {}
    if text.startswith("{") and (parameters := _parse_json(text)) is not None:
        return parameters
    if media_type == FORM or (not media_type and "=" in text):
        return parse_form(body)
    return None


def parse_kept(query: bytes, content_type: str, body: bytes) -> dict[str, str]:
    """Return the parameters of a callback in quarantine; the URL's win. Too many count as none."""
    try:
        return (parse_body(content_type, body) or {}) | parse_form(query)
    except TooManyParameters:
        return {}


def _parse_json(text: str) -> dict[str, str] | None:
    """Read a JSON object; numbers and nested values keep the text that was sent."""
    try:
        members = _plain_members(text.encode())
        if members is not None:
            return {clean(name): clean(_text_of(value)) for name, value in members}
    except (ValueError, RecursionError):
        pass  # msgspec is stricter than JSON about surrogates: the scan decides
    parameters: dict[str, str] = {}
    try:
        for number, (name, value) in enumerate(_scan_object(text)):
            if number == PARAMETERS_MAX:
                raise TooManyParameters
            parameters.setdefault(clean(name), clean(value))
    except (ValueError, RecursionError):
        return None
    return parameters


def _plain_members(body: bytes) -> list[tuple[str, bytes]] | None:
    """Return the members of a JSON object, undecoded; None if names may be repeated, or are many.

    Much faster than a scan, but msgspec keeps the last of a repeated name. No name is repeated if
    the text, without nested objects, has as many names as msgspec finds members.
    """
    colons = body.count(b":")
    if colons > PARAMETERS_MAX or b'\\\\"' in body:
        return None
    decoded = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    members = [(name, bytes(value)) for name, value in decoded.items()]
    if colons != len(members):
        nested = (value for _, value in members if value.startswith((b"{", b"[")))
        if _count_names(body) - sum(map(_count_names, nested)) != len(members):
            return None
    return members if len({clean(name) for name, _ in members}) == len(members) else None


def _count_names(text: bytes) -> int:
    """Count the names in JSON: quotation marks before a colon, less those within a string."""
    return len(_NAME_END.findall(text)) - len(_ESCAPED_NAME_END.findall(text))


def _text_of(value: bytes) -> str:
    if value.startswith(b'"'):
        return msgspec.json.decode(value, type=str)
    return "" if value == b"null" else value.decode()


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Numbers are only skipped over: as text they cannot overflow.
_json = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_reject_constant)
_NAME_END = re.compile(rb'"[ \t\n\r]*+:')
_ESCAPED_NAME_END = re.compile(rb'\\"[ \t\n\r]*+:')
_MARK = re.compile(r"[ \t\n\r]*([{:,}])[ \t\n\r]*")


def _scan_object(text: str) -> Iterator[tuple[str, str]]:
    """Yield the members of a JSON object in order, null as the empty text.

    `json.loads` would give the last of a repeated name, and lose the text of numbers and of
    nested values. Raises ValueError if `text` is anything else.
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
        if not text.startswith('"', position):
            value = "" if value is None else text[position:end]
        yield name, value
        mark, position = _next_mark(text, end, ",}")
    if position < len(text):
        raise ValueError("more than one value")


def _next_mark(text: str, position: int, expected: str) -> tuple[str, int]:
    match = _MARK.match(text, position)
    if match is None or match[1] not in expected:
        raise ValueError(f"expected one of {expected} at {position}")
    return match[1], match.end()
