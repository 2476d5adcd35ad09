"""Tenjin: a URL of our own, filled with macros in double braces."""

from collections.abc import Mapping
from typing import ClassVar

import pytest

from app.event import App, Drop, DropReason
from tests.adapter_cases import AdapterCases


class TestTenjin(AdapterCases):
    """Tenjin keeps the promises of every adapter."""

    app = App(
        workspace_id="ws_test",
        vendor="tenjin",
        app_token="abc123token",
        events={"open": "app_open", "purchase": "purchase"},
        stable_id=("order",),
    )
    parameters: ClassVar[Mapping[str, str]] = {
        "app_token": "abc123token",
        "event_token": "open",
        "created_at": "1750500000",
        "adid": "3c6ef372fe94f82ba54ff53a5f1d36f1",
        "gps_adid": "38400000-8cf0-11bd-b23e-10b96e40000d",
        "os_name": "android",
        "country": "us",
        "ip_address": "203.0.113.7",
        "bundle_id": "com.example.game",
    }
    another_user: ClassVar[Mapping[str, str]] = {"adid": "0c6ef372fe94f82ba54ff53a5f1d36f1"}
    another_second: ClassVar[Mapping[str, str]] = {"created_at": "1750500001"}
    another_time = another_second
    stable_id: ClassVar[Mapping[str, str]] = {"order": "7"}
    revenue: ClassVar[Mapping[str, str]] = {"revenue_float": "4.99", "currency": "EUR"}
    placeholder = "{{name}}"

    @pytest.mark.parametrize(
        ("platform", "os_name", "kept"),
        [
            ("ios", "ios", False), ("android", "android", False), ("amazon", "android", True),
            ("android_other", "android", True), ("windows", None, True),
        ],
    )  # fmt: skip
    def test_platform_is_the_system(
        self, platform: str, os_name: str | None, *, kept: bool
    ) -> None:
        """Every platform of Tenjin's is `ios`, `android` or neither; its text is not lost."""
        event = self.event({**self.parameters, "os_name": platform})
        assert event.os_name == os_name
        assert event.properties.get("os_name") == (platform if kept else None)

    @pytest.mark.parametrize("advertising_id", ["", "00000000-0000-0000-0000-000000000000"])
    def test_device_that_opted_out_has_no_advertising_id(self, advertising_id: str) -> None:
        """After an opt-out the advertising ID is empty or zeros: absent, as Adjust's."""
        event = self.event({**self.parameters, "gps_adid": advertising_id})
        assert event.gps_adid is None
        assert event.event_id == self.event().event_id

    def test_macro_left_in_place_of_event_or_time_is_named(self) -> None:
        """A callback whose event or time came unfilled is dropped with the macro as its subject."""
        for name, macro in (("event_token", "{{event}}"), ("created_at", "{{timestamp}}")):
            assert self.outcome({**self.parameters, name: macro}) == Drop(
                DropReason.UNFILLED_PLACEHOLDER, macro
            )

    def test_single_braces_are_a_value(self) -> None:
        """A text in single braces is none of Tenjin's macros."""
        assert self.event({**self.parameters, "campaign": "{a}"}).properties["campaign"] == "{a}"
