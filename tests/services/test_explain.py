"""`explain` reports for every callback the outcome that HTTP gives it."""

import asyncio
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.commands.explain.explainer import Explainer
from app.commands.explain.explanation import Verdict
from app.commands.explain.http_request import HttpRequest
from app.settings import read_settings
from bench.testbed.client import UNANSWERED, Answer, exchange, get, parse_head
from bench.testbed.process import PATIENCE_S, ROOT, inherited
from tests.gateways import SECRET, Process, Services, database_of, environment, workspaces_toml
from tests.services.test_cases import CASES, app_table
from tests.vectors import QUERIES, VECTORS, app_token, with_app

URL = f"/ingest/adjust?secret={SECRET}&app_token=abc123token"
EVENT = f"{URL}&event_token=g3mz3t&created_at=1750500000"
VERDICTS = {"written": Verdict.EVENT, "duplicate": Verdict.EVENT, "dropped": Verdict.DROPPED}


@pytest.fixture(scope="module")
def gateway(
    services: Services, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """A gateway with an app for each vector and case."""
    folder = tmp_path_factory.mktemp("explain")
    tokens = [app_token(vector["id"]) for vector in VECTORS]
    apps = workspaces_toml("abc123token", *tokens)
    cases = "\n".join(app_table(case) for case in CASES)
    (folder / "workspaces.toml").write_text(f'{apps}\n[[workspaces]]\nid = "ws_cases"\n{cases}')
    with (
        database_of(services, template, "explain") as url,
        Process(url, services.redis_url, folder) as process,
    ):
        process.wait_until_ready()
        yield process


@pytest.fixture
async def explainer(
    gateway: Process, services: Services, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Explainer]:
    """An explainer with the settings of the gateway, and much patience for a busy machine."""
    monkeypatch.setattr("app.commands.explain.records.TIMEOUT_S", PATIENCE_S)
    environ = environment(gateway.database_url, services.redis_url, gateway.folder)
    explainer = Explainer(read_settings(environ), vendor="adjust", address=None, at=None)
    await explainer.start()
    yield explainer
    await explainer.close()


def outcome_of(answer: Answer) -> Verdict:
    """The verdict that an HTTP answer stands for."""
    if answer.status != 200:
        return Verdict.UNANSWERED if answer == UNANSWERED else Verdict.REJECTED
    receipt = json.loads(answer.body)
    return VERDICTS[next(name for name in VERDICTS if receipt[name])]


def forms_of(target: str) -> Mapping[str, str]:
    """One callback as a URL, a query, log lines of four servers, and a curl command."""
    quoted = target.replace("\\", "\\x5C").replace('"', "\\x22")
    in_haproxy = target.replace("#", "#23").replace('"', "#22")
    return {
        "url": f"https://gateway.example.com{target}",
        "query": target.partition("?")[2],
        "nginx": f'192.0.2.1 - - [26/Nov/2026:09:00:00 +0000] "GET {quoted} HTTP/1.1" 200 52 "-"',
        "haproxy": f'h[1]: 192.0.2.1:5 [26/Nov/2026] f b/s 0/0/1 200 "GET {in_haproxy} HTTP/1.1"',
        "alb": f'https 2026-11-26T09:00:00Z app/lb "GET https://g:443{target} HTTP/1.1" "-"',
        "json": json.dumps({"ClientRequestMethod": "GET", "ClientRequestURI": target}),
        "curl": f"curl -g -sS {shlex.quote('https://g' + target)}",
    }


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["id"] for vector in VECTORS])
async def test_explanation_agrees_with_http_on_every_vector(
    gateway: Process, explainer: Explainer, vector: dict[str, Any]
) -> None:
    """Verdict, reason and event ID are those of HTTP and of the row, in each form of input."""
    token = app_token(vector["id"])
    target = f"/ingest/adjust?{with_app(vector['query'], token)}"
    if relative := vector.get("duplicate_of") or vector.get("distinct_from"):
        await get(gateway.port, f"/ingest/adjust?{with_app(QUERIES[relative], token)}")
    before = await explainer.explain(1, target)
    answer = await get(gateway.port, target)
    after = await explainer.explain(2, target)
    assert before.verdict is after.verdict is outcome_of(answer)
    assert before.status == answer.status == vector["expect"]["status"]
    assert before.reason == vector["expect"].get("reason", before.reason)
    if before.verdict is Verdict.EVENT:
        assert UUID(before.event_id) in await ids_of(gateway, token)
        was_there = json.loads(answer.body)["duplicate"]
        assert before.table.startswith("in the table" if was_there else "not in the table")
        assert after.table.startswith("in the table since ")
    for form, text in forms_of(target).items():
        found = await explainer.explain(3, text)
        assert (found.verdict, found.event_id, found.subject) == (
            before.verdict, before.event_id, before.subject,
        ), form  # fmt: skip


