"""Adjust: the callbacks that are one event, and those that must never be."""

import msgspec
import pytest

from tests.adapter_cases import SECRETS
from tests.unit.test_adjust import CONFIGURED, GOOD, Changes, event

USERS = ("user_id", "adid", "gps_adid", "idfa")
NOBODY: dict[str, str | None] = dict.fromkeys(USERS)
ZEROS = "00000000-0000-0000-0000-000000000000"


@pytest.mark.parametrize("place", range(4))
def test_first_identifier_is_the_user(place: int) -> None:
    """The first identifier that is present is the user; those after it do not count."""
    named = {name: GOOD[name] for name in USERS[place:]}
    without = event(NOBODY | named)
    assert event(NOBODY | {USERS[place]: GOOD[USERS[place]]}).event_id == without.event_id
    for absent in ("", "{x}", ZEROS):
        earlier = [name for name in USERS[:place] if absent != ZEROS or name in USERS[2:]]
        assert event(NOBODY | named | dict.fromkeys(earlier, absent)).event_id == without.event_id


def test_same_text_under_another_name_is_another_user() -> None:
    """The same text is another user under each of the names."""
    events = [event(NOBODY | {name: "12345-67890"}) for name in USERS]
    assert len({event.event_id for event in events}) == len(USERS)


def test_devices_without_identifiers_differ_by_their_parameters() -> None:
    """Without an identifier, any other parameter distinguishes two devices."""
    devices: list[Changes] = [
        {}, {"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}, {"user_agent": "10.0.0.1"}, {"revenue": "1"},
        {"idfa": ZEROS, "idfv": "1"}, {"idfv": "1"}, {"a": "b", "c": "d"}, {"a": "bc", "": "d"},
    ]  # fmt: skip
    assert len({event({**NOBODY, **device}).event_id for device in devices}) == len(devices)


def test_redelivery_without_identifiers_is_the_same_event() -> None:
    """Without an identifier, the hash leaves out only parameters that change at a redelivery."""
    sent = NOBODY | {"ip": "10.0.0.1", "ua": "x"}
    same: list[Changes] = [
        sent, NOBODY | {"ua": "x", "ip": "10.0.0.1"}, sent | {"secret": SECRETS[1]},
        sent | {"idfa": ""}, sent | {"idfa": "{idfa}"}, sent | {"other": "{other}"},
        sent | {"created_at": "2025-06-21T10:00:00.000Z"}, sent | {"created_at": "1750500000000"},
    ]  # fmt: skip
    assert len({event(changes).event_id for changes in same}) == 1


def test_redelivery_in_another_form_is_the_same_event() -> None:
    """Neither the name of the token nor the format of the time is part of the event."""
    for changes in (
        {"event_token": None, "event": "g3mz3t"},
        {"activity_kind": None},
        {"created_at": "1750500000.0"},
        {"created_at": "1750500000000"},
        {"created_at": "2025-06-21 12:00:00Z+0200"},
    ):
        assert event(changes).event_id == event().event_id
    for another in ({"event_token": "c0p1ed"}, {"created_at": "1750500000.000001"}):
        assert event(another).event_id != event().event_id


STABLE: list[tuple[Changes, str | None]] = [
    ({"transaction_id": "1"}, "1"),
    ({"deduplication_id": "1"}, "1"),
    ({"transaction_id": "1", "deduplication_id": "2"}, "1"),
    ({"transaction_id": "", "deduplication_id": "2"}, "2"),
    ({"transaction_id": "{transaction_id}", "deduplication_id": "2"}, "2"),
    ({"transaction_id": "{transaction_id}"}, None),
    ({"Transaction_id": "1"}, None),
]


@pytest.mark.parametrize(("changes", "stable_id"), STABLE)
def test_first_stable_id_identifies_the_event(changes: Changes, stable_id: str | None) -> None:
    """The first stable ID that is present identifies the event: no other time makes another one."""
    later = {"created_at": "1750500001", "event_token": "c0p1ed"}
    assert event(changes).has_stable_id is (stable_id is not None)
    same = event({**changes, **later}).event_id == event(changes).event_id
    assert same is (stable_id is not None)
    assert (event(changes).event_id == event({"transaction_id": stable_id}).event_id) or not same


def test_kinds_of_one_type_are_two_events() -> None:
    """Two subtypes mapped to one type, in one second, are two events; each repeats itself."""
    app = msgspec.structs.replace(CONFIGURED, activities={"subscription": "sub"})
    kinds = [
        event(
            {"event_token": None, "activity_kind": "subscription", "subscription_event_type": t},
            app,
        )
        for t in ("activation", "renewal", None, "activation")
    ]
    assert len({kind.event_id for kind in kinds}) == 3
    assert kinds[0].event_id == kinds[3].event_id


def test_listed_stable_id_identifies_without_a_user() -> None:
    """A stable ID listed by the app identifies an event without a user by itself."""
    app = msgspec.structs.replace(CONFIGURED, stable_id=("sk_transaction_id",))
    sent = NOBODY | {"sk_transaction_id": "t"}
    same: list[Changes] = [sent, sent | {"nonce": "1"}, sent | {"created_at": "1750500777"}]
    assert len({event(changes, app).event_id for changes in same}) == 1
    assert event(sent | {"adid": "a"}, app).event_id != event(sent, app).event_id
    by_default = msgspec.structs.replace(CONFIGURED, stable_id=None)
    strangers = [NOBODY | {"transaction_id": "t", "nonce": nonce} for nonce in ("1", "2", "1")]
    assert len({event(changes, by_default).event_id for changes in strangers}) == 2
    renamed = NOBODY | {"deduplication_id": "t", "nonce": "1"}
    assert event(renamed, by_default).event_id == event(strangers[0], by_default).event_id


def test_names_in_a_list_identify_only_together() -> None:
    """A list counts where each of its names is present; else the next entry does."""
    app = msgspec.structs.replace(CONFIGURED, stable_id=(("a", "b"), "c", ("d",)))
    stable = [
        event(changes, app)
        for changes in (
            {"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "12", "b": ""}, {"a": "1", "c": "1"},
            {"a": "1", "b": "null", "c": "1"}, {"d": "1"}, {"a": "1", "b": "2", "c": "9"},
        )
    ]  # fmt: skip
    assert [found.has_stable_id for found in stable] == [True, True, False, True, True, True, True]
    ids = [found.event_id for found in stable]
    assert ids[0] == ids[6]
    assert ids[3] == ids[4] == ids[5]
    assert len(set(ids)) == 4


def test_another_app_has_other_stable_ids() -> None:
    """Each app names the parameters that identify its events for good, or none."""
    sent = {"order": "7", "transaction_id": "1"}
    for names, kept in ((("order",), {"order": "7"}), ((), {})):
        workspace = msgspec.structs.replace(CONFIGURED, stable_id=names)
        found = event(sent, workspace)
        assert found.has_stable_id is bool(names)
        assert {name: found.properties[name] for name in sent if name in found.properties} == kept
