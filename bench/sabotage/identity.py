"""Sabotages of the event ID."""

import re
from collections.abc import Callable
from datetime import datetime
from functools import partial
from hashlib import blake2b

import msgspec

from adapters import _url, adjust
from adapters._names import Names, Values
from app import normalize
from app.event import EPOCH, App, Callback, Event, event_id
from bench.sabotage.sabotage import Found, Sabotage, patch
from bench.testbed.deliveries import EventKind

_STABLE = {EventKind.STABLE: 600}
_REDELIVERED = {EventKind.REDELIVERED: 600}
_OFFSET = re.compile(r"[+ -]\d\d:?\d\d$")
_PARTS = "vendor, app token, user, event type, `occurred_at`, raw event ID"

new_id: Callable[..., bytes] = event_id
make_event: Callable[..., Event] = _url.make_event
read_time = normalize.time
identifiers = _url._identifiers  # noqa: SLF001 - the part to be sabotaged


def _with_parts(change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    """Change the parts of each event ID."""

    def changed(**parts: object) -> bytes:
        return new_id(**{**parts, **change(parts)})

    patch(_url, "event_id", changed)


def _without(name: str, constant: object) -> Callable[[], None]:
    return partial(_with_parts, lambda _: {name: constant})


def _without_user_kind() -> None:
    def change(parts: dict[str, object]) -> dict[str, object]:
        user = parts["user"]
        assert isinstance(user, tuple)
        return {"user": ("", user[1])}

    _with_parts(change)


def _without_stable_id() -> None:
    _with_parts(lambda parts: {"stable_id": parts["stable_id"] and "stable"})


def _stable_id_with_token() -> None:
    _with_parts(
        lambda parts: {
            "stable_id": parts["stable_id"] and (parts["stable_id"], parts["raw_event_id"])
        }
    )


def _second_name_ignored() -> None:
    def change(parts: dict[str, object]) -> dict[str, object]:
        stable_id = parts["stable_id"]
        return {"stable_id": stable_id[0] if isinstance(stable_id, tuple) else stable_id}

    _with_parts(change)


def _with_names(change: Callable[[App, Names], tuple[App, Names]]) -> Callable[[], None]:
    """Return a patch of the names of stable IDs: those of the app, and the vendor's."""

    def changed(present: Values, app: App, names: Names, **parts: object) -> Event:
        return make_event(present, *change(app, names), **parts)

    return partial(patch, _url, "make_event", changed)


def _one_name_suffices(app: App, names: Names) -> tuple[App, Names]:
    first = [name if isinstance(name, str) else name[0] for name in app.stable_id or ()]
    return msgspec.structs.replace(app, stable_id=tuple(first) or None), names


def _last_name_first(app: App, names: Names) -> tuple[App, Names]:
    own = app.stable_id and app.stable_id[::-1]
    default = msgspec.structs.replace(names, stable_id=names.stable_id[::-1])
    return msgspec.structs.replace(app, stable_id=own), default


def _as_if_by_default(app: App, names: Names) -> tuple[App, Names]:
    if app.stable_id is None:
        return app, names
    default = msgspec.structs.replace(names, stable_id=app.stable_id)
    return msgspec.structs.replace(app, stable_id=None), default


def _joined() -> None:
    def joined(**parts: object) -> bytes:
        user = parts["user"]
        assert isinstance(user, tuple)
        last = parts["stable_id"] or (parts["occurred_at"], parts["raw_event_id"])
        texts = (parts["vendor"], parts["app_token"], *user, parts["event_type"], last)
        return blake2b("".join(map(str, texts)).encode(), digest_size=16).digest()

    patch(_url, "event_id", joined)


def _with_more(more: Callable[[Values, Names], object]) -> Callable[[], None]:
    """Return a patch that adds a text to each raw event ID."""

    def changed(present: Values, app: object, names: Names, **parts: object) -> Event:
        parts["raw_event_id"] = f"{parts['raw_event_id']} {more(present, names)}"
        return make_event(present, app, names, **parts)

    return partial(patch, _url, "make_event", changed)


def _all_but_time(present: Values, names: Names) -> object:
    return sorted((name, value) for name, value in present.items() if name != names.time)


def _placeholder_is_present() -> None:
    def present(callback: Callback) -> dict[str, str]:
        return {name: value for name, value in callback.parameters.items() if value}

    patch(Callback, "present", property(present))


def _null_is_present() -> None:
    patch(adjust, "NAMES", msgspec.structs.replace(adjust.NAMES, identifier=str))


def _device_before_user() -> None:
    def changed(
        present: Values, names: Names
    ) -> tuple[list[str | None], tuple[str, str] | None, list[str]]:
        found, user, ignored = identifiers(present, names)
        return found, ("adid", found[1]) if found[1] else user, ignored

    patch(_url, "_identifiers", changed)


def _whole_second(moment: object) -> datetime:
    assert isinstance(moment, datetime)
    return moment.replace(microsecond=0)


def _column_with_whole_seconds() -> None:
    def changed(*values: object, **parts: object) -> Event:
        event = make_event(*values, **parts)
        return msgspec.structs.replace(event, occurred_at=_whole_second(event.occurred_at))

    patch(_url, "make_event", changed)


def _parts(name: str, constant: object, sentence: str = _PARTS) -> Sabotage:
    label = name.replace("_", "-").removesuffix("-token")
    return Sabotage(f"id-without-{label}", sentence, Found.LOST, _without(name, constant))


SABOTAGES = (
    _parts("vendor", ""),
    _parts("app_token", ""),
    _parts("user", ("", "")),
    Sabotage(
        "id-without-user-kind", "A `user_id` differs from an `adid` of the same text.",
        Found.LOST, _without_user_kind,
    ),
    _parts("event_type", ""),
    _parts("occurred_at", EPOCH),
    _parts("raw_event_id", ""),
    Sabotage(
        "id-without-stable-id", "With a stable ID: vendor, app token, user, type, stable ID",
        Found.LOST, _without_stable_id, shares=_STABLE,
    ),
    Sabotage(
        "stable-id-ignored", "With a stable ID, the time is no part.",
        Found.DOUBLED, _without("stable_id", None), shares=_STABLE,
    ),
    Sabotage(
        "stable-id-with-token", "With a stable ID, the raw event ID is no part.",
        Found.DOUBLED, _stable_id_with_token, shares=_STABLE,
    ),
    Sabotage(
        "second-stable-name-ignored", "A stable ID of two names is both of them.",
        Found.LOST, _second_name_ignored, shares={EventKind.STABLE: 2_000},
    ),
    Sabotage(
        "one-stable-name-suffices", "A stable ID of two names counts when both are present.",
        Found.LOST, _with_names(_one_name_suffices), shares=_STABLE,
    ),
    Sabotage(
        "last-stable-name-first", "The stable ID is the first present of its names.",
        Found.LOST, _with_names(_last_name_first), shares=_STABLE,
    ),
    Sabotage(
        "own-stable-id-with-device", "Nobody where the app lists the name of the stable ID",
        Found.DOUBLED, _with_names(_as_if_by_default), shares=_STABLE,
    ),
    Sabotage(
        "subtype-left-out", "raw event ID: the kind as `kind:subtype`", Found.LOST,
        partial(
            _with_parts, lambda parts: {"raw_event_id": str(parts["raw_event_id"]).split(":")[0]}
        ),
    ),
    Sabotage(
        "id-with-whole-seconds", "`occurred_at` has microseconds.", Found.LOST,
        partial(
            _with_parts, lambda parts: {"occurred_at": _whole_second(parts["occurred_at"])}
        ),
    ),
    Sabotage(
        "column-with-whole-seconds", "Fractions are cut to microseconds.",
        Found.LOST, _column_with_whole_seconds,
    ),
    Sabotage(
        "offset-ignored", "`created_at` → `occurred_at`, UTC", Found.LOST,
        partial(patch, normalize, "time", lambda text: read_time(_OFFSET.sub("", text))),
    ),
    Sabotage(
        "id-with-spelling-of-time", "Seconds, milliseconds and ISO give the same ID.",
        Found.DOUBLED, _with_more(lambda present, names: present[names.time]), shares=_REDELIVERED,
    ),
    Sabotage(
        "id-with-all-parameters", "An extra parameter gives the same ID.",
        Found.DOUBLED, _with_more(_all_but_time), shares=_REDELIVERED,
    ),
    Sabotage(
        "id-with-order-of-parameters", "Another parameter order gives the same ID.",
        Found.DOUBLED, _with_more(lambda present, _: list(present)), shares=_REDELIVERED,
    ),
    Sabotage(
        "id-of-joined-texts", "No two lists of parts give the same bytes.",
        Found.LOST, _joined, shares={EventKind.STABLE: 2_000}, callbacks=4_000,
    ),
    Sabotage(
        "devices-without-id-share-one", "Two devices without an ID never share one.",
        Found.LOST, partial(patch, _url, "_fingerprint", lambda *_: _url.NO_USER),
    ),
    Sabotage(
        "placeholder-is-present", "An unfilled placeholder is absent.",
        Found.LOST, _placeholder_is_present,
    ),
    Sabotage("null-is-present", "A word for nothing is absent.", Found.LOST, _null_is_present),
    Sabotage(
        "device-before-user", "User: the first of `user_id`, `adid`, `gps_adid`, `idfa`",
        Found.LOST, _device_before_user,
    ),
    Sabotage(
        "spelling-of-devices", "`idfa` upper case, `gps_adid` lower case",
        Found.LOST, partial(patch, _url, "_SPELLINGS", {}), shares=_REDELIVERED,
    ),
)  # fmt: skip
