"""The gateway: the parts put together, without an HTTP server."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from math import nan
from operator import attrgetter
from pathlib import Path

import adapters
from app.access import Access
from app.buffer import WriteBuffer
from app.claims import Claims
from app.claims.redis import RedisClaims
from app.commit import commit, commit_contested
from app.drops import Drops
from app.event import Event, Outcome
from app.ingest import Ingest, utc_now
from app.readiness import BufferState, Readiness, clock_state, is_clock_right
from app.secret_hints import SecretHints
from app.settings import Settings
from app.telemetry import metrics
from app.telemetry.observer import UNOBSERVED, Observer
from app.vendor import Vendors
from app.workspaces import Workspaces
from sinks import Quarantine, Sink
from sinks.timescale.quarantine import TimescaleQuarantine
from sinks.timescale.sink import TimescaleSink

LIMITS = {"batch_max_bytes": 64 * 1024, "buffer_max_bytes": 64 * 1024 * 1024}
CLOSE_PER_COMMIT = 2
MEGABYTE = 1_000_000
PROBE_S = 1.0

log = logging.getLogger(__name__)


class Gateway:
    """Everything between a request and its receipt. Knows no HTTP server, Redis or database."""

    def __init__(
        self,
        settings: Settings,
        *,
        vendors: Vendors,
        workspaces: Workspaces,
        claims: Claims,
        sink: Sink,
        quarantine: Quarantine | None,
        observer: Observer = UNOBSERVED,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.settings = settings
        self.vendors = vendors
        self.workspaces = workspaces
        self.observer = observer
        self.claims = observer.claims(claims)
        self.sink = observer.sink(sink)
        self.quarantine = quarantine
        self.buffer = self._make_buffer(now)
        self.access = Access(settings.vendors)
        self.drops = Drops(
            quarantine,
            max_bytes=settings.quarantine_max_mb * MEGABYTE,
            secrets=settings.secrets,
            now=now,
        )
        self.ingest = Ingest(
            vendors=vendors,
            access=observer.access(self.access),
            workspaces=workspaces,
            submit=observer.submit(self.buffer.submit),
            drops=self.drops,
            hint=SecretHints(settings.vendors).hint,
            clock_ahead_s=lambda: self.sink.clock_ahead_s,
            retention_d=settings.retention_d,
            cell=settings.cell,
            now=now,
        )
        self.handle = observer.handle(self.ingest.handle)
        self.is_draining = self.sink_answered = False
        self._tasks: list[asyncio.Task[None]] = []

    def _make_buffer(self, now: Callable[[], datetime]) -> WriteBuffer[Event, Outcome]:
        observer, settings = self.observer, self.settings
        claims, sink, age_max = self.claims, self.sink, settings.event_age_max
        return WriteBuffer(
            observer.commit(partial(commit, claims=claims, sink=sink, now=now, age_max=age_max)),
            observer.commit_one(
                partial(commit_contested, claims=claims, sink=sink, now=now, age_max=age_max)
            ),
            undecided=Outcome.CONTESTED,
            batch_max=settings.batch_max_events,
            buffer_max=settings.buffer_max_events,
            **LIMITS,
        )

    @property
    def is_ready(self) -> bool:
        """Whether load balancers should send new callbacks here."""
        return self.sink_answered and not self.is_draining

    def readiness(self) -> Readiness:
        """Return the state of the gateway for its operators."""
        return Readiness(
            draining=self.is_draining,
            sink="answered" if self.sink_answered else "waiting",
            claims="bypassed" if self.claims.is_bypassed else "in use",
            buffer=BufferState(len(self.buffer), self.settings.buffer_max_events),
            clock=clock_state(self.sink.clock_ahead_s),
        )

    def is_clock_right(self) -> bool:
        """Return whether the gateway's clock is known to agree with the database's."""
        return is_clock_right(self.sink.clock_ahead_s)

    def start(self) -> None:
        """Start the background work, in the running loop."""
        metrics.begin()
        self.observer.start()
        self.drops.start()
        for vendor in self.vendors:
            access = self.settings.vendors.get(vendor)
            if access is None or not access.has_secret:
                note = log.warning if self.workspaces.has_apps_of(vendor) else log.info
                note("no secret: every callback is answered 503", extra={"vendor": vendor})
        for work in (self._ping_sink(), self._keep_gauges(), self.workspaces.watch()):
            self._tasks.append(asyncio.create_task(work))

    async def drain(self, pause_s: float) -> None:
        """Report not ready, and go on serving until load balancers have reacted."""
        self.is_draining = True
        await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Commit the accepted events, then close the parts."""
        for task in self._tasks:
            task.cancel()
        timeout_s = CLOSE_PER_COMMIT * self.settings.commit_timeout_s
        try:
            # No caller waits any more; a database that hangs must not keep the process alive.
            async with asyncio.timeout(timeout_s):
                await self.buffer.close()
                # After it: a refused event becomes a drop.
                await self.drops.close()
        except TimeoutError:
            log.error(
                "uncommitted events abandoned, unanswered", extra={"events": len(self.buffer)}
            )
        closes = [self.claims.close, self.sink.close, self.observer.close]
        if self.quarantine is not None:
            closes.append(self.quarantine.close)
        for close in closes:
            with suppress(TimeoutError):  # the end of the process closes the rest
                async with asyncio.timeout(timeout_s):
                    await close()

    async def _ping_sink(self) -> None:
        """Ping the sink until it has answered once: from then on the gateway is ready."""
        while not self.sink_answered:
            try:
                await self.sink.ping()
                self.sink_answered = True
            except Exception as error:  # noqa: BLE001 - pinged again after any error
                log.warning("not ready: the sink does not answer", extra={"error": str(error)})
                await asyncio.sleep(PROBE_S)

    async def _keep_gauges(self) -> None:
        """Keep the gauges, for a scrape that another worker answers; never returns."""
        was_right = True
        while True:
            with suppress(OSError):  # a full disk: a gauge in a file keeps its last value
                self.measure()
            is_right = self.is_clock_right()
            if is_right != was_right and self.sink_answered:
                was_right = is_right
                _log_clock(is_right, self.sink.clock_ahead_s)
            await asyncio.sleep(PROBE_S)

    def measure(self) -> None:
        """Set the gauges from plain attributes, which are cheap to keep on the request path.

        A secret is identified only by its position in its setting.
        """
        metrics.IN_FLIGHT.set(self.ingest.in_flight)
        metrics.BUFFER_EVENTS.set(len(self.buffer))
        metrics.BUFFER_LIMIT.set(self.settings.buffer_max_events)
        if self.quarantine is not None:
            metrics.QUARANTINE_LIMIT.set(self.settings.quarantine_max_mb * MEGABYTE)
        ahead_s = self.sink.clock_ahead_s
        metrics.CLOCK_AHEAD.set(nan if ahead_s is None else ahead_s)
        last_used = metrics.BY_WORKSPACE[metrics.SECRET_LAST_USED]
        for vendor, owners in self.access.used.items():
            for owner, used in owners.items():
                for position, is_used in enumerate(used):
                    labels = (vendor, owner, str(position + 1))
                    if is_used:
                        last_used.set(labels, time.time())
                        used[position] = False
                    else:
                        last_used.add(labels, 0)


