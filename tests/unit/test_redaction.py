"""Redaction: no spelling of a secret is left, and everything else is as it was sent."""

import json
from collections.abc import Callable, Iterable, Iterator
from time import thread_time
from typing import NamedTuple
from urllib.parse import unquote, unquote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.normalize import clean
from app.parameters import FORM, PARAMETERS_MAX, parse_body, parse_form
from app.redaction import redact_body, redact_query, redact_text

JSON = "application/json"
# The secrets of this test: of letters only, with marks and beyond ASCII, and a short one.
LONG, ODD, SHORT = "hushhushhush", 'p%41+s"\\s ö&=😀', "abc"
SECRETS = frozenset((LONG, ODD, SHORT))
OMITTED = ("country",)

QUERIES = {
    "no secret": (b"a=1&b=%20&&c", b"a=1&b=%20&&c"),
    "an empty query": (b"", b""),
    "the name alone": (b"secret", b""),
    "a wrong secret": (b"a=1&secret=x&b=2", b"a=1&b=2"),
    "a repeated name": (b"secret=x&a=1&secret=y", b"a=1"),
    "an escaped name": (b"%73%65cret=x&a=1&s%65cre%74=y", b"a=1"),
    "a name in mixed escapes": (b"%6A=1&se%63re%74=x&%6a=2", b"%6A=1&%6a=2"),
    "a name escaped twice": (b"%2573ecret=x&a=1", b"a=1"),
    "a name with white space and NUL": (b"+se%00cret%0A=x&a=1", b"a=1"),
    "an overlong name": (b"s\xff%C0ecret=x&a=1", b"a=1"),
    "other names": (b"secrets=1&xsecret=2&SECRET=3", b"secrets=1&xsecret=2&SECRET=3"),
    "an omitted name": (b"country=us&a=1&c%6funtry=de", b"a=1"),
    "the secret as a value": (b"a=hushhushhush&b=2", b"b=2"),
    "the secret in a value": (b"a=http://x?s=hushhushhush&b=2", b"b=2"),
    "the secret in a value, escaped": (b"a=x%2568ushhush%2568ush%20&b=2", b"b=2"),
    "the secret as JSON in a value": (b'a={"x":"\\u0068ushhushhush"}&b=2', b"b=2"),
    "the secret as a name": (b"hushhushhush=1&b=2&hushhushhush", b"b=2"),
    "the secret with NUL inside": (b"a=hush%00hush\x00hush&b=2", b"b=2"),
    "the secret with undecodable bytes": (b"a=hush%ffhush\xc0hush&b=2", b"b=2"),
    "a short secret": (b"a=abc&b=+abc%0A&c=%61bc&d=2", b"d=2"),
    "a short secret in a text": (b"a=abcd&b=x+abc", b"a=abcd&b=x+abc"),
    "a semicolon": (b"a=1;secret=x&b=2", b"a=1;secret=x&b=2"),
    "a semicolon before the secret": (b"a=1;secret=hushhushhush&b=2", b"b=2"),
    "raw bytes": (b"\xff=\xfe&secret=x&\xc3\xa4=\x00", b"\xff=\xfe&\xc3\xa4=\x00"),
    "a repeat that would count": (b"a=hushhushhush&a=2&b=3&%61=4", b"b=3"),
    "a repeat that does not count": (b"a=1&a=hushhushhush&a=2", b"a=1&a=2"),
    "a secret over two pairs": ('a=p%41+s"\\s ö&=😀'.encode(), b""),
    "escapes without end": (b"a=%" + b"25" * 99 + b"41&b=2", b"b=2"),
}


@pytest.mark.parametrize(("query", "redacted"), QUERIES.values(), ids=QUERIES)
def test_pairs_with_a_secret_are_taken_out(query: bytes, redacted: bytes) -> None:
    """A pair goes in any spelling of its name or secret; the others keep bytes and order."""
    assert redact_query(query, OMITTED, SECRETS) == redacted
    assert redact_body(FORM, query, OMITTED, SECRETS) == redacted


