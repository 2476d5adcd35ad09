"""Simulated messages of AppsFlyer and webhooks of Branch, and the properties of their rows."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
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
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
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


def message_request(vendor: str, body: bytes, app_token: str, random: Random) -> bytes:
    """Return the bytes of a POST with a message."""
    if vendor == "branch" and random.random() < _WRAPPED_SHARE:
        body = b'{"data":%b}' % body
    target = f"/ingest/{vendor}?{query({'app_token': app_token}, SECRET)}"
    return post_request(target, body, "application/json")


def message_body(
    vendor: str, sent: Mapping[str, str], occurred_at: datetime, zone_min: int
) -> bytes:
    """Return a message with the values of an Adjust callback.

    With an offset of the zone in minutes, AppsFlyer's has the time in that zone alone.
    """
    values = {
        "event": sent["event_token"],
        "time": _time_text(vendor, occurred_at, zone_min),
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
    if zone_min:
        text = text.replace('"event_time":', '"event_time_selected_timezone":')
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


def _time_text(vendor: str, occurred_at: datetime, zone_min: int) -> str:
    if vendor == "branch":
        return str((occurred_at - _EPOCH) // _MILLISECOND)
    local = occurred_at + timedelta(minutes=zone_min)
    text = f"{local:%F %T}.{local.microsecond // 1_000:03}"
    hours, minutes = divmod(abs(zone_min), 60)
    return f"{text}{'-' if zone_min < 0 else '+'}{hours:02}{minutes:02}" if zone_min else text


def expected_properties(vendor: str, body: bytes, sent: Mapping[str, str]) -> dict[str, str]:
    """Return the `properties` of the row of a message."""
    members = msgspec.json.decode(body, type=Raw)
    if vendor == "branch":
        members = {name: value for name, value in _flat(members) if name not in _MEMBERS_IN_COLUMNS}
        del members["timestamp"]
    else:
        members = {name: value for name, value in members.items() if name not in _IN_COLUMNS}
    shared = {"revenue_float": sent["revenue_float"], "currency": sent["currency"]}
    return _texts(members) | shared


def parameters_of(body: bytes, app_token: str) -> Mapping[str, str]:
    """Return the parameters of a message that have a value, with those of its URL."""
    return _texts(msgspec.json.decode(body, type=Raw)) | {"app_token": app_token}


def _texts(members: Raw) -> dict[str, str]:
    """Return the members with a value, as the gateway reads them."""
    texts = {name: _text(bytes(value)) for name, value in members.items()}
    return {name: text for name, text in texts.items() if text}


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
