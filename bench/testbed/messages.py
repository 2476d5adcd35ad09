"""Simulated messages of AppsFlyer and webhooks of Branch, and the properties of their rows."""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from random import Random

import msgspec

from bench.testbed.callbacks import SECRET, query
from bench.testbed.client import post_request
from bench.testbed.rows import NUMBER

_FOLDER = Path(__file__).parents[1] / "messages"
# Fields of AppsFlyer's with a column.
_IN_COLUMNS = {
    "advertising_id", "appsflyer_id", "country_code", "customer_user_id", "event_time", "idfa",
    "platform",
}  # fmt: skip
# Members of Branch's objects with a column.
_MEMBERS_IN_COLUMNS = {
    "user_data.aaid", "user_data.developer_identity", "user_data.geo_country_code",
    "user_data.idfa", "user_data.os",
}  # fmt: skip
_SECTIONS = ("user_data", "event_data", "custom_data", "last_attributed_touch_data")
_WRAPPED_SHARE = 0.1
# Members of a template that are taken out where the user lacks the value: it is none of the first.
_OPTIONAL = {
    "appsflyer": {"user_id": ',"customer_user_id":"@user@"', "adid": ',"appsflyer_id":"@device@"'},
    "branch": {"user_id": ',"developer_identity":"@user@"', "adid": ',"idfv":"@device@"'},
}
# Members that are added where the user has the value, behind this beginning of a template.
_ADDED = {
    "appsflyer": ("{", {"gps_adid": "advertising_id", "idfa": "idfa"}),
    "branch": ('"user_data":{', {"gps_adid": "aaid", "idfa": "idfa"}),
}

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
        "device": sent.get("adid", ""),
        "revenue": sent["revenue_float"],
        "currency": sent["currency"],
        "campaign": sent["tracker_name"],
        "user": sent.get("user_id", ""),
        "id": sent.get("id", ""),
    }
    text = _template(vendor)
    for name, member in _OPTIONAL[vendor].items():
        if name not in sent:
            text = text.replace(member, "")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    begin, names = _ADDED[vendor]
    added = {member: sent[name] for name, member in names.items() if name in sent}
    text = text.replace(begin, begin + "".join(f'"{n}":"{v}",' for n, v in added.items()), 1)
    text = text.replace("{", f'{{"{NUMBER}":"{sent[NUMBER]}",', 1)
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


def parameters_of(vendor: str, sent: Mapping[str, str], occurred_at: datetime) -> Mapping[str, str]:
    """Return the parameters of a message that have a value, with those of its URL."""
    members = msgspec.json.decode(_body(vendor, sent, occurred_at), type=Raw)
    texts = {name: _text(bytes(value)) for name, value in members.items()}
    present = {name: text for name, text in texts.items() if text}
    return present | {"app_token": sent["app_token"]}


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
