"""The likely meaning of a vendor's event that has no mapping."""

import re
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from app.event import App
from app.parameters import parse_kept

# The types of docs/adjust.md for the kinds of activity that Adjust sends.
ACTIVITIES: Mapping[str, str] = {
    "install": "app_install", "session": "app_open", "reattribution": "app_reattribution",
    "reinstall": "app_reinstall", "uninstall": "app_uninstall",
}  # fmt: skip
UNWANTED = ("click", "impression")
# Parts of names that people give to events.
_MEANINGS: Mapping[str, str] = {
    "purchase": "a purchase", "order": "a purchase", "payment": "a purchase",
    "checkout": "a checkout", "subscri": "a subscription", "trial": "a trial",
    "regist": "a signup", "sign": "a signup", "login": "a login", "level": "a level",
    "tutorial": "a tutorial",
}  # fmt: skip
NAME_MAX = 40
_WHITE_SPACE = re.compile(r"\s+")
NO_TOKEN = "no token: add event_token={event} to the callback URL"  # noqa: S105 - no password


class Kind(Enum):
    """The parameter that names an event of the vendor."""

    TOKEN = "event token"  # noqa: S105 - no password
    ACTIVITY = "activity kind"
    NONE = "-"


class Section(Enum):
    """The place in an app of the workspaces file where an event belongs."""

    EVENTS = "events"
    ACTIVITIES = "activities"
    IGNORE = "ignore"


class Likeness(NamedTuple):
    """The likely meaning of an event, and its place in the workspaces file.

    `event_type` is empty where only a person can choose it.
    """

    kind: Kind
    text: str
    section: Section | None = None
    event_type: str = ""


def parameters_of(query: bytes, content_type: str, body: bytes) -> Mapping[str, str]:
    """Return the filled-in parameters of a callback in quarantine; the URL's win."""
    sent = parse_kept(query, content_type, body)
    return {name: value for name, value in sent.items() if value and value[0] != "{"}


def is_alike(one: str, other: str) -> bool:
    """Whether two names differ in letter case and white space at most."""
    return _plain(one) == _plain(other)


def _plain(text: str) -> str:
    return _WHITE_SPACE.sub("", text).casefold()


def kind_of(subject: str, parameters: Mapping[str, str]) -> Kind:
    """Return the kind of an event by the parameter that holds its name."""
    if not subject:
        return Kind.NONE
    token = parameters.get("event_token") or parameters.get("event")
    # Of a longer token the subject is the beginning.
    return Kind.TOKEN if token and token.startswith(subject) else Kind.ACTIVITY


def likeness(subject: str, parameters: Mapping[str, str], app: App | None) -> Likeness:
    """Return the likely meaning of an event; `app` is None where its file is unknown."""
    kind = kind_of(subject, parameters)
    if kind is Kind.NONE:
        return Likeness(kind, NO_TOKEN)
    if app and (known := _known(subject, kind, app)):
        return known
    if kind is Kind.ACTIVITY:
        return _activity(subject)
    findings: list[str] = []
    name = parameters.get("event_name", "")
    if name:
        findings.append(f'named "{name[:NAME_MAX]}"')
    guess = _meaning(name) or _meaning(subject)
    if parameters.keys() & {"revenue", "revenue_float"}:
        currency = parameters.get("currency", "")[:NAME_MAX].lower()
        findings.append(f"has revenue ({currency})" if currency else "has revenue")
        guess = guess or "a purchase"
    if guess and findings:
        findings[-1] += f": {guess}?"
    elif guess:
        findings.append(f"{guess}?")
    return Likeness(kind, ", ".join(findings), Section.EVENTS)


def _known(subject: str, kind: Kind, app: App) -> Likeness | None:
    """Return the likeness to the present mapping of the app."""
    section = Section.EVENTS if kind is Kind.TOKEN else Section.ACTIVITIES
    mapping = app.events if section is Section.EVENTS else app.activities
    if subject in mapping:
        return Likeness(kind, f"mapped by now, to {mapping[subject]}: replay it")
    if subject in app.ignore:
        return Likeness(kind, "ignored by now")
    for mapped, event_type in mapping.items():
        if mapped.lower() == subject.lower():
            text = f"differs only in letter case from {mapped} ({event_type})"
            return Likeness(kind, text, section, event_type)
    return None


def _activity(subject: str) -> Likeness:
    name, _, subtype = subject.partition(":")
    if name in UNWANTED:
        return Likeness(Kind.ACTIVITY, "not wanted? add it to ignore", Section.IGNORE)
    if name == "event":
        text = "an event without its token: add event_token={event} to the callback URL"
        return Likeness(Kind.ACTIVITY, text)
    if known := ACTIVITIES.get(subject):
        return Likeness(Kind.ACTIVITY, f"Adjust's {subject}", Section.ACTIVITIES, known)
    text = f"a {name} of type {subtype}" if subtype else ""
    return Likeness(Kind.ACTIVITY, text, Section.ACTIVITIES)


def _meaning(name: str) -> str:
    letters = "".join(filter(str.isalnum, name.lower()))
    return next((meaning for part, meaning in _MEANINGS.items() if part in letters), "")
