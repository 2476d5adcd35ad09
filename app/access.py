"""May this caller speak for this app? Secrets and addresses."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hmac import compare_digest
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from app.errors import NotConfigured, Unverified
from app.parameters import clean, decode
from app.settings import SECRET_MAX, Network, VendorAccess, secret_owner

# Every byte of a secret may be escaped; what is longer is none, and is not decoded.
_ENCODED_MAX_BYTES = 3 * 4 * SECRET_MAX
# A stranger may send kilobytes in place of an address, and the cache would keep them.
_ADDRESS_MAX = 64
# Some proxies write the port of the caller too; an IPv6 address then stands in brackets.
_WITH_PORT = re.compile(r"^(?:\[([^]]*)\]|([0-9.]+))(?::[0-9]+)?$")
# For vendors whose credential is sent in a header, by rank.
CREDENTIAL_HEADERS = ("x-flokit-secret", "authorization")
_BEARER = re.compile(r"bearer +", re.IGNORECASE)


class _Secret(NamedTuple):
    text: bytes
    owner: str
    place: int


class Access:
    """Verifies callers against the secrets and allowlists of the settings."""

    def __init__(self, vendors: Mapping[str, VendorAccess]) -> None:
        self._allowlists = {vendor: access.allowlist for vendor, access in vendors.items()}
        # By owner: a workspace as `secret_owner` writes it, the empty text for the vendor itself.
        self._secrets = {
            vendor: {
                owner: [
                    _Secret(secret.encode(), owner, place) for place, secret in enumerate(secrets)
                ]
                for owner, secrets in {"": access.secrets, **access.workspaces}.items()
                if secrets
            }
            for vendor, access in vendors.items()
        }
        # Whether each secret was accepted since it was last reset, by vendor, owner and place.
        self.used = {
            vendor: {owner: [False] * len(secrets) for owner, secrets in owners.items()}
            for vendor, owners in self._secrets.items()
        }

    def verify(
        self, vendor: str, workspace: str | None, candidates: Sequence[bytes], address: str
    ) -> None:
        """Return if one of the candidates is a valid secret and `address` is allowed.

        Valid are the secrets of the workspace, where it has its own, else the vendor's; of an app
        that belongs to no workspace all of them. `address` is the caller's, as text; it may be
        empty where the proxies did not send it. Raises NotConfigured where no secret is
        configured, else Unverified.
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
        # Every secret is compared, so that the time tells nothing about a near miss.
        match: _Secret | None = None
        for secret in valid:
            for sent in candidates:
                if compare_digest(sent, secret.text):
                    match = match or secret
        if match is None:
            raise Unverified("wrong_secret")
        self.used[vendor][match.owner][match.place] = True


def find(query: bytes, name: bytes) -> bytes | None:
    """Return the value of the first parameter that begins with `name`, still encoded, or None.

    `name` ends with the equals sign, and counts where it is sent literally. Nothing else of the
    query is taken apart, so that a stranger's request costs next to nothing.
    """
    if query.startswith(name):
        start = len(name)
    else:
        place = query.find(b"&" + name)
        if place < 0:
            return None
        start = place + 1 + len(name)
    end = query.find(b"&", start)
    return query[start:] if end < 0 else query[start:end]


def sent_secrets(query: bytes, headers: Mapping[str, str]) -> Sequence[bytes]:
    """Return the candidates for the secret of a request: of its URL, or else of a header.

    `query` is the raw query of the URL; the names of `headers` are in lower case.
    """
    value = find(query, b"secret=")
    if value is not None:
        if value.isalnum():  # as a rule
            return (value,)
        text = _decoded(value)
        return () if text is None else (text.encode("utf-8", "surrogatepass"),)
    for name in CREDENTIAL_HEADERS:
        # Blanks round it are no part of a value, and not every server takes them away.
        if header := headers.get(name, "").strip(" \t"):
            sent = header.encode("utf-8", "surrogateescape")
            bearer = _BEARER.match(header)
            return (sent, sent[bearer.end() :]) if bearer else (sent,)
    return ()


def sent_app_token(query: bytes) -> str | None:
    """Return the clean app token of a raw query; None where there is none."""
    value = find(query, b"app_token=")
    if not value or value.isalnum():  # as a rule
        return value.decode() if value else None
    text = _decoded(value)
    return clean(text) if text else None


def _decoded(value: bytes) -> str | None:
    """Return a value as it was meant; None where it is longer than any that is configured."""
    return decode(value) if len(value) <= _ENCODED_MAX_BYTES else None


class PublicHeaders(Mapping[str, str]):
    """The headers of a request but for those that may hold a secret; read only when asked for."""

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
    """Return what the outermost of our own proxies has entered, from the lines of a header.

    Counted from the end, empty entries too: whatever stands further left may be forged.
    """
    # From the end alone: a stranger may send thousands.
    entries = ",".join(forwarded).rsplit(",", proxies)
    return entries[-proxies].strip() if len(entries) >= proxies else ""


@lru_cache(maxsize=4096)
def _is_allowed(address: str, allowlist: Sequence[Network]) -> bool:
    try:
        ip = ip_address(_WITH_PORT.sub(r"\1\2", address))
    except ValueError:
        return False
    # A socket that listens on :: sees IPv4 callers in this form.
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return any(ip in network for network in allowlist)
