"""From bytes to clean parameters: real senders' encodings, and worse."""

import json
from urllib.parse import unquote_to_bytes

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import adapters
from app.callbacks import Bodies, make_callback
from app.errors import TooManyParameters
from app.json_objects import DEPTH_MAX
from app.normalize import clean
from app.parameters import FORM, PARAMETERS_MAX, escape, parse_body, parse_form, read_body
from tests.adapter_cases import RECEIVED_AT
from tests.loop import longest_step_s

JSON = "application/json"
ADJUST = adapters.load()["adjust"]

FORMS = {
    "a percent escape": (b"a=%41%7e%C3%A4", {"a": "A~ä"}),
    "a lower-case escape": (b"a=%c3%a4", {"a": "ä"}),
    "a character of four bytes": (b"a=%F0%9F%98%80", {"a": "😀"}),
    "a plus is a space": (b"a=x+y", {"a": "x y"}),
    "an escaped plus stays one": (b"a=x%2By", {"a": "x+y"}),
    "an escaped escape is decoded once": (b"a=%2541", {"a": "%41"}),
    "an escaped separator separates nothing": (b"a=1%26b%3D2", {"a": "1&b=2"}),
    "a second equals sign": (b"a=1=2", {"a": "1=2"}),
    "a semicolon separates nothing": (b"a=1;b=2", {"a": "1;b=2"}),
    "a hash ends nothing": (b"a=1#x&b=2", {"a": "1#x", "b": "2"}),
    "no hexadecimal digits": (b"a=100%ZZoff", {"a": "100%ZZoff"}),
    "a truncated escape": (b"a=x%4&b=%&c=%%41", {"a": "x%4", "b": "%", "c": "%A"}),
    "truncated UTF-8": (b"a=%E0%A4", {"a": "\ufffd"}),
    "a byte that is not UTF-8": (b"a=x%FFy", {"a": "x\ufffdy"}),
    "overlong UTF-8": (b"a=%C0%80", {"a": "\ufffd\ufffd"}),
    "an encoded surrogate": (b"a=%ED%A0%80", {"a": "\ufffd\ufffd\ufffd"}),
    "a NUL inside": (b"a=x%00y", {"a": "xy"}),
    "a NUL between space and end": (b"a=x%20%00", {"a": "x"}),
    "nothing but NUL": (b"a=%00", {"a": ""}),
    "ASCII white space around": (b"a=%20%09%0A%0B%0C%0Dx+y%0D%0A+", {"a": "x y"}),
    "a no-break space around": (b"a=%C2%A0x%C2%A0", {"a": "\xa0x\xa0"}),
    "other white space around": (b"a=%1Cx%C2%85&b=%E2%80%83", {"a": "\x1cx\x85", "b": "\u2003"}),
    "raw white space": (b"a= x y\t&b=\r\n", {"a": "x y", "b": ""}),
    "raw UTF-8": ("a=M\xfcnchen&b=日本".encode(), {"a": "München", "b": "日本"}),
    "raw Latin-1": (b"a=M\xfcnchen", {"a": "M\ufffdnchen"}),
    "a raw NUL": (b"a=x\x00y", {"a": "xy"}),
    "raw braces": (b"a={idfa}", {"a": "{idfa}"}),
    "an escaped name": (b"%61%2B=1", {"a+": "1"}),
    "a raw name": ("ä=1".encode(), {"ä": "1"}),
    "a name with white space and NUL": (b"+a%00%20=1", {"a": "1"}),
    "names in another case": (b"A=1&a=2", {"A": "1", "a": "2"}),
    "a name without a value": (b"a&b=", {"a": "", "b": ""}),
    "a repeated name": (b"a=1&a=2", {"a": "1"}),
    "a repeated name, first empty": (b"a=&a=2", {"a": ""}),
    "a repeated name, first bare": (b"a&a=2", {"a": ""}),
    "a repeated name, one escaped": (b"%61=1&a=2", {"a": "1"}),
    "a repeated name, differently cleaned": (b"+a=1&a%00=2&a=3", {"a": "1"}),
}


