"""Drops on their way into quarantine: admitted, redacted, committed in groups, then counted.

A drop that has a place in quarantine is durable before it is answered. It waits in a buffer of its
own, so that no event waits for a drop.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, partial
from time import monotonic

from msgspec.structs import replace

from app.apart import Apart
from app.buffer import WriteBuffer
from app.dropped import Dropped, RejectedRequest, decode_event, encode_event
from app.errors import QuarantineBusy, QuarantineFailed, Unavailable
from app.normalize import clean
from app.redaction import omitted_stand_in, redact_body, redact_query, redact_text
from app.shares import Shares
from app.telemetry.metrics import QUARANTINE_BYTES, QUARANTINE_SKIPPED
from app.telemetry.outcomes import count_drop, count_failure, count_kept
from sinks import Account, Quarantine

# Rows committed together, and drops that wait at most. Batches are small, since the answers to one
# are sent in one turn of the event loop: events wait for it (`python -m bench flood`).
BATCH_MAX, BUFFER_MAX = 64, 5_000
BATCH_MAX_BYTES, BUFFER_MAX_BYTES = 1024 * 1024, 16 * 1024 * 1024
# The interval at which the usage is read, and rejected requests are written.
TICK_S = 1.0
# The part of the time that reads of the usage may take: with very many accounts they are slow, and
# drops wait meanwhile. But they are not put off for longer than the pause.
USAGE_SHARE, USAGE_PAUSE_MAX_S = 0.05, 10.0
# Texts whose redaction is remembered.
TEXTS_MAX = 1_000
REJECTED_PER_TICK = 5
ADDRESS_MAX = 64
# A longer callback is redacted in a thread, since it would block the event loop too long.
REDACTED_AT_ONCE_BYTES = 4 * 1024
IN_THREAD_MAX = 100

log = logging.getLogger(__name__)


class Drops:
    """Keeps dropped callbacks and the traces of rejected requests; without quarantine, none."""

    def __init__(
        self,
        quarantine: Quarantine | None,
        *,
        max_bytes: int,
        secrets: Collection[str],
        now: Callable[[], datetime],
    ) -> None:
        self._quarantine = quarantine
        self._secrets = secrets
        # A flood has few different tokens and subjects.
        self._redact = lru_cache(TEXTS_MAX)(partial(redact_text, secrets=secrets))
        self._now = now
        self._shares = Shares(max_bytes)
        self._buffer: WriteBuffer[Dropped, bool] | None = None
        if quarantine is not None:
            self._buffer = WriteBuffer(
                partial(_commit, quarantine),
                batch_max=BATCH_MAX,
                buffer_max=BUFFER_MAX,
                batch_max_bytes=BATCH_MAX_BYTES,
                buffer_max_bytes=BUFFER_MAX_BYTES,
            )
        self._apart = Apart("long-drops", IN_THREAD_MAX)
        self._rejected: list[RejectedRequest] = []
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the background work, in the running loop."""
        if self._quarantine is not None:
            self._keeper = asyncio.create_task(self._keep_up(self._quarantine))

    async def keep(self, dropped: Dropped, omitted: Collection[str] = ()) -> None:
        """Return once a drop is durable, or has no place; counts it, or its failure.

        `omitted` are the parameters that the app never stores. Raises QuarantineFailed or
        QuarantineBusy, after which the drop may or may not be kept.
        """
        if self._buffer is None:
            _skip(dropped, "off")
            return
        dropped, why = self._shares.admit(dropped)
        if why:
            _skip(dropped, why)
            return
        account = Account(dropped.workspace_id, dropped.reason.value, dropped.account)
        size_bytes = dropped.size_bytes
        try:
            if len(dropped.query) + len(dropped.body) <= REDACTED_AT_ONCE_BYTES:
                dropped = self._redacted(dropped, omitted)
            else:
                dropped = await self._apart.run(1, self._redacted, dropped, omitted)
            await self._buffer.submit(dropped, account, size_bytes)
        except Unavailable:
            count_failure(dropped.vendor, dropped.workspace_id, "quarantine_busy")
            raise QuarantineBusy("quarantine_busy") from None
        finally:
            # Of a caller that hangs up earlier than of the others: the buffer keeps its drop.
            self._shares.release(account, size_bytes)

    @property
    def wants_rejected(self) -> bool:
        """Whether a trace of the next rejected request would be kept."""
        return self._quarantine is not None and len(self._rejected) < REJECTED_PER_TICK

    def reject(self, reason: str, address: str, vendor: str = "", hint: str = "") -> None:
        """Keep the trace of a rejected request, within the limits."""
        if self.wants_rejected:
            trace = RejectedRequest(
                received_at=self._now(),
                vendor=vendor,
                reason=reason,
                # A proxy passes on any text as an address.
                address=redact_text(clean(address[:ADDRESS_MAX]), self._secrets),
                hint=hint,
            )
            self._rejected.append(trace)

    async def close(self) -> None:
        """Commit the accepted drops, and accept no more."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._buffer is not None:
            await self._buffer.close()

    def _redacted(self, dropped: Dropped, omitted: Collection[str]) -> Dropped:
        secrets = self._secrets
        query = redact_query(dropped.query, omitted, secrets)
        if omitted:
            content_type, body = dropped.content_type, dropped.body
            stand_in = omitted_stand_in(dropped.query, content_type, body, omitted)
            query = b"&".join(filter(None, (query, stand_in)))
        return replace(
            dropped,
            app_token=self._redact(dropped.app_token),
            subject=self._redact(dropped.subject),
            account=self._redact(dropped.account),
            query=query,
            content_type=self._redact(dropped.content_type),
            body=dropped.body and redact_body(dropped.content_type, dropped.body, omitted, secrets),
            event=dropped.event and _redacted_event(dropped.event, secrets),
        )

    async def _keep_up(self, quarantine: Quarantine) -> None:
        """Write rejected requests, and read the usage, once a second; never returns.

        The usage is read less often where that is slow.
        """
        usage_from = 0.0
        while True:
            # The next drop fails for the same reason, and is logged.
            with suppress(Exception):
                if rejected := self._rejected:
                    self._rejected = []
                    await quarantine.reject(rejected)
                if (started := monotonic()) >= usage_from:
                    self._shares.begin()
                    self._shares.update(await quarantine.usage(self._shares.small_bytes))
                    QUARANTINE_BYTES.set(self._shares.total_bytes)
                    usage_from = monotonic() + usage_pause_s(monotonic() - started)
            await asyncio.sleep(TICK_S)


def usage_pause_s(read_s: float) -> float:
    """Return the least pause after a read of the usage that took `read_s`."""
    return min(read_s / USAGE_SHARE, USAGE_PAUSE_MAX_S)


def _redacted_event(encoded: bytes, secrets: Collection[str]) -> bytes:
    """Return an encoded event without each identifier and property that has one of the secrets."""
    event = decode_event(encoded)
    properties = {
        name: value
        for name, value in event.properties.items()
        if redact_text(name, secrets) == name and redact_text(value, secrets) == value
    }
    return encode_event(
        replace(
            event,
            user_id=redact_text(event.user_id or "", secrets) or None,
            adid=redact_text(event.adid or "", secrets) or None,
            idfa=redact_text(event.idfa or "", secrets) or None,
            gps_adid=redact_text(event.gps_adid or "", secrets) or None,
            properties=properties,
        )
    )


async def _commit(quarantine: Quarantine, drops: Sequence[Dropped]) -> Sequence[bool]:
    """Commit a batch of drops, and count it; raises QuarantineFailed."""
    try:
        await quarantine.keep(drops)
    except Exception as error:  # noqa: BLE001 - after any error a retry is safe
        for dropped in drops:
            count_failure(dropped.vendor, dropped.workspace_id, "quarantine_failed")
        log.error("quarantine failed", extra={"drops": len(drops), "error": type(error).__name__})
        raise QuarantineFailed("quarantine_failed") from None
    count_kept(drops)
    return [True] * len(drops)


def _skip(dropped: Dropped, why: str) -> None:
    """Count a drop that is not kept."""
    QUARANTINE_SKIPPED.labels(why).inc()
    count_drop(dropped.vendor, dropped.workspace_id, dropped.reason)
