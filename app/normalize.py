"""Values that every vendor sends in its own spelling: texts, times, identifiers, countries, OS."""

import re
from datetime import UTC, datetime, timedelta, timezone

from app.event import EPOCH

WHITE_SPACE = " \t\n\r\x0b\x0c"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

OS_NAMES = {"ios": "ios", "ipados": "ios", "android": "android"}
# Null-like words, which programs print for a missing value: `null` in Java's and Dart's string
# templates, `(null)` in Objective-C, `<nil>` in Go, `[object Object]` in JavaScript, `None` in
# Python.
NULL_WORDS = frozenset({
    "null", "nil", "none", "undefined", "nan", "n/a", "na", "unknown", "0", "-1", "anonymous",
    "guest", "object object",
})  # fmt: skip
_PAIRS = {"(": ")", "<": ">", "[": "]", '"': '"', "'": "'", "`": "`"}
_NULL_WORD_MAX = max(map(len, NULL_WORDS)) + 2
# First characters of zeros and of quoted words; most identifiers begin otherwise.
_SUSPECT = frozenset({*"-0", *_PAIRS})

_SECOND_DIGITS = 10
_MILLISECOND_DIGITS = 13  # of a moment of this era
_LEAP_SECOND = "60"
_MINUTES = 60
_COUNTRY = re.compile(r"[A-Za-z]{2,3}")
_ALL_ZERO = re.compile(r"-*0[0-]*")
_UNIX = re.compile(r"([0-9]{1,13})(?:\.([0-9]+))?")
_ISO = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:[.,]([0-9]+))?"
    # The SDKs write a Z before the offset; form decoding turns its + into a space.
    r"(?:Z|Z?([+ -])([0-9]{2}):?([0-9]{2}))?"
)


def clean(text: str) -> str:
    """Return text that any database can store: no NUL, no lone surrogate, no space around it."""
    if not text.isascii():
        text = _LONE_SURROGATE.sub("", text)
    return text.replace("\x00", "").strip(WHITE_SPACE)


def identifier(text: str) -> str | None:
    """Return an identifier as sent; None if it is a null-like word or all zeros."""
    if text.lower() in NULL_WORDS:
        return None
    return None if text[:1] in _SUSPECT and (is_null_word(text) or is_zero(text)) else text


def is_null_word(text: str) -> bool:
    """Whether a text is a null-like word, bare or in one pair of quotes or brackets."""
    return len(text) <= _NULL_WORD_MAX and _unquoted(text).lower() in NULL_WORDS


def is_zero(text: str) -> bool:
    """Whether an identifier is all zeros, as on every device with tracking denied."""
    return _ALL_ZERO.fullmatch(_unquoted(text)) is not None


def _unquoted(text: str) -> str:
    return text[1:-1] if _PAIRS.get(text[:1]) == text[-1:] else text


def country(text: str) -> str | None:
    """Return the code of a country in upper case; None for any other text."""
    return text.upper() if _COUNTRY.fullmatch(text) else None


def os_name(text: str) -> str | None:
    """Return `ios` or `android`; None for any other system."""
    return OS_NAMES.get(text.lower())


def time(text: str) -> datetime | None:
    """Read Unix seconds, Unix milliseconds or ISO 8601; None for anything else."""
    try:
        if len(text) == _SECOND_DIGITS and text.isascii() and text.isdecimal():
            return datetime.fromtimestamp(int(text), UTC)  # the common case, without a pattern
        if unix := _UNIX.fullmatch(text):
            digits, fraction = unix[1], unix[2] or ""
            decimals = 3 if len(digits) == _MILLISECOND_DIGITS else 6
            microseconds = int(digits + fraction[:decimals].ljust(decimals, "0"))
            return EPOCH + timedelta(microseconds=microseconds)
        if iso := _ISO.fullmatch(text):
            return _iso_time(iso)
    except (ValueError, OverflowError):
        pass  # no such date or time of day
    return None


def _iso_time(iso: re.Match[str]) -> datetime:
    date, hour, minute, second, fraction, sign, *offset = iso.groups()
    if hour == "24":  # some versions read it as midnight
        raise ValueError("there is no hour 24")
    leap_second = second == _LEAP_SECOND
    text = f"{date}T{hour}:{minute}:{'59' if leap_second else second}.{(fraction or '')[:6]:0<6}"
    if sign is None:
        moment = datetime.fromisoformat(f"{text}+00:00")
    else:
        hours, minutes = map(int, offset)
        distance = timedelta(hours=hours, minutes=_below_60(minutes))
        zone = timezone(-distance if sign == "-" else distance)
        moment = datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)
    return moment + timedelta(seconds=1) if leap_second else moment


def _below_60(minutes: int) -> int:
    if minutes >= _MINUTES:
        raise ValueError("an offset of 60 minutes or more")
    return minutes
