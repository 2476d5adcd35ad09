"""May this caller speak for this vendor? Secrets and addresses."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hmac import compare_digest
from ipaddress import IPv6Address, ip_address

from app.errors import NotConfigured, Unverified
from app.settings import Network, VendorAccess

# A stranger may send kilobytes in place of an address, and the cache would keep them.
_ADDRESS_MAX = 64
# Some proxies write the port of the caller too; an IPv6 address then stands in brackets.
_WITH_PORT = re.compile(r"^(?:\[([^]]*)\]|([0-9.]+))(?::[0-9]+)?$")


class Access:
    """Verifies callers against the secrets and allowlists of the settings."""

    def __init__(self, vendors: Mapping[str, VendorAccess]) -> None:
        self._vendors = {
            vendor: (tuple(secret.encode() for secret in access.secrets), access.allowlist)
            for vendor, access in vendors.items()
        }
        # Whether each secret was accepted; who has looked at it, sets it back.
        self.used = {vendor: [False] * len(access.secrets) for vendor, access in vendors.items()}

    def verify(self, vendor: str, secret: str, address: str) -> None:
        """Return if `secret` is one of the vendor's and `address` is allowed.

        `address` is the caller's, as text; it may be empty where the proxies did not tell it.
        Raises NotConfigured where no secret is configured, else Unverified.
        """
        secrets, allowlist = self._vendors.get(vendor, ((), ()))
        if not secrets:
            raise NotConfigured("no_secret_configured")
        if allowlist and (len(address) > _ADDRESS_MAX or not _is_allowed(address, allowlist)):
            raise Unverified("address_not_allowed")
        # Every secret is compared, so that the time tells nothing about which one came close.
        sent = secret.encode("utf-8", "surrogatepass")
        matches = [compare_digest(sent, configured) for configured in secrets]
        try:
            self.used[vendor][matches.index(True)] = True
        except ValueError:
            raise Unverified("wrong_secret") from None


def counted_address(forwarded: Sequence[str], proxies: int) -> str:
    """Return what the outermost of our own proxies has entered, from the lines of a header.

    Counted from the end, empty entries too: whatever stands further left may be forged.
    """
    entries = ",".join(forwarded).split(",")
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
