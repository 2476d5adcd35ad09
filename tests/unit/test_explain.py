"""Explanations of single callbacks: hints, mended forms, and no secret in any of them."""

from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapters
from app.commands.explain.discretion import NOT_SHOWN, SECRET_PART_MIN, Discretion
from app.commands.explain.explainer import Explainer
from app.commands.explain.explanation import Explanation, Verdict, as_text
from app.commands.explain.http_request import UnreadableInput
from app.commands.explain.requests_in_text import read_request
from app.commands.output import json_line
from app.normalize import time
from app.settings import read_settings

SECRET = "ruby-slippers"  # noqa: S105 - opens nothing
OLD = "old-ruby"
FILE = """
[[workspaces]]
id = "ws_demo"

[[workspaces.apps]]
vendor = "adjust"
app_token = "abc123token"
events = { g3mz3t = "purchase" }
activities = { install = "app_install" }
ignore = ["click"]
omit = ["gclid"]
"""
URL = f"/ingest/adjust?secret={SECRET}&app_token=abc123token"
EVENT = f"{URL}&event_token=g3mz3t&created_at=1750500000&user_id=usr_1"


@pytest.fixture
async def explainer(tmp_path: Path) -> AsyncIterator[Explainer]:
    """An explainer with one app and two secrets, on 2025-07-01."""
    explainer = make(tmp_path)
    await explainer.start()
    yield explainer
    await explainer.close()


def make(folder: Path, address: str | None = None, **environ: str) -> Explainer:
    """An explainer that is not yet started."""
    (folder / "workspaces.toml").write_text(FILE)
    settings = read_settings(
        {
            "WORKSPACES_FILE": str(folder / "workspaces.toml"),
            "ADJUST_CALLBACK_SECRET": f"{OLD},{SECRET}",
            **environ,
        },
        required=[],
    )
    return Explainer(settings, vendor="", address=address, at=time("2025-07-01T00:00:00Z"))


async def test_event_is_explained_step_by_step(explainer: Explainer) -> None:
    """Each step has its line, by the names that were sent."""
    more = "&transaction_id=T1&revenue=499&revenue_float=4.99&gclid=g&idfa={idfa}"
    explanation = await explainer.explain(1, EVENT + more)
    lines = as_text(explanation, is_numbered=True).splitlines()
    assert lines == [
        " input       1",
        " vendor      adjust",
        " secret      valid, the 2nd of 2 (not shown)",
        " app         abc123token -> ws_demo",
        " event       event_token = g3mz3t -> purchase",
        " time        created_at = 1750500000 -> 2025-06-21 10:00:00 UTC",
        " user        user_id = usr_1",
        f" identity    by event_token, user_id, transaction_id; event_id {explanation.event_id}",
        " kept        event_token, transaction_id, revenue, revenue_float",
        " not kept    gclid",
        " absent      idfa",
        " becomes     purchase, WRITTEN",
        ' answer      200 {"received":1,"written":1,"duplicate":0,"dropped":0}',
    ]


