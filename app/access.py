"""Verification of callers: secrets, and allowlists of addresses."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from hmac import compare_digest
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from app.errors import NotConfigured, Unverified
from app.parameters import clean, decode
from app.settings import SECRET_MAX, Network, VendorAccess, secret_owner

# A character has up to four bytes, each of which may be escaped. Longer values are not decoded.
_ENCODED_MAX_BYTES = 3 * 4 * SECRET_MAX
# Longer texts are no addresses, and must not fill the cache.
_ADDRESS_MAX = 64
# Some proxies append the caller's port; an IPv6 address is then in brackets.
_WITH_PORT = re.compile(r"^(?:\[([^]]*)\]|([0-9.]+))(?::[0-9]+)?$")
# Headers that may carry the credential, by precedence.
CREDENTIAL_HEADERS = ("x-flokit-secret", "authorization")
# The reason of an unverified callback for which `Access.hint` has a hint.
WRONG_SECRET = "wrong_secret"  # noqa: S105 - a reason
_BEARER = re.compile(r"bearer +", re.IGNORECASE)
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


class _Secret(NamedTuple):
    text: bytes
    owner: str
    position: int


class Access:
    """Verifies callers against the secrets and allowlists of the settings."""

    def __init__(self, vendors: Mapping[str, VendorAccess]) -> None:
        self._allowlists = {vendor: access.allowlist for vendor, access in vendors.items()}
        # By owner: a workspace as `secret_owner` spells it, the empty text for the vendor itself.
        self._secrets = {
            vendor: {
                owner: [
                    _Secret(secret.encode(), owner, position)
                    for position, secret in enumerate(secrets)
                ]
                for owner, secrets in {"": access.secrets, **access.workspaces}.items()
                if secrets
            }
            for vendor, access in vendors.items()
        }
        # All configured secrets, of any vendor and workspace.
        self.secrets: Collection[str] = frozenset(
            secret
            for access in vendors.values()
            for secrets in (access.secrets, *access.workspaces.values())
            for secret in secrets
        )
        # Whether each secret was accepted since the last reset, by vendor, owner and position.
        self.used = {
            vendor: {owner: [False] * len(secrets) for owner, secrets in owners.items()}
            for vendor, owners in self._secrets.items()
        }

    def verify(
        self, vendor: str, workspace: str | None, candidates: Sequence[bytes], address: str
    ) -> None:
        """Return if one of the candidates is a valid secret and `address` is allowed.

        A workspace with secrets of its own accepts only these, any other workspace those of the
        vendor; for an unknown app (`workspace` is None) all of them are valid. `address` is empty
        if the proxies did not send one. Raises NotConfigured if no secret is configured, else
        Unverified.
        """
        owners = self._secrets.get(vendor, {})
        if workspace is None:
            valid = [secret for secrets in owners.values() for secret in secrets]
        else:
            valid = owners.get(secret_owner(workspace)) or owners.get("", [])
        if not valid:
            raise NotConfigured("no_secret_configured")
        allowlist = self._allowlists[vendor]
        if allowlist and (len(address) > _ADDRESS_MAX or not _is_allowed(address, allowlist)):
            raise Unverified("address_not_allowed")
        # Every secret is compared, even after a match, against timing attacks.
        match: _Secret | None = None
        for secret in valid:
            for sent in candidates:
                if compare_digest(sent, secret.text):
                    match = match or secret
        if match is None:
            raise Unverified(WRONG_SECRET)
        self.used[vendor][match.owner][match.position] = True

    def hint(self, vendor: str, candidates: Sequence[bytes]) -> str:
        """Return the likely mistake behind a refused secret, without any part of it.

        `candidates` are those that `verify` refused for this vendor. Only lengths are revealed.
        """
        if not any(candidates):
            return "an empty secret was sent" if candidates else "no secret was sent, or a huge one"
        configured = self._texts(vendor)
        if not configured:
            return "no secret is configured for this vendor"
        # The last candidate has no scheme before it.
        raw = candidates[-1]
        if len(raw) > _ENCODED_MAX_BYTES:
            return f"wrong secret: {len(raw)} bytes, configured are {_lengths(configured)}"
        if _is_one_of(raw, configured):
            return "the secret of another workspace"
        if any(_is_one_of(raw, self._texts(other)) for other in self._secrets):
            return "the secret of another vendor"
        return _mistake(raw.decode("utf-8", "replace"), configured)

    def _texts(self, vendor: str) -> Sequence[bytes]:
        owners = self._secrets.get(vendor, {})
        return [secret.text for secrets in owners.values() for secret in secrets]


def _mistake(sent: str, configured: Sequence[bytes]) -> str:
    if _PLACEHOLDER.fullmatch(sent.strip()):
        return "a literal placeholder was sent as the secret"
    for mistake, undo in _MISTAKES:
        if _is_one_of(undo(sent).encode("utf-8", "surrogatepass"), configured):
            return mistake
    if _is_one_of(_folded(sent), [_folded(text.decode()) for text in configured]):
        return "differs only in letter case"
    end = "; begins or ends with white space" if sent != sent.strip() else ""
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


def find(query: bytes, name: bytes) -> bytes | None:
    """Return the value of the first parameter that begins with `name`, still encoded, or None.

    `name` includes the equals sign, and is matched unescaped. The rest of the query is not parsed,
    so that unverified requests stay cheap.
    """
    if query.startswith(name):
        start = len(name)
    else:
        separator = query.find(b"&" + name)
        if separator < 0:
            return None
        start = separator + 1 + len(name)
    end = query.find(b"&", start)
    return query[start:] if end < 0 else query[start:end]


def sent_secrets(query: bytes, headers: Mapping[str, str]) -> Sequence[bytes]:
    """Return the candidates for the secret of a request: from its URL, or else from a header.

    `query` is the raw query of the URL; the names of `headers` are in lower case.
    """
    value = find(query, b"secret=")
    if value is not None:
        if value.isalnum():  # the common case: nothing to decode
            return (value,)
        text = _decoded(value)
        return () if text is None else (text.encode("utf-8", "surrogatepass"),)
    for name in CREDENTIAL_HEADERS:
        # Blanks around a value are not part of it, but not every server strips them.
        if header := headers.get(name, "").strip(" \t"):
            sent = header.encode("utf-8", "surrogateescape")
            bearer = _BEARER.match(header)
            return (sent, sent[bearer.end() :]) if bearer else (sent,)
    return ()


def sent_app_token(query: bytes) -> str | None:
    """Return the clean app token of a raw query, or None."""
    value = find(query, b"app_token=")
    if not value or value.isalnum():  # the common case
        return value.decode() if value else None
    text = _decoded(value)
    return clean(text) if text else None


def _decoded(value: bytes) -> str | None:
    """Decode a value; return None if it is longer than any secret may be."""
    return decode(value) if len(value) <= _ENCODED_MAX_BYTES else None


class PublicHeaders(Mapping[str, str]):
    """The headers of a request without those that may carry a secret; read lazily."""

    __slots__ = ("_headers",)

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def __getitem__(self, name: str) -> str:
        if name.lower() in CREDENTIAL_HEADERS:
            raise KeyError(name)
        return self._headers[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._headers if name.lower() not in CREDENTIAL_HEADERS)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def counted_address(forwarded: Sequence[str], proxies: int) -> str:
    """Return the address that the outermost trusted proxy has appended to X-Forwarded-For.

    Entries are counted from the end, empty ones too: those further left may be forged.
    """
    # Split from the end only: a caller may send thousands of entries.
    entries = ",".join(forwarded).rsplit(",", proxies)
    return entries[-proxies].strip() if len(entries) >= proxies else ""


@lru_cache(maxsize=4096)
def _is_allowed(address: str, allowlist: Sequence[Network]) -> bool:
    try:
        ip = ip_address(_WITH_PORT.sub(r"\1\2", address))
    except ValueError:
        return False
    # A socket that listens on :: reports IPv4 callers as IPv4-mapped addresses.
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return any(ip in network for network in allowlist)