async def ids_of(gateway: Process, token: str) -> set[UUID]:
    """The event IDs of an app's rows."""
    connection = await asyncpg.connect(gateway.database_url)
    try:
        rows = await connection.fetch("SELECT event_id FROM events WHERE app_token = $1", token)
    finally:
        await connection.close()
    return {row["event_id"] for row in rows}


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
async def test_explanation_agrees_with_http_on_every_case(
    gateway: Process, explainer: Explainer, case: dict[str, Any]
) -> None:
    """Each callback of a case has its outcome, and their event IDs are those of the rows."""
    explained: set[str] = set()
    for query, outcome in zip(case["queries"], case["expect"], strict=True):
        target = f"/ingest/adjust?secret={SECRET}&app_token={case['id']}&{query}"
        explanation = await explainer.explain(1, target)
        answer = await get(gateway.port, target)
        assert explanation.verdict is outcome_of(answer) is VERDICTS[outcome]
        explained.add(explanation.event_id)
    rows = await ids_of(gateway, case["id"])
    assert {UUID(each) for each in explained - {""}} == rows
    assert len(rows) == case["rows"]


JSON = (("Content-Type", "application/json"),)
FORM = (("Content-Type", "application/x-www-form-urlencoded"),)
MORE = b"event_token=g3mz3t&created_at=1750500000"
REQUESTS = {
    "other path": HttpRequest("GET", "/"),
    "other vendor": HttpRequest("GET", f"/ingest/nobody?secret={SECRET}"),
    "escaped vendor": HttpRequest("GET", EVENT.replace("adjust", "%61djust")),
    "trailing slash": HttpRequest("GET", EVENT.replace("adjust?", "adjust/?")),
    "two slashes": HttpRequest("GET", f"/{EVENT}"),
    "inner slashes": HttpRequest("GET", EVENT.replace("/adjust", "//adjust")),
    "absolute": HttpRequest("GET", f"http://h{EVENT}"),
    "absolute without a path": HttpRequest("GET", "http://h?x"),
    "fragment": HttpRequest("GET", f"{EVENT}#x"),
    "raw bytes": HttpRequest("GET", f"{EVENT}&user_id=é \udcff"),
    "head": HttpRequest("HEAD", EVENT),
    "put": HttpRequest("PUT", EVENT),
    "lower case method": HttpRequest("post", EVENT),
    "empty post": HttpRequest("POST", EVENT),
    "form": HttpRequest("POST", URL, FORM, MORE),
    "json": HttpRequest("POST", URL, JSON, b'{"event_token":"g3mz3t","created_at":1750500000}'),
    "json array": HttpRequest("POST", URL, JSON, b"[1]"),
    "text": HttpRequest("POST", URL, (("Content-Type", "text/plain"),), b"hello"),
    "body of a get": HttpRequest("GET", URL, FORM, MORE),
    "secret in the body": HttpRequest("POST", "/ingest/adjust", FORM, b"secret=s3cr3t"),
    "gzip": HttpRequest("POST", URL, (*FORM, ("Content-Encoding", "gzip")), MORE),
    "identity": HttpRequest("POST", URL, (*FORM, ("Content-Encoding", "Identity")), MORE),
    "secret in a header": HttpRequest(
        "GET", EVENT.replace(f"secret={SECRET}&", ""), (("Authorization", f"bearer {SECRET}"),)
    ),
    "wrong secret beside a header": HttpRequest(
        "GET", EVENT.replace(SECRET, "wrong"), (("X-Flokit-Secret", SECRET),)
    ),
    "escaped name": HttpRequest("GET", EVENT.replace("secret=", "s%65cret=")),
    "too many parameters": HttpRequest("GET", EVENT + "&a=1" * 4_000),
    "large head": HttpRequest("GET", f"{EVENT}&a={'a' * 60_000}"),
    "too large a head": HttpRequest("GET", f"{EVENT}&a={'a' * 66_000}"),
    "too many headers": HttpRequest("GET", EVENT, tuple((f"x{n}", "y") for n in range(201))),
    "odd header": HttpRequest("GET", EVENT, (("x\x01", "y"),)),
    "large body": HttpRequest("POST", EVENT, FORM, b"a=" + b"a" * 1_000_000),
    "too large a body": HttpRequest("POST", EVENT, FORM, b"a=" + b"a" * 2_100_000),
}


async def answer_to(gateway: Process, request: HttpRequest) -> Answer:
    """The answer to a request; that to a HEAD has no body."""
    if request.method != "HEAD":
        return await exchange(gateway.port, request.encode())
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(request.encode())
    async with asyncio.timeout(PATIENCE_S):
        answer = parse_head(await reader.readuntil(b"\r\n\r\n"))
    writer.close()
    return answer


@pytest.mark.parametrize("name", REQUESTS)
async def test_explanation_agrees_with_http_on_every_request(
    gateway: Process, explainer: Explainer, name: str
) -> None:
    """Requests that are refused, repaired or closed by the HTTP layer have the same end."""
    request = REQUESTS[name]
    explanation = await explainer.explain_request(1, request)
    answer = await answer_to(gateway, request)
    assert explanation.verdict is outcome_of(answer)
    assert (explanation.status or 0) == answer.status


