"""The shares of quarantine: bounds of size, of workspaces and of accounts."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dropped import Dropped
from app.event import DropReason
from app.shares import ACCOUNTS_MAX, CALLBACK_MAX_BYTES, SMALL_BYTES, Shares
from sinks import Account
from tests.adapter_cases import RECEIVED_AT

MEGABYTE = 1_000_000
MAX_BYTES = 40 * MEGABYTE
UNMAPPED, TIME = DropReason.UNMAPPED_EVENT, DropReason.INVALID_TIMESTAMP
FLOOD = Account("ws", UNMAPPED.value, "flood")


def drop(
    subject: str = "flood",
    workspace: str = "ws",
    reason: DropReason = UNMAPPED,
    size_bytes: int = 50_000,
    days: int = 0,
) -> Dropped:
    """A drop with a query of a given size."""
    return Dropped(
        received_at=RECEIVED_AT + timedelta(days=days), vendor="adjust", workspace_id=workspace,
        app_token="app", reason=reason, subject=subject, method="GET", query=bytes(size_bytes),
    )  # fmt: skip


def fill(shares: Shares, subject: str = "flood", workspace: str = "ws") -> str:
    """Admit drops of one kind until one has no place; returns the cause."""
    for _ in range(2 * MAX_BYTES // 50_000):
        _, why = shares.admit(drop(subject, workspace))
        if why:
            return why
    pytest.fail("every drop was admitted")


def test_account_has_a_quarter() -> None:
    """One subject takes a quarter, and leaves room for the others of its workspace."""
    shares = Shares(MAX_BYTES)
    assert fill(shares) == "account_share"
    assert 0.98 * MAX_BYTES / 4 < shares.total_bytes <= MAX_BYTES / 4
    assert shares.admit(drop("single"))[1] == ""


def test_workspace_has_a_half() -> None:
    """All subjects of one workspace take a half, and leave room for other workspaces."""
    shares = Shares(MAX_BYTES)
    causes = [fill(shares, subject=name) for name in "abc"]
    assert causes == ["account_share", "account_share", "workspace_share"]
    assert shares.total_bytes <= MAX_BYTES / 2
    assert shares.admit(drop("single", "another"))[1] == ""


def test_last_quarter_is_for_small_accounts() -> None:
    """Beyond three quarters only subjects below a megabyte have a place, up to the end."""
    shares = Shares(MAX_BYTES)
    causes = [fill(shares, workspace=name, subject="large") for name in "abcd"]
    assert causes == ["account_share", "account_share", "account_share", "reserved"]
    assert shares.total_bytes <= 3 * MAX_BYTES / 4 + SMALL_BYTES
    assert shares.admit(drop("single", "a"))[1] == ""
    small = (fill(shares, workspace=f"w{n % 30}", subject=f"s{n}") for n in range(100))
    assert "full" in small
    assert MAX_BYTES - 60_000 < shares.total_bytes <= MAX_BYTES


def test_long_callback_has_no_place() -> None:
    """A callback above 64 KB is not kept, however empty quarantine is."""
    shares = Shares(MAX_BYTES)
    assert shares.admit(drop(size_bytes=CALLBACK_MAX_BYTES + 1))[1] == "too_large"
    assert shares.admit(drop(size_bytes=CALLBACK_MAX_BYTES))[1] == ""


def test_usage_that_was_read_counts() -> None:
    """The usage of all processes replaces the own count; pending and new drops are added."""
    shares = Shares(MAX_BYTES)
    fill(shares)
    shares.begin()
    shares.update({})
    # Of drops that are not committed yet.
    assert shares.admit(drop())[1] == "account_share"
    admitted, _ = Shares(MAX_BYTES).admit(drop())
    for _ in range(shares.total_bytes // admitted.size_bytes):
        shares.release(FLOOD, admitted.size_bytes)
    shares.begin()
    shares.update({})
    assert shares.total_bytes == 0
    assert shares.admit(drop())[1] == ""
    shares.release(FLOOD, admitted.size_bytes)
    shares.begin()
    shares.admit(drop())
    quarter = MAX_BYTES // 4
    shares.update({FLOOD: quarter, Account("x", "", ""): 7})
    assert shares.total_bytes == quarter + 7 + drop().size_bytes
    assert shares.admit(drop())[1] == "account_share"
    assert shares.admit(drop("single"))[1] == ""


def subjects(number: int) -> Iterator[str]:
    """Different subjects."""
    return (f"subject-{n}" for n in range(number))


def test_made_up_subjects_share_one_account() -> None:
    """Beyond a thousand subjects of a reason, new ones are counted together, until the next day."""
    shares = Shares(MAX_BYTES)
    for subject in subjects(ACCOUNTS_MAX):
        assert shares.admit(drop(subject, size_bytes=10))[0].account == subject
    assert shares.admit(drop("one more", size_bytes=10))[0].account == ""
    assert shares.admit(drop("subject-7", size_bytes=10))[0].account == "subject-7"
    assert shares.admit(drop("one more", reason=TIME, size_bytes=10))[0].account == "one more"
    assert shares.admit(drop("one more", days=1, size_bytes=10))[0].account == "one more"


@given(
    st.lists(
        st.builds(
            drop,
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from(["v", "w"]),
            size_bytes=st.integers(0, CALLBACK_MAX_BYTES + 10),
        ),
        max_size=60,
    )
)
def test_bounds_hold_for_any_drops(drops: list[Dropped]) -> None:
    """Whatever comes, no account, workspace or sum exceeds its bound."""
    max_bytes = MEGABYTE
    shares = Shares(max_bytes)
    accounts: dict[Account, int] = {}
    for each in drops:
        admitted, why = shares.admit(each)
        if not why:
            account = Account(each.workspace_id, each.reason.value, admitted.account)
            accounts[account] = accounts.get(account, 0) + admitted.size_bytes
    total = sum(accounts.values())
    assert shares.total_bytes == total <= max_bytes
    assert all(size_bytes <= max_bytes / 4 for size_bytes in accounts.values())
    for workspace in "vw":
        assert sum(n for account, n in accounts.items() if account[0] == workspace) <= max_bytes / 2
