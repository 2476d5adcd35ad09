"""The versions of an event: its deliveries differ in everything that does not identify it."""

from collections.abc import Mapping
from datetime import datetime
from random import Random
from typing import NamedTuple
from uuid import UUID

from bench.testbed.callbacks import ACTIVITIES, EVENTS, SUBTYPE, any_request, time_text
from bench.testbed.event_ids import NOBODY, User, event_id_of, user_of
from bench.testbed.identities import Point
from bench.testbed.messages import (
    expected_properties,
    message_body,
    message_request,
    parameters_of,
)
from bench.testbed.rows import NUMBER, Version
from bench.testbed.stable_ids import NAMES, StableId

# The parameters of Adjust that the gateway keeps in `properties`.
_KEPT = {
    "revenue", "revenue_float", "currency", "event_token", "activity_kind", SUBTYPE, "environment",
    "tracker_name", "delivery", "sending", NUMBER,
} | NAMES  # fmt: skip
_UNFILLED = {"gps_adid": "{gps_adid}", "idfa": "{idfa}"}
# Zones of AppsFlyer's apps, in minutes; most have none.
_ZONES_MIN = (0, 0, 0, 120, 330, -480)


class Made(NamedTuple):
    """A delivery as it is sent: its request, its version of the row, and the ID of its event."""

    request: bytes
    version: Version
    event_id: UUID


def make_version(
    identity: Point,
    stable: StableId,
    sent: Mapping[str, str],
    turn: int,
    *,
    occurred_at: datetime,
    random: Random,
) -> Made:
    """Return one delivery, the first of which has turn 0.

    `sent` are the parameters without identifiers of the user, and without a stable ID.
    """
    version = {**sent, **stable.names, **stable.others}
    # All parameters identify the event of a device without an ID, unless its stable ID does.
    is_identified = bool(identity.user.columns) or stable.is_own or identity.vendor == "branch"
    is_other = turn % 2 == 1
    if is_other and is_identified:
        if stable.names:
            version["event_token"] = identity.alias
        for name, value in present(stable.others).items():
            version[name] = f"{value}-{turn}"
    if identity.vendor != "adjust":
        return _message(identity, stable, version, occurred_at, random)
    if activity := ACTIVITIES.get(version["event_token"]):
        del version["event_token"]
        version["activity_kind"] = activity[0]
        if activity[1]:
            version[SUBTYPE] = activity[1]
    if is_identified:
        version["delivery"] = str(turn)
    others = {} if identity.user.columns else present(version)
    event_id = _event_id(identity, stable, occurred_at, others)
    properties = {**kept_of(version), **identity.user.kept}
    version.update(_UNFILLED)
    version.update(identity.user.sent)
    if is_other and "gps_adid" in identity.user.sent:
        version["gps_adid"] = version["gps_adid"].upper()
    request = _adjust_request(version, occurred_at, random)
    return Made(request, Version(occurred_at, properties), event_id)


def _message(
    identity: Point,
    stable: StableId,
    sent: dict[str, str],
    occurred_at: datetime,
    random: Random,
) -> Made:
    """Return a delivery of another vendor than Adjust."""
    vendor, columns = identity.vendor, identity.user.columns
    sent.update(columns)
    zone_min = random.choice(_ZONES_MIN) if columns and vendor == "appsflyer" else 0
    body = message_body(vendor, sent, occurred_at, zone_min)
    others = {} if columns or vendor == "branch" else parameters_of(body, identity.app_token)
    event_id = _event_id(identity, stable, occurred_at, others)
    request = message_request(vendor, body, identity.app_token, random)
    return Made(request, Version(occurred_at, expected_properties(vendor, body, sent)), event_id)


def _event_id(
    identity: Point, stable: StableId, occurred_at: datetime, others: Mapping[str, str]
) -> UUID:
    """Return the ID of an event; `others` are the parameters of a device without an ID.

    The time and the stable ID have parts of their own.
    """
    return event_id_of(
        _user(identity, stable, others),
        vendor=identity.vendor,
        app_token=identity.app_token,
        event_type=EVENTS[identity.token],
        occurred_at=occurred_at,
        raw_event_id=identity.raw_event_id,
        stable_id=stable.value,
    )


def _user(identity: Point, stable: StableId, others: Mapping[str, str]) -> User:
    columns = identity.user.columns
    # The ID of Branch's own for an event identifies it alone.
    if identity.vendor == "branch" or (stable.is_own and not columns):
        return NOBODY
    if columns:
        return user_of(columns, {})
    apart = {"event_time", *stable.names}
    return user_of({}, {name: value for name, value in others.items() if name not in apart})


def present(sent: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters without unfilled placeholders."""
    return {name: value for name, value in sent.items() if value[0] != "{"}


def kept_of(sent: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of Adjust that the gateway keeps in `properties`."""
    return {name: value for name, value in present(sent).items() if name in _KEPT}


def _adjust_request(sent: dict[str, str], occurred_at: datetime, random: Random) -> bytes:
    names = list(sent)
    if random.random() < 0.5:  # noqa: PLR2004 - half of them in another order
        random.shuffle(names)
    ordered = {name: sent[name] for name in names} | {"created_at": time_text(occurred_at, random)}
    return any_request(ordered, random)
