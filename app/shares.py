"""The shares of quarantine: admission of drops by the size of their accounts."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import date

from msgspec.structs import replace

from app.dropped import Dropped
from sinks import Account

# A longer callback is not kept.
CALLBACK_MAX_BYTES = 64 * 1024
# An account below this size is a small one.
SMALL_BYTES = 1_000_000
# Parts of quarantine: of one account, of one workspace, and the part beyond which only a small
# account has a place.
ACCOUNT_SHARE, WORKSPACE_SHARE, OPEN_SHARE = 1 / 4, 1 / 2, 3 / 4
# Accounts below this part need not be read one by one: each may exceed its share by as much.
UNREAD_SHARE = 1 / 100
# Subjects of a workspace and reason that have an account of their own, each day; further ones
# share one. A sender may make up a new subject for each callback.
ACCOUNTS_MAX = 1_000
ALL_ACCOUNTS_MAX = 100_000


class Shares:
    """Admits drops by the last known usage of quarantine, and by the drops admitted since.

    Drops that other processes have kept since that usage was read are not counted: quarantine
    may exceed a bound by as much as they keep between two reads.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # Below it, the accounts of a workspace may be read as one.
        self.small_bytes = min(SMALL_BYTES, int(UNREAD_SHARE * max_bytes))
        self._workspaces: defaultdict[str, int] = defaultdict(int)
        self._accounts: defaultdict[Account, int] = defaultdict(int)
        # Admitted, and neither committed nor failed.
        self._pending: defaultdict[Account, int] = defaultdict(int)
        # Admitted since the usage was last read, or is being read, or pending at that moment.
        self._admitted: defaultdict[Account, int] = defaultdict(int)
        self._day = date.min
        self._subjects: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._subjects_count = 0
        self.total_bytes = 0

    def begin(self) -> None:
        """Note that the usage is read from now on."""
        self._admitted = self._pending.copy()

    def update(self, usage: Mapping[Account, int]) -> None:
        """Take over the usage that was read."""
        self.total_bytes = 0
        self._workspaces.clear()
        self._accounts.clear()
        for sizes in (usage, self._admitted):
            for account, size_bytes in sizes.items():
                self._add(account, size_bytes)

    def admit(self, dropped: Dropped) -> tuple[Dropped, str]:
        """Return a drop with its account, and the reason why it has no place, empty if it has."""
        dropped = replace(dropped, account=self._account_subject(dropped))
        account = Account(dropped.workspace_id, dropped.reason.value, dropped.account)
        size_bytes = dropped.size_bytes
        if len(dropped.query) + len(dropped.body) + len(dropped.event or b"") > CALLBACK_MAX_BYTES:
            return dropped, "too_large"
        why = self._refusal(account, size_bytes)
        if not why:
            self._admitted[account] += size_bytes
            self._pending[account] += size_bytes
            self._add(account, size_bytes)
        return dropped, why

    def release(self, account: Account, size_bytes: int) -> None:
        """Note that an admitted drop of this size is committed, or has failed."""
        self._pending[account] -= size_bytes
        if self._pending[account] <= 0:
            del self._pending[account]

    def _refusal(self, account: Account, size_bytes: int) -> str:
        """Return the reason why a drop has no place; empty if it has."""
        total = self.total_bytes + size_bytes
        of_workspace = self._workspaces.get(account.workspace_id, 0) + size_bytes
        of_account = self._accounts.get(account, 0) + size_bytes
        if total > self._max_bytes:
            return "full"
        if of_workspace > WORKSPACE_SHARE * self._max_bytes:
            return "workspace_share"
        if of_account > ACCOUNT_SHARE * self._max_bytes:
            return "account_share"
        if total > OPEN_SHARE * self._max_bytes and of_account > SMALL_BYTES:
            return "reserved"
        return ""

    def _add(self, account: Account, size_bytes: int) -> None:
        self.total_bytes += size_bytes
        self._workspaces[account.workspace_id] += size_bytes
        self._accounts[account] += size_bytes

    def _account_subject(self, dropped: Dropped) -> str:
        """Return the subject, or the empty one where too many others have an account."""
        if (day := dropped.received_at.date()) != self._day:
            self._day = day
            self._subjects.clear()
            self._subjects_count = 0
        subjects = self._subjects[dropped.workspace_id, dropped.reason.value]
        if dropped.subject not in subjects:
            if len(subjects) >= ACCOUNTS_MAX or self._subjects_count >= ALL_ACCOUNTS_MAX:
                return ""
            subjects.add(dropped.subject)
            self._subjects_count += 1
        return dropped.subject
