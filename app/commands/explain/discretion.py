"""Texts for the output, without a secret and without control characters."""

from collections.abc import Iterable, Iterator
from html import unescape

from app.access import CREDENTIAL_HEADERS
from app.commands.explain.http_request import HttpRequest
from app.commands.output import printable
from app.errors import GatewayError
from app.parameters import decode, parse_body
from app.redaction import redact_text

NOT_SHOWN = "(not shown)"
TEXT_MAX = 200
# A shorter secret is hidden where it is the whole text: it may be part of any word.
SECRET_PART_MIN = 4
# As often as a value may be encoded.
DECODINGS_MAX = 4


def sent_as_secret(request: HttpRequest) -> Iterator[str]:
    """Yield each text that a request sends as its secret, valid or not, wherever it stands."""
    query = request.target.partition("?")[2]
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if _is_secret(name):
            yield value
    for name, value in request.headers:
        if name.lower() in (*CREDENTIAL_HEADERS, "cookie", "proxy-authorization"):
            yield value
            yield value.partition(" ")[2]
    try:
        parameters = parse_body(_content_type(request), request.body) or {}
    except GatewayError:
        return
    for name, value in parameters.items():
        if _is_secret(name):
            yield value


class Discretion:
    """Makes texts fit to be shown. `secrets` are hidden in any spelling."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = frozenset(secret for secret in secrets if secret.strip())
        spellings = {each for secret in self._secrets for each in _spellings(secret)}
        self._wholes = spellings - {""}
        self._parts = [each for each in self._wholes if len(each) >= SECRET_PART_MIN]

    def shown(self, text: str) -> str:
        """Return a text on one line and of limited length, or a note in its place."""
        if self._holds_secret(text):
            return NOT_SHOWN
        return printable(text, TEXT_MAX)

    def _holds_secret(self, text: str) -> bool:
        if text and not redact_text(text, self._secrets):
            return True
        for spelling in _spellings(text):
            if spelling in self._wholes or any(part in spelling for part in self._parts):
                return True
        return False


def _spellings(text: str) -> Iterator[str]:
    """Yield a text as it is, and decoded again and again, without case and blanks around."""
    for _ in range(DECODINGS_MAX):
        yield text.strip().casefold()
        decoded = unescape(decode(text.encode("utf-8", "surrogateescape")))
        if decoded == text:
            return
        text = decoded


def _is_secret(name: str) -> bool:
    return any(each.rpartition(";")[2] == "secret" for each in _spellings(name))


def _content_type(request: HttpRequest) -> str:
    return next((value for name, value in request.headers if name.lower() == "content-type"), "")
