"""The budget for unfinished requests: its CPU time, and its room."""

from sys import getsizeof
from time import thread_time
from typing import cast

import pytest

from app.http import connection_limits as connections
from app.http.connection_limits import Connection, ReceiveBudget


class Silent:
    """A connection with a head of which 13 KB have come."""

    def __init__(self) -> None:
        self.recv_buffer = bytearray(13_000)
        self.is_unfinished = True
        self.last_active_at = 0.0
        self.refused = False

    @property
    def received_bytes(self) -> int:
        return getsizeof(self.recv_buffer)

    def refuse(self, _: str) -> None:
        self.refused = True


@pytest.mark.no_cover
def test_adding_up_is_cheap() -> None:
    """Adding up ten thousand connections, and choosing some of them, delays no callback."""
    costs = []
    for _ in range(3):  # it may be this thread's turn to collect the garbage of other tests
        silent = [Silent() for _ in range(10_000)]
        budget, before = ReceiveBudget(), thread_time()
        budget.enforce(cast("list[Connection]", silent))
        costs.append(thread_time() - before)
    assert min(costs) < 0.06  # a small part of it where nothing else runs
    refused = sum(connection.refused for connection in silent)
    assert 0 < refused < 1_500
    left = 13_000 * (10_000 - refused)
    assert left <= connections.RECEIVED_MAX_BYTES - connections.ADD_UP_BYTES


def test_budget_leaves_room_in_the_container() -> None:
    """Connections of the largest number and small size fit, and so do some of the largest."""
    small = connections.CONNECTIONS_MAX * connections.SMALL_BYTES
    assert small < connections.RECEIVED_MAX_BYTES / 2
    assert connections.ADD_UP_BYTES < connections.RECEIVED_MAX_BYTES / 8
