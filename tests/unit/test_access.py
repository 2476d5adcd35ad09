"""Secrets: their places in a request, and the workspaces that each of them opens."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

import adapters
from app.access import Access, PublicHeaders, sent_app_token, sent_secrets
from app.commands import check
from app.commands.report import Report
from app.errors import NotConfigured, Unverified
from app.secret_hints import SecretHints
from app.settings import (
    SECRET_MAX,
    Settings,
    SettingsError,
    VendorAccess,
    read_settings,
    secret_owner,
)
from tests.gateways import SECRET, environment

SHARED, OURS, THEIRS = "shared", "ours", "theirs"

ACCESS = Access({"adjust": VendorAccess((SHARED,), (), {"WS_A": (OURS,), "WS_B": (THEIRS, "b2")})})

OPENS: list[tuple[str | None, str, bool]] = [
    ("ws-a", OURS, True), ("ws-a", SHARED, False), ("ws-a", THEIRS, False),
    ("WS_B", THEIRS, True), ("ws b", "b2", True), ("ws b", OURS, False),
    ("ws_c", SHARED, True), ("ws_c", OURS, False),
    # The file may be on its way.
    (None, SHARED, True), (None, OURS, True), (None, "b2", True), (None, "none", False),
]  # fmt: skip


@pytest.mark.parametrize(("workspace", "secret", "opens"), OPENS)
def test_secret_opens_its_own_workspace_only(
    workspace: str | None, secret: str, *, opens: bool
) -> None:
    """A workspace with secrets of its own accepts these alone, any other one the vendor's."""
    if opens:
        ACCESS.verify("adjust", workspace, [secret.encode()], "")
    else:
        with pytest.raises(Unverified):
            ACCESS.verify("adjust", workspace, [secret.encode()], "")


def test_workspace_without_any_secret_is_not_refused_for_good() -> None:
    """Where neither the workspace nor the vendor has a secret, the answer is not a final one."""
    access = Access({"adjust": VendorAccess((), (), {"WS_A": (OURS,)})})
    access.verify("adjust", "ws_a", [OURS.encode()], "")
    for vendor, workspace in (("adjust", "ws_b"), ("other", "ws_a"), ("other", None)):
        with pytest.raises(NotConfigured):
            access.verify(vendor, workspace, [OURS.encode()], "")


QUERIES: list[tuple[bytes, Mapping[str, str], tuple[bytes, ...]]] = [
    (b"secret=a&secret=b", {}, (b"a",)),
    (b"x=1&secret=%41+%2B&y=2", {}, (b"A +",)),
    (b"secret=", {"x-flokit-secret": "h"}, (b"",)),
    (b"secret=+a%0A", {}, (b" a\n",)),
    (b"secret=\xc3\xa4", {}, ("ä".encode(),)),
    (b"xsecret=a&secret_=b&secret&SECRET=c", {}, ()),
    (b"%73ecret=a&s%65cret=b", {}, ()),
    (b"%73ecret=a", {"x-flokit-secret": "h"}, (b"h",)),
    (b"a=1", {"x-flokit-secret": "h", "authorization": "other"}, (b"h",)),
    (b"a=1", {"authorization": "h"}, (b"h",)),
    (b"a=1", {"authorization": "bEARER h i"}, (b"bEARER h i", b"h i")),
    (b"a=1", {"x-flokit-secret": "Bearer h"}, (b"Bearer h", b"h")),
    (b"a=1", {"authorization": "Bearerh"}, (b"Bearerh",)),
    (b"a=1", {"authorization": "\udce4"}, (b"\xe4",)),
    # RFC 9110, 5.5: blanks round a value do not belong to it.
    (b"a=1", {"x-flokit-secret": "h \t"}, (b"h",)),
    (b"a=1", {"authorization": "Bearer h\t "}, (b"Bearer h", b"h")),
    (b"a=1", {"x-flokit-secret": " ", "authorization": "h"}, (b"h",)),
    (b"secret=" + b"%41" * 20_000, {}, ()),
    (b"", {}, ()),
]