HINTS = {
    "html": (EVENT.replace("&", "&amp;"), "&amp; in place of &"),
    "second app token": (f"{EVENT}&app_token=other", "app_token is sent 2 times"),
    "second user": (f"{EVENT}&user_id=other", "user_id is sent 2 times"),
    "case of the app token": (
        EVENT.replace("abc123token", "ABC123token"),
        "ABC123token differs from abc123token only in case or white space",
    ),
    "blank in the app token": (EVENT.replace("abc123", "abc%20123"), "differs from abc123token"),
    "unknown app": (EVENT.replace("abc123token", "zzz"), 'app_token = "zzz"'),
    "app token unfilled": (EVENT.replace("abc123token", "{app_token}"), "write the app token"),
    "no app token": (EVENT.replace("app_token=abc123token&", ""), "add app_token="),
    "case of the token": (EVENT.replace("g3mz3t", "G3MZ3T"), "differs from the mapped g3mz3t"),
    "unmapped": (EVENT.replace("g3mz3t", "a.b"), "`events` of app abc123token in the workspaces"),
    "unmapped key": (EVENT.replace("g3mz3t", "a.b"), '"a.b" = "..."'),
    "unmapped activity": (f"{URL}&activity_kind=session", "`activities` of app abc123token"),
    "event_token": (
        EVENT.replace("g3mz3t", "{event_token}"),
        "{event_token} is no placeholder of Adjust's, {event} is",
    ),
    "another placeholder": (
        EVENT.replace("g3mz3t", "{event_name}"), "event_token takes {event}, not {event_name}",
    ),
    "length of the secret": (EVENT.replace(SECRET, "x"), "secret: 1 characters, configured are"),
    "cbtest": (EVENT.replace("1750500000", "{created_at}"), "cbtest"),
    "ahead": (EVENT.replace("1750500000", "1752000000"), "is 7 days, 18:40:00 ahead of"),
    "too old": (EVENT.replace("1750500000", "1"), "is too old"),
    "no time": (EVENT.replace("created_at=1750500000&", ""), "created_at is missing"),
    "unreadable time": (EVENT.replace("1750500000", "noon"), "must be Unix seconds"),
    "cents": (f"{EVENT}&revenue=499", "revenue without revenue_float"),
    "escaped name": (EVENT.replace("secret=", "s%65cret="), "only decodes to secret"),
    "case of the name": (EVENT.replace("secret=", "Secret="), "Secret is not secret"),
    "no secret": (EVENT.replace(f"secret={SECRET}&", ""), "add secret=... to the URL"),
    "wrong secret": (EVENT.replace(SECRET, f"{SECRET}%20"), "secret: begins or ends with"),
    "secret in the body": ("curl -d secret=x h/ingest/adjust", "it is not read from the body"),
    "app token in the body": (
        f"curl -d app_token=x h/ingest/adjust?secret={SECRET}", "add app_token=... to the URL: it",
    ),
    "text as a body": (f"curl -H content-type:text/plain -d x 'h{EVENT}'", "flat JSON object"),
    "too large": (f"{EVENT}&x={'x' * 70_000}", "65,535 bytes"),
    "unknown vendor": (EVENT.replace("/adjust", "/adjsut"), "/ingest/adjust"),
    "prefix": (f"/api{EVENT}", "a proxy must remove it"),
    "path": ("/callback?x=1", "the path of a callback is /ingest/adjust"),
    "method": (f'"PUT {EVENT} HTTP/1.1"', "GET or POST"),
    "header beside the URL": (
        f"curl -H 'x-flokit-secret: x' 'h{EVENT}'", "the header x-flokit-secret is not read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HINTS)
async def test_hint_names_the_cause(explainer: Explainer, name: str) -> None:
    """Each mistake has its hint, and a good callback has none."""
    text, expected = HINTS[name]
    explanation = await explainer.explain(1, text)
    assert any(expected in hint for hint in explanation.hints), explanation.hints
    assert not (await explainer.explain(1, EVENT)).hints


async def test_unfilled_token_is_the_event_that_is_shown(explainer: Explainer) -> None:
    """The placeholder decides, although an activity stands beside it."""
    text = EVENT.replace("g3mz3t", "{event_token}") + "&activity_kind=event"
    explanation = await explainer.explain(1, text)
    assert explanation.event == "event_token = {event_token} -> unfilled"


async def test_escaped_ampersand_is_explained_as_sent_and_as_meant(explainer: Explainer) -> None:
    """The verdict is that of the pasted URL; the mended one follows."""
    explanation = await explainer.explain(1, EVENT.replace("&", "&amp;"))
    assert (explanation.verdict, explanation.exit_code) == (Verdict.DROPPED, 1)
    assert explanation.reason == "unknown_app"
    assert explanation.mended is not None
    assert explanation.mended.verdict is Verdict.EVENT
    assert "purchase, WRITTEN" in as_text(explanation)


async def test_app_of_another_vendor_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that belongs to another vendor is found there."""
    vendors = dict(adapters.load())
    monkeypatch.setattr("adapters.load", lambda: vendors | {"other": vendors["adjust"]})
    explainer = make(tmp_path, OTHER_CALLBACK_SECRET=SECRET)
    await explainer.start()
    explanation = await explainer.explain(1, EVENT.replace("/adjust", "/other"))
    await explainer.close()
    assert explanation.hints == ["abc123token is an app of adjust, not of other"]


async def test_secret_of_a_workspace_is_named_by_its_owner(tmp_path: Path) -> None:
    """A secret of one workspace is valid for its apps alone."""
    explainer = make(tmp_path, ADJUST_CALLBACK_SECRET__WS_DEMO="emerald-city")
    await explainer.start()
    own = await explainer.explain(1, EVENT.replace(SECRET, "emerald-city"))
    shared = await explainer.explain(2, EVENT)
    await explainer.close()
    assert own.secret == "valid, of workspace WS_DEMO (not shown)"  # noqa: S105 - a line of output
    assert shared.verdict is Verdict.REJECTED


async def test_vendor_without_a_secret_is_told_its_setting(tmp_path: Path) -> None:
    """The fault is that of the gateway: 503, and the name of the variable."""
    explainer = make(tmp_path, ADJUST_CALLBACK_SECRET="")
    await explainer.start()
    explanation = await explainer.explain(1, EVENT)
    await explainer.close()
    assert (explanation.verdict, explanation.status) == (Verdict.FAILED, 503)
    assert "ADJUST_CALLBACK_SECRET" in explanation.hints[0]


async def test_same_event_twice_is_noted(explainer: Explainer) -> None:
    """Of two inputs that are one event the second names the first."""
    assert not (await explainer.explain(1, EVENT)).notes
    (note,) = (await explainer.explain(2, EVENT)).notes
    assert "input 1" in note


@pytest.mark.parametrize(
    ("address", "verdict", "words"),
    [("192.0.2.7", Verdict.EVENT, "allowed by"), ("198.51.100.1", Verdict.REJECTED, "not allowed")],
)
async def test_address_is_checked_where_it_is_given(
    tmp_path: Path, address: str, verdict: Verdict, words: str
) -> None:
    """The allowlist applies to the address of the option, and else to none."""
    allowlist = {"ADJUST_IP_ALLOWLIST": "192.0.2.0/24"}
    for option, expected in ((address, verdict), (None, Verdict.EVENT)):
        explainer = make(tmp_path, option, **allowlist)
        await explainer.start()
        explanation = await explainer.explain(1, EVENT)
        await explainer.close()
        assert explanation.verdict is expected
        assert words in explanation.address or option is None


ESCAPED = "".join(f"%{byte:02x}" for byte in SECRET.encode())
SPELLINGS = (SECRET, OLD, SECRET.upper(), f"+{SECRET}", ESCAPED, quote(ESCAPED))
PLACES = [
    "/ingest/adjust?secret={}&app_token=abc123token",
    EVENT + "&x={}",
    EVENT + "&{}=x",
    EVENT + "&user_id=pre{}post&app_token={}",
    URL + "&event_token={}&created_at=1",
    URL + "&event_token=%7B{}%7D&created_at=1",
    URL + "&event_token=g3mz3t&created_at={}",
    URL.replace("abc123token", "{}"),
    "/ingest/{}?x=1",
    "/{}",
    "curl -X '{}' h/ingest/adjust",
    """curl --json '{"event_token":"{}","{}":{}}' 'hURL'""".replace("URL", URL),
    "curl -H 'Accept: {}' 'h/ingest/adjust?app_token={}'",
    "nonsense {}",
    "curl '{}",
    "curl --{}",
    '192.0.2.1 "GET /ingest/adjust?secret={} HTTP/1.1" {}',
]


@pytest.mark.parametrize("place", PLACES)
async def test_secret_is_shown_nowhere(explainer: Explainer, place: str) -> None:
    """A configured secret is hidden wherever it stands, in every spelling."""
    for spelling in SPELLINGS:
        explanation = await explainer.explain(1, place.replace("{}", spelling))
        shown = (as_text(explanation) + json_line(explanation)).lower()
        for hidden in (*SPELLINGS, SECRET):
            assert hidden.lower() not in shown


BASIC = b64encode(b"adjust:emerald-city").decode()
WRONG = [
    "/ingest/adjust?secret={}&app_token={}",
    "/ingest/adjust?s%65cret={}&app_token={}",
    "/ingest/adjust?Secret={}&app_token={}",
    "/ingest/adjust?a=1&amp;secret={}&amp;app_token={}",
    URL + "&secret={}&event_token={}",
    "/ingest/{}?secret={}",
    "curl -H 'Authorization: Bearer {}' 'h/ingest/adjust?app_token={}'",
    "curl -H 'x-flokit-secret: {}' 'h/ingest/adjust?app_token={}'",
    "curl -d 'secret={}' 'hURL&event_token={}'".replace("URL", URL),
    """curl --json '{"secret":"{}"}' 'hURL&event_token={}'""".replace("URL", URL),
]


@pytest.mark.parametrize("place", WRONG)
async def test_wrong_secret_is_shown_nowhere(explainer: Explainer, place: str) -> None:
    """A text that is sent as the secret is hidden, also where it is repeated elsewhere."""
    for sent in ("emerald-city", "%65merald-city", BASIC):
        explanation = await explainer.explain(1, place.replace("{}", sent))
        shown = (as_text(explanation) + json_line(explanation)).lower()
        assert "emerald-city" not in shown
        assert BASIC.lower() not in shown


@given(
    secret=st.text(max_size=40).filter(lambda text: len(text.strip()) >= SECRET_PART_MIN),
    around=st.tuples(st.text(max_size=9), st.text(max_size=9)),
    rounds=st.integers(0, 3),
)
def test_text_that_holds_a_secret_is_not_shown(
    secret: str, around: tuple[str, str], rounds: int
) -> None:
    """However often a secret is escaped, a text that holds it is replaced."""
    text = f"{around[0]} {secret} {around[1]}"
    for _ in range(rounds):
        text = quote(text, safe="", errors="surrogatepass")
    assert Discretion([secret]).shown(text) == NOT_SHOWN


@given(st.text(max_size=300))
def test_shown_text_is_one_line(text: str) -> None:
    """Nothing of a value reaches the terminal as a control character."""
    shown = Discretion([SECRET]).shown(text)
    assert shown == NOT_SHOWN or shown.isprintable()


def test_rest_of_a_url_is_to_be_joined() -> None:
    """The second line of a URL that was pasted as two has a hint of its own."""
    with pytest.raises(UnreadableInput, match="begins with &, the rest of a URL"):
        read_request("&event_token=g3mz3t&created_at=1750500000")


def test_exit_codes() -> None:
    """0 is an event, 2 an unreadable input, 1 all else."""
    codes = {
        verdict: Explanation(input=1, verdict=verdict, becomes="").exit_code for verdict in Verdict
    }
    assert codes.pop(Verdict.EVENT) == 0
    assert codes.pop(Verdict.UNREADABLE) == 2
    assert set(codes.values()) == {1}
