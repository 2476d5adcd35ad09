"""From the trace of a request to its explanation, step by step."""

from collections.abc import Iterable
from uuid import UUID

from msgspec.structs import asdict

from app import normalize
from app.access import CREDENTIAL_HEADERS, sent_app_token, sent_secrets
from app.commands.explain.discretion import NOT_SHOWN, Discretion
from app.commands.explain.dry_run import Trace
from app.commands.explain.explanation import Explanation, Verdict
from app.commands.explain.hints import Facts, hints
from app.commands.explain.identity import identity_of
from app.commands.explain.vendors import VendorNames
from app.errors import NotConfigured, UnknownVendor, Unverified
from app.event import Callback, Drop, DropReason, Event, Retries
from app.settings import ALLOWLIST_SUFFIX
from app.vendor import Vendor

_OK, _SERVER_ERROR = 200, 500
_TIME = "%Y-%m-%d %H:%M:%S UTC"


def explain(facts: Facts, vendor: Vendor | None, discretion: Discretion) -> Explanation:
    """Return the explanation of a request; its caller fills in the number of the input."""
    trace, shown = facts.trace, discretion.shown
    explanation = Explanation(
        input=0,
        verdict=verdict_of(trace),
        becomes="",
        method=shown(facts.request.method),
        notes=list(facts.request.notes),
        hints=list(hints(facts)),
    )
    _add_answer(explanation, facts, discretion)
    if trace.request is not None:
        _add_access(explanation, facts, discretion)
    if trace.callback is not None:
        _add_callback(explanation, facts, trace.callback, discretion)
    if isinstance(trace.result, Event) and trace.callback is not None and trace.app is not None:
        _add_event(explanation, trace.result, trace.callback, facts.names, discretion)
        if vendor is not None:
            names = identity_of(vendor.parse, trace.callback, trace.app, trace.result, facts.names)
            explanation.identity = [shown(name) for name in names]
    return explanation


def verdict_of(trace: Trace) -> Verdict:
    """Return the end of a request."""
    if trace.answer is None:
        return Verdict.UNANSWERED
    if trace.answer.status >= _SERVER_ERROR:
        return Verdict.FAILED
    if trace.answer.status != _OK or trace.request is None:
        return Verdict.REJECTED
    return Verdict.EVENT if isinstance(trace.result, Event) else Verdict.DROPPED


def _add_answer(explanation: Explanation, facts: Facts, discretion: Discretion) -> None:
    trace, shown = facts.trace, discretion.shown
    explanation.reason = trace.answered.reason
    if trace.answer is None:
        explanation.becomes = (
            f"nothing: the connection is closed without an answer ({explanation.reason}), "
            "and the vendor sends it again"
        )
        return
    explanation.status = trace.answer.status
    body = trace.answer.body.decode()
    is_hidden = isinstance(trace.error, UnknownVendor) and shown(trace.error.message) == NOT_SHOWN
    explanation.answer = NOT_SHOWN if is_hidden else body
    match explanation.verdict:
        case Verdict.EVENT:
            pass  # the event is added later
        case Verdict.DROPPED:
            drop = _drop_of(facts)
            explanation.reason, explanation.subject = drop.reason.value, shown(drop.subject)
            subject = f": {explanation.subject}" if explanation.subject else ""
            kept = _kept(facts) or (
                ", on purpose" if drop.reason is DropReason.IGNORED else ", and not kept"
            )
            explanation.becomes = f"nothing: dropped, {explanation.reason}{subject}{kept}"
        case Verdict.REJECTED if trace.answer.status == _OK:
            explanation.becomes = "nothing: this path takes no callbacks"
        case Verdict.REJECTED:
            explanation.becomes = (
                f"nothing: answered {explanation.status}, which is final{_kept(facts)}"
            )
        case _:
            explanation.becomes = (
                f"nothing yet: answered {explanation.status}, and the vendor {_again(facts)}"
            )


def _again(facts: Facts) -> str:
    """Return the vendor's reaction to a 5xx."""
    name = facts.trace.request.vendor if facts.trace.request else ""
    vendor = facts.gateway.vendors.get(name)
    is_sent = vendor is None or vendor.retries is Retries.AFTER_5XX
    return "sends it again" if is_sent else "does not send it again: it is lost"


def _kept(facts: Facts) -> str:
    is_kept = facts.trace.dropped is not None and facts.gateway.settings.quarantine_d
    return f"; quarantine keeps it {facts.gateway.settings.quarantine_d} days" if is_kept else ""


def _drop_of(facts: Facts) -> Drop:
    """Return the drop of a callback; the adapter sees none of an unknown app or of another cell."""
    trace = facts.trace
    if isinstance(trace.result, Drop):
        return trace.result
    if facts.other_cell:
        return Drop(DropReason.OTHER_CELL, facts.other_cell)
    token = sent_app_token(trace.request.query) if trace.request else ""
    return Drop(DropReason.UNKNOWN_APP, token or "")


def _add_access(explanation: Explanation, facts: Facts, discretion: Discretion) -> None:
    trace, shown = facts.trace, discretion.shown
    if trace.request is None:
        return
    explanation.vendor = shown(trace.request.vendor)
    if isinstance(trace.error, UnknownVendor):
        explanation.vendor += ": no adapter has this name"
        return
    explanation.secret = _secret(facts)
    explanation.address = _address(facts, discretion)
    token = sent_app_token(trace.request.query) or ""
    app = facts.gateway.workspaces.find(trace.request.vendor, token)
    explanation.app_token = shown(token)
    explanation.workspace_id = shown(app.workspace_id) if app else ""
    explanation.cell = app.cell if app else ""


