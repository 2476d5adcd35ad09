"""Replay: a drop becomes an event through today's mapping, and is committed past *seen*."""

import logging
from collections.abc import Mapping, Sequence
from operator import attrgetter

import msgspec
from msgspec.structs import replace

from app.access import sent_app_token
from app.callbacks import make_callback
from app.claims import Claim, Claims
from app.dropped import Dropped, decode_event
from app.errors import Malformed
from app.event import App, Callback, Drop, DropReason, Event, Outcome
from app.parameters import NO_BODY, read_body
from app.redaction import STAND_IN
from app.set_parameters import set_parameters
from app.vendor import Vendor, Vendors
from sinks import Sink

# The value of a parameter that stands for the time of arrival.
ARRIVAL = "@arrival"
# The property that names the parameters set by hand.
SET_PROPERTY = "replay_set"

_EVENT_ID = attrgetter("event_id")

log = logging.getLogger(__name__)


class NotRestored(Exception):
    """A drop that this version cannot read; the message is the reason."""


class Restorer:
    """Turns drops into events, as HTTP would with the present workspaces file.

    `set_parameters` take the place of what was sent.
    """

    def __init__(
        self,
        *,
        vendors: Vendors,
        apps: Mapping[tuple[str, str], App],
        retention_d: int,
        set_parameters: Mapping[str, str],
        cell: str = "",
    ) -> None:
        self._vendors = vendors
        self._apps = apps
        self._retention_d = retention_d
        self._set = set_parameters
        self._cell = cell

    def restore(self, dropped: Dropped) -> Event | Drop:
        """Return the event of a drop, or the reason to drop it again; raises NotRestored.

        A refused event is taken as it was encoded: its callback is gone. The suppression of
        erased persons belongs here, when there is one: every replayed event comes through.
        """
        try:
            if dropped.event is not None:
                event = decode_event(dropped.event)
                app = self._apps.get((event.vendor, event.app_token))
                if self._cell and app is None:  # the cell of its rows is not known
                    return Drop(DropReason.UNKNOWN_APP, event.app_token)
                return self._elsewhere(app) or event
        except (ValueError, msgspec.DecodeError) as error:
            raise NotRestored(str(error)) from None
        try:
            return self._parse(dropped)
        except Malformed as error:
            return Drop(DropReason.MALFORMED, error.reason)

    def _parse(self, dropped: Dropped) -> Event | Drop:
        vendor = self._vendors.get(dropped.vendor)
        if vendor is None:
            return Drop(DropReason.UNKNOWN_APP, sent_app_token(dropped.query) or "")
        app_token = self._set.get("app_token") or sent_app_token(dropped.query)
        app = self._apps.get((dropped.vendor, app_token or ""))
        if elsewhere := self._elsewhere(app):
            return elsewhere
        callback = self._callback(dropped, vendor)
        if app is None:
            return Drop(DropReason.UNKNOWN_APP, app_token or "")
        try:
            event = vendor.parse(callback, app)
        except Exception as error:
            raise NotRestored(f"the adapter fails: {type(error).__name__}") from error
        if isinstance(event, Drop):
            return event
        properties = dict(event.properties)
        properties.pop(STAND_IN, None)  # it has served the identity
        if self._set:
            properties[SET_PROPERTY] = ",".join(self._set)
        return replace(event, properties=properties)

    def _elsewhere(self, app: App | None) -> Drop | None:
        """Return the drop of an app that lives in another cell: that cell replays it."""
        if self._cell and app is not None and app.cell != self._cell:
            return Drop(DropReason.OTHER_CELL, app.cell)
        return None

    def _callback(self, dropped: Dropped, vendor: Vendor) -> Callback:
        """Return the callback of a drop, with its parameters set; raises Malformed."""
        body = read_body(dropped.content_type, dropped.body) if dropped.body else NO_BODY
        if body is None:
            raise Malformed(dropped.subject)
        headers = {"content-type": dropped.content_type}
        callback = make_callback(
            vendor, dropped.query, body, headers, dropped.received_at,
            retention_d=self._retention_d,
        )  # fmt: skip
        if not self._set:
            return callback
        arrival = f"{dropped.received_at:%Y-%m-%dT%H:%M:%S.%fZ}"
        given = {n: arrival if value == ARRIVAL else value for n, value in self._set.items()}
        return set_parameters(callback, given)


async def write(events: Sequence[Event], claims: Claims, sink: Sink) -> Mapping[bytes, Outcome]:
    """Commit events, and return the outcomes by ID; raises what the sink raises.

    A *seen* event is written too: Redis may remember a row that was deleted since. A CONTESTED
    event has a live delivery under way, a FAILED one is locked: both are undecided.
    """
    unique = {event.event_id: event for event in reversed(events)}  # the first of repeats
    answers = await claims.claim(list(unique))
    outcomes = dict.fromkeys(unique, Outcome.CONTESTED)
    held = [
        event
        for event, answer in zip(unique.values(), answers, strict=True)
        if answer is not Claim.CONTESTED
    ]
    if not held:
        return outcomes
    ids = list(map(_EVENT_ID, held))
    try:
        outcomes.update(zip(ids, await sink.write(held), strict=True))
    except BaseException:
        await claims.release(ids)
        raise
    await claims.settle([id_ for id_ in ids if is_committed(outcomes[id_])])
    await claims.release([id_ for id_ in ids if outcomes[id_] is Outcome.REFUSED])
    for event in held:
        if outcomes[event.event_id] is Outcome.CONTESTED:
            outcomes[event.event_id] = await _write_contested(event, claims, sink)
    return outcomes


async def _write_contested(event: Event, claims: Claims, sink: Sink) -> Outcome:
    """Commit one contested event, of any age; FAILED where it may or may not be stored."""
    try:
        return await sink.write_contested(event)
    except Exception as error:  # noqa: BLE001 - the drop stays, and its next replay decides
        log.warning("contested event not written", extra={"error": type(error).__name__})
        return Outcome.FAILED
    finally:
        await claims.release([event.event_id])


def is_committed(outcome: Outcome) -> bool:
    """Whether exactly one row of the event is in the table."""
    return outcome in (Outcome.WRITTEN, Outcome.DUPLICATE)