def create_gateway(
    settings: Settings,
    *,
    vendors: Vendors | None = None,
    claims: Claims | None = None,
    sink: Sink | None = None,
    quarantine: Quarantine | None = None,
    observer: Observer = UNOBSERVED,
    now: Callable[[], datetime] = utc_now,
) -> Gateway:
    """Return a gateway built from the settings; raises WorkspacesError and SettingsError.

    Tests pass other parts or another clock; `explain` passes parts that store nothing.
    """
    vendors = vendors or adapters.load()
    sink = sink or create_sink(settings)
    claims = claims or create_claims(settings, sink)
    if settings.quarantine_d and quarantine is None:
        quarantine = TimescaleQuarantine(
            settings.database_url, commit_timeout_s=settings.commit_timeout_s
        )
    return Gateway(
        settings,
        vendors=vendors,
        workspaces=Workspaces(Path(settings.workspaces_file), vendors, settings.cell),
        claims=claims,
        sink=sink,
        quarantine=quarantine,
        observer=observer,
        now=now,
    )


def create_sink(settings: Settings) -> Sink:
    """Return the sink of the settings; it connects at its first use."""
    return TimescaleSink(settings.database_url, commit_timeout_s=settings.commit_timeout_s)


def create_claims(settings: Settings, sink: Sink) -> Claims:
    """Return the claims on the events of a sink; raises SettingsError."""
    return RedisClaims(
        settings.redis_url,
        generation=partial(attrgetter("generation"), sink),
        lease_s=settings.claim_lease_s,
        seen_window_d=settings.seen_window_d,
    )


def _log_clock(is_right: bool, ahead_s: float | None) -> None:
    if is_right:
        log.info("the clock agrees with the database's")
    else:
        log.error(
            "the clock differs from the database's, or the difference is not known: "
            "callbacks with an unacceptable time are answered 503, not dropped",
            extra={"ahead_s": ahead_s},
        )
