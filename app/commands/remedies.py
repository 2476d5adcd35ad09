"""Remedies of dropped callbacks: a line of text for each reason, and the `replay` to type."""

from collections.abc import Iterator, Mapping, Sequence
from shlex import quote
from typing import NamedTuple

import msgspec

from app.commands.known_apps import KnownApps
from app.commands.output import printable
from app.event import DropReason
from app.parameters import parse_kept
from app.replay import ARRIVAL
from sinks.timescale import drops, hosts

# Each of these subjects has a command of its own, and costs one look-up.
UNFILLED_MAX = 5
TOKEN_NAMES = ("event_token", "event")
DEFAULT_SET = " --set event_token=TOKEN"
CASE_ONLY = "{sent} differs only in letter case or white space from {known}: correct the URL"


class Remedy(NamedTuple):
    """What to do about a reason, and the options of `replay` for it."""

    text: str
    options: str = ""
    is_replayable: bool = True


class Unfilled(NamedTuple):
    """The drops with one unfilled placeholder, and the options of `replay` for them."""

    app_token: str
    subject: str
    options: str


REMEDIES: Mapping[DropReason, Remedy] = {
    DropReason.UNMAPPED_EVENT: Remedy(
        "map the event in the workspaces file (`python -m app unmapped` prints the lines), then:"
    ),
    DropReason.UNKNOWN_APP: Remedy(
        "add the app to the workspaces file, then (for a mistyped token correct the URL, and add "
        "--set app_token=TOKEN):"
    ),
    DropReason.UNFILLED_PLACEHOLDER: Remedy(
        "correct the placeholder in the callback URL at the vendor; then, with the missing value "
        "(never for the vendor's own test, cbtest, which would become an event):",
        DEFAULT_SET,
    ),
    DropReason.INVALID_TIMESTAMP: Remedy(
        "send {created_at_milli} as created_at; to take the time of arrival in its place:",
        f" --set created_at={ARRIVAL}",
    ),
    DropReason.REFUSED: Remedy(
        "mend the table of the database (a foreign trigger, index or column), then:"
    ),
    DropReason.MALFORMED: Remedy(
        "correct the sender: the body is unreadable, or has too many parameters",
        is_replayable=False,
    ),
    DropReason.OTHER_CELL: Remedy(
        "the app lived in another cell, the subject: load the map of `python -m app cells` into "
        "the proxy; then, with the settings of that cell and the address of this database "
        "(docs/cells.md):",
        ' --from "$OTHER_DATABASE_URL"',
    ),
}


async def read_unfilled(
    connection: hosts.Connection, counts: Sequence[drops.DropCount], selection: drops.Selection
) -> Sequence[Unfilled]:
    """Return the most frequent unfilled placeholders, each with the options of its newest drop."""
    found: list[Unfilled] = []
    for count in counts:
        if count.reason is not DropReason.UNFILLED_PLACEHOLDER or len(found) == UNFILLED_MAX:
            continue
        of_subject = msgspec.structs.replace(
            selection, reason=count.reason, subject=count.subject,
            vendor=count.vendor, app_token=count.app_token, workspace_id=count.workspace_id,
        )  # fmt: skip
        newest = await drops.newest(connection, of_subject, 1)
        options = "".join(map(_missing_values, newest)) or DEFAULT_SET
        found.append(Unfilled(count.app_token, count.subject, options))
    return found


def _missing_values(drop: drops.KeptDrop) -> str:
    """Return the options that fill in what an event cannot do without."""
    sent = parse_kept(drop.query, drop.content_type, drop.body)
    tokens = [sent[name] for name in TOKEN_NAMES if sent.get(name)]
    options = DEFAULT_SET if drop.subject in tokens else ""
    if sent.get("created_at", "").startswith("{"):
        options += f" --set created_at={ARRIVAL}"
    return options


def remedies(
    counts: Sequence[drops.DropCount],
    unfilled: Sequence[Unfilled],
    known: KnownApps,
    selection: drops.Selection,
) -> Iterator[str]:
    """Yield the lines of each reason: the remedy, and the commands to type."""
    for reason in dict.fromkeys(count.reason for count in counts):
        of_reason = [count for count in counts if count.reason is reason]
        if reason is DropReason.UNKNOWN_APP:
            yield from _unknown_apps(of_reason, known, selection)
            continue
        yield f"{reason.value}: {REMEDIES[reason].text}"
        if reason is DropReason.UNFILLED_PLACEHOLDER:
            for each in unfilled:
                if each.subject.isprintable():
                    yield command(reason, {each.app_token}, each.subject, each.options)
        elif REMEDIES[reason].is_replayable:
            apps = {count.app_token for count in of_reason}
            yield command(reason, apps, selection.subject, REMEDIES[reason].options)


def _unknown_apps(
    counts: Sequence[drops.DropCount], known: KnownApps, selection: drops.Selection
) -> Iterator[str]:
    """Yield the lines about apps that the workspaces file lacks, and about mistyped ones."""
    reason = DropReason.UNKNOWN_APP
    lacking: set[str] = set()
    for count in counts:
        app = known.alike(count.vendor, count.app_token)
        if not app:
            lacking.add(count.app_token)
            continue
        text = CASE_ONLY.format(sent=printable(count.app_token), known=printable(app))
        yield f"{reason.value}: {text} at the vendor, then:"
        yield command(reason, {count.app_token}, None, f" --set app_token={quote(app)}")
    if lacking:
        yield f"{reason.value}: {REMEDIES[reason].text}"
        yield command(reason, lacking, selection.subject, "")


def command(reason: DropReason, apps: set[str], subject: str | None, options: str) -> str:
    """Return the `replay` of a selection, of one app where there is only one."""
    line = f"    python -m app replay --reason {reason.value}"
    if len(apps) == 1 and (app := next(iter(apps))).isprintable() and app:
        line += f" --app {quote(app)}"
    if subject is not None and subject.isprintable():
        line += f" --subject {quote(subject)}"
    return f"{line}{options} --dry-run"