@pytest.mark.parametrize(("raw", "expected"), FORMS.values(), ids=FORMS)
def test_form_is_decoded(raw: bytes, expected: dict[str, str]) -> None:
    """A query string and a form body of the same bytes give the same clean parameters."""
    assert parse_form(raw) == expected
    assert parse_body(FORM, raw) == expected


def test_many_parameters_are_all_read() -> None:
    """As many parameters as are allowed are all there, and the first of them still wins."""
    raw = "&".join(f"name{number}={number}" for number in range(PARAMETERS_MAX - 1)) + "&name0=x"
    parameters = parse_form(raw.encode())
    assert len(parameters) == PARAMETERS_MAX - 1
    assert (parameters["name0"], parameters["name3998"]) == ("0", "3998")
    with pytest.raises(TooManyParameters):
        parse_form(raw.encode() + b"&")


MANY = {
    "a form": b"&".join(b"a%d=1" % number for number in range(PARAMETERS_MAX + 1)),
    "one name again and again": b"&".join([b"a=1"] * (PARAMETERS_MAX + 1)),
    "an object": b'{"x":1'
    + b"".join(b',"a%d":1' % number for number in range(PARAMETERS_MAX))
    + b"}",
    "an object with one name": b'{"a":1' + b',"a":1' * PARAMETERS_MAX + b"}",
    "an object without end": b'{"a":1' + b',"a":1' * 100_000,
}


@pytest.mark.parametrize("body", MANY.values(), ids=MANY)
def test_too_many_parameters_are_refused(body: bytes) -> None:
    """One parameter more than allowed is refused, however it is written."""
    with pytest.raises(TooManyParameters):
        parse_body(JSON if body.startswith(b"{") else FORM, body)


def test_contents_of_a_value_are_not_counted() -> None:
    """The contents of a value are not counted as parameters, and cost no more than its bytes."""
    nested = json.dumps([{"a": number, "b": "x:y"} for number in range(PARAMETERS_MAX)])
    quoted = json.dumps({"value": nested, "list": [1, {"k": "\\"}]})
    assert parse_body(JSON, b'{"a":' + nested.encode() + b',"b":1}') == {"a": nested, "b": "1"}
    assert parse_body(JSON, quoted.encode()) == {"value": nested, "list": '[1, {"k": "\\\\"}]'}


DIGITS = "9" * 400
OBJECTS = {
    "an empty object": (b"{}", {}),
    "white space around": (b" \r\n{ \t}\n", {}),
    "a text": (b'{"a":"x"}', {"a": "x"}),
    "a zero at the end": (b'{"a":1.50}', {"a": "1.50"}),
    "a negative zero": (b'{"a":-0}', {"a": "-0"}),
    "an exponent": (b'{"a":1E400,"b":1e-7}', {"a": "1E400", "b": "1e-7"}),
    "400 digits": (f'{{"a":{DIGITS},"b":0.{DIGITS}}}'.encode(), {"a": DIGITS, "b": f"0.{DIGITS}"}),
    "more digits than int() takes": (b'{"a":' + b"9" * 5000 + b"}", {"a": "9" * 5000}),
    "true and false": (b'{"a":true,"b":false}', {"a": "true", "b": "false"}),
    "null": (b'{"a":null}', {"a": ""}),
    "a nested object": (b'{"a": {"x": [1.50, null]} }', {"a": '{"x": [1.50, null]}'}),
    "a nested array": (b'{"a":[ ]}', {"a": "[ ]"}),
    "some nesting": (b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", {"a": "[" * 300 + "]" * 300}),
    "a repeated name": (b'{"a":1,"a":2}', {"a": "1"}),
    "a repeated name, first null": (b'{"a":null,"a":2}', {"a": ""}),
    "a repeated name, first empty": (b'{"a":"","a":2}', {"a": ""}),
    "a repeated name, one escaped": (b'{"\\u0061":1,"a":2}', {"a": "1"}),
    "a repeated name beside a nested one": (
        b'{"a":{"a":1},"b":"\\"a\\":","a":2}',
        {"a": '{"a":1}', "b": '"a":'},
    ),
    "a repeated name, nested last": (b'{"a":1,"a":{"a":{"a":1}}}', {"a": "1"}),
    "a repeated name behind a backslash": (b'{"x\\\\":1,"b":2,"b":3}', {"x\\": "1", "b": "2"}),
    "a colon in a text": (b'{"a":"x: y","b" : "http://z"}', {"a": "x: y", "b": "http://z"}),
    "a text like a member": (b'{"a":"\\"b\\":1","c":2}', {"a": '"b":1', "c": "2"}),
    "names that are one when clean": (b'{"a ":1," a":2}', {"a": "1"}),
    "white space and NUL in a name": (b'{" a\\u0000":1}', {"a": "1"}),
    "white space and NUL in a value": (b'{"a":"\\u0000 x\\n"}', {"a": "x"}),
    "a no-break space": ('{"a":"\xa0"}'.encode(), {"a": "\xa0"}),
    "NUL in a nested value": (b'{"a":["\\u0000"]}', {"a": '["\\u0000"]'}),
    "a surrogate pair": (b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}),
    "a lone surrogate": (b'{"a":"x\\ud800y\\udfff"}', {"a": "xy"}),
    "a pair that a NUL parts": (b'{"a":"\\ud83d\\u0000\\ude00"}', {"a": ""}),
    "an escape of forms": (b'{"a":"%41+"}', {"a": "%41+"}),
    "a byte order mark": (b'\xef\xbb\xbf{"a":1}', {"a": "1"}),
    "bytes that are not UTF-8": (b'{"a":"x\xff"}', {"a": "x\ufffd"}),
}


