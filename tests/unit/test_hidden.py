"""The quick search for hidden words finds as much as that of every spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.hidden import Hidden, hidden_words

WORD = "hushhush"
# Parts of the word, escapes of its letters, escapes within escapes, and escapes that a lenient
# reader leaves out.
PIECES = (
    b"hush", b"h", b"us", b"%68", b"%75s", b"%2568", b"%25", b"%", b"68", b"%00", b"\x00",
    b"%C3%B6", b"%C3", b"\xc3", b"%b6", b"\xb6", b"%ED%A0%80", b"%E0%80%80", b"%E2%82%AC",
    b"%E2%82", b"%F0%9F", b"%3A", b"%0a", b"%7f", b"+", b"%20", b"%2B", b"\\", b"%5C",
    b"\\u0068", b"&a=", b"%zz",
)  # fmt: skip
raws = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)


def hiding(*secrets: str) -> Hidden:
    """The words of a gateway with these secrets."""
    return hidden_words(frozenset(), frozenset(secrets))


@given(raws, st.sampled_from([WORD, "hush hush", "hu"]))
def test_quick_search_misses_nothing(raw: bytes, secret: str) -> None:
    """A text that needs no unescaping holds no word in any spelling that the text does not show."""
    hidden = hiding(secret)
    found = hidden.found_in(raw)
    every = replace(hidden, harmless=None).found_in(raw)
    assert (found or hiding()).held == (every or hiding()).held
    assert (found is None) == (every is None)


@pytest.mark.parametrize(
    ("raw", "is_quick"),
    [
        (b"tracker=Network0%3A%3ACampaign+0%7B&label=Gr%C3%B6%c3%9fe+%E2%82%AC", True),
        (b"label=%68ush", False),
        (b"label=%2568ush", False),
        (b"label=hu%00sh", False),
        (b"label=hu%C3sh", False),
        (b"label=hu%ED%A0%80sh", False),
        (b"label=\\u0068ush", False),
    ],
)
def test_ordinary_query_is_searched_quickly(raw: bytes, is_quick: bool) -> None:
    """Escapes of other letters need no unescaping."""
    harmless = hiding(WORD).harmless
    assert harmless is not None
    assert (harmless.fullmatch(raw) is not None) is is_quick


def test_words_beyond_ascii_have_no_quick_search() -> None:
    """A secret with other letters is searched in every spelling."""
    assert hiding("größe-größe").harmless is None
