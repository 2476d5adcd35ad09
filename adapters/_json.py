"""Parameters out of the JSON of a vendor, decoded by msgspec, for vendors that send a POST.

Of a repeated name the last value counts: a vendor's own serializer repeats none.
"""

from collections.abc import Callable, Sequence

import msgspec

from adapters._names import Values
from app import normalize
from app.event import Callback
from app.normalize import WHITE_SPACE, clean

# Most vendors quote every value: such an object is decoded at once.
_decode_texts = msgspec.json.Decoder(dict[str, str]).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
# The only spelling of a character that no database stores.
_NUL = b"\\u0000"
# Of nested values: far more than any vendor sends. More members would hold the event loop too long.
MEMBERS_MAX = 2_000
# Equal on every device that sends them in place of an ID.
_OTHER_TYPES = frozenset({"true", "false"})


def parameters(
    callback: Callback, unwrapped: Callable[[dict[str, str]], dict[str, str]] | None = None
) -> dict[str, str]:
    """Return the parameters of a JSON body, a form or the URL that have a value.

    Those of the URL take precedence. `unwrapped` returns the members of the event from those of
    the body.
    """
    found = members(callback.body) if callback.body else None
    if found is None:
        return {name: value for name, value in callback.parameters.items() if value}
    if unwrapped is not None:
        found = unwrapped(found)
    found.pop("secret", None)
    found.update(callback.query)
    return found if all(callback.query.values()) else {n: v for n, v in found.items() if v}


def present(callback: Callback, sent: Values) -> Values:
    """Return those of a callback's parameters, made by its vendor, that are filled in."""
    return msgspec.structs.replace(callback, query=sent, in_body=None).present


def members(text: bytes) -> dict[str, str] | None:
    """Return the members of a JSON object that have a value; None for anything else.

    Numbers and nested values keep the text in which they were sent.
    """
    try:
        try:
            found = _decode_texts(text)
        except msgspec.ValidationError:
            raw = _decode_members(text)
            found = {name: _text_of(bytes(value)) for name, value in raw.items()}
    except (ValueError, RecursionError):
        return None
    if _NUL in text:
        return {clean(name): kept for name, value in found.items() if (kept := clean(value))}
    return {
        name.strip(WHITE_SPACE): kept
        for name, value in found.items()
        if (kept := value.strip(WHITE_SPACE))
    }


def members_of(value: str, members_max: int = MEMBERS_MAX) -> dict[str, str]:
    """Return the members of a parameter's value that is a JSON object; none of any other value.

    Nor of an object with more members, including those of the objects within it.
    """
    if value[:1] != "{" or value == "{}" or value.count(":") > members_max:
        return {}
    return members(value.encode("utf-8", "replace")) or {}


def identifier(value: str) -> str | None:
    """Return an identifier as sent; None for a null-like one and one of another type.

    An object or a list in place of an ID may be the same on every device.
    """
    if value[0] in "{[" or value in _OTHER_TYPES:
        return None
    return normalize.identifier(value)


def revenue(
    values: Values, amounts: Sequence[tuple[str, Sequence[str]]], in_usd: str
) -> dict[str, str]:
    """Return the revenue under the names that all vendors share; empty if there is none.

    `amounts` are names by precedence, each with its currencies' names. The text `null` is none.
    """
    for name, currencies in amounts:
        if (amount := values.get(name, "null")) != "null":
            for other in currencies:
                if (currency := values.get(other, "null")) != "null":
                    return {"revenue_float": amount, "currency": currency}
            return {"revenue_float": amount}
    if (amount := values.get(in_usd, "null")) != "null":
        return {"revenue_float": amount, "currency": "USD"}
    return {}


def _text_of(value: bytes) -> str:
    if value[:1] == b'"':
        return _decode_text(value)
    return "" if value == b"null" else value.decode()
