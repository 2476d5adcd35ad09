"""Words that must not be kept, and every spelling in which a text may hold them."""

import itertools
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from urllib.parse import unquote_to_bytes

import msgspec

from app.normalize import clean

SECRET_NAME = "secret"  # noqa: S105 - the name of a parameter
# Shorter secrets occur in ordinary text: they are found only where they are a whole text.
_HELD_MIN = 6
# Text that is escaped more often counts as a secret, so that its cost is bounded.
_ROUNDS_MAX = 8

# Bytes that are no part of an escape, and that every reader decodes to the same text.
_PLAIN = bytes(set(range(0x21, 0x7F)) - set(b"%+\\"))
# Runs are undone at once: surrogate pairs belong together, and backslashes may be many.
_JSON_ESCAPE = re.compile(rb'\\(?:\\(?:\\\\)*|u[0-9a-fA-F]{4}(?:\\u[0-9a-fA-F]{4})*|["/bfnrt])')
_CONTROLS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class Hidden(msgspec.Struct, frozen=True):
    """The names, and the forms of the secrets: to find within a text, or as a whole text.

    A text that matches `harmless` has no escape of any letter of theirs.
    """

    names: frozenset[str]
    held: frozenset[str]
    whole: frozenset[str]
    harmless: re.Pattern[bytes] | None = None

    def found_in(self, raw: bytes) -> "Hidden | None":
        """Return those that occur somewhere in `raw`, or None."""
        is_plain = self.harmless is not None and self.harmless.fullmatch(raw)
        readings = (_text(raw),) if is_plain else _readings(raw)
        if readings is None:
            return self
        every = "\n".join(readings)
        for word in self.names | self.held | self.whole:
            if word in every:
                break
        else:
            return None
        names, held, whole = (
            frozenset(text for text in texts if text in every)
            for texts in (self.names, self.held, self.whole)
        )
        return Hidden(names, held, whole)

    def is_name(self, raw: bytes) -> bool:
        """Whether a member of this name goes."""
        readings = _readings(raw)
        if readings is None:
            return True
        return not self.names.isdisjoint(map(clean, readings)) or self._is_secret(readings)

    def is_value(self, raw: bytes) -> bool:
        """Whether a value is or holds a secret."""
        if not (self.held or self.whole):
            return False
        readings = _readings(raw)
        return readings is None or self._is_secret(readings)

    def is_named_in(self, raw: bytes) -> bool:
        """Whether an unreadable body holds one of the names or secrets as a word."""
        readings = _readings(raw)
        if readings is None:
            return True
        pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, self.names | self.whole))})(?!\w)"
        return self._is_secret(readings) or any(re.search(pattern, text) for text in readings)

    def checked(self, redacted: bytes) -> bytes:
        """Return redacted bytes; empty if a secret is spread over several of their members."""
        held = Hidden(frozenset(), self.held, frozenset())
        return b"" if self.held and held.found_in(redacted) else redacted

    def _is_secret(self, readings: Sequence[str]) -> bool:
        for text in readings:
            if self.whole and clean(text) in self.whole:
                return True
            if self.held and any(held in text for held in self.held):
                return True
        return False


@lru_cache(maxsize=64)
def hidden_words(omitted: frozenset[str], secrets: frozenset[str]) -> Hidden:
    """Return the parameter `secret`, the omitted ones and the secrets, as words to hide."""
    names = frozenset(clean(_text(encoded(name))) for name in (SECRET_NAME, *omitted))
    # A secret may itself look escaped, and is then undone together with the text that holds it.
    forms: set[str] = set()
    for raw in map(encoded, secrets):
        forms.update(_readings(raw) or (_text(raw),))
    whole = {clean(form) for form in forms} - {""}
    held = {form for form in forms | whole if len(form) >= _HELD_MIN}
    harmless = _harmless("".join(names | whole | held))
    return Hidden(names, frozenset(held), frozenset(whole), harmless)


def _harmless(letters: str) -> re.Pattern[bytes] | None:
    """Return the pattern of a text without an escape of these letters; None if not all are ASCII.

    Nor has it an escape of an escape, or one that a lenient reader leaves out. Most queries match,
    which takes a part of the time of undoing their escapes.
    """
    if not letters.isascii():
        return None
    spelt = {*letters.encode(), *b"\x00%\\"}
    if spelt & {*b" +"}:
        spelt |= {*b" +"}
    by_digit = itertools.groupby(sorted({*range(128)} - spelt), lambda code: code >> 4)
    escapes = [
        f"{digit}[{''.join(f'{code & 15:x}' for code in codes)}]" for digit, codes in by_digit
    ]
    rest = "[89ab][0-9a-f]"  # of a character in UTF-8
    escapes += [f"(?:c[2-9a-f]|d[0-9a-f])%{rest}", f"e[1-9a-cef]%{rest}%{rest}"]
    return re.compile(rf"(?:[^%\\]++|%(?:{'|'.join(escapes)}))*+".encode(), re.IGNORECASE)


def _readings(raw: bytes) -> Sequence[str] | None:
    """Return a text as it is, and with its escapes undone; None if it is escaped too often.

    The escapes of forms and of JSON are undone in turn, until there are none.
    """
    if not raw.translate(None, _PLAIN):
        return (raw.decode(),)
    readings = [_text(raw)]
    # A form may hold JSON, and JSON a form.
    for steps in (_STEPS, _STEPS[::-1]):
        undone = raw
        for _ in range(_ROUNDS_MAX):
            before = undone
            for undo in steps:
                after = undo(undone)
                if after != undone:
                    readings.append(_text(after))
                undone = after
            if undone == before:
                break
        else:
            return None
        if b"%" not in raw or b"\\" not in raw:
            break  # the order is of no account
    return readings


def encoded(text: str) -> bytes:
    """Return a text as bytes, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


def _text(raw: bytes) -> str:
    """Decode bytes as the most lenient reader would; a plus and a space are the same."""
    return raw.decode("utf-8", "ignore").replace("\x00", "").replace("+", " ")


def _unescaped(match: re.Match[bytes]) -> bytes:
    escape = match[0]
    if escape.startswith(b"\\u"):
        units = bytes.fromhex(escape.replace(b"\\u", b"").decode())
        return units.decode("utf-16-be", "ignore").encode()
    if escape.startswith(b"\\\\"):
        return escape[: len(escape) // 2]
    return _CONTROLS.get(escape[1:], escape[1:])


_STEPS: Sequence[Callable[[bytes], bytes]] = (
    unquote_to_bytes,
    partial(_JSON_ESCAPE.sub, _unescaped),
)