@pytest.mark.parametrize(("raw", "headers", "secrets"), QUERIES)
def test_secret_is_read_where_its_name_is_literal(
    raw: bytes, headers: Mapping[str, str], secrets: tuple[bytes, ...]
) -> None:
    """The first `secret=` of the URL counts, decoded and untrimmed; without one, a header."""
    assert sent_secrets(raw, headers) == secrets


WITH_MARKS = 'Pass+wörd%41="9'
HINTING = SecretHints(
    {
        "adjust": VendorAccess((WITH_MARKS,), (), {"WS_A": ("its-own-secret", "0123456789")}),
        "other": VendorAccess(("of-the-other",), (), {}),
        "none": VendorAccess((), (), {}),
        "many": VendorAccess(tuple("x" * length for length in range(8, 13)), (), {}),
    }
)
WRONG_LENGTH = "wrong secret: {} characters, configured are 10 or 14 or 15"
HINTS: list[tuple[bytes, str]] = [
    (b"secret=", "an empty secret was sent"),
    (b"a=1", "no secret was sent, or a huge one"),
    (b"secret=" + b"%41" * 20_000, "no secret was sent, or a huge one"),
    *[
        (b"secret=" + placeholder, "a literal placeholder was sent as the secret")
        for placeholder in (b"{secret}", b"SECRET", b"%3CSECRET%3E", b"your-secret", b"$SECRET")
    ],
    (b"secret=its-own-secret", "the secret of another workspace"),
    (b"secret=of-the-other", "the secret of another vendor"),
    (b"secret=+its-own-secret", "begins or ends with white space"),
    (b"secret=%22its-own-secret%22", "is in quotation marks"),
    (b"secret=secret=its-own-secret", "has the name of the parameter before it"),
    (b"secret=Pass+w%C3%B6rd%2541=%229", "a plus sign was sent unescaped: write it as %2B"),
    (b"secret=its%252Down-secret", "percent-encoded once too often"),
    (b"secret=Its-Own-SECRET", "differs only in letter case"),
    (b"secret=its-own-secreT+", WRONG_LENGTH.format(15) + "; begins or ends with white space"),
    (b"secret=its-own-secre", WRONG_LENGTH.format(13)),
    (b"secret=%FF", WRONG_LENGTH.format(1)),
]  # fmt: skip


@pytest.mark.parametrize(("query", "hint"), HINTS)
def test_hint_names_the_mistake(query: bytes, hint: str) -> None:
    """A refused secret is compared with the configured ones, without a part of any of them."""
    assert HINTING.hint("adjust", sent_secrets(query, {})) == hint


def test_hint_is_about_the_secret_of_a_header_without_its_scheme() -> None:
    """A header's scheme is not counted, and a header of any length costs nothing."""
    sent = sent_secrets(b"", {"authorization": "Bearer its-own"})
    assert HINTING.hint("adjust", sent).startswith("wrong secret: 7 characters")
    sent = sent_secrets(b"", {"x-flokit-secret": "%41" * 21_000})
    assert HINTING.hint("adjust", sent).startswith("wrong secret: 63000 bytes, configured are 10 ")
    assert HINTING.hint("many", [b"y"]) == "wrong secret: 1 characters, configured are 8 to 12"
    for vendor in ("none", "unknown"):
        assert HINTING.hint(vendor, [b"y"]) == "no secret is configured for this vendor"


def test_settings_have_all_secrets() -> None:
    """The secrets of all vendors and workspaces are known, for redaction."""
    workspaces = {"WS_A": (OURS,), "WS_B": (THEIRS, "b2")}
    settings = Settings(vendors={"adjust": VendorAccess((SHARED,), (), workspaces)})
    assert settings.secrets == {SHARED, OURS, THEIRS, "b2"}


def test_app_token_is_read_where_its_name_is_literal() -> None:
    """The app is the first `app_token=` of the URL, cleaned like every parameter."""
    assert sent_app_token(b"a=1&app_token=+x%00y%20&app_token=z") == "xy"
    assert sent_app_token(b"app%5Ftoken=x") is None
    assert sent_app_token(b"app_token=&app_token=x") is None