BODIES = {
    "no secret": (JSON, b' {"a" : 1.50, "secrets":[null]} ', b' {"a" : 1.50, "secrets":[null]} '),
    "the name first": (JSON, b'{"secret":"x", "a":1E400 }', b'{"a":1E400 }'),
    "the name last": (JSON, b'{"a":1.50 ,"secret":{"b":[1]}}', b'{"a":1.50}'),
    "the name alone": (JSON, b'\xef\xbb\xbf{ "secret" : null }\n', b"\xef\xbb\xbf{  }\n"),
    "all names": (JSON, b'{"secret":1,"country":2,"secret":3}', b"{}"),
    "an escaped name": (JSON, b'{"\\u0073ecre\\u0074":1,"a":2}', b'{"a":2}'),
    "a nested name": (FORM, b'{"a":{"b":[{"secret":1,"c":-0}]}}', b'{"a":{"b":[{"c":-0}]}}'),
    "a nested secret": (JSON, b'{"a":{"b":"hush\\u0068ushhush","c":1}}', b'{"a":{"c":1}}'),
    "a secret in a list": (JSON, b'{"a":{"b":[1,["hushhushhush"]]},"c":1}', b'{"a":{},"c":1}'),
    "a form in a text": (JSON, b'{"a":"x=%68ushhushhush","b":"\\/"}', b'{"b":"\\/"}'),
    "the secret as a name": (JSON, b'{"hushhushhush":{},"b":[]}', b'{"b":[]}'),
    "a repeat that would count": (JSON, b'{"a":"hushhushhush","\\u0061":2,"b":3}', b'{"b":3}'),
    "undecodable bytes": (JSON, b'{"\xff":"\xfe","secret":"\xfd"}', b'{"\xff":"\xfe"}'),
    "a short secret": (JSON, b'{"a":"\\u0061bc","b":"abcd"}', b'{"b":"abcd"}'),
    "a form without a type": ("", b"secret=x&a=1", b"a=1"),
    "no object": (JSON, b"[1,2]", b"[1,2]"),
    "an array with the name": (JSON, b'[{"secret":1}]', b""),
    "an object without an end": (JSON, b'{"a":"hush\\u0068ushhush"', b""),
    "a text with an omitted name": ("text/plain", b"country: us", b""),
    "a text with another name": (
        "text/plain",
        b"secretary of countrymen",
        b"secretary of countrymen",
    ),
    "a text with the secret": ("text/plain", b"x hush%68ushhush", b""),
    "a text with a short secret": ("text/plain", b"x=abc", b""),
    "UTF-16": (JSON, '{"a":"hushhushhush"}'.encode("utf-16"), b""),
    "too many pairs": (FORM, b"secret=x" + b"&a=1" * PARAMETERS_MAX, b""),
    "too many pairs, none secret": (FORM, b"&a=1" * PARAMETERS_MAX, b"&a=1" * PARAMETERS_MAX),
}


@pytest.mark.parametrize(("content_type", "body", "redacted"), BODIES.values(), ids=BODIES)
def test_members_with_a_secret_are_cut_out(content_type: str, body: bytes, redacted: bytes) -> None:
    """The innermost member goes, the rest keeps its bytes; an unreadable body goes as a whole."""
    assert redact_body(content_type, body, OMITTED, SECRETS) == redacted


@pytest.mark.parametrize("secret", ["12345678", "1234"])
def test_number_may_be_the_secret(secret: str) -> None:
    """A secret of digits is found where JSON has it as a number, also among others."""
    body = b'{"a":%b,"b":[0, %b,1],"c":9}' % (secret.encode(), secret.encode())
    assert redact_body(JSON, body, (), [secret]) == b'{"c":9}'


def test_text_that_holds_a_secret_is_emptied() -> None:
    """A subject is empty if it is or holds a secret; any other one is unchanged."""
    for text in (LONG, f"x {LONG}", "x%68ushhushhush", "\ud800" + ODD, SHORT, f" {SHORT}"):
        assert not redact_text(text, SECRETS)
    for text in ("", "g3mz3t", f"x {SHORT}", "secret", "\ud800%C3\x00"):
        assert redact_text(text, SECRETS) == text


def decodings(raw: bytes) -> set[str]:
    """All texts that readers may get from bytes, in up to three steps."""
    texts = {raw.decode("utf-8", errors) for errors in ("replace", "ignore")}
    texts |= {raw.decode("latin-1")}
    for _ in range(3):
        undone: set[str] = set()
        for text in texts:
            undone |= {unquote(text), unquote_plus(text), text.replace("\x00", "")}
            undone |= set(json_texts(text))
        texts |= undone
    return texts


