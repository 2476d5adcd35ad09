"""The arguments of a command that select a part of the quarantine: `--since 7d --app T`."""

import argparse
import re
from datetime import UTC, datetime, timedelta

import msgspec

from app.event import DropReason
from app.settings import SettingsError
from sinks.timescale.drops import Selection
from sinks.timescale.errors import DatabaseError

TIMES = "a duration back from now (30m, 24h, 7d) or an ISO time, in UTC unless it has a zone"
# Ignored callbacks are not kept.
REASONS = tuple(reason.value for reason in DropReason if reason is not DropReason.IGNORED)
_DURATION = re.compile(r"([0-9]{1,6})([smhdw])")
_UNITS = {
    "s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1),
    "d": timedelta(days=1), "w": timedelta(weeks=1),
}  # fmt: skip


class ArgumentError(SettingsError):
    """A wrong argument; the message is one line that names it."""


class SourceError(DatabaseError):
    """The database of `--from` does not let us in; the message is one line that names it."""


class _Arguments(msgspec.Struct):
    """The arguments of `add_selection`, as they were typed; a command may lack some."""

    since: str | None = None
    until: str | None = None
    vendor: str | None = None
    workspace: str | None = None
    app: str | None = None
    reason: str | None = None
    subject: str | None = None


def add_selection(parser: argparse.ArgumentParser, since: str | None = None) -> None:
    """Add the arguments that `selection_of` reads; `since` is the default of `--since`."""
    add_times(parser, since)
    add_apps(parser)
    parser.add_argument(
        "--reason", metavar="R", help=f"only drops for this reason: {', '.join(REASONS)}"
    )
    parser.add_argument(
        "--subject", metavar="S", help="only drops with this subject, such as an event token"
    )


def add_times(parser: argparse.ArgumentParser, since: str | None = None) -> None:
    """Add `--since` and `--until`."""
    default = f" (default: {since})" if since else ""
    parser.add_argument(
        "--since", metavar="TIME", default=since, help=f"arrived at or after{default}: {TIMES}"
    )
    parser.add_argument("--until", metavar="TIME", help="arrived before: likewise")


def add_apps(parser: argparse.ArgumentParser) -> None:
    """Add `--app`, `--vendor` and `--workspace`."""
    parser.add_argument("--app", metavar="T", help="only callbacks with this app token")
    parser.add_argument("--vendor", metavar="V", help="only callbacks of this vendor")
    parser.add_argument("--workspace", metavar="W", help="only callbacks of this workspace")


def selection_of(arguments: argparse.Namespace, now: datetime | None = None) -> Selection:
    """Return the selection of the arguments; raises ArgumentError."""
    typed = msgspec.convert(vars(arguments), _Arguments)
    for name, text in msgspec.structs.asdict(typed).items():
        # Python decodes invalid UTF-8 in arguments to lone surrogates.
        if isinstance(text, str) and text != text.encode(errors="replace").decode():
            raise ArgumentError(f"--{name}: not UTF-8")
    now = now or datetime.now(UTC)
    since = None if typed.since is None else moment("--since", typed.since, now)
    until = None if typed.until is None else moment("--until", typed.until, now)
    if since and until and since >= until:
        raise ArgumentError(f"--since: {since:%Y-%m-%d %H:%M:%S} UTC is not before --until")
    if typed.reason is not None and typed.reason not in REASONS:
        raise ArgumentError(f"--reason: got {typed.reason!r}, expected one of {', '.join(REASONS)}")
    return Selection(
        since=since,
        until=until,
        vendor=typed.vendor,
        workspace_id=typed.workspace,
        app_token=typed.app,
        reason=None if typed.reason is None else DropReason(typed.reason),
        subject=typed.subject,
    )


def moment(argument: str, text: str, now: datetime) -> datetime:
    """Return the time of a duration back from now, or of an ISO time; raises ArgumentError."""
    try:
        if match := _DURATION.fullmatch(text):
            return now - int(match[1]) * _UNITS[match[2]]
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ArgumentError(f"{argument}: got {text!r}, expected {TIMES}") from None


def whole(argument: str, text: str, most: int) -> int:
    """Return a whole number from 0 to `most`; raises ArgumentError."""
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or int(text) > most:
        raise ArgumentError(f"{argument}: got {text!r}, expected a number from 0 to {most}")
    return int(text)
