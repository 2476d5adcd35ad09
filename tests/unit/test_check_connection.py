"""The line of check on the connection to the database."""

from collections.abc import Mapping

import pytest

from app.commands.check_database import check_connection
from app.commands.report import Report
from sinks.timescale.inspection import Wire, ends_at

CHAIN = "TLS 1.3, certificate verified, its host name not"

VERIFIED = "TLS 1.3, certificate verified"

REMOTE = {
    "not encrypted": Wire(is_local=False),
    "TLS 1.3, certificate not verified": Wire(is_local=False, tls="TLS 1.3"),
}


@pytest.mark.parametrize("text", REMOTE)
def test_unverified_connection_to_another_machine_is_a_warning(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A connection that can be read or redirected is a warning; on this machine it is not."""
    check_connection(Report(), REMOTE[text])
    check_connection(Report(), REMOTE[text]._replace(is_local=True))
    remote, local = capsys.readouterr().out.splitlines()
    assert remote.startswith(f"warning  database connection: {text}: see ")
    assert local.startswith(f"ok       database connection: {text}; ")


VERIFIED_WIRES: Mapping[str, Wire] = {
    CHAIN: Wire(is_local=False, tls="TLS 1.3", is_verified=True),
    VERIFIED: Wire(is_local=False, tls="TLS 1.3", is_verified=True, is_host_verified=True),
}


@pytest.mark.parametrize("text", VERIFIED_WIRES)
def test_verified_connection_is_no_warning(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A verified certificate is no warning."""
    check_connection(Report(), VERIFIED_WIRES[text])
    assert capsys.readouterr().out == f"ok       database connection: {text}\n"


@pytest.mark.parametrize(
    ("peer", "host", "port", "is_direct"),
    [
        (("127.0.0.1", 5432), "127.0.0.1", 5432, True),
        (("::ffff:10.0.0.1", 5432, 0, 0), "10.0.0.1", 5432, True),
        (("fe80::1%eth0", 5432, 0, 2), "fe80::1", 5432, True),
        (("127.0.0.1", 5432), "10.0.0.1", 5432, False),  # HAProxy on the port of the servers
        (("10.0.0.1", 6432), "10.0.0.1", 5432, False),
        (("10.96.0.7", 5432), "10.1.0.4", 5432, False),  # a service of Kubernetes
        (("127.0.0.1", 5432), None, None, False),  # a proxy that goes on by a Unix socket
        ("", "10.0.0.1", 5432, False),  # a proxy on a Unix socket
        ("", None, None, True),
    ],
)
def test_address_of_the_server_is_compared(
    peer: object, host: str | None, port: int | None, is_direct: bool
) -> None:
    """A connection is direct if our side and the server's name one address, in any spelling."""
    assert ends_at(peer, host, port) is is_direct
