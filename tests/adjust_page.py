"""The page on setting Adjust up: its callback URLs, and the values that Adjust fills in."""

import re
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from bench.testbed.process import ROOT
from tests.gateways import SECRET

PAGE = (ROOT / "docs" / "adjust.md").read_text()
SECTIONS: dict[str, str] = dict(
    re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
)
# Parameters with a column of their own, and so not in `properties`.
COLUMNS = ("user_id", "adid", "idfa", "gps_adid", "os_name", "country")
# A value for each placeholder of the page, most of them the examples of Adjust's own pages.
VALUES = {
    "activity_kind": "event",
    "ad_impressions_count": "4",
    "ad_mediation_platform": "applovin_max_sdk",
    "ad_revenue_network": "AdMob",
    "ad_revenue_placement": "home_screen",
    "ad_revenue_unit": "rewarded_video",
    "adgroup_name": "Reindeers (12345678)",
    "adid": "18546f6171f67e29d1cb983322ad1329",
    "campaign_name": "Christmas & more (87654321)",
    "conversion_duration": "72",
    "country": "us",
    "created_at_milli": "1750500000123",
    "creative_name": "320x70_en",
    "currency": "USD",
    "environment": "production",
    "event": "g3mz3t",
    "event_name": "purchase 100 coins",
    "gps_adid": "38400000-8cf0-11bd-b23e-10b96e40000d",
    "idfa": "8C6CBC0D-5F43-4765-A6E6-84DFF3D24707",
    "idfv": "CCB300A0-DE1B-4D48-BC7E-599E453B8DD4",
    "installed_at": "1750413600",
    "last_session_time": "1750499000",
    "network_name": "Network1",
    "nonce": "f0ob4r2mzq7c",
    "os_name": "ios",
    "os_version": "18.5",
    "reattributed_at": "1750420000",
    "reinstalled_at": "1750430000",
    "revenue": "499",
    "revenue_float": "4.99",
    "session_count": "34",
    "sk_app_id": "525463029",
    "sk_campaign_id": "42",
    "sk_fidelity_type": "1",
    "sk_invalid_signature": "0",
    "sk_network_id": "123456789x.skadnetwork",
    "sk_redownload": "0",
    "sk_transaction_id": "6aafb7a5-0170-41b5-bbe4-fe71dedf1e28",
    "sk_ts": "1750499990",
    "sk_version": "4.0",
    "subscription_cancelled_at": "1753000000",
    "subscription_environment": "production",
    "subscription_event_subtype": "activated_subscription",
    "subscription_event_type": "activation",
    "subscription_expiration_time": "1753092000",
    "subscription_original_transaction_id": "230000687036600",
    "subscription_product_id": "com.example.product",
    "subscription_purchased_at": "1750499990",
    "subscription_sales_region": "us",
    "subscription_store": "appleappstore",
    "subscription_transaction_id": "230000687036601",
    "tracker": "abc123",
    "tracker_name": "Network1::Christmas::Reindeers::320x70_en",
    "uninstalled_at": "1750425000",
}
# Without these there would be no event, or another one.
NEEDED = {"activity_kind", "event", "created_at_milli", "nonce", "adid", "subscription_event_type"}
NAMELESS = dict.fromkeys(("adid", "idfa", "idfv", "gps_adid"), "")


class Url(NamedTuple):
    """A callback URL of the page, with the piece of the workspaces file beside it."""

    section: str
    parameters: Mapping[str, str]
    piece: str

    @property
    def app_token(self) -> str:
        """An app of the section's own: the pieces would get in each other's way."""
        return "app" + str(list(SECTIONS).index(self.section))

    def fill(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return the parameters as Adjust sends them; it knows every placeholder of the page."""
        known = VALUES | dict(values)

        def value(template: str) -> str:
            return re.sub(r"\{(\w+)\}", lambda found: known[found[1]], template)

        sent = {name: value(template) for name, template in self.parameters.items()}
        return sent | {"secret": SECRET, "app_token": self.app_token}

    def target(self, values: Mapping[str, str] = {}, **parameters: str | None) -> str:
        """Return the request target of Adjust; a parameter that is None is left out."""
        sent = self.fill(values) | parameters
        query = "&".join(
            f"{name}={quote(text, safe='')}" for name, text in sent.items() if text is not None
        )
        return f"/ingest/adjust?{query}"

    def properties(self, values: Mapping[str, str] = {}) -> dict[str, str]:
        """Return the `properties` of a row of this URL."""
        columns = {"secret", "app_token", "created_at", *COLUMNS}
        return {n: text for n, text in self.fill(values).items() if text and n not in columns}


def _url(section: str, text: str) -> Url:
    [block] = re.findall(r"```\n(https://.*?)```", text, re.DOTALL)
    address, _, query = block.replace("\n", "").partition("?")
    assert address == "https://ingest.example.com/ingest/adjust"
    parameters = dict(pair.split("=", 1) for pair in query.split("&"))
    assert (parameters["secret"], parameters["app_token"]) == ("SECRET", "APP_TOKEN")
    [piece] = pieces(text)
    return Url(section, parameters, piece)


def pieces(text: str) -> list[str]:
    """Return the pieces of a workspaces file in a text."""
    return re.findall(r"```toml\n(.*?)```", text, re.DOTALL)


URLS = {
    section: _url(section, text) for section, text in SECTIONS.items() if "```\nhttps://" in text
}
WHOLE_FILE = pieces(SECTIONS["The whole file"])[0]


def app(piece: str, app_token: str) -> str:
    """Return an app with a piece of the page."""
    return f'[[workspaces.apps]]\nvendor = "adjust"\napp_token = "{app_token}"\n{piece}\n'


def workspaces() -> str:
    """Return a workspaces file with an app for each URL."""
    return '[[workspaces]]\nid = "ws_demo"\n' + "".join(
        app(url.piece, url.app_token) for url in URLS.values()
    )


def decoded(piece: str) -> dict[str, Any]:
    """Return the app that a piece describes."""
    [workspace] = tomllib.loads('[[workspaces]]\nid = "ws_demo"\n' + app(piece, "a"))["workspaces"]
    [only] = workspace["apps"]
    return {name: said for name, said in only.items() if name not in ("vendor", "app_token")}
