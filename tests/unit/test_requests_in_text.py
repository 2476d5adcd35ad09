"""Requests in the forms in which people have them: URLs, log lines, curl commands."""

import io

import pytest

from app.commands.explain.http_request import HttpRequest, UnreadableInput
from app.commands.explain.inputs import INPUT_MAX_BYTES, lines_of
from app.commands.explain.requests_in_text import CUT, JOINED, NO_BODY, read_request

T = "/ingest/adjust?secret=x&app_token=a"
FORM = ("Content-Type", "application/x-www-form-urlencoded")
JSON = ("Content-Type", "application/json")


def request(method: str, target: str, *notes: str) -> HttpRequest:
    """A request without headers and body."""
    return HttpRequest(method, target, notes=notes)


@pytest.mark.parametrize(
    "text",
    [
        f"https://gateway.example.com{T}",
        f"HTTP://user@[::1]:8000{T}",
        f"gateway.example.com{T}",
        f"gateway.example.com:8000{T}",
        f"[::1]:8000{T}",
        T,
        f"  {T}\t",
        f'"https://h{T}"',
        f"<https://h{T}>",
        f"`{T}`",
        f"GET {T} HTTP/1.1",
        f"GET {T}",
        f'192.0.2.1 - - [26/Nov/2026:09:00:00 +0000] "GET {T} HTTP/1.1" 200 52 "-" "Adjust"',
        f'/var/log/nginx/access.log:7:h "GET {T} HTTP/2.0" 200',
        f'lb haproxy[7]: 192.0.2.1:5 [x] f b/s 0/0/0/1/1 200 9 - 1/1/0/0/0 "GET {T} HTTP/1.1"',
        f'https 2026-11-26T09:00:00Z app/lb 192.0.2.1:2 "GET https://h:443{T} HTTP/1.1" "x"',
        f'at=info method=GET path="{T}" host=h fwd="192.0.2.1" status=200',
        "2026-11-26 09:00:00 GET /ingest/adjust secret=x&app_token=a 443 - 192.0.2.1",
        '{"ClientRequestMethod":"GET","ClientRequestURI":"' + T + '"}',
        '{"request":{"method":"GET","uri":"' + T.replace("&", "\\u0026") + '"}}',
        '{"httpRequest":{"requestMethod":"GET","requestUrl":"https://h' + T + '"}}',
        '{"path":"/ingest/adjust","query":"secret=x&app_token=a"}',
        '{"log":"192.0.2.1 - \\"GET ' + T + ' HTTP/1.1\\" 200\\n","stream":"stdout"}',
        f"curl 'https://h{T}'",
        f'$ curl -sSfL --compressed -o /dev/null "h{T}" -m5 --retry 3',
        f"curl --url https://h{T}#fragment",
        "curl -G h/ingest/adjust -d secret=x -d app_token=a",
        "curl -Gdsecret=x \\\n  --data-urlencode app_token=a \\\r\n h/ingest/adjust",
        "curl --url-query secret=x --url-query app_token=a h/ingest/adjust",
        f"curl -XGET -b cookie -A agent h{T}",
    ],
)
def test_request_is_found(text: str) -> None:
    """Every form of input has the same request."""
    assert read_request(text) == request("GET", T)


@pytest.mark.parametrize("text", ["secret=x&app_token=a", "?secret=x&app_token=a"])
def test_query_needs_a_vendor(text: str) -> None:
    """A query alone does not name its vendor."""
    assert read_request(text, "adjust") == request("GET", T)
    with pytest.raises(UnreadableInput, match="--vendor"):
        read_request(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'"POST {T} HTTP/1.1"', request("POST", T, NO_BODY)),
        (f'192.0.2.1 [x] "GET {T}&gps_a', request("GET", f"{T}&gps_a", CUT)),
        ('"GET /i?a=\\x22\\xC3\\xA9\\\\ HTTP/1.1"', request("GET", '/i?a="é\\')),
        ('h 0/0/0/1/1 "GET /i?a=#22#C3#A9#23 HTTP/1.1"', request("GET", '/i?a="é#')),
        ('"GET /i?a=#22 HTTP/1.1"', request("GET", "/i?a=#22")),
        ("https://h/i?a=1\n    &b=2\r\n&c=3", request("GET", "/i?a=1&b=2&c=3", JOINED)),
        ("/i?name=Summer Sale&x={y}", request("GET", "/i?name=Summer Sale&x={y}")),
        ("https://h?a=/b", request("GET", "/?a=/b")),
        ("https://h", request("GET", "/")),
        ("curl -I h/i", request("HEAD", "/i")),
        ("curl -X 'delete' h/i", request("delete", "/i")),
        ('"GET /i?a=\udcff HTTP/1.1"', request("GET", "/i?a=\udcff")),
    ],
)
def test_awkward_request_is_found(text: str, expected: HttpRequest) -> None:
    """Escapes are undone, cuts and missing bodies are noted, and nothing else is changed."""
    assert read_request(text) == expected


