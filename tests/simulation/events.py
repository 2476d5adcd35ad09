"""The events of a history: few users, seconds and IDs, so that many are the same event."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from urllib.parse import urlencode

from tests.simulation.database import Row
from tests.simulation.sql import POISON
from tests.simulation.world import BEGAN_AT

SECRET = "simulated-secret"  # noqa: S105 - of no server
APPS = {"app_one": "ws_one", "app_two": "ws_two"}
TYPES = {"tok_buy": "purchase", "tok_pay": "purchase", "tok_run": "session"}
WORKSPACES = "".join(
    f'[[workspaces]]\nid = "{workspace}"\n[[workspaces.apps]]\nvendor = "adjust"\n'
    f'app_token = "{app}"\nevents = {{ tok_buy = "purchase", tok_pay = "purchase", '
    'tok_run = "session" }\n'
    for app, workspace in APPS.items()
)
_NOON = int(BEGAN_AT.timestamp())
# Two seconds of today, and two of days that have no chunk yet.
SECONDS = (_NOON - 2, _NOON - 1, _NOON - 5 * 86_400, _NOON - 9 * 86_400)
USERS = (("user_id", "u1"), ("adid", "u1"), ("user_id", "u2"))

# The parts that make two callbacks the same event, by the contract and not by the code.
Identity = tuple[str | None, ...]


@dataclass
class SimulatedEvent:
    """One event: its callbacks, and the answers to them."""

    identity: Identity
    is_poison: bool
    # Each is the parameters of one callback.
    callbacks: list[dict[str, str]] = field(default_factory=list)
    written: int = 0
    final: int = 0  # answers with a 200
    unanswered: int = 0  # sendings without one
    restored: int = 0  # rows that a restored snapshot has lost

    @property
    def name(self) -> str:
        """The event in a line of the trace."""
        return " ".join(part or "-" for part in self.identity)


def draw(random: Random, number: int) -> list[SimulatedEvent]:
    """Return some events, with the callbacks of each."""
    events: dict[Identity, SimulatedEvent] = {}
    for place in range(number):
        app = random.choice(list(APPS))
        user, name = random.choice(USERS)
        token = random.choice(list(TYPES))
        second = random.choice(SECONDS[: random.choice((2, 2, 4))])
        stable_id = random.choice(("", "", "t1", "t2"))
        is_poison = random.random() < 0.08
        if is_poison:
            user, name = "user_id", f"{POISON}{place}"
        parameters = {"app_token": app, user: name, "event_token": token}
        if stable_id:
            parameters["transaction_id"] = stable_id
        for _ in range(random.choice((1, 1, 2, 3))):
            # With a stable ID, another delivery may have another time.
            time = random.choice(SECONDS) if stable_id else second
            sent = {**parameters, "created_at": str(time)}
            identity = _identity(sent)
            event = events.setdefault(identity, SimulatedEvent(identity, is_poison))
            event.callbacks.append(sent)
    return list(events.values())


def query_of(callback: dict[str, str]) -> bytes:
    """Return the query of a callback."""
    return urlencode({"secret": SECRET, **callback}).encode()


def identity_of(row: Row) -> Identity:
    """Return the parts that identify the event of a row."""
    properties: dict[str, str] = json.loads(row.properties)
    sent = {"app_token": row.app_token, **properties}
    sent["created_at"] = str(int(row.occurred_at.timestamp()))
    if row.user_id:
        sent["user_id"] = row.user_id
    if row.adid:
        sent["adid"] = row.adid
    return _identity(sent)


def fault_of(row: Row, event: SimulatedEvent) -> str:
    """Return the difference between a row and the callbacks of its event, empty without one."""
    for sent in event.callbacks:
        properties = {
            name: sent[name] for name in ("event_token", "transaction_id") if name in sent
        }
        expected = (
            datetime.fromtimestamp(int(sent["created_at"]), UTC), APPS[sent["app_token"]], "adjust",
            sent["app_token"], TYPES[sent["event_token"]], sent.get("user_id"), sent.get("adid"),
            properties,
        )  # fmt: skip
        stored = (
            row.occurred_at, row.workspace_id, row.vendor, row.app_token, row.event_type,
            row.user_id, row.adid, json.loads(row.properties),
        )  # fmt: skip
        if expected == stored:
            return ""
    return f"differs: {row}"


def _identity(sent: dict[str, str]) -> Identity:
    user = ("user_id", sent["user_id"]) if "user_id" in sent else ("adid", sent["adid"])
    parts = (sent["app_token"], *user, TYPES[sent["event_token"]])
    if stable_id := sent.get("transaction_id"):
        return (*parts, "stable", stable_id)
    return (*parts, sent["created_at"], sent["event_token"])
