"""Drops and traces of rejected requests, entered as the gateway's quarantine does."""

import argparse
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import import_module

import asyncpg
import msgspec

from app.__main__ import Command, HasArguments
from app.dropped import Dropped, RejectedRequest
from app.event import DropReason

QUERY = b"app_token=abc123token&event_token=zzzzzz&created_at=1750500000&user_id=usr_1"


def drop(subject: str = "zzzzzz", **fields: object) -> Dropped:
    """A callback of an unmapped event, unless `fields` change that."""
    known = Dropped(
        received_at=datetime.now(UTC),
        vendor="adjust",
        workspace_id="ws_test",
        app_token="abc123token",
        reason=DropReason.UNMAPPED_EVENT,
        subject=subject,
        method="GET",
        query=QUERY.replace(b"zzzzzz", subject.encode()),
    )
    return msgspec.structs.replace(known, **fields)


async def keep(connection: asyncpg.Connection, *drops: Dropped) -> None:
    """Enter drops into quarantine."""
    await _enter(connection, "dropped", drops, leave_out={"account"})


async def reject(connection: asyncpg.Connection, *requests: RejectedRequest) -> None:
    """Enter traces of rejected requests."""
    await _enter(connection, "rejected", requests, leave_out=set())


async def _enter(
    connection: asyncpg.Connection,
    table: str,
    rows: Iterable[Dropped | RejectedRequest],
    leave_out: set[str],
) -> None:
    records = [msgspec.structs.asdict(row) for row in rows]
    columns = [name for name in records[0] if name not in leave_out]
    values = [
        [
            value.value if isinstance(value, DropReason) else value
            for value in map(record.get, columns)
        ]
        for record in records
    ]
    await connection.copy_records_to_table(table, columns=columns, records=values)


def invoke(name: str, *words: str) -> int:
    """Run a command in this process, and return its exit code."""
    command: Command = import_module(f"app.commands.{name}")
    parser = argparse.ArgumentParser()
    assert isinstance(command, HasArguments)
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))