@pytest.mark.parametrize(("body", "expected"), OBJECTS.values(), ids=OBJECTS)
def test_json_object_is_decoded(body: bytes, expected: dict[str, str]) -> None:
    """Numbers and nested values keep the text that was sent, null is absent, the first wins."""
    assert parse_body(JSON, body) == expected


NOT_OBJECTS = {
    "an array": b'[{"a":1}]',
    "a text": b'"a"',
    "a number": b"1",
    "null": b"null",
    "a form": b"a=1",
    "unquoted names": b"{a:1}",
    "no colon": b'{"a" 1}',
    "no value": b'{"a":}',
    "no end": b'{"a":1',
    "a comma at the end": b'{"a":1,}',
    "only a comma": b"{,}",
    "garbage behind it": b'{"a":1}x',
    "a second object": b'{"a":1}{"b":2}',
    "garbage behind an empty one": b"{}{}",
    "NaN": b'{"a":NaN}',
    "a nested infinity": b'{"a":[-Infinity]}',
    "a leading zero": b'{"a":01}',
    "a leading plus": b'{"a":+1}',
    "a raw newline in a text": b'{"a":"x\ny"}',
    "a raw NUL": b'{"a":\x00}',
    "foreign white space": '{"a":1\xa0}'.encode(),
    "deep nesting": b'{"a":' + b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "UTF-16": '{"a":1}'.encode("utf-16"),
}


@pytest.mark.parametrize("body", NOT_OBJECTS.values(), ids=NOT_OBJECTS)
def test_other_json_is_malformed(body: bytes) -> None:
    """A body that is not one whole JSON object is malformed, and never half of an event."""
    assert parse_body(JSON, body) is None


BODIES = {
    "upper case": ("APPLICATION/JSON", b'{"a":1}', {"a": "1"}),
    "JSON's parameters": ("application/json ; charset=utf-8", b'{"a":1}', {"a": "1"}),
    "a dialect of JSON": ("application/vnd.vendor+JSON", b'{"a":1}', {"a": "1"}),
    "JSON as text": ("text/plain; charset=utf-8", b'{"a":1}', {"a": "1"}),
    "a form's parameters": (f"{FORM.upper()};charset=UTF-8", b"a=%41", {"a": "A"}),
    "an object declared as a form": (FORM, b'{"a":"1"}', {"a": "1"}),
    "a form that begins like an object": (FORM, b'{"a=1', {'{"a': "1"}),
    "neither, undeclared": ("", b"hello world", None),
    "undeclared JSON": ("", b'\xef\xbb\xbf {"a":1}', {"a": "1"}),
    "an undeclared form": ("", b"a=%41+b", {"a": "A b"}),
    "an undeclared broken object": ("", b'{"a":1', None),
    "multipart": ("multipart/form-data; boundary=x", b"--x\r\n\r\n--x--", None),
    "a form as text": ("text/plain", b"a=1", None),
    "XML": ("application/xml", b"<a/>", None),
    "bytes": ("application/octet-stream", b"\x00\xff", None),
} | {
    f"an empty body of type {content_type or 'none'}": (content_type, body, {})
    for content_type, body in [("", b""), (JSON, b" \n"), (FORM, b"\r\n"), ("image/png", b"")]
}


