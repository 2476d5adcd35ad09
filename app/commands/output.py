"""The output of commands: tables, JSON lines, and texts of strangers made harmless."""

import json
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import msgspec

from app.parameters import decode

_NOT_ASCII = re.compile(r"[^ -~]")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
NOTHING = "-"


def printable(text: str, most: int | None = None) -> str:
    """Return a text without control characters, which a terminal would obey, cut at `most`.

    Each character that is not printable is shown as its escape; so are marks that reorder text.
    """
    cut = text if most is None or len(text) <= most else f"{text[:most]}..."
    return cut if cut.isprintable() else "".join(map(_harmless, cut))


def _harmless(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def printable_form(raw: bytes, most: int) -> str:
    """Return the decoded parameters of a query or form in one line, cut at `most` characters."""
    pairs = (pair.partition(b"=") for pair in raw.split(b"&") if pair)
    return printable("  ".join(f"{decode(name)}={decode(value)}" for name, _, value in pairs), most)


def toml_string(text: str) -> str:
    """Return a text as a TOML string."""
    return '"' + "".join(map(_toml_character, text)) + '"'


def _toml_character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def toml_key(text: str) -> str:
    """Return a text as a key of a TOML table, in quotes where it needs them."""
    return text if _BARE_KEY.fullmatch(text) else toml_string(text)


def json_line(value: msgspec.Struct) -> str:
    """Return a struct as JSON in ASCII, which no terminal obeys."""
    text = msgspec.json.encode(value).decode()
    return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text)


def minute(moment: datetime) -> str:
    """Return a time in UTC, to the minute."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> Sequence[str]:
    """Return rows as aligned lines; the columns `right` are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
