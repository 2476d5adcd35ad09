"""Callbacks in quarantine without what their app omits, and the events that they become."""

import json

import pytest
from msgspec.structs import replace

from app.dropped import Dropped
from app.drops import Drops
from app.event import App, DropReason, Event
from app.ingest import utc_now
from app.replay import Restorer
from tests.adapter_cases import RECEIVED_AT, VENDORS

APPS = {
    "appsflyer": App(
        workspace_id="w", vendor="appsflyer", app_token="a", events={"e": "e"},
        omit=("customer_user_id", "idfv", "ip"),
    ),
    "branch": App(
        workspace_id="w", vendor="branch", app_token="a", events={"e": "e"},
        omit=("developer_identity", "idfv", "ip", "custom_data"),
    ),
}  # fmt: skip
MESSAGE = {"event_name": "e", "event_time": "2025-06-21 10:00:00.000", "platform": "ios"}
WEBHOOK = {"name": "e", "timestamp": 1750500000000}


def webhook(**members: object) -> dict[str, object]:
    """A webhook of Branch without an ID."""
    return {**WEBHOOK, "user_data": {"os": "IOS", **members}}


# Two devices that differ only in what is omitted.
DEVICES: list[tuple[str, object, object]] = [
    ("appsflyer", MESSAGE | {"customer_user_id": "u1"}, MESSAGE | {"customer_user_id": "u2"}),
    ("appsflyer", MESSAGE | {"ip": "u1"}, MESSAGE | {"ip": "u2"}),
    ("branch", webhook(developer_identity="u1"), webhook(developer_identity="u2")),
    ("branch", webhook(idfv=635390319521351001), webhook(idfv=635390319521351002)),
    ("branch", {"data": webhook(idfv="u1")}, {"data": webhook(idfv="u2")}),
    ("branch", webhook(ip=["u1"]), webhook(ip=["u2"])),
    ("branch", webhook(ip="u1"), webhook()),
    ("branch", {**WEBHOOK, "custom_data": {"x": "u1"}}, {**WEBHOOK, "custom_data": {"x": "u2"}}),
    ("branch", {**WEBHOOK, "x": [{"ip": "u1"}]}, {**WEBHOOK, "x": [{"ip": "u2"}]}),
]  # fmt: skip


def replayed(vendor: str, body: object) -> tuple[Dropped, Event]:
    """A callback as quarantine keeps it, and the event of its replay."""
    app = APPS[vendor]
    drops = Drops(None, max_bytes=0, secrets=["s3cr3t"], now=utc_now)
    kept = drops._redacted(
        Dropped(
            received_at=RECEIVED_AT, vendor=vendor, workspace_id="w", app_token="a",
            reason=DropReason.UNMAPPED_EVENT, subject="e", method="POST",
            query=b"secret=s3cr3t&app_token=a", content_type="application/json",
            body=json.dumps(body).encode(),
        ),
        app.omit,
    )  # fmt: skip
    apps = {(vendor, "a"): app}
    restorer = Restorer(vendors=VENDORS, apps=apps, retention_d=0, set_parameters={})
    event = restorer.restore(kept)
    assert isinstance(event, Event)
    return kept, event


@pytest.mark.parametrize(("vendor", "one", "other"), DEVICES)
def test_omitted_values_keep_devices_apart(vendor: str, one: object, other: object) -> None:
    """Devices that differ only in omitted values, at any depth, are two events; a repeat is one."""
    kept, event = replayed(vendor, one)
    assert event.event_id == replayed(vendor, one)[1].event_id
    assert event.event_id != replayed(vendor, other)[1].event_id
    assert b"u1" not in kept.query + kept.body
    stored = {**event.properties, "columns": repr(replace(event, properties={}, event_id=b""))}
    assert not [text for text in stored.values() if "u1" in text or "63539031952" in text]
    assert not [name for name in stored if "omitted" in name]
