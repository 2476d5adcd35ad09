"""DATABASE_URL taken apart into one address for each host that it names."""

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote_plus

from sinks.timescale.errors import AddressError

NOT_UNDERSTOOD = "not an address that the driver understands"
# asyncpg's own rule: the first @ ends the credentials.
_ADDRESS = re.compile(r"([^:]*://)([^/?#@]*@)?([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.DOTALL)


class Host(NamedTuple):
    """One host of an address: its name in messages, and the address with no other host in it."""

    name: str
    url: str


def hosts_of(database_url: str, timeout_s: float) -> tuple[list[Host], float]:
    """Return the hosts, and the time-out of each: at most the `connect_timeout` of the address.

    That option is libpq's; asyncpg would send it as a setting of the server. Raises AddressError.
    """
    try:
        return _taken_apart(database_url, timeout_s)
    except ValueError:
        raise AddressError(NOT_UNDERSTOOD) from None


def _taken_apart(database_url: str, timeout_s: float) -> tuple[list[Host], float]:
    parts = _ADDRESS.fullmatch(database_url)
    if parts is None:
        raise ValueError
    scheme, credentials, netloc, path, query = (part or "" for part in parts.groups())
    pairs = [pair.partition("=")[::2] for pair in query.split("&") if pair]
    options_given = {name: unquote_plus(value) for name, value in pairs}
    connect_timeout_s = float(options_given.get("connect_timeout") or 0)
    in_query = not netloc and bool(options_given.get("host"))
    dropped = {"connect_timeout", *(("host", "port") if in_query else ())}
    kept = "&".join(f"{name}={value}" for name, value in pairs if name not in dropped)
    # An @ that was not encoded: the name of a host may be a part of the password.
    is_plain = "@" not in netloc + path + query
    found = []
    for place, (host, port) in enumerate(_places(options_given) if in_query else _split(netloc), 1):
        address = f"host={quote(host)}" + f"&port={port}" * bool(port) if in_query else ""
        options = "&".join(filter(None, (kept, address)))
        url = f"{scheme}{credentials}{'' if in_query else host}{path}" + f"?{options}" * bool(
            options
        )
        name = f"{host}:{port}" if port else host or "the server"
        found.append(Host(name if is_plain else f"host {place}", url))
    return found, min(timeout_s, connect_timeout_s) if connect_timeout_s > 0 else timeout_s


def _split(netloc: str) -> list[tuple[str, str]]:
    """Return each host of the authority, with its port in it."""
    hosts = netloc.split(",")
    if len(hosts) > 1 and not all(hosts):
        raise ValueError
    return [(host, "") for host in hosts]


def _places(options_given: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return each host of the query, with its port."""
    hosts, ports = options_given["host"].split(","), options_given.get("port", "").split(",")
    if not all(hosts):
        raise ValueError
    return list(zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=True))