@pytest.mark.parametrize(("content_type", "body", "expected"), BODIES.values(), ids=BODIES)
def test_content_type_counts_unless_the_body_is_a_json_object(
    content_type: str, body: bytes, expected: dict[str, str] | None
) -> None:
    """A JSON object is one under any declared type; else the declared type counts."""
    assert parse_body(content_type, body) == expected


def assert_storable(parameters: dict[str, str]) -> None:
    """Fail where a database would refuse a name or a value, or where one is not trimmed."""
    for text in (*parameters, *parameters.values()):
        text.encode()  # a lone surrogate has no encoding
        assert "\x00" not in text
        assert text == text.strip(" \t\n\r\x0b\x0c")


any_text = st.text('ab"\\\x00 \t\xa0\ud83d\ude00日', max_size=8)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda children: st.lists(children) | st.dictionaries(any_text, children),
    max_leaves=5,
)


@given(st.binary())
@example(b"%00=%ED%A0%80&\x00\xff+=+\x7f%")
def test_any_form_is_storable(raw: bytes) -> None:
    """Any bytes as a form: never an exception, and always storable."""
    assert_storable(parse_form(raw))


@given(st.sampled_from([FORM, JSON, "", "text/plain", ";", "x/\x00+json"]), st.binary())
def test_any_body_is_storable(content_type: str, body: bytes) -> None:
    """Any bytes as a body: never an exception, and always storable."""
    assert_storable(parse_body(content_type, body) or {})


@given(st.text('{}[]",:\\0123456789.eE+-nulltrefasdNI \n\t\x00\ufeff\ud800'))
@example('{"\\ud800\\u0000":"\\udc00 "}')
def test_almost_json_is_storable(text: str) -> None:
    """Anything like JSON: never an exception, and always storable."""
    assert_storable(parse_body(JSON, text.encode("utf-8", "surrogatepass")) or {})


@given(st.dictionaries(any_text, any_json, max_size=5))
def test_every_json_object_is_read(members: dict[str, object]) -> None:
    """A body that another program encoded as JSON is read whole, unless it holds a NaN."""
    body = json.dumps(members)
    parameters = parse_body(JSON, body.encode())
    try:
        json.dumps(members, allow_nan=False)
    except ValueError:
        assert parameters is None
    else:
        assert parameters is not None
        assert_storable(parameters)
        assert len(parameters) <= len(members)


@given(st.binary())
@example(bytes(range(256)))
def test_escape_round_trips(raw: bytes) -> None:
    """Escaping makes any bytes fit for a URL, and loses none of them."""
    escaped = escape(raw)
    assert all(0x20 < byte < 0x7F for byte in escaped)
    # An escape that was there before is one still; the bytes that were added decode to themselves.
    assert unquote_to_bytes(escaped) == unquote_to_bytes(raw)
    assert escape(escaped) == escaped


@given(st.dictionaries(st.text(), st.text()))
def test_raw_bytes_read_like_escaped_ones(sent: dict[str, str]) -> None:
    """Values without an encoding are read as if they were encoded."""
    raw = "&".join(f"{name}={value}" for name, value in sent.items()).encode()
    assert parse_form(raw) == parse_form(escape(raw))


ORDINARY = {
    "an object": b'{"a":"x","b":{"c":[1]}}',
    "white space around": b" \n{}\t",
    "a byte order mark": b'\xef\xbb\xbf {"a":1}',
    "a repeated name": b'{"a":1,"a":2}',
    "more digits than a number may have": b'{"a":' + b"9" * 5000 + b"}",
    "nesting": b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
}


