"""The fast path: a callback that is a plain GET skips Sanic's parser, router and response.

One pattern recognises it. Any other request goes through Sanic to the same `Gateway.handle`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from app.http.head import HEADER_LINES_MAX

# Names are tokens, values hold no control characters (RFC 9110, 5.1 and 5.5). Sanic accepts more,
# which a proxy may parse differently: request smuggling.
HEADER = rb"[\w!#$%&'*+.^`|~-]++:[^\x00-\x08\x0a-\x1f\x7f]*+"
# Headers that concern the body or the connection: left to Sanic.
_SPECIAL = rb"(?i:content-length|transfer-encoding|expect|upgrade|connection:(?! keep-alive\r))"
# Groups: vendor, query, headers.
CALLBACK = re.compile(
    rb"GET /ingest/([\w-]+)/?\?([!-~]*+) HTTP/1\.1((?:\r\n(?!%b)%b){0,%d}+)\r\n\r\n"
    % (_SPECIAL, HEADER, HEADER_LINES_MAX)
)


class LazyHeaders(Mapping[str, str]):
    """Headers by their names in any case, as Sanic's; parsed when the first one is looked up.

    Of a repeated header the first value counts.
    """

    __slots__ = ("_lines", "_values")

    def __init__(self, lines: bytes) -> None:
        self._lines = lines
        self._values: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self._parsed()[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parsed())

    def __len__(self) -> int:
        return len(self._parsed())

    def get_all(self, name: str) -> Sequence[str]:
        """Return every value of a header, in order."""
        return [value for key, value in self._pairs() if key == name]

    def _parsed(self) -> dict[str, str]:
        if self._values is None:
            self._values = dict(reversed(list(self._pairs())))
        return self._values

    def _pairs(self) -> Iterator[tuple[str, str]]:
        lines = self._lines.decode(errors="surrogateescape").split("\r\n")[1:]
        for name, _, value in (line.partition(":") for line in lines):
            yield name.lower(), value.lstrip()
