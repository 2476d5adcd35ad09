"""REDIS_URL for a cluster and Sentinels, and wrong ones."""

import pytest
from redis.asyncio.connection import SSLConnection

from app.claims.discovery import Kind, read_address
from app.settings import SettingsError


def test_address_of_a_cluster_names_its_nodes() -> None:
    """Each node has its host and port, and all have the same user."""
    address = read_address("rediss+cluster://me:pa%40ss,word@one:7000,[::1]:7001,three")
    assert address.kind is Kind.CLUSTER
    assert [(endpoint["host"], endpoint["port"]) for endpoint in address.endpoints] == [
        ("one", 7000), ("::1", 7001), ("three", 6379),
    ]  # fmt: skip
    for endpoint in address.endpoints:
        assert (endpoint["username"], endpoint["password"]) == ("me", "pa@ss,word")
        assert endpoint["connection_class"] is SSLConnection


def test_address_of_sentinels_ends_with_the_service() -> None:
    """The path is the service; options are redis-py's."""
    address = read_address("redis+sentinel://:word@one:26380,two/my%20claims?db=3")
    assert (address.kind, address.service) == (Kind.SENTINEL, "my claims")
    assert [(one["host"], one["port"], one["db"]) for one in address.endpoints] == [
        ("one", 26380, 3), ("two", 26379, 3),
    ]  # fmt: skip
    assert [endpoint["password"] for endpoint in address.endpoints] == ["word", "word"]


@pytest.mark.parametrize(
    "rest",
    [
        "+cluster://:pa55w0rd@one:7000,",
        "+cluster://:pa55w0rd@,one:7000",
        "+cluster://:pa55w0rd@one:port",
        "+cluster://:pa55w0rd@one:7000/1",
        "+cluster://:pa55w0rd@one:7000?db=1",
        "+cluster://:pa55w0rd@one:7000?no_such_option=1",
        "+sentinel://:pa55w0rd@one:26379",
        "+sentinel://:pa55w0rd@one:26379/",
        "+sentinel://:pa55w0rd@:26379/claims",
        "+sentinel://:pa55w0rd@one:70000/claims",
        "+cluster://:pa55w0rd@[::1:7000",
        "+ring://:pa55w0rd@one:7000",
        "://:pa55w0rd@one:port",
    ],
)
def test_wrong_address_is_reported_without_its_password(rest: str) -> None:
    """The error is one line that names the variable."""
    with pytest.raises(
        SettingsError, match=r"^REDIS_URL: not an address of the form redis"
    ) as raised:
        read_address(f"redis{rest}")
    assert "\n" not in str(raised.value)
    assert "pa55w0rd" not in str(raised.value)
    assert raised.value.__cause__ is None
