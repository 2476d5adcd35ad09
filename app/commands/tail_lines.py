"""The lines of `tail`: one for each written event, dropped callback and rejected request."""

from collections.abc import Mapping
from datetime import datetime

import msgspec

from app.commands.known_apps import KnownApps
from app.commands.likeness import NO_TOKEN, UNWANTED, Kind, kind_of, parameters_of
from app.commands.output import NOTHING, printable, toml_key
from app.commands.remedies import CASE_ONLY
from app.event import DropReason
from sinks.timescale.follow import Dropped, Rejected, Row, Written

NAME_MAX = 40
HINT_MAX = 200
HIDDEN = "(hidden)"
STATUS: Mapping[str, str] = {
    "wrong_secret": "401", "address_not_allowed": "401", "unknown_vendor": "404",
    "unknown_path": "404", "method_not_allowed": "405",
}  # fmt: skip
# Parameters with the vendor's name of an event, and the drops whose subject it is.
EVENT_NAMES = ("event_token", "event", "activity_kind")
NAMED_BY_SUBJECT = ("unmapped_event", "unfilled_placeholder", "refused")
REMEDIES: Mapping[str, str] = {
    DropReason.UNKNOWN_APP.value: (
        "add the app {subject} to the workspaces file, or correct the URL"
    ),
    DropReason.UNFILLED_PLACEHOLDER.value: (
        "correct the placeholder in the callback URL, unless this is the vendor's own test "
        "(cbtest), which fills none in: then the URL works"
    ),
    DropReason.INVALID_TIMESTAMP.value: "created_at={subject} is no time, too old, or ahead",
    DropReason.REFUSED.value: "the database refuses the row, see the gateway's log",
    DropReason.MALFORMED.value: "answered 400, {subject}",
    DropReason.OTHER_CELL.value: (
        "the app lives in cell {subject}: the proxy needs the map of `python -m app cells`"
    ),
}
# Remedies of drops without a subject: the URL lacks the parameter.
REMEDIES_OF_ABSENT: Mapping[str, str] = {
    DropReason.UNKNOWN_APP.value: "the URL has no app_token, or &amp; in place of &",
    DropReason.INVALID_TIMESTAMP.value: "the URL has no created_at",
}


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of `--json`; absent fields are unknown, or do not apply."""

    outcome: str
    received_at: datetime | None = None
    vendor: str = ""
    workspace_id: str = ""
    app_token: str = ""
    event: str = ""
    event_type: str = ""
    event_id: str = ""
    occurred_at: datetime | None = None
    user_id: str | None = None
    adid: str | None = None
    idfa: str | None = None
    gps_adid: str | None = None
    revenue: str | None = None
    revenue_float: str | None = None
    currency: str | None = None
    reason: str = ""
    subject: str = ""
    drop_id: int = 0
    address: str = ""
    hint: str = ""
    left_out: int = 0


def line_of(row: Row, known: KnownApps, *, show_ids: bool) -> Line:
    """Return the line about a row; users and devices are hidden unless `show_ids`."""
    match row:
        case Written():
            return _written(row, show_ids=show_ids)
        case Dropped():
            return _dropped(row, known)
        case Rejected():
            return Line(
                outcome="rejected", received_at=row.received_at, vendor=row.vendor,
                reason=row.reason, address=row.address, hint=row.hint,
            )  # fmt: skip


def _written(row: Written, *, show_ids: bool) -> Line:
    user_id, adid, idfa, gps_adid = (
        value if show_ids or value is None else HIDDEN
        for value in (row.user_id, row.adid, row.idfa, row.gps_adid)
    )
    return Line(
        outcome="written", received_at=row.received_at, vendor=row.vendor,
        workspace_id=row.workspace_id, app_token=row.app_token, event=row.sent,
        event_type=row.event_type, event_id=row.key, occurred_at=row.occurred_at,
        user_id=user_id, adid=adid, idfa=idfa, gps_adid=gps_adid,
        revenue=row.revenue, revenue_float=row.revenue_float, currency=row.currency,
    )  # fmt: skip


def _dropped(row: Dropped, known: KnownApps) -> Line:
    parameters = parameters_of(row.query, "", b"")
    names = (parameters.get(name) for name in EVENT_NAMES)
    event = row.subject if row.reason in NAMED_BY_SUBJECT else next(filter(None, names), "")
    return Line(
        outcome="dropped", received_at=row.received_at, vendor=row.vendor,
        workspace_id=row.workspace_id, app_token=row.app_token, event=event,
        reason=row.reason, subject=row.subject, drop_id=row.key, hint=_hint(row, parameters, known),
    )  # fmt: skip


def _hint(row: Dropped, parameters: Mapping[str, str], known: KnownApps) -> str:
    """Return the remedy of a drop."""
    is_unknown = row.reason == DropReason.UNKNOWN_APP.value
    if is_unknown and (app := known.alike(row.vendor, row.subject)):
        return CASE_ONLY.format(sent=row.subject, known=app)
    if row.reason != DropReason.UNMAPPED_EVENT.value:
        remedies = REMEDIES if row.subject else REMEDIES_OF_ABSENT
        return remedies.get(row.reason, "").format(subject=row.subject)
    kind = kind_of(row.subject, parameters)
    if kind is Kind.NONE:
        return NO_TOKEN
    if row.subject in UNWANTED:
        return f'add  "{row.subject}"  to ignore, or map it in activities'
    # The callback may have its parameters in a body.
    token = kind is Kind.TOKEN or "activity_kind" not in parameters
    section = "events" if token else "activities"
    return f'add  {toml_key(row.subject)} = "..."  to {section}'


def text_of(line: Line) -> str:
    """Return a line for people: time, vendor, app, event, outcome, details."""
    if line.left_out:
        return f"         ... and {line.left_out:,} more {line.outcome}"
    event, outcome, details = _cells(line)
    cells = (
        f"{line.received_at:%H:%M:%S}",
        f"{printable(line.vendor, NAME_MAX) or NOTHING:<8}",
        f"{printable(line.app_token, NAME_MAX) or NOTHING:<12}",
        f"{event:<12}",
        f"{outcome:<9}",
        *details,
    )
    return "  ".join(cell for cell in cells if cell).rstrip()


def _cells(line: Line) -> tuple[str, str, list[str]]:
    """Return event, outcome and details of a line."""
    event = printable(line.event, NAME_MAX) or NOTHING
    hint = printable(line.hint, HINT_MAX)
    if line.outcome == "dropped":
        return event, line.outcome, [f"{line.reason}: {hint}" if hint else line.reason]
    if line.outcome == "rejected":
        status = STATUS.get(line.reason, line.outcome)
        text = hint or printable(line.reason.replace("_", " "), NAME_MAX)
        return NOTHING, status, [f"{text}, from {printable(line.address, NAME_MAX)}"]
    names = ("user_id", "adid", "idfa", "gps_adid")
    identifiers = zip(names, (line.user_id, line.adid, line.idfa, line.gps_adid), strict=True)
    details = [f"{name} {printable(text, NAME_MAX)}" for name, text in identifiers if text]
    for name, amount in (("revenue_float", line.revenue_float), ("revenue", line.revenue)):
        if amount:
            money = f"{name} {printable(amount, NAME_MAX)}"
            details.append(f"{money} {printable(line.currency or '', NAME_MAX).lower()}".rstrip())
            break
    return event, line.outcome, [f"-> {printable(line.event_type, NAME_MAX)}", *details]
