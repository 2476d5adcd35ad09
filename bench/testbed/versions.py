"""The versions of an event: its deliveries differ in everything that does not identify it."""

from collections.abc import Mapping
from datetime import datetime
from random import Random
from typing import NamedTuple
from uuid import UUID

from bench.testbed.callbacks import BY_KIND, EVENTS, KIND, any_request, time_text
from bench.testbed.event_ids import NOBODY, event_id_of, user_of
from bench.testbed.identities import Point
from bench.testbed.messages import expected_properties, message_request, parameters_of
from bench.testbed.rows import NUMBER, Version

# The parameters of Adjust that the gateway keeps in `properties`.
KEPT = {
    "revenue", "revenue_float", "currency", "event_token", "activity_kind", "environment",
    "tracker_name", "transaction_id", "delivery", "sending", NUMBER,
}  # fmt: skip
# The time and the stable ID, which have parts of their own in an event ID.
_NOT_OTHERS = {"event_time", "transaction_id"}
_UNFILLED = {"gps_adid": "{gps_adid}", "idfa": "{idfa}"}


class Made(NamedTuple):
    """A delivery as it is sent: its request, its version of the row, and the ID of its event."""

    request: bytes
    version: Version
    event_id: UUID


def make_version(
    identity: Point, sent: Mapping[str, str], turn: int, occurred_at: datetime, random: Random
) -> Made:
    """Return one delivery, the first of which has turn 0.

    `sent` are the parameters without identifiers of the user. A stable ID of Adjust and AppsFlyer
    is in `transaction_id`, one of Branch in `id`.
    """
    user, vendor = identity.user, identity.vendor
    version = dict(sent)
    # All parameters identify the event of a device without an ID, except at Branch.
    is_identified = bool(user.columns) or vendor == "branch"
    is_other = turn % 2 == 1
    if is_other and is_identified and not sent.keys().isdisjoint(("transaction_id", "id")):
        version["event_token"] = identity.alias
    if vendor != "adjust":
        version.update(user.columns)
        properties = expected_properties(vendor, version, occurred_at)
        request = message_request(vendor, version, occurred_at, random)
        others = parameters_of(vendor, version, occurred_at)
        event_id = _event_id(identity, sent, occurred_at, others)
        return Made(request, Version(occurred_at, properties), event_id)
    if version["event_token"] == BY_KIND:
        del version["event_token"]
        version["activity_kind"] = KIND
    if is_identified:
        version["delivery"] = str(turn)
    event_id = _event_id(identity, sent, occurred_at, version)
    properties = {name: value for name, value in version.items() if name in KEPT}
    properties.update(user.kept)
    version.update(_UNFILLED)
    version.update(user.sent)
    if is_other and "gps_adid" in user.sent:
        version["gps_adid"] = version["gps_adid"].upper()
    request = _adjust_request(version, occurred_at, random)
    return Made(request, Version(occurred_at, properties), event_id)


def _event_id(
    identity: Point, sent: Mapping[str, str], occurred_at: datetime, others: Mapping[str, str]
) -> UUID:
    """Return the ID of an event; `others` are the parameters of a device without an ID."""
    stable_id = sent.get("id") or sent.get("transaction_id", "")
    others = {name: value for name, value in others.items() if name not in _NOT_OTHERS}
    return event_id_of(
        # The ID of Branch's own for an event identifies it alone.
        NOBODY if identity.vendor == "branch" else user_of(identity.user.columns, others),
        vendor=identity.vendor,
        app_token=identity.app_token,
        event_type=EVENTS[identity.token],
        occurred_at=occurred_at,
        raw_event_id=identity.raw_event_id,
        stable_id=stable_id,
    )


def _adjust_request(sent: dict[str, str], occurred_at: datetime, random: Random) -> bytes:
    names = list(sent)
    if random.random() < 0.5:  # noqa: PLR2004 - half of them in another order
        random.shuffle(names)
    ordered = {name: sent[name] for name in names} | {"created_at": time_text(occurred_at, random)}
    return any_request(ordered, random)
