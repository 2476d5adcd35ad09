"""The output of commands: aligned, and harmless whatever a stranger sends."""

import json
import tomllib
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis.strategies import binary, characters, text

from app.commands.output import (
    json_line,
    minute,
    printable,
    printable_form,
    table,
    toml_key,
    toml_string,
)

ANY_TEXT = text(characters(exclude_categories=["Cs"]))


class Example(msgspec.Struct):
    """A line."""

    text: str


@given(ANY_TEXT)
def test_printable_text_has_no_control_characters(sent: str) -> None:
    """No character is left that a terminal obeys; other text is as it was."""
    shown = printable(sent)
    assert shown.isprintable()
    assert shown == sent or not sent.isprintable()


def test_long_text_is_cut() -> None:
    """A text above the limit is cut, with a mark."""
    assert printable("abcdef", 6) == "abcdef"
    assert printable("abcdefg", 6) == "abcdef..."


@given(binary())
def test_form_of_any_bytes_is_printable(sent: bytes) -> None:
    """The parameters of any bytes are one printable line."""
    assert printable_form(sent, 100).isprintable()


def test_form_shows_decoded_parameters() -> None:
    """Escapes are undone, and control characters are shown as theirs."""
    shown = printable_form(b"a=1+2&b=%26%1b%5B2J&&c&a=3", 100)
    assert shown == "a=1 2  b=&\\x1b[2J  c=  a=3"


@given(ANY_TEXT)
def test_toml_reads_back_the_text(sent: str) -> None:
    """A TOML string and key hold exactly the text, in one line."""
    line = f"{toml_key(sent)} = {toml_string(sent)}"
    assert line.isprintable()
    assert tomllib.loads(line) == {sent: sent}


@given(ANY_TEXT)
def test_json_line_is_ascii_and_reads_back(sent: str) -> None:
    """A JSON line is in printable ASCII, and holds exactly the text."""
    line = json_line(Example(sent))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == {"text": sent}


def test_times_are_utc_to_the_minute() -> None:
    """A time of any zone is shown in UTC."""
    east = timezone(timedelta(hours=2))
    assert minute(datetime(2026, 11, 26, 1, 5, 59, tzinfo=east)) == "2026-11-25 23:05"
    assert minute(datetime(2026, 11, 26, 1, 5, 59, tzinfo=UTC)) == "2026-11-26 01:05"


@pytest.mark.parametrize("right", [(), (1,)])
def test_table_is_aligned(right: tuple[int, ...]) -> None:
    """Columns are as wide as their widest cell, numbers are flush right, and no line ends blank."""
    assert table([("app", "n", ""), ("a", "1,000", "x")], right) == [
        "app      n" if right else "app  n",
        "a    1,000  x",
    ]