async def test_database_that_does_not_answer_is_one_line(gateway: Process) -> None:
    """Without a database the explanation is the same, and says so once."""
    environ = environment("postgresql://127.0.0.1:1/x", "redis://127.0.0.1:1", gateway.folder)
    explainer = Explainer(read_settings(environ), vendor="", address=None, at=None)
    await explainer.start()
    first = await explainer.explain(1, EVENT)
    assert first.verdict is Verdict.EVENT
    assert first.table.startswith("database: ")
    assert (await explainer.explain(2, EVENT)).table == ""
    await explainer.close()


async def test_drop_is_found_in_quarantine(gateway: Process, explainer: Explainer) -> None:
    """A dropped callback is reported as kept once it was sent."""
    target = f"{URL}&event_token=quarantined&created_at=1750500000"
    assert (await explainer.explain(1, target)).table == "not in quarantine at present"
    await get(gateway.port, target)
    assert (await explainer.explain(1, target)).table.startswith("in quarantine, from ")


def start(gateway: Process, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the command, in an environment of the workspaces file and the secret alone."""
    environ = {"WORKSPACES_FILE": str(gateway.folder / "workspaces.toml")}
    return subprocess.Popen(
        [sys.executable, "-m", "app", "explain", *arguments],
        cwd=ROOT,
        env={**inherited(), **environ, "ADJUST_CALLBACK_SECRET": SECRET},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def output(process: subprocess.Popen[bytes], sent: bytes = b"") -> tuple[int, bytes, bytes]:
    """The exit code and both outputs of a process that ends; the secret is in neither."""
    out, errors = process.communicate(sent, timeout=PATIENCE_S)
    assert SECRET.encode() not in out + errors
    assert b"Traceback" not in errors
    return process.returncode, out, errors


def test_exit_code_is_the_worst_of_all_inputs(gateway: Process) -> None:
    """0 for events, 1 for a drop, 2 for an unreadable line; binary lines are unreadable."""
    dropped = f"{URL}&event_token=zzzzzz"
    for lines, exit_code in (
        ([EVENT], 0),
        ([EVENT, dropped], 1),
        ([EVENT, "", "nonsense", dropped], 2),
    ):
        sent = "\n".join(lines).encode() + b"\n"
        assert output(start(gateway), sent)[0] == exit_code
    code, out, _ = output(start(gateway, "--json"), b"\xff\xfe\x00\x01\n" + EVENT.encode())
    first, second = (json.loads(line) for line in out.splitlines())
    assert (code, first["verdict"], second["verdict"]) == (2, "unreadable", "event")


def test_empty_input_is_an_error_of_one_line(gateway: Process) -> None:
    """Nothing on standard input ends with exit code 2 and the reason."""
    code, out, errors = output(start(gateway))
    assert (code, out, len(errors.splitlines())) == (2, b"", 1)


def test_unquoted_command_is_refused_without_its_words(gateway: Process) -> None:
    """Options of an unquoted curl command are not repeated in the error."""
    code, out, errors = output(start(gateway, "curl", "-d", "x=1", f"https://h{EVENT}"))
    assert (code, out) == (2, b"")
    assert b"unrecognized" in errors


def test_interrupt_ends_the_wait_for_a_line(gateway: Process) -> None:
    """Ctrl-C ends the command with 130 and without a traceback, after what it has explained."""
    process = start(gateway, "--json")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(EVENT.encode() + b"\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["verdict"] == "event"
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130
    assert output(process) == (130, b"", b"")


def test_long_and_many_lines_are_read_one_after_another(gateway: Process) -> None:
    """A line of 1 MB and thousands of lines each have an explanation, in order."""
    count = 1_000
    lines = [f"{EVENT}&user_id=u{number}" for number in range(count)]
    lines.append(f"{EVENT}&x={'a' * 1_000_000}")
    code, out, _ = output(start(gateway, "--json"), "\n".join(lines).encode())
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["input"] for each in found] == list(range(1, count + 2))
    assert (code, found[-1]["verdict"], found[-1]["reason"]) == (1, "unanswered", "too_large")


def test_reader_that_ends_early_is_no_error(gateway: Process) -> None:
    """A pipe into `head` leaves no traceback."""
    process = start(gateway)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.write(f"{EVENT}\n".encode() * 10)
    process.stdin.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(PATIENCE_S) == 141
    process.stderr.close()


async def test_explained_drops_take_no_room_from_one_another(
    gateway: Process, services: Services
) -> None:
    """However many drops are explained, each is reported as one that quarantine keeps."""
    environ = environment(
        gateway.database_url, services.redis_url, gateway.folder, QUARANTINE_MAX_MB="1"
    )
    settings = read_settings(environ, required=["WORKSPACES_FILE"])
    explainer = Explainer(settings, vendor="adjust", address=None, at=None)
    await explainer.start()
    try:
        target = f"{URL}&event_token=zzzzzz&label={'x' * 40_000}"
        found = [(await explainer.explain(number, target)).becomes for number in range(10)]
    finally:
        await explainer.close()
    assert set(found) == {"nothing: dropped, unmapped_event: zzzzzz; quarantine keeps it 14 days"}