@pytest.mark.parametrize(
    "raw", [b"&" * 65_000, b"%41&" * 16_000, b"secret&" * 9_000, b"secret=" + b"%41" * 21_000]
)
@pytest.mark.no_cover
def test_head_without_a_secret_is_cheap(raw: bytes) -> None:
    """Any head of 64 KB without a secret is searched in less than a millisecond of CPU."""
    took = []
    for _ in range(20):
        started = time.thread_time()
        assert not any(sent_secrets(raw, {}))
        sent_app_token(raw)
        took.append(time.thread_time() - started)
    assert min(took) < 0.001


def test_adapters_see_no_credential() -> None:
    """Headers that may hold a secret are taken out, in any case; all others are there."""
    headers = PublicHeaders({"x-flokit-secret": "s", "Authorization": "s", "x-event": "e"})
    assert dict(headers) == {"x-event": "e"}
    assert len(headers) == 1
    assert "authorization" not in headers
    assert headers.get("Authorization") is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ADJUST_CALLBACK_SECRET__ws_demo", "a", "ADJUST_CALLBACK_SECRET__WS_DEMO"),
        ("ADJUST_CALLBACK_SECRET__", "a", "<WORKSPACE>"),
        ("ADJUST_CALLBACK_SECRET__WS", "a,", "secret 2 of 2 is empty"),
        ("ADJUST_CALLBACK_SECRET", "x" * (SECRET_MAX + 1), f"longer than {SECRET_MAX}"),
    ],
)
def test_wrong_secret_setting_is_refused(name: str, value: str, words: str) -> None:
    """A name that fits no workspace, or a value that no request can hold, names its variable."""
    with pytest.raises(SettingsError, match=rf"^{name}: .*{words}"):
        read_settings({name: value}, required=())


def test_settings_have_secrets_by_workspace() -> None:
    """A workspace has secrets beside the vendor's own, which may be missing."""
    environ = {"ADJUST_CALLBACK_SECRET__WS_1": "a,b", "ADJUST_CALLBACK_SECRET": ""}
    access = read_settings(environ, required=()).vendors["adjust"]
    assert (access.secrets, access.workspaces) == ((), {"WS_1": ("a", "b")})
    assert secret_owner("ws-ä.1") == "WS___1"


WORKSPACES = "".join(
    f'[[workspaces]]\nid = "{id_}"\n[[workspaces.apps]]\nvendor = "adjust"\n'
    f'app_token = "{id_}"\nevents = {{ g3mz3t = "purchase" }}\n'
    for id_ in ("ours", "theirs", "third")
)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (
            {},
            "warning  secrets of vendor adjust: ours, theirs, third share ADJUST_CALLBACK_SECRET:",
        ),
        ({"OURS": "a", "THEIRS": "b"}, ""),
        ({"OURS": "a", "GONE": "b"}, "GONE: no such workspace in the file"),
        ({"OURS": "a,hush", "THEIRS": "hush,b"}, "OURS, THEIRS have one in common"),
        ({"OURS": "hush", "THEIRS": "hush", "THIRD": "hush"}, "OURS, THEIRS, THIRD have one"),
        ({"OURS": f"a,{SECRET}", "THEIRS": "b"}, "OURS, the vendor have one in common"),
    ],
)
def test_check_names_workspaces_that_share_a_secret(
    own: Mapping[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A secret that opens the apps of several workspaces gets a warning without its value."""
    (tmp_path / "workspaces.toml").write_text(WORKSPACES)
    secrets = {f"ADJUST_CALLBACK_SECRET__{owner}": secret for owner, secret in own.items()}
    environ = environment("postgresql://h/d", "redis://h", tmp_path, **secrets)
    check._check_workspaces(Report(), read_settings(environ), adapters.load())
    lines = capsys.readouterr().out
    assert words in lines
    assert ("warning" in lines) is bool(words)
    assert "hush" not in lines
    assert SECRET not in lines
