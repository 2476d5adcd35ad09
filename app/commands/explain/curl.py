"""The request of a `curl` command."""

import re
import shlex
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote

from app.commands.explain.http_request import HttpRequest, UnreadableInput, target_of
from app.parameters import FORM

_SHORT = {
    "A": "user-agent", "d": "data", "F": "form", "g": "globoff", "G": "get", "H": "header",
    "I": "head", "T": "upload-file", "u": "user", "X": "request",
}  # fmt: skip
_DATA = ("data", "data-ascii", "data-raw", "data-binary", "data-urlencode", "json")
_USED = frozenset({
    *_DATA, "form", "form-string", "header", "oauth2-bearer", "request", "upload-file", "url",
    "url-query", "user", "user-agent",
})  # fmt: skip
# Options with a value that does not change the request.
_SKIPPED = frozenset({
    "cacert", "capath", "cert", "ciphers", "config", "connect-timeout", "connect-to", "cookie",
    "cookie-jar", "dump-header", "interface", "key", "limit-rate", "max-redirs", "max-time",
    "noproxy", "output", "output-dir", "proxy", "proxy-header", "proxy-user", "referer", "resolve",
    "retry", "retry-delay", "retry-max-time", "stderr", "trace", "trace-ascii", "unix-socket",
    "write-out",
})  # fmt: skip
_SKIPPED_SHORT = frozenset("bcCDeEhKmoPQrtUwxyYz")
_GLOB = re.compile(r"\{[^{}]*\}|\[[^][-]*+-[^][]*+\]")
_FILE = "a curl command with @file: explain reads no files, put the content into the command"
_MULTIPART = ("Content-Type", "multipart/form-data; boundary=explain")


def read_curl(command: str) -> HttpRequest:
    """Return the request that a curl command sends; raises UnreadableInput."""
    # A shell removes a backslash together with the line break behind it.
    joined = command.replace("\\\r\n", " ").replace("\\\n", " ")
    if "$'" in joined:
        raise UnreadableInput("a curl command with $'…': write that text in plain quotes")
    try:
        _, *words = shlex.split(joined)
    except ValueError as error:
        raise UnreadableInput(f"a curl command, but {str(error).lower()}") from None
    call = _Call()
    for name, value in _options(words):
        call.apply(name, value)
    return call.request()


class _Call:
    def __init__(self) -> None:
        self._urls: list[str] = []
        self._data: list[str] = []
        self._query: list[str] = []
        self._headers: list[tuple[str, str]] = []
        self._method = ""
        self._flags: set[str] = set()

    def apply(self, name: str, value: str) -> None:
        """Apply one option, or a word without one."""
        if name in _DATA:
            self._add_data(name, value)
            return
        match name:
            case "" | "url":
                self._urls.append(value)
            case "url-query":
                self._query.append(_urlencoded(value))
            case "header":
                self._headers.append(_header(value))
            case "user":
                credentials = b64encode(value.encode("utf-8", "surrogateescape")).decode()
                self._headers.append(("Authorization", f"Basic {credentials}"))
            case "oauth2-bearer":
                self._headers.append(("Authorization", f"Bearer {value}"))
            case "upload-file":
                raise UnreadableInput(_FILE)
            case "request":
                self._method = value
            case _:
                self._flags.add("form" if name == "form-string" else name)

    def _add_data(self, name: str, value: str) -> None:
        if name == "data-urlencode":
            self._data.append(_urlencoded(value))
        elif name == "data-raw":
            self._data.append(value)
        elif name == "json":
            self._flags.add(name)
            # Pieces of JSON follow each other without a separator.
            self._data = ["".join((*self._data, _inline(value)))]
        else:
            self._data.append(_inline(value))

    def request(self) -> HttpRequest:
        """Return the request of all options."""
        if not self._urls:
            raise UnreadableInput("a curl command without a URL")
        # A fragment is never sent.
        target = target_of(self._urls[0].partition("#")[0])
        data = "&".join(self._data)
        is_get = "get" in self._flags
        for more in (*self._query, *([data] if is_get and data else ())):
            target += ("&" if "?" in target else "?") + more
        headers = [(name, value) for name, value in self._headers if value]
        names = {name.lower() for name, _ in self._headers}
        body = b"" if is_get else data.encode("utf-8", "surrogateescape")
        has_body = not is_get and bool(self._data)
        if "form" in self._flags:
            has_body, body = True, b"--explain--\r\n"
            headers.append(_MULTIPART)
        elif has_body and "content-type" not in names:
            type_ = "application/json" if "json" in self._flags else FORM
            headers.append(("Content-Type", type_))
        method = "HEAD" if "head" in self._flags else "POST" if has_body else "GET"
        return HttpRequest(
            self._method or method, target, tuple(headers), body, tuple(self._notes(target))
        )

    def _notes(self, target: str) -> Iterator[str]:
        if len(self._urls) > 1:
            yield f"only the first of the {len(self._urls)} URLs of the curl command is explained"
        if "globoff" not in self._flags and _GLOB.search(target):
            yield "curl itself replaces {…} and […] in a URL; this is the URL as `curl -g` sends it"


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option by its long name, with its value; a word without one has no name."""
    waiting = iter(words)

    def value_of(option: str) -> str:
        value = next(waiting, None)
        if value is None:
            raise UnreadableInput(f"a curl command that ends after {option}")
        return value

    for word in waiting:
        if word.startswith("--"):
            name = word[2:]
            if name == "next":
                return
            if name in _SKIPPED:
                value_of(f"--{name}")
            else:
                yield name, value_of(f"--{name}") if name in _USED else ""
        elif word.startswith("-") and len(word) > 1:
            yield from _short_options(word[1:], value_of)
        elif word.strip():
            yield "", word


def _short_options(letters: str, value_of: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Yield the options of a word such as `-sXPOST`: flags, and one value at most."""
    for place, letter in enumerate(letters, 1):
        name = _SHORT.get(letter, letter)
        if name in _USED or letter in _SKIPPED_SHORT:
            value = letters[place:] or value_of(f"-{letter}")
            if name in _USED:
                yield name, value
            return
        yield name, ""


def _header(text: str) -> tuple[str, str]:
    """Return the name and value of a header; `name:` removes it, `name;` sends it empty."""
    name, colon, value = text.partition(":")
    return (name.strip(), value.strip()) if colon else (text.rstrip("; "), "")


def _inline(value: str) -> str:
    if value.startswith("@"):
        raise UnreadableInput(_FILE)
    return value


def _urlencoded(value: str) -> str:
    """Return `name=content` or `content` as `--data-urlencode` encodes it."""
    name, equals, content = value.partition("=")
    if not equals:
        name, content = "", value
        if "@" in value:
            raise UnreadableInput(_FILE)
    encoded = quote(content, safe="-._~", errors="surrogateescape")
    return f"{name}={encoded}" if name else encoded
