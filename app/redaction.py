"""Bytes of a callback without its secrets, and without the parameters that an app omits."""

import json
import re
from collections.abc import Collection, Iterator, Sequence

import msgspec

from app.errors import TooManyParameters
from app.event import digest
from app.hidden import Hidden, encoded, hidden_words
from app.json_objects import inner_members
from app.normalize import clean
from app.parameters import PARAMETERS_MAX, decode, parse_body, parse_kept

CREDENTIAL = b"secret="
# A parameter that stands for the omitted ones.
STAND_IN = "flokit_omitted"
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
    anything = hidden_words(frozenset(omitted), frozenset(secrets))
    if query.count(b"&") >= PARAMETERS_MAX:
        return b"" if anything.is_named_in(query) else query
    # The credential as vendors send it goes first: few queries hold anything else to hide.
    if query.startswith(CREDENTIAL):
        query = query.partition(b"&")[2]
    hidden = anything.found_in(query)
    if hidden is None:
        return query
    pairs = query.split(b"&")
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
    hidden = hidden_words(frozenset(omitted), frozenset(secrets)).found_in(body)
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


def omitted_stand_in(
    query: bytes, content_type: str, body: bytes, omitted: Collection[str]
) -> bytes:
    """Return a parameter with a hash of the omitted ones; empty where none of them was sent.

    Without it, callbacks that differ only in an omitted identifier would be one event in a replay.
    """
    sent = parse_kept(query, content_type, body)
    values = [(name, sent[name]) for name in omitted if sent.get(name)]
    for value in sent.values():
        if value.startswith(("{", "[")):
            values += inner_members(value, omitted)
    return f"{STAND_IN}={digest(sorted(values)).hex()}".encode() if values else b""


def redact_text(text: str, secrets: Collection[str]) -> str:
    """Return a text; empty where it is or holds one of the secrets."""
    raw = encoded(text)
    hidden = hidden_words(frozenset(), frozenset(secrets)).found_in(raw)
    return "" if hidden is not None and hidden.is_value(raw) else text


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

    def add(self, end: int, hidden: Hidden, *, is_hidden: bool) -> None:
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


def _cut(body: bytes, hidden: Hidden) -> bytes:
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