@pytest.mark.parametrize(
    ("command", "headers", "body"),
    [
        ("-d a=1 -d 'b=2 3' --data-raw @c", (FORM,), b"a=1&b=2 3&@c"),
        ("--data-urlencode 'a=1 &2' --data-urlencode =x", (FORM,), b"a=1%20%262&x"),
        ("""--json '{"a":' --json '1}'""", (JSON,), b'{"a":1}'),
        (
            """-H 'content-type: text/plain' -d "it's" """,
            (("content-type", "text/plain"),),
            b"it's",
        ),
        ("-d é", (FORM,), "é".encode()),
    ],
)
def test_body_of_a_curl_command(
    command: str, headers: tuple[tuple[str, str], ...], body: bytes
) -> None:
    """Data makes a POST, with the content type that curl sends."""
    found = read_request(f"curl {command} https://h{T}")
    assert (found.method, found.target, found.headers, found.body) == ("POST", T, headers, body)


@pytest.mark.parametrize(
    ("option", "header"),
    [
        ("-H 'X-Flokit-Secret:  x'", ("X-Flokit-Secret", "x")),
        ("--oauth2-bearer x", ("Authorization", "Bearer x")),
        ("-u a:b", ("Authorization", "Basic YTpi")),
    ],
)
def test_headers_of_a_curl_command(option: str, header: tuple[str, str]) -> None:
    """Credentials in headers are part of the request."""
    assert read_request(f"curl {option} h{T}").headers == (header,)


def test_braces_of_a_curl_command_are_noted() -> None:
    """The URL is explained as it is written, although curl itself would expand it."""
    (note,) = read_request("curl h/i?a={b}").notes
    assert "-g" in note
    assert not read_request("curl -g h/i?a={b}").notes


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "hello world", "{}", "[1]", '{"level":"info"}', "curl", "curl 'h", "curl -d",
        "curl -d @file h", "curl -T file h", "curl h -H $'a'", "curl -s", "\x00\x01", "-", "=",
        '"-" 400 0', "<BADREQ>",
    ],
)  # fmt: skip
def test_other_text_is_unreadable(text: str) -> None:
    """Text without a request has one line as its reason, which does not quote it."""
    with pytest.raises(UnreadableInput) as raised:
        read_request(text)
    assert "\n" not in str(raised.value)


def test_own_headers_are_replaced() -> None:
    """The length of the body is that of these bytes, whatever the sender's header was."""
    sent = HttpRequest("POST", "/i", (("Content-Length", "9"), ("A", "b")), b"xy").encode()
    assert sent == b"POST /i HTTP/1.1\r\nHost: explain\r\nA: b\r\nContent-Length: 2\r\n\r\nxy"


def test_lines_are_read_one_by_one() -> None:
    """Blank lines are skipped, curl commands continue, and a line without an end counts."""
    stream = io.BytesIO(b"a\r\n\n  \ncurl \\\n h\nb\\\nc \xff")
    assert list(lines_of(stream)) == ["a", "curl \\\n h", "b\\", "c \udcff"]


def test_too_long_a_line_is_skipped() -> None:
    """Memory is bounded: of a longer line there is only the notice."""
    stream = io.BytesIO(b"a" * (2 * INPUT_MAX_BYTES + 5) + b"\nb\n")
    assert list(lines_of(stream)) == [None, "b"]
