"""Dropped callbacks for tests of quarantine, and the sizes that their rows are counted with."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from app.dropped import Dropped
from app.event import DropReason
from sinks import Account

# A query of 326 bytes, of the parameters that an app sends with each callback.
QUERY = (
    b"app_token=abc123token&event_token=zzzzzz&activity_kind=event&created_at=1750500000"
    b"&os_name=ios&country=us&adid=18546f6171f67e29d1cb983322ad1329"
    b"&idfa=D2CADB5F-410F-4963-AC0C-2A78534BDF1E&revenue=49.99&revenue_float=49.99&currency=USD"
    b"&user_id=usr_abc123&transaction_id=T-10032-99817&ip_address=203.0.113.7&environment=production"
)


def drop(**fields: Any) -> Dropped:
    """A dropped callback."""
    known = Dropped(
        received_at=datetime.now(UTC),
        vendor="adjust",
        workspace_id="ws_test",
        app_token="abc123token",
        reason=DropReason.UNMAPPED_EVENT,
        subject="zzzzzz",
        method="GET",
        query=QUERY,
        account=fields.get("subject", "zzzzzz"),
    )
    return msgspec.structs.replace(known, **fields)


def sizes_of(drops: Sequence[Dropped]) -> Counter[Account]:
    """The size of drops by account."""
    sizes: Counter[Account] = Counter()
    for kept in drops:
        sizes[Account(kept.workspace_id, kept.reason.value, kept.account)] += kept.size_bytes
    return sizes


async def rows_of(connection: asyncpg.Connection) -> int:
    """The number of rows in quarantine; fails where another number is counted."""
    rows, counted = await connection.fetchrow(
        "SELECT (SELECT count(*) FROM dropped), "
        "(SELECT coalesce(sum(rows), 0) FROM quarantine_usage)"
    ) or (0, 0)
    assert rows == counted
    return int(rows)


async def counted(connection: asyncpg.Connection) -> Counter[Account]:
    """The size that is counted, by account."""
    records = await connection.fetch(
        "SELECT workspace_id, reason, subject, sum(bytes)::int8 FROM quarantine_usage "
        "GROUP BY 1, 2, 3"
    )
    return Counter({Account(*record[:3]): record[3] for record in records})
