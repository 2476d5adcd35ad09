"""The versions of an event: its deliveries differ in everything that does not identify it."""

from collections.abc import Mapping
from datetime import datetime
from random import Random

from bench.testbed.callbacks import BY_KIND, KIND, any_request, time_text
from bench.testbed.identities import Point
from bench.testbed.messages import expected_properties, message_request
from bench.testbed.rows import NUMBER, Version

# The parameters of Adjust that the gateway keeps in `properties`.
KEPT = {
    "revenue", "revenue_float", "currency", "event_token", "activity_kind", "environment",
    "tracker_name", "transaction_id", "delivery", "sending", NUMBER,
}  # fmt: skip
_UNFILLED = {"gps_adid": "{gps_adid}", "idfa": "{idfa}"}


def make_version(
    identity: Point, sent: Mapping[str, str], turn: int, occurred_at: datetime, random: Random
) -> tuple[bytes, Version]:
    """Return the request of one delivery, the first of which has turn 0, and its version.

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
        return request, Version(occurred_at, properties)
    if version["event_token"] == BY_KIND:
        del version["event_token"]
        version["activity_kind"] = KIND
    if is_identified:
        version["delivery"] = str(turn)
    properties = {name: value for name, value in version.items() if name in KEPT}
    properties.update(user.kept)
    version.update(_UNFILLED)
    version.update(user.sent)
    if is_other and "gps_adid" in user.sent:
        version["gps_adid"] = version["gps_adid"].upper()
    return _adjust_request(version, occurred_at, random), Version(occurred_at, properties)


def _adjust_request(sent: dict[str, str], occurred_at: datetime, random: Random) -> bytes:
    names = list(sent)
    if random.random() < 0.5:  # noqa: PLR2004 - half of them in another order
        random.shuffle(names)
    ordered = {name: sent[name] for name in names} | {"created_at": time_text(occurred_at, random)}
    return any_request(ordered, random)
