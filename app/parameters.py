"""From bytes to clean parameters: percent-decoding, forms and bodies."""

import re
from urllib.parse import unquote_to_bytes

import msgspec

from app.errors import TooManyParameters
from app.json_objects import is_ordinary, mend, parse_object
from app.normalize import WHITE_SPACE, clean

# Far more than any vendor sends.
PARAMETERS_MAX = 4_000
_WHITE_SPACE = WHITE_SPACE.encode()
FORM = "application/x-www-form-urlencoded"

# A larger body is parsed in a thread, since it would block the event loop too long. A JSON object
# of this size holds fewer members than PARAMETERS_MAX, since each has at least five bytes.
AT_ONCE_BYTES = 16 * 1024

_BOM = b"\xef\xbb\xbf"
_SAFE = bytes(range(0x21, 0x7F))
_UNSAFE_BYTE = re.compile(rb"[\x00-\x20\x7f-\xff]")


def escape(raw: bytes) -> bytes:
    """Percent-encode every byte that a URL may not contain, so that it decodes to itself."""
    return _UNSAFE_BYTE.sub(lambda match: b"%%%02X" % match[0][0], raw)


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

    Raises TooManyParameters.
    """
    readable = read_body(content_type, body)
    return None if readable is None else readable.parse()


class Body(msgspec.Struct, frozen=True):
    """A readable body. `json` is its JSON object, as msgspec reads it; empty for a form.

    `parameters` is None for a JSON object that is parsed on demand.
    """

    json: bytes
    parameters: dict[str, str] | None = None

    @property
    def members_max(self) -> int:
        """An upper limit on the number of parameters."""
        return self.json.count(b":") if self.parameters is None else len(self.parameters)

    def parse(self) -> dict[str, str]:
        """Return the clean parameters."""
        if self.parameters is not None:
            return self.parameters
        parameters = parse_object(self.json.decode(), PARAMETERS_MAX)
        if parameters is None:
            raise ValueError("not the JSON object that was checked")
        return parameters


NO_BODY = Body(b"", {})


def read_body(content_type: str, body: bytes) -> Body | None:
    """Return a body, or None where it is neither a form nor a JSON object.

    A JSON object is accepted under any content type, since some clients declare a form by default.
    A body without a content type is a form if it has at least one `=`. Of a small JSON object only
    the syntax is checked. Raises TooManyParameters.
    """
    text = body.removeprefix(_BOM).strip(_WHITE_SPACE)
    if not text:
        return NO_BODY
    if text.startswith(b"{") and (readable := _read_json(text)) is not None:
        return readable
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == FORM or (not media_type and b"=" in text):
        return Body(b"", parse_form(body))
    return None


def parse_kept(query: bytes, content_type: str, body: bytes) -> dict[str, str]:
    """Return the parameters of a callback in quarantine; the URL's win. Too many count as none."""
    try:
        return (parse_body(content_type, body) or {}) | parse_form(query)
    except TooManyParameters:
        return {}


def _read_json(raw: bytes) -> Body | None:
    if len(raw) <= AT_ONCE_BYTES and is_ordinary(raw):
        return Body(raw)
    text = raw.decode("utf-8", "replace")
    parameters = parse_object(text, PARAMETERS_MAX)
    mended = b"" if parameters is None else mend(text)
    return Body(mended, parameters) if mended else None
