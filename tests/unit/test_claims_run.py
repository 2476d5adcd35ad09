"""The keys of Redis are compared with the rows, event by event."""

import pytest

from bench.sabotage.claims_run import Key, broken_leases, claimed, unsettled, unwritten
from bench.testbed.environment import CLAIM_LEASE_S

ONE, TWO, THREE = (bytes([number]) * 16 for number in (1, 2, 3))
LEASE_MS = int(CLAIM_LEASE_S * 1_000)


def key(event_id: bytes, owner: bytes = b"seen") -> Key:
    """A key of an event, with some time left."""
    return Key(b"generation" + event_id, owner, 1_000)


def test_seen_events_are_those_with_a_row() -> None:
    """Each row is seen, or claimed by another process; a claim of that process needs no row."""
    for keys in (
        [key(ONE), key(TWO)],
        [key(ONE), key(TWO, b"another"), key(THREE, b"another")],
    ):
        assert not unsettled(keys, {ONE, TWO})
        assert not unwritten(keys, {ONE, TWO})


def test_row_that_is_not_seen_is_found() -> None:
    """An expired claim leaves no key: the row alone shows that its event was not settled."""
    assert unsettled([key(ONE)], {ONE, TWO}) == {TWO}
    assert unsettled([key(ONE), key(TWO, b"token")], {ONE, TWO}) == {TWO}


def test_seen_event_without_a_row_is_found() -> None:
    """An event that was not written must not be seen."""
    assert unwritten([key(ONE), key(TWO)], {ONE}) == {TWO}


def test_claims_are_those_of_a_gateway() -> None:
    """A claim is settled or released; only the other process keeps its own."""
    assert claimed([key(ONE), key(TWO, b"token"), key(THREE, b"another")]) == [key(TWO, b"token")]


@pytest.mark.parametrize("left_ms", [[LEASE_MS], [1, LEASE_MS - 100], []])
def test_leases_are_right(left_ms: list[int]) -> None:
    """One of the claims is fresh, and has nearly all of its lease."""
    assert not broken_leases(left_ms)


@pytest.mark.parametrize(
    "left_ms",
    [[200], [LEASE_MS // 2] * 10, [LEASE_MS + 1, LEASE_MS], [-1, LEASE_MS], [0, LEASE_MS]],
)
def test_wrong_leases_are_found(left_ms: list[int]) -> None:
    """A lease that is too short, too long, or without an end."""
    assert broken_leases(left_ms)