def _secret(facts: Facts) -> str:
    trace = facts.trace
    if trace.request is None:
        return ""
    if (secret := trace.secret) is not None:
        found = ["valid"]
        if secret.owner:
            found.append(f"of workspace {secret.owner}")
        if secret.number > 1:
            found.append(f"the {_ordinal(secret.position + 1)} of {secret.number}")
        if header := _credential_header(facts):
            found.append(f"in the header {header}")
        return ", ".join(found) + " (not shown)"
    if isinstance(trace.error, NotConfigured):
        return "none is configured: every callback is answered 503"
    if isinstance(trace.error, Unverified) and trace.error.reason == "address_not_allowed":
        return "not compared: the address comes first"
    return (
        "wrong (not shown)"
        if sent_secrets(trace.request.query, trace.request.headers)
        else ("missing")
    )


def _credential_header(facts: Facts) -> str:
    request = facts.trace.request
    if request is None or b"&secret=" in b"&" + request.query:
        return ""
    return next((name for name in CREDENTIAL_HEADERS if request.headers.get(name, "")), "")


def _address(facts: Facts, discretion: Discretion) -> str:
    trace = facts.trace
    if trace.request is None or not trace.request.address:
        return ""
    vendor, address = trace.request.vendor, discretion.shown(trace.request.address)
    access = facts.gateway.settings.vendors.get(vendor)
    if access is None or not access.allowlist:
        return f"{address}: allowed, as any is"
    setting = vendor.upper() + ALLOWLIST_SUFFIX
    if isinstance(trace.error, Unverified) and trace.error.reason == "address_not_allowed":
        return f"{address}: not allowed by {setting}"
    return f"{address}: allowed by {setting}"


def _add_callback(
    explanation: Explanation, facts: Facts, callback: Callback, discretion: Discretion
) -> None:
    trace, names, shown = facts.trace, facts.names, discretion.shown
    sent = callback.parameters
    if name := _type_name(names, callback, trace.result):
        meaning = _meaning(name, callback, facts)
        explanation.event = f"{name} = {shown(sent[name])} -> {shown(meaning)}"
    if name := _first(names.times, callback):
        moment = normalize.time(sent[name])
        meaning = moment.strftime(_TIME) if moment else "unreadable"
        if isinstance(trace.result, Drop) and callback.unfilled.fullmatch(sent[name]):
            meaning = "unfilled"
        explanation.time = f"{name} = {shown(sent[name])} -> {meaning}"
    elif names.times and not isinstance(trace.result, Event):
        explanation.time = f"no {names.times[0]}"


def _type_name(names: VendorNames, callback: Callback, result: Event | Drop | None) -> str:
    """Return the name of the parameter that decides the type: the one left unfilled, if any."""
    if isinstance(result, Drop) and result.reason is DropReason.UNFILLED_PLACEHOLDER:
        for name in names.types:
            if callback.parameters.get(name) == result.subject:
                return name
    return _first(names.types, callback)


def _first(names: Iterable[str], callback: Callback) -> str:
    """Return the first name with a value, one that is filled in if there is any."""
    sent = [name for name in names if callback.parameters.get(name)]
    filled = (name for name in sent if name in callback.present)
    return next(filled, sent[0] if sent else "")


def _meaning(name: str, callback: Callback, facts: Facts) -> str:
    """Return the event type of a parameter, or the reason why there is none."""
    trace = facts.trace
    if isinstance(trace.result, Event):
        return trace.result.event_type
    if trace.app is None or not isinstance(trace.result, Drop):
        return "unknown"
    if trace.result.reason is DropReason.IGNORED:
        return "ignored"
    value = callback.parameters[name]
    if callback.unfilled.fullmatch(value):
        return "unfilled"
    mapping = trace.app.activities if name in facts.names.activities else trace.app.events
    return mapping.get(value, "not mapped")


def _add_event(
    explanation: Explanation,
    event: Event,
    callback: Callback,
    names: VendorNames,
    discretion: Discretion,
) -> None:
    shown = discretion.shown
    explanation.event_type = shown(event.event_type)
    explanation.becomes = f"{explanation.event_type}, WRITTEN"
    explanation.occurred_at = event.occurred_at.isoformat()
    explanation.event_id = str(UUID(bytes=event.event_id))
    columns = {name: value for name, value in asdict(event).items() if value is not None}

    def column_of(name: str) -> str:
        return names.columns.get(name, name)

    user = next((name for name in names.users if column_of(name) in columns), "")
    if user:
        sent = callback.parameters.get(user) or columns[column_of(user)]
        explanation.user = f"{user} = {shown(sent)}"
    elif names.users:
        explanation.user = "none of " + ", ".join(names.users)
    kept: dict[str, None] = {}
    # Parameters are decoded from the last to the first.
    for name in reversed(list(callback.parameters)):
        stored_as = names.stored_as.get(name, name)
        if stored_as in event.properties:
            kept[stored_as] = None
        elif name not in callback.present or name in event.ignored:
            explanation.absent.append(shown(name))
        elif any(kept_name.startswith(f"{name}.") for kept_name in event.properties):
            pass  # an object, whose members are kept
        elif column_of(name) not in columns and name not in (*names.times, "app_token"):
            explanation.not_kept.append(shown(name))
    explanation.kept = [shown(name) for name in dict.fromkeys((*kept, *event.properties))]


def _ordinal(number: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else suffix}"
