"""Hints about refused secrets, for the person who sets a callback URL up."""

import re
from collections.abc import Callable, Mapping, Sequence
from hmac import compare_digest

from app.access import ENCODED_MAX_BYTES
from app.parameters import decode
from app.settings import VendorAccess

# A placeholder of a vendor, a shell or a document, or a word of this project's pages.
_PLACEHOLDER = re.compile(
    r"\{.*\}|\[.*\]|<.*>|\$\w+|\$\{.*\}|%\w+%|secret|(?:your|my|the)[-_ ]?secret|change[-_ ]?me",
    re.IGNORECASE | re.DOTALL,
)
# More lengths than these are given as a range.
_LENGTHS_MAX = 3
# Mistakes by the change that undoes each of them.
_MISTAKES: Sequence[tuple[str, Callable[[str], str]]] = (
    ("begins or ends with white space", str.strip),
    ("is in quotation marks", lambda text: text.strip().strip("'\"")),
    ("has the name of the parameter before it", lambda text: text.partition("=")[2]),
    ("a plus sign was sent unescaped: write it as %2B", lambda text: text.replace(" ", "+")),
    ("percent-encoded once too often", lambda text: decode(text.encode("utf-8", "surrogatepass"))),
)


class SecretHints:
    """Compares refused secrets to the configured ones, and reveals neither."""

    def __init__(self, vendors: Mapping[str, VendorAccess]) -> None:
        self._vendors = vendors

    def hint(self, vendor: str, candidates: Sequence[bytes]) -> str:
        """Return the likely mistake behind a refused secret, without any part of it.

        `candidates` are those that `Access.verify` refused. Only lengths are revealed.
        """
        if not any(candidates):
            return "an empty secret was sent" if candidates else "no secret was sent, or a huge one"
        configured = self._texts(vendor)
        if not configured:
            return "no secret is configured for this vendor"
        # The last candidate has no scheme before it.
        raw = candidates[-1]
        if len(raw) > ENCODED_MAX_BYTES:
            return f"wrong secret: {len(raw)} bytes, configured are {_lengths(configured)}"
        if _is_one_of(raw, configured):
            return "the secret of another workspace"
        if any(_is_one_of(raw, self._texts(other)) for other in self._vendors):
            return "the secret of another vendor"
        return _mistake(raw.decode("utf-8", "replace"), configured)

    def _texts(self, vendor: str) -> Sequence[bytes]:
        access = self._vendors.get(vendor, VendorAccess())
        owners = (access.secrets, *access.workspaces.values())
        return [secret.encode() for secrets in owners for secret in secrets]


def _mistake(sent: str, configured: Sequence[bytes]) -> str:
    if _PLACEHOLDER.fullmatch(sent.strip()):
        return "a literal placeholder was sent as the secret"
    for mistake, undo in _MISTAKES:
        if _is_one_of(undo(sent).encode("utf-8", "surrogatepass"), configured):
            return mistake
    if _is_one_of(_folded(sent), [_folded(text.decode()) for text in configured]):
        return "differs only in letter case"
    end = "; begins or ends with white space" if sent != sent.strip() else ""
    if not end and len(sent) in {len(secret.decode()) for secret in configured}:
        return f"another secret of the same length: {len(sent)} characters"
    return f"wrong secret: {len(sent)} characters, configured are {_lengths(configured)}{end}"


def _is_one_of(sent: bytes, secrets: Sequence[bytes]) -> bool:
    """Compare with every secret, even after a match, against timing attacks."""
    matches = [compare_digest(sent, secret) for secret in secrets]
    return any(matches)


def _folded(text: str) -> bytes:
    return text.casefold().encode("utf-8", "surrogatepass")


def _lengths(secrets: Sequence[bytes]) -> str:
    lengths = sorted({len(secret.decode()) for secret in secrets})
    if len(lengths) > _LENGTHS_MAX:
        return f"{lengths[0]} to {lengths[-1]}"
    return " or ".join(map(str, lengths))
