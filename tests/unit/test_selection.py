"""The arguments that select a part of the quarantine."""

import argparse
from datetime import UTC, datetime

import pytest

from app.commands.selection import ArgumentError, add_selection, selection_of
from app.event import DropReason
from sinks.timescale.drops import Condition, Selection, condition_of
from tests.kept import invoke

NOW = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)


def select(*words: str, since: str | None = None) -> Selection:
    """The selection of a command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--show", default="5")
    add_selection(parser, since)
    return selection_of(parser.parse_args(words), NOW)


TIMES = [
    ("90s", datetime(2026, 11, 26, 9, 28, 30, tzinfo=UTC)),
    ("30m", datetime(2026, 11, 26, 9, 0, tzinfo=UTC)),
    ("24h", datetime(2026, 11, 25, 9, 30, tzinfo=UTC)),
    ("7d", datetime(2026, 11, 19, 9, 30, tzinfo=UTC)),
    ("2w", datetime(2026, 11, 12, 9, 30, tzinfo=UTC)),
    ("2026-11-20", datetime(2026, 11, 20, tzinfo=UTC)),
    ("2026-11-20T08:15:00", datetime(2026, 11, 20, 8, 15, tzinfo=UTC)),
    ("2026-11-20 08:15:00Z", datetime(2026, 11, 20, 8, 15, tzinfo=UTC)),
    ("2026-11-20T08:15:00+02:00", datetime(2026, 11, 20, 6, 15, tzinfo=UTC)),
]


@pytest.mark.parametrize(("text", "expected"), TIMES)
def test_time_is_a_duration_or_an_iso_time(text: str, expected: datetime) -> None:
    """A time is a duration back from now, or an ISO time in UTC unless it has a zone."""
    assert select("--since", text).since == expected


def test_default_of_since_gives_way_to_an_argument() -> None:
    """A command's own default of `--since` counts where the argument is not given."""
    assert select(since="7d").since == datetime(2026, 11, 19, 9, 30, tzinfo=UTC)
    assert select("--since", "1d", since="7d").since == datetime(2026, 11, 25, 9, 30, tzinfo=UTC)
    assert select() == Selection()


WRONG = [
    ("--since", "yesterday"),
    ("--since", "7 d"),
    ("--since", "-7d"),
    ("--since", "999999w"),
    ("--since", "9999999d"),
    ("--until", "0001-01-01T00:00:00+02:00"),
    ("--until", "9999-12-31T23:59:59-02:00"),
    ("--reason", "unmapped"),
    ("--reason", "ignored"),
    ("--subject", "\udcff"),
]


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_wrong_argument_is_one_line_that_names_it(name: str, text: str) -> None:
    """A wrong value is one line that names the argument."""
    with pytest.raises(ArgumentError) as raised:
        select(f"{name}={text}")
    message = str(raised.value)
    assert message.startswith(f"{name}: ")
    assert message.isprintable()


def test_since_comes_before_until() -> None:
    """An empty period is a mistake, which is reported."""
    with pytest.raises(ArgumentError, match="--since"):
        select("--since", "1h", "--until", "1h")


def test_condition_has_a_parameter_for_each_given_argument() -> None:
    """Each given argument is a parameter of the condition, an empty subject too."""
    selection = select(
        "--since", "1h", "--app", "abc", "--reason", "unmapped_event", "--subject", "",
    )  # fmt: skip
    assert selection.reason is DropReason.UNMAPPED_EVENT
    assert condition_of(selection) == Condition(
        "received_at >= $1 AND app_token = $2 AND reason = $3 AND subject = $4",
        (datetime(2026, 11, 26, 8, 30, tzinfo=UTC), "abc", "unmapped_event", ""),
    )
    assert condition_of(Selection()) == Condition("true", ())


@pytest.mark.parametrize(
    ("command", "wrong"),
    [("dropped", "--show=-1"), ("dropped", "--show=all"), ("dropped", "--since=7"),
     ("unmapped", "--until=soon")],
)  # fmt: skip
def test_command_reports_a_wrong_value_first(command: str, wrong: str) -> None:
    """A command needs no settings to refuse a wrong value."""
    with pytest.raises(ArgumentError, match=f"^{wrong.partition('=')[0]}: [^\n]+$"):
        invoke(command, wrong)
