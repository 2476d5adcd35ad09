"""Secrets: where they may stand in a request, and whose table each of them opens."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.access import Access, PublicHeaders, sent_app_token, sent_secrets
from app.commands import check
from app.commands.report import Report
from app.errors import NotConfigured, Unverified
from app.http import app as server
from app.http.app import UNVERIFIED_PAUSE_S
from app.settings import SECRET_MAX, SettingsError, VendorAccess, read_settings, secret_owner
from app.telemetry.metrics import REJECTED
from bench.testbed.client import exchange, get, head, post
from tests.gateways import SECRET, Gateways, environment, query

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


def test_workspace_without_any_secret_is_our_fault() -> None:
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
    # RFC 9110, 5.5: what is blank round a value does not belong to it.
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


def test_app_token_is_read_where_its_name_is_literal() -> None:
    """The app is the first `app_token=` of the URL, cleaned like every parameter."""
    assert sent_app_token(b"a=1&app_token=+x%00y%20&app_token=z") == "xy"
    assert sent_app_token(b"app%5Ftoken=x") is None
    assert sent_app_token(b"app_token=&app_token=x") is None


@pytest.mark.parametrize(
    "raw", [b"&" * 65_000, b"%41&" * 16_000, b"secret&" * 9_000, b"secret=" + b"%41" * 21_000]
)
def test_stranger_costs_a_look_over_the_head(raw: bytes) -> None:
    """Whatever 64 KB a stranger sends, less than a millisecond of CPU finds no secret in them."""
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
    """A name that can never be meant, or a value that can never be sent, names its variable."""
    with pytest.raises(SettingsError, match=rf"^{name}: .*{words}"):
        read_settings({name: value}, required=())


def test_settings_have_secrets_by_workspace() -> None:
    """Secrets of a workspace stand beside the vendor's own, which may be missing."""
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
        ({"OURS": "a", "GONE": "b"}, "no workspace in the file is meant by GONE"),
        ({"OURS": "a,hush", "THEIRS": "hush,b"}, "OURS, THEIRS have one in common"),
        ({"OURS": "hush", "THEIRS": "hush", "THIRD": "hush"}, "OURS, THEIRS, THIRD have one"),
        ({"OURS": f"a,{SECRET}", "THEIRS": "b"}, "OURS, the vendor have one in common"),
    ],
)
def test_check_names_who_shares_a_secret(
    own: Mapping[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A secret that opens the apps of several workspaces is warned of, and not told itself."""
    (tmp_path / "workspaces.toml").write_text(WORKSPACES)
    secrets = {f"ADJUST_CALLBACK_SECRET__{owner}": secret for owner, secret in own.items()}
    environ = environment("postgresql://h/d", "redis://h", tmp_path, **secrets)
    check._check_workspaces(Report(), read_settings(environ), ["adjust"])
    lines = capsys.readouterr().out
    assert words in lines
    assert ("warning" in lines) is bool(words)
    assert "hush" not in lines
    assert SECRET not in lines


async def test_customer_cannot_write_for_another(gateways: Gateways) -> None:
    """Over HTTP each secret opens the apps of its workspace, in the URL and in a header."""
    (gateways.folder / "workspaces.toml").write_text(WORKSPACES)
    gateway = await gateways.start(
        ADJUST_CALLBACK_SECRET__OURS="hush", ADJUST_CALLBACK_SECRET__THEIRS="hush-hush"
    )

    async def status(app: str, secret: str) -> int:
        in_url = await gateway.callback(app_token=app, secret=secret)
        without = query(app_token=app).replace(f"secret={SECRET}&", "")
        for headers in ({"X-FloKit-Secret": secret}, {"authorization": f"bearer {secret}"}):
            answer = await get(gateway.port, f"/ingest/adjust?{without}", headers=headers)
            assert answer.status == in_url.status
        target = f"/ingest/adjust?app_token={app}"
        sent = head("POST", target, headers={"X-FloKit-Secret": secret, "Content-Length": "0"})
        assert (await exchange(gateway.port, sent)).status == in_url.status
        return in_url.status

    assert [await status("ours", secret) for secret in ("hush", SECRET, "hush-hush")] == [
        200, 401, 401,
    ]  # fmt: skip
    assert await status("third", SECRET) == 200
    assert await status("third", "hush") == 401
    assert await status("nobody's", "hush") == 200


@pytest.mark.parametrize("name", ["secret", "%73ecret", "s%65cret", "+secret%00"])
async def test_secret_under_any_name_is_not_stored(gateways: Gateways, name: str) -> None:
    """A name that only decodes to `secret` opens nothing, and what it holds is stored nowhere."""
    gateway = await gateways.start()
    encoded = query().replace("secret=", f"{name}=", 1)
    if name != "secret":
        assert (await gateway.send(encoded)).status == 401
    # Every test searches its database for the secret when it ends.
    assert (await gateway.send(f"{query(user_id='u')}&{name}={SECRET}")).status == 200
    body = f"{name}={SECRET}&user_id=v".encode()
    for kind in ("application/x-www-form-urlencoded", None):
        answer = await gateway.post(
            body, kind, event_token="g3mz3t", created_at="1750500000", adid=str(kind)
        )
        assert answer.status == 200
    assert (await post(gateway.port, f"/ingest/adjust?{name}=", b"")).status == 401


async def test_stranger_has_little_of_the_loop(gateways: Gateways) -> None:
    """A 401 comes after a pause, so that a connection that guesses or floods costs little."""
    gateway = await gateways.start()
    started = time.monotonic()
    for _ in range(3):
        assert (await gateway.callback(secret="guess")).status == 401
    assert time.monotonic() - started >= 3 * UNVERIFIED_PAUSE_S


async def test_stranger_who_hangs_up_is_counted(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not wait for the answer has been refused all the same."""
    monkeypatch.setattr(server, "UNVERIFIED_PAUSE_S", 60.0)
    gateway = await gateways.start()
    refused = REJECTED.labels("wrong_secret")._value.get
    before = refused()
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head("GET", f"/ingest/adjust?{query(secret='guess')}"))
    async with asyncio.timeout(10):
        while not any(map(bool, (each.http for each in gateway._server.connections))):
            await asyncio.sleep(0.01)
        writer.transport.abort()
        while refused() == before:
            await asyncio.sleep(0.01)