@pytest.mark.parametrize("body", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_object_is_parsed_on_demand(body: bytes) -> None:
    """Only the syntax of an object is checked, and an adapter may decode it itself."""
    readable = read_body(JSON, body)
    assert readable is not None
    assert readable.parameters is None
    assert msgspec.json.decode(readable.json, type=dict[str, msgspec.Raw]).keys() == (
        readable.parse().keys()
    )


MENDED = {
    "a lone surrogate": (rb'{"a":"x\ud83dy\ude00"}', b'{"a":"xy"}'),
    "lone ones beside a pair": (
        rb'{"a\udc00":"\ud83d\uD83D\uDE00\ude00"}', rb'{"a":"\uD83D\uDE00"}',
    ),
    "a backslash before it": (rb'{"a":"\\ud83d\\\ud83d"}', rb'{"a":"\\ud83d\\"}'),
    "bytes that are not UTF-8": (b'{"a":"\xff"}', '{"a":"\ufffd"}'.encode()),
}  # fmt: skip


@pytest.mark.parametrize(("body", "mended"), MENDED.values(), ids=MENDED)
def test_object_is_mended_for_adapters(body: bytes, mended: bytes) -> None:
    """An object that msgspec refuses is mended, with the same parameters as before."""
    readable = read_body(JSON, body)
    assert readable is not None
    assert readable.json == mended
    decoded = msgspec.json.decode(readable.json, type=dict[str, str])
    assert readable.parse() == parse_body(JSON, body) == decoded


def test_object_that_is_too_deep_for_an_adapter_is_malformed() -> None:
    """A depth that leaves an adapter no stack is refused, and the number of brackets alone not."""
    deepest = b'{"a":' + b"[" * (DEPTH_MAX - 1) + b"]" * (DEPTH_MAX - 1) + b"}"
    assert read_body(JSON, deepest)
    assert read_body(JSON, b'{"a":[' + deepest + b"]}") is None
    wide = b'{"a":[' + b",".join([b"[]"] * 2 * DEPTH_MAX) + b'],"b":"' + b"[" * 9_999 + b'"}'
    assert read_body(JSON, wide)


@given(st.text('{}[]",:\\0123456789.eE+-nulltrefasdNI \n\t\x00\ufeff\ud800'))
@example('{"\\ud800\\u0000":"\\udc00 "}')
def test_almost_json_is_read_by_msgspec_or_refused(text: str) -> None:
    """An object that adapters get is one that msgspec decodes, and that has its parameters."""
    body = text.encode("utf-8", "surrogatepass")
    for raw in (body, b'{"a":"' + body + b'"}', b'{"a":' + body + b"}"):
        readable = read_body(JSON, raw)
        if readable is not None and readable.json:
            decoded = msgspec.json.decode(readable.json)
            assert {clean(name) for name in decoded} == readable.parse().keys()


@pytest.mark.parametrize("size", [4_000, 15_000, 60_000])
@pytest.mark.no_cover
async def test_json_body_holds_the_loop_for_less_than_20_ms(size: int) -> None:
    """Objects of many members, and deep ones, are read within the limit, or in the thread."""
    half = b"[" * 200 + b"]" * 200
    for filler in (b'"a":1', b'"b":"\\ud83d"', b'"c":' + half, b'"d":[{"a":"\\"["}]'):
        body = b"{" + b",".join([filler] * (size // len(filler))) + b"}"
        bodies = Bodies()

        async def read(body: bytes = body, bodies: Bodies = bodies) -> None:
            readable = await bodies.read({"content-type": JSON}, body)
            make_callback(ADJUST, b"a=b", readable, {}, RECEIVED_AT, retention_d=0)

        assert min([await longest_step_s(read()) for _ in range(5)]) < 0.02


@pytest.mark.no_cover
async def test_most_parameters_hold_the_loop_for_less_than_20_ms() -> None:
    """A URL and a body that are full of encoded parameters are not taken apart in one go."""
    full = b"&".join(b"%%41%d=%%41%%42+" % number for number in range(PARAMETERS_MAX - 1))
    bodies = Bodies()

    async def take_apart() -> None:
        body = await bodies.read({"content-type": FORM}, full)
        make_callback(ADJUST, full, body, {}, RECEIVED_AT, retention_d=0)

    assert min([await longest_step_s(take_apart()) for _ in range(5)]) < 0.02
