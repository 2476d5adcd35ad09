"""Verification of callers: secrets, and allowlists of addresses."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hmac import compare_digest
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from app.errors import NotConfigured, Unverified
from app.normalize import clean
from app.parameters import decode
from app.settings import SECRET_MAX, Network, VendorAccess, secret_owner

# A character has up to four bytes, each of which may be escaped. Longer values are not decoded.
ENCODED_MAX_BYTES = 3 * 4 * SECRET_MAX
# Longer texts are no addresses, and must not fill the cache.
_ADDRESS_MAX = 64
# Some proxies append the caller's port; an IPv6 address is then in brackets.
_WITH_PORT = re.compile(r"^(?:\[([^]]*)\]|([0-9.]+))(?::[0-9]+)?$")
# Headers that may carry the credential, by precedence.
CREDENTIAL_HEADERS = ("x-flokit-secret", "authorization")
# The reason of an unverified callback for which there are hints.
WRONG_SECRET = "wrong_secret"  # noqa: S105 - a reason
_BEARER = re.compile(r"bearer +", re.IGNORECASE)


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
    return decode(value) if len(value) <= ENCODED_MAX_BYTES else None


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
