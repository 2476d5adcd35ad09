"""Bytes of a callback without its secrets, and without the parameters that an app omits."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache, partial
from urllib.parse import unquote_to_bytes

import msgspec

from app.errors import TooManyParameters
from app.parameters import PARAMETERS_MAX, clean, decode, parse_body

SECRET_NAME = "secret"  # noqa: S105 - the name of a parameter
# Shorter secrets occur in ordinary text: they are found only where they are a whole text.
_HELD_MIN = 8
# Text that is escaped more often counts as a secret, so that its cost is bounded.
_ROUNDS_MAX = 8

# Bytes that are no part of an escape, and that every reader decodes to the same text.
_PLAIN = bytes(set(range(0x21, 0x7F)) - set(b"%+\\"))
# Runs are undone at once: surrogate pairs belong together, and backslashes may be many.
_JSON_ESCAPE = re.compile(rb'\\(?:\\(?:\\\\)*|u[0-9a-fA-F]{4}(?:\\u[0-9a-fA-F]{4})*|["/bfnrt])')
_CONTROLS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
# A text, a bracket, or numbers and constants with the marks around them. For valid JSON only.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[][{}]|[^][{}"]++', re.DOTALL)
_MARKS = b":, \t\n\r"


def redact_query(query: bytes, omitted: Collection[str], secrets: Collection[str]) -> bytes:
    """Return a query or form without its secrets and the omitted parameters.

    A pair is taken out where its decoded name is `secret` or an omitted one, or its value is or
    holds one of the secrets. All other pairs keep their bytes and their order. A later pair of the
    same name goes too, since it would count in place of the first. A query with more pairs than
    `parse_form` accepts is returned empty if any pair of it would go.
    """
    anything = _hidden(frozenset(omitted), frozenset(secrets))
    if query.count(b"&") >= PARAMETERS_MAX:
        return b"" if anything.is_named_in(query) else query
    # The credential as vendors send it goes first: few queries hold anything else to hide.
    pairs = [pair for pair in query.split(b"&") if not pair.startswith(b"secret=")]
    query = b"&".join(pairs)
    hidden = anything.found_in(query)
    if hidden is None:
        return query
    members = [
        (clean(decode(name)), hidden.is_name(name) or hidden.is_value(value))
        for name, _, value in (pair.partition(b"=") for pair in pairs)
    ]
    goes = zip(pairs, _goes(members), strict=True)
    return hidden.checked(b"&".join(pair for pair, is_hidden in goes if not is_hidden))


def redact_body(
    content_type: str, body: bytes, omitted: Collection[str], secrets: Collection[str]
) -> bytes:
    """Return a body without its secrets and the omitted parameters; as it is where it has none.

    In a JSON object the innermost member goes that has such a name, or holds a secret. An
    unreadable body that holds a secret, or one of the names, is returned empty.
    """
    hidden = _hidden(frozenset(omitted), frozenset(secrets)).found_in(body)
    if hidden is None:
        return body
    try:
        if parse_body("application/json", body) is not None:
            return hidden.checked(_cut(body, hidden))
        if parse_body(content_type, body) is not None:
            return redact_query(body, omitted, secrets)
    except TooManyParameters:
        pass  # as unreadable as any other body
    return b"" if hidden.is_named_in(body) else body


def redact_text(text: str, secrets: Collection[str]) -> str:
    """Return a text; empty where it is or holds one of the secrets."""
    raw = _encoded(text)
    hidden = _hidden(frozenset(), frozenset(secrets)).found_in(raw)
    return "" if hidden is not None and hidden.is_value(raw) else text


class _Hidden(msgspec.Struct, frozen=True):
    """The names, and the forms of the secrets: to find within a text, or as a whole text."""

    names: frozenset[str]
    held: frozenset[str]
    whole: frozenset[str]

    def found_in(self, raw: bytes) -> "_Hidden | None":
        """Return those that occur somewhere in `raw`, or None."""
        readings = _readings(raw)
        if readings is None:
            return self
        every = "\n".join(readings)
        names, held, whole = (
            frozenset([text for text in texts if text in every])
            for texts in (self.names, self.held, self.whole)
        )
        return _Hidden(names, held, whole) if names or held or whole else None

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
        held = _Hidden(frozenset(), self.held, frozenset())
        return b"" if self.held and held.found_in(redacted) else redacted

    def _is_secret(self, readings: Sequence[str]) -> bool:
        for text in readings:
            if self.whole and clean(text) in self.whole:
                return True
            if self.held and any(held in text for held in self.held):
                return True
        return False


@lru_cache(maxsize=64)
def _hidden(omitted: frozenset[str], secrets: frozenset[str]) -> _Hidden:
    names = (clean(_text(_encoded(name))) for name in (SECRET_NAME, *omitted))
    # A secret may itself look escaped, and is then undone together with the text that holds it.
    forms: set[str] = set()
    for raw in map(_encoded, secrets):
        forms.update(_readings(raw) or (_text(raw),))
    whole = {clean(form) for form in forms} - {""}
    held = {form for form in forms | whole if len(form) >= _HELD_MIN}
    return _Hidden(frozenset(names), frozenset(held), frozenset(whole))


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


def _encoded(text: str) -> bytes:
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


def _goes(members: Sequence[tuple[str, bool]]) -> Sequence[bool]:
    """Return which members go: the hidden ones, and repeats of a name whose first one goes."""
    first: dict[str, bool] = {}
    return [first.setdefault(name, is_hidden) or is_hidden for name, is_hidden in members]


class _Member(msgspec.Struct, frozen=True):
    name: str
    start: int
    end: int
    is_hidden: bool


class _Frame(msgspec.Struct):
    """An object or array during the scan."""

    is_object: bool
    members: list[_Member] = []
    name: re.Match[bytes] | None = None
    is_hidden: bool = False

    def add(self, end: int, hidden: _Hidden, *, is_hidden: bool) -> None:
        """Add a value that ends at `end`."""
        if self.name is None:
            self.is_hidden |= is_hidden
            return
        is_hidden = is_hidden or hidden.is_name(self.name[0][1:-1])
        name = self.name[0].decode("utf-8", "replace")
        self.members.append(_Member(name, self.name.start(), end, is_hidden))
        self.name = None

    def cuts(self) -> Iterator[tuple[int, int]]:
        """Yield the span of each member that goes, with one of the commas around it."""
        members = self.members
        if not any(member.is_hidden for member in members):
            return
        goes = _goes([(clean(json.loads(member.name)), member.is_hidden) for member in members])
        is_first = True  # of the members that stay
        for index, member in enumerate(members):
            if not goes[index]:
                is_first = False
            elif not is_first:
                yield members[index - 1].end, member.end
            elif index + 1 < len(members):
                yield member.start, members[index + 1].start
            else:
                yield member.start, member.end


def _cut(body: bytes, hidden: _Hidden) -> bytes:
    """Return a JSON object without the members that go."""
    cuts: list[tuple[int, int]] = []
    frames: list[_Frame] = [_Frame(is_object=False)]
    for token in _TOKEN.finditer(body, body.find(b"{")):
        text, frame = token[0], frames[-1]
        if text in (b"{", b"["):
            frames.append(_Frame(is_object=text == b"{"))
        elif text in (b"}", b"]"):
            cuts += frames.pop().cuts()
            frames[-1].add(token.end(), hidden, is_hidden=frame.is_hidden)
        elif text.startswith(b'"'):
            if frame.is_object and frame.name is None:
                frame.name = token
            else:
                frame.add(token.end(), hidden, is_hidden=hidden.is_value(text[1:-1]))
        elif constants := text.strip(_MARKS):
            values = {constants, *constants.replace(b",", b" ").split()}
            end = token.start() + len(text.rstrip(_MARKS))
            frame.add(end, hidden, is_hidden=any(map(hidden.is_value, values)))
    kept, position = [], 0
    for start, end in sorted(cuts):
        kept.append(body[position:start])  # empty within a member that is cut as a whole
        position = max(position, end)
    return b"".join((*kept, body[position:]))
