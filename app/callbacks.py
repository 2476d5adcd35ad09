"""From the bytes of a verified request to a callback: its parameters, clean and counted."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial

from app.access import PublicHeaders
from app.errors import MalformedBody, TooManyParameters, Unavailable
from app.event import OLDEST_OCCURRED_AT, Callback
from app.parameters import AT_ONCE_BYTES, NO_BODY, PARAMETERS_MAX, Body, parse_form, read_body
from app.settings import ROW_LIFE_MIN_D
from app.vendor import Vendor

# Limit on large bodies that wait for the thread: the connections' budget counts them no longer.
WAITING_MAX_BYTES = 64 * 1024 * 1024


def make_callback(
    vendor: Vendor,
    query: bytes,
    body: Body,
    headers: Mapping[str, str],
    received_at: datetime,
    *,
    retention_d: int,
) -> Callback:
    """Return the callback of a raw query and a body.

    `retention_d` is the setting. Raises TooManyParameters.
    """
    in_query = parse_form(query)
    in_query.pop("secret", None)
    occurred_from = OLDEST_OCCURRED_AT
    if retention_d:
        kept_d = retention_d - ROW_LIFE_MIN_D
        occurred_from = max(OLDEST_OCCURRED_AT, received_at - timedelta(days=kept_d))
    callback = Callback(
        query=in_query,
        received_at=received_at,
        occurred_from=occurred_from,
        headers=PublicHeaders(headers),
        body=body.json,
        in_body=None if body is NO_BODY else partial(_in_body, body),
        unfilled=vendor.unfilled,
    )
    may_be_many = body is not NO_BODY and len(in_query) + body.members_max > PARAMETERS_MAX
    if may_be_many and len(callback.parameters) > PARAMETERS_MAX:
        raise TooManyParameters
    return callback


def _in_body(body: Body) -> Mapping[str, str]:
    return {name: value for name, value in body.parse().items() if name != "secret"}


class Bodies:
    """Reads bodies: small ones at once, large ones in a thread, within a limit on their bytes."""

    def __init__(self) -> None:
        # One thread: several would compete with the event loop for the interpreter's lock.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")
        self._waiting_bytes = 0

    async def read(self, headers: Mapping[str, str], body: bytes) -> Body:
        """Return a readable body; raises MalformedBody, TooManyParameters, Unavailable."""
        content_type = headers.get("content-type", "")
        if len(body) <= AT_ONCE_BYTES:
            readable = read_body(content_type, body)
        else:
            readable = await self._read_large(content_type, body)
        if readable is None:
            raise MalformedBody
        return readable

    async def _read_large(self, content_type: str, body: bytes) -> Body | None:
        if self._waiting_bytes + len(body) > WAITING_MAX_BYTES:
            raise Unavailable("buffer_full")
        self._waiting_bytes += (size_bytes := len(body))

        def release(_: object) -> None:
            self._waiting_bytes -= size_bytes

        reading = asyncio.get_running_loop().run_in_executor(
            self._thread, read_body, content_type, body
        )
        reading.add_done_callback(release)
        # Shielded: the queued body stays in memory, and is counted, even if the caller hangs up.
        return await asyncio.shield(reading)
