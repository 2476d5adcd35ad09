"""Simulated messages of AppsFlyer and webhooks of Branch, and the properties of their rows."""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from random import Random

import msgspec

from bench.testbed.callbacks import SECRET, query
from bench.testbed.client import post_request

_FOLDER = Path(__file__).parents[1] / "messages"
# Fields of AppsFlyer's with a column.
_IN_COLUMNS = {"appsflyer_id", "country_code", "customer_user_id", "event_time", "platform"}
# Members of Branch's objects with a column.
_MEMBERS_IN_COLUMNS = {
    "user_data.developer_identity", "user_data.geo_country_code", "user_data.os",
}  # fmt: skip
_SECTIONS = ("user_data", "event_data", "custom_data", "last_attributed_touch_data")
_WRAPPED_SHARE = 0.1

Raw = dict[str, msgspec.Raw]


def message_file(vendor: str) -> Path:
    """Return the file of a vendor's message, with blanks such as `@user@`."""
    return _FOLDER / f"{vendor}.json"


@cache
def _template(vendor: str) -> str:
    return message_file(vendor).read_text().strip()


def message_request(
    vendor: str, sent: Mapping[str, str], occurred_at: datetime, random: Random
) -> bytes:
    """Return the bytes of a POST with the values of an Adjust callback."""
    body = _body(vendor, sent, occurred_at)
    if vendor == "branch" and random.random() < _WRAPPED_SHARE:
        body = b'{"data":%b}' % body
    target = f"/ingest/{vendor}?{query({'app_token': sent['app_token']}, SECRET)}"
    return post_request(target, body, "application/json")


def _body(vendor: str, sent: Mapping[str, str], occurred_at: datetime) -> bytes:
    is_branch = vendor == "branch"
    values = {
        "event": sent["event_token"],
        "time": f"{occurred_at.timestamp():.0f}000" if is_branch else f"{occurred_at:%F %T}.000",
        "os": sent["os_name"],
        "country": sent["country"].upper(),
        "device": sent["adid"],
        "revenue": sent["revenue_float"],
        "currency": sent["currency"],
        "campaign": sent["tracker_name"],
        "user": sent["user_id"],
        # The number of the user is that of the event.
        "id": sent["user_id"],
    }
    text = _template(vendor)
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    if "transaction_id" in sent:  # within a text: escaped
        order = f'{{\\"af_order_id\\":\\"{sent["transaction_id"]}\\",'
        text = text.replace('{\\"', f'{order}\\"', 1)
    return text.encode()


def expected_properties(
    vendor: str, sent: Mapping[str, str], occurred_at: datetime
) -> dict[str, str]:
    """Return the `properties` of the row of a message."""
    members = msgspec.json.decode(_body(vendor, sent, occurred_at), type=Raw)
    if vendor == "branch":
        members = {name: value for name, value in _flat(members) if name not in _MEMBERS_IN_COLUMNS}
        del members["timestamp"]
    else:
        members = {name: value for name, value in members.items() if name not in _IN_COLUMNS}
    texts = {name: _text(bytes(value)) for name, value in members.items()}
    shared = {"revenue_float": sent["revenue_float"], "currency": sent["currency"]}
    return {name: text for name, text in texts.items() if text} | shared


def _flat(members: Raw) -> list[tuple[str, msgspec.Raw]]:
    flat: list[tuple[str, msgspec.Raw]] = []
    for name, value in members.items():
        if name in _SECTIONS:
            inner = msgspec.json.decode(value, type=Raw)
            flat += [(f"{name}.{member}", text) for member, text in inner.items()]
        else:
            flat.append((name, value))
    return flat


def _text(value: bytes) -> str:
    return msgspec.json.decode(value, type=str) if value.startswith(b'"') else value.decode()