def json_texts(text: str) -> Iterator[str]:
    """All texts in JSON, each without its escapes."""
    try:
        values: list[object] = [json.loads(text, object_pairs_hook=list)]
    except ValueError:
        return
    while values:
        match values.pop():
            case str(found):
                yield found.encode("utf-8", "ignore").decode()
            case list(found) | tuple(found):
                values.extend(found)


Spell = Callable[[str], st.SearchStrategy[str]]


def spelled(*spellings: Callable[[str], str]) -> Spell:
    """Texts of the same meaning, with each character in any of the spellings."""
    return lambda text: st.tuples(
        *(st.sampled_from([spell(character) for spell in spellings]) for character in text)
    ).map("".join)


def quoted(character: str) -> str:
    """The escape of a character in a form."""
    return "".join(f"%{byte:02x}" for byte in character.encode())


def quoted_twice(character: str) -> str:
    """The escape of an escape, in capitals."""
    return quoted(character).upper().replace("%", "%25")


def escaped(character: str) -> str:
    """The escape of a character in JSON."""
    return json.dumps(character)[1:-1] if ord(character) > 0x7F else f"\\u{ord(character):04X}"


in_form = spelled(str, quoted, lambda character: quoted(character).upper(), quoted_twice)
in_json = spelled(lambda character: json.dumps(character)[1:-1], escaped)
in_both = spelled(escaped, quoted)

TEXTS = st.text('aä 1%+;\\"{}\x00', max_size=6)
AROUND = st.text("aä 1;{}", max_size=3)
NAMES = st.sampled_from(["a", "ä b", "c", "secretary", "created_at", "1"])
PLANTED = ("hush-hush-hush", "p%41+sö-😀x", "bits\\u0041b+ytes")


class Member(NamedTuple):
    """A member of a form or an object: its name, both texts as they are spelled, its fate."""

    name: str
    spelled_name: str
    spelled_value: str
    goes: bool


@st.composite
def members(draw: st.DrawFn, spell_name: Spell, spell_value: Spell) -> list[Member]:
    """Members, some of which hold a secret or have a name that goes."""
    made = []
    for kind in draw(st.lists(st.sampled_from(["plain", "name", "in name", "in value"]))):
        name, value = draw(NAMES), draw(TEXTS)
        if kind == "name":
            name = draw(st.sampled_from(["secret", *OMITTED]))
        elif kind == "in name":
            name = draw(AROUND) + draw(st.sampled_from(PLANTED)) + draw(AROUND)
        elif kind == "in value":
            value = draw(AROUND) + draw(st.sampled_from(PLANTED)) + draw(AROUND)
        made.append(Member(name, draw(spell_name(name)), draw(spell_value(value)), kind != "plain"))
    return made


def form_of(pairs: Iterable[Member]) -> bytes:
    """The form of members."""
    return "&".join(f"{pair.spelled_name}={pair.spelled_value}" for pair in pairs).encode()


def object_of(pairs: Iterable[Member]) -> bytes:
    """The object of members, some of which are nested or beside a nested name."""
    texts = (
        f'"{pair.spelled_name}": [1.50, "{pair.spelled_value}"]'
        if pair.name == "c"
        else f'"{pair.spelled_name}":"{pair.spelled_value}"'
        for pair in pairs
    )
    return ("{" + " , ".join(texts) + "}").encode()


def names_kept(pairs: Iterable[tuple[str, bool]]) -> set[str]:
    """The names whose first member stays: it is the one that counts."""
    first: dict[str, bool] = {}
    for name, goes in pairs:
        first.setdefault(name, goes)
    return {name for name, goes in first.items() if not goes}


def assert_redacted(
    sent: dict[str, str] | None, kept: set[str], redacted: bytes, read: dict[str, str] | None
) -> None:
    """Assert that the names that stay have their values, and that no secret is left."""
    assert sent is not None
    assert read == {name: value for name, value in sent.items() if name in kept}
    texts = decodings(redacted)
    assert not [secret for secret in PLANTED if any(secret in text for text in texts)]


