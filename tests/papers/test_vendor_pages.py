"""The pages of AppsFlyer and Branch: their URLs and workspaces files, as the gateway reads them."""

import re
from urllib.parse import parse_qsl, quote

import pytest

from adapters import appsflyer, branch
from app import workspaces_file
from app.event import App, Drop, DropReason, Event, Retries
from app.workspaces_file import Apps
from bench.testbed.process import ROOT
from tests.adapter_cases import VENDORS, callback_of

PAGES = {name: (ROOT / f"docs/{name}.md").read_text() for name in ("appsflyer", "branch")}
TABLE = (ROOT / "docs/vendors.md").read_text()
# A value for each macro of Branch's page.
VALUES = {
    "id": "635390319521351354", "name": "PURCHASE", "customer_event_alias": "",
    "event_timestamp": "1552727083843", "user_data.developer_identity": "usr_1",
    "user_data.os": "IOS", "user_data.geo_country_code": "IN", "user_data.aaid": "",
    "user_data.idfa": "8C6CBC0D-5F43-4765-A6E6-84DFF3D24707", "user_data.idfv": "CCB300A0-DE1B",
    "user_data.environment": "FULL_APP", "event_data.transaction_id": "t1",
    "event_data.revenue": "9.99", "event_data.currency": "USD",
    "last_attributed_touch_data.~campaign": "spring & more",
    "last_attributed_touch_data.~channel": "Facebook",
}  # fmt: skip


def apps_of(vendor: str) -> Apps:
    """The apps of the page's workspaces file."""
    [piece] = re.findall(r"```toml\n(\[\[workspaces\]\].*?)```", PAGES[vendor], re.DOTALL)
    return workspaces_file.decode(piece.encode(), VENDORS)


def url_of_macros() -> str:
    """The URL of a GET on Branch's page, as one line."""
    urls: list[str] = re.findall(r"```\n(https://.*?)```", PAGES["branch"], re.DOTALL)
    return urls[1].replace("\n", "")


@pytest.mark.parametrize("vendor", PAGES)
def test_file_of_the_page_is_valid(vendor: str) -> None:
    """The workspaces file of a page is read as it stands, and maps the app of its URL."""
    [((name, token), app)] = apps_of(vendor).items()
    assert (name, token) == (vendor, "APP_TOKEN")
    assert app.events
    assert f"https://ingest.example.com/ingest/{vendor}?secret=SECRET&app_token=" in PAGES[vendor]


def app_of(vendor: str) -> App:
    """The one app of the page."""
    [app] = apps_of(vendor).values()
    return app


def test_macros_of_the_page_become_an_event() -> None:
    """The documented URL, filled in by Branch, is an event with all its columns."""
    template = url_of_macros().partition("?")[2]
    macros = re.findall(r"\$\{\(([^)]+)\)!\}", template)
    assert set(macros) == VALUES.keys()
    filled = re.sub(r"\$\{\(([^)]+)\)!\}", lambda macro: quote(VALUES[macro[1]]), template)
    found = branch.parse(callback_of(filled.encode(), vendor=VENDORS["branch"]), app_of("branch"))
    assert isinstance(found, Event)
    assert (found.event_type, found.user_id, found.os_name) == ("purchase", "usr_1", "ios")
    assert (found.idfa, found.adid, found.country) == (
        VALUES["user_data.idfa"], VALUES["user_data.idfv"], "IN",
    )  # fmt: skip
    assert found.has_stable_id
    sent = {name: value for name, value in VALUES.items() if value and name.startswith("last_")}
    assert sent.items() <= found.properties.items()
    assert found.properties["revenue_float"] == "9.99"


def test_macros_left_unfilled_are_absent() -> None:
    """The documented URL, with every macro left as it is, has no parameter but the app token."""
    query = url_of_macros().partition("?")[2].replace("SECRET", "s3cr3t")
    callback = callback_of(query.encode(), vendor=VENDORS["branch"])
    assert callback.present == {"app_token": "APP_TOKEN"}
    assert len(parse_qsl(query)) == len(VALUES) + 2


def test_fields_of_the_page_are_those_of_the_adapter() -> None:
    """AppsFlyer's page names each identifier that the adapter reads, in its precedence."""
    names = appsflyer.NAMES
    identity = PAGES["appsflyer"].partition("The user is the first of")[2].partition(".\n")[0]
    listed = [name for name in re.findall(r"`(\w+)`", identity) if name != "appsflyer_device_id"]
    assert listed[: len(names.users)] == list(names.users.values())
    assert listed[len(names.users) :] == list(names.devices)


def test_table_has_the_retries_of_each_adapter() -> None:
    """The table of vendors has a column for each adapter, and says who tries again."""
    rows = [line.split("|")[1:-1] for line in TABLE.splitlines() if line.startswith("|")]
    [header, *_] = rows
    assert [name.strip().lower() for name in header[1:]] == sorted(VENDORS)
    [after_5xx] = [row for row in rows if row[0].strip() == "after a 5xx"]
    for name, cell in zip(sorted(VENDORS), after_5xx[1:], strict=True):
        assert ("tries" in cell) == (VENDORS[name].retries is Retries.AFTER_5XX)


def test_url_for_tenjin_becomes_an_event() -> None:
    """The documented URL, filled in, is an event with the device; unfilled, it lacks its time."""
    [url] = re.findall(r"```\n(https://[^`]*/tenjin\?.*?)```", TABLE, re.DOTALL)
    query = url.replace("\n", "").partition("?")[2].replace("secret=SECRET&", "")
    app = App(workspace_id="w", vendor="tenjin", app_token="APP_TOKEN", events={"EVENT": "e"})
    vendor = VENDORS["tenjin"]
    unfilled = vendor.parse(callback_of(query.encode(), vendor=vendor), app)
    assert unfilled == Drop(DropReason.UNFILLED_PLACEHOLDER, "{{TIME}}")
    values = {"TIME": "1750500000", "analytics_installation_id": "d1", "advertising_id": "A-1"}
    filled = re.sub(r"\{\{(\w+)\}\}", lambda macro: values.get(macro[1], "x"), query)
    event = vendor.parse(callback_of(filled.encode(), vendor=vendor), app)
    assert isinstance(event, Event)
    assert (event.adid, event.gps_adid, event.os_name) == ("d1", "a-1", "android")
    assert event.properties.keys() == {"event_token", "ip_address", "bundle_id"}