@given(members(in_form, in_form))
def test_no_decoding_of_a_query_holds_a_secret(pairs: list[Member]) -> None:
    """Secrets in any spelling are gone, and the other parameters have the same meaning."""
    query = form_of(pairs)
    redacted = redact_query(query, OMITTED, PLANTED)
    named = (next(iter(parse_form(pair.spelled_name.encode()))) for pair in pairs)
    kept = names_kept(zip(named, (pair.goes for pair in pairs), strict=True))
    assert_redacted(parse_body(FORM, query), kept, redacted, parse_body(FORM, redacted))


@given(members(in_json, lambda text: st.one_of(in_json(text), in_both(text))))
def test_no_decoding_of_an_object_holds_a_secret(pairs: list[Member]) -> None:
    """Secrets in any spelling and depth are gone, and the other members keep their texts."""
    body = object_of(pairs)
    redacted = redact_body(JSON, body, OMITTED, PLANTED)
    kept = names_kept((clean(pair.name), pair.goes) for pair in pairs)
    assert_redacted(parse_body(JSON, body), kept, redacted, parse_body(JSON, redacted))


# Byte by byte: `st.binary` also draws constants of the code, such as the name of the secret.
@given(
    st.lists(st.integers(0, 255), max_size=60).map(bytes),
    st.sampled_from([FORM, JSON, "", "text/plain"]),
)
def test_bytes_without_a_secret_are_unchanged(raw: bytes, content_type: str) -> None:
    """Whatever the bytes, they stay as they are where no secret and no name of one is in them."""
    texts = decodings(raw)
    assume(not any(word in text for text in texts for word in ("secret", *OMITTED, *PLANTED)))
    assert redact_query(raw, OMITTED, PLANTED) == raw
    assert redact_body(content_type, raw, OMITTED, PLANTED) == raw
    assert redact_text(raw.decode("latin-1"), PLANTED) == raw.decode("latin-1")


@given(st.lists(st.sampled_from([*'{}[]:,&=%\\"u052 ', "secret", LONG, "\ud83d"]), max_size=40))
def test_redaction_is_total(pieces: list[str]) -> None:
    """Any bytes, broken ones too, are redacted without an error, and a second time to the same."""
    raw = "".join(pieces).encode("utf-8", "surrogatepass")
    redacted = [redact_body(type_, raw, (), SECRETS) for type_ in (FORM, JSON)]
    assert not [body for body in redacted if any(LONG in text for text in decodings(body))]
    again = [
        redact_body(type_, body, (), SECRETS)
        for type_, body in zip((FORM, JSON), redacted, strict=True)
    ]
    assert again == redacted


LARGE = {
    "pairs": b"secret=x" + b"".join(b"&n%d=%d" % (n, n) for n in range(PARAMETERS_MAX - 1)),
    "separators": b"secret=x" + b"&" * 64_000,
    "escapes": b"secret=hushhushhush&a=" + b"%25" * 21_000,
    "nested escapes": b"secret=hushhushhush&a=%" + b"25" * 32_000,
    "escapes of escapes": b"secret=hushhushhush&a=" + b"%2%35" * 12_000,
    "backslashes": b"secret=hushhushhush&a=" + b"\\" * 64_000,
    "members": b'{"secret":1,"a":{' + b",".join([b'"a":1'] * 10_000) + b"}}",
    "numbers": b'{"secret":"hushhushhush","a":[' + b",".join([b"1"] * 32_000) + b"]}",
    "objects": b'{"secret":"hushhushhush","a":[' + b",".join([b"{}"] * 21_000) + b"]}",
    "nesting": b'{"secret":"hushhushhush","a":' + b"[" * 32_000 + b"]" * 32_000 + b"}",
}


@pytest.mark.parametrize("body", LARGE.values(), ids=LARGE)
@pytest.mark.no_cover
def test_redaction_of_a_large_body_is_cheap(body: bytes) -> None:
    """64 KB take milliseconds of CPU, whatever they are: there is no quadratic case."""
    took = []
    for _ in range(5):
        started = thread_time()
        redacted = redact_body(FORM, body, OMITTED, SECRETS)
        took.append(thread_time() - started)
        assert b"hushhushhush" not in redacted
    assert min(took) < 0.2
