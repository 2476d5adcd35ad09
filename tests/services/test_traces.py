"""Traces: the spans that an OpenTelemetry collector gets, and no cost where they are off."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app.settings import SettingsError
from app.telemetry import tracing as spans
from app.telemetry.observer import traces_wanted
from bench.testbed.client import get, head
from bench.testbed.process import PATIENCE_S, POLL_S, ROOT, inherited
from tests.gateways import PATIENT, SECRET, Gateways, Process, environment, query

RUNS = Callable[..., Process]
NOBODY = "http://127.0.0.1:1"


class Span:
    """A span as it was received."""

    def __init__(self, span: object, service: str) -> None:
        self.service = service
        self.name: str = span.name  # type: ignore[attr-defined]
        self.id: bytes = span.span_id  # type: ignore[attr-defined]
        self.parent: bytes = span.parent_span_id  # type: ignore[attr-defined]
        self.links = {link.span_id for link in span.links}  # type: ignore[attr-defined]
        self.is_error = span.status.code == 2  # type: ignore[attr-defined]
        self.told = {
            pair.key.removeprefix("flokit."): pair.value.string_value or pair.value.int_value
            for pair in span.attributes  # type: ignore[attr-defined]
        }


class Collector:
    """Takes the spans that are exported by OTLP over HTTP, on a port of this machine."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.environ = {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
        }

    @property
    def spans(self) -> list[Span]:
        """All that have come so far."""
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                pairs = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                for scope in resource.scope_spans:
                    found += [Span(span, pairs["service.name"]) for span in scope.spans]
        return found

    def named(self, name: str) -> list[Span]:
        """Those of one name."""
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that listens."""
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, args=(POLL_S,))
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


async def test_callbacks_and_batches_have_spans(
    run: RUNS, collector: Collector, gateways: Gateways
) -> None:
    """Each callback has a span with its outcome, and each batch one with its stages."""
    with run(**collector.environ) as process:
        await asyncio.to_thread(process.wait_until_ready)
        for parameters in ({}, {}, {"event_token": "no"}, {"app_token": "no"}, {"secret": "no"}):
            await process.callback(**parameters)
        await get(process.port, f"/ingest/stranger?{query()}")
        await process.post(b"{", "application/json")
        await gateways.execute("ALTER TABLE events RENAME TO elsewhere")
        await process.callback(user_id="late")
        await gateways.execute("ALTER TABLE elsewhere RENAME TO events")
    told = [span.told for span in collector.named("callback")]
    known = {"vendor": "adjust", "workspace": "ws_test"}
    assert told == [
        known | {"outcome": "written"},
        known | {"outcome": "duplicate"},
        known | {"outcome": "dropped"},
        {"vendor": "adjust", "outcome": "dropped"},
        {"vendor": "adjust", "outcome": "rejected", "reason": "wrong_secret"},
        {"outcome": "rejected", "reason": "unknown_vendor"},
        known | {"outcome": "rejected", "reason": "malformed_body"},
        known | {"outcome": "failed", "reason": "write_failed"},
    ]
    assert [span.is_error for span in collector.named("callback")] == [False] * 7 + [True]
    batches = collector.named("batch")
    stages = {
        batch.id: [span.name for span in collector.spans if span.parent == batch.id]
        for batch in batches
    }
    assert list(stages.values()) == [
        ["claim", "write", "settle"],
        ["claim"],
        ["claim", "write", "release"],
    ]
    callbacks = collector.named("callback")
    assert [batch.parent for batch in batches] == [callbacks[number].id for number in (0, 1, 7)]
    assert {span.service for span in collector.spans} == {"flokit-gateway"}
    for word in (SECRET, "abc123token", "stranger", "usr_1", "127.0.0.1"):
        assert not any(word.encode() in body for body in collector.bodies), word


async def test_callbacks_are_linked_to_their_batch(
    run: RUNS, collector: Collector, gateways: Gateways
) -> None:
    """The first callback of a batch has it as a child, and the others have a link to it."""
    with run(**collector.environ, **PATIENT, OTEL_SERVICE_NAME="shop") as process:
        await asyncio.to_thread(process.wait_until_ready)
        async with gateways.held_writes():
            calls = [
                asyncio.create_task(process.callback(user_id=f"u{number}")) for number in range(9)
            ]
            async with asyncio.timeout(PATIENCE_S):
                while await process.buffered() < len(calls):
                    await asyncio.sleep(POLL_S)
        assert {(await call).status for call in calls} == {200}
    callbacks = {span.id: span for span in collector.named("callback")}
    batches = {span.id: span for span in collector.named("batch")}
    assert sum(int(batch.told["events"]) for batch in batches.values()) == len(callbacks) == 9
    for batch in batches.values():
        linked = [span for span in callbacks.values() if batch.id in span.links]
        assert len(linked) == int(batch.told["events"]) - 1
        assert callbacks[batch.parent].links == set()
    assert max(int(batch.told["events"]) for batch in batches.values()) > 1
    assert {span.service for span in collector.spans} == {"shop"}


async def test_contested_event_has_its_own_batch(
    run: RUNS, collector: Collector, gateways: Gateways
) -> None:
    """An event that is written alone has a batch of its own, as a child of its callback."""
    claimed = 'flokit_batch_stage_seconds_count{stage="claim"}'
    environ = collector.environ | PATIENT
    with run(**environ) as first, run(**environ) as second:
        for process in (first, second):
            await asyncio.to_thread(process.wait_until_ready)
        async with gateways.held_writes():
            calls = []
            for process in (first, second):  # the second finds the event claimed
                calls.append(asyncio.create_task(process.callback()))
                async with asyncio.timeout(PATIENCE_S):
                    while not (await process.metrics())[claimed]:
                        await asyncio.sleep(POLL_S)
        await asyncio.gather(*calls)
    parents = [batch.parent for batch in collector.named("batch")]
    [callback] = {parent for parent in parents if parents.count(parent) == 2}
    batches = [batch.id for batch in collector.named("batch") if batch.parent == callback]
    assert [[span.name for span in collector.spans if span.parent == id_] for id_ in batches] == [
        ["claim"],
        ["write", "release"],
    ]


async def test_caller_that_hangs_up_has_its_span(
    run: RUNS, collector: Collector, gateways: Gateways
) -> None:
    """A caller that goes away is an outcome of its own, and no error of the gateway."""
    with run(**collector.environ, **PATIENT) as process:
        await asyncio.to_thread(process.wait_until_ready)
        async with gateways.held_writes(), asyncio.timeout(PATIENCE_S):
            _, writer = await asyncio.open_connection("127.0.0.1", process.port)
            writer.write(head("GET", f"/ingest/adjust?{query()}"))
            while not await process.buffered():
                await asyncio.sleep(POLL_S)
            writer.transport.abort()
            while (await process.metrics())["flokit_callbacks_in_flight"]:
                await asyncio.sleep(POLL_S)
    [callback] = collector.named("callback")
    assert callback.told["outcome"] == "hung_up"
    assert not callback.is_error


async def test_workers_export_only_sampled_spans(run: RUNS, collector: Collector) -> None:
    """Workers export too; a callback that is not sampled is not exported, and is answered."""
    with run(**collector.environ, WORKERS="2") as process:
        await asyncio.to_thread(process.wait_until_ready)
        for number in range(10):
            assert (await process.callback(user_id=f"u{number}")).status == 200
    assert len(collector.named("callback")) == 10
    del collector.bodies[:]
    with run(**collector.environ, OTEL_TRACES_SAMPLER="always_off") as process:
        await asyncio.to_thread(process.wait_until_ready)
        assert (await process.callback()).status == 200
    assert not collector.bodies


async def test_missing_collector_fails_no_callback(run: RUNS) -> None:
    """Callbacks do not notice, and the end of the process waits for a while at most."""
    with run(OTEL_TRACES_EXPORTER="otlp", OTEL_EXPORTER_OTLP_ENDPOINT=NOBODY) as process:
        await asyncio.to_thread(process.wait_until_ready)
        assert (await process.callback()).status == 200
        process.signal(signal.SIGTERM)
        told = time.monotonic()
        assert await asyncio.to_thread(process.wait) == 0
        assert time.monotonic() - told < spans.CLOSE_S + 5
    assert SECRET not in process.log.read_text()


WITHOUT_EXTRA = 'import sys; sys.modules["opentelemetry"] = None  # as if it were not installed\n'
OFF = """
import sys
from app.gateway import create_gateway
from app.telemetry.observer import choose_observer
from app.settings import read_settings

gateway = create_gateway(read_settings(), observer=choose_observer())
parts = (gateway.handle, gateway.claims, gateway.sink)
print([part for part in parts if part.__module__.startswith("app.telemetry")])
# The rest is redis-py's, which imports what it finds.
ours = ("app.telemetry.tracing", "opentelemetry.sdk.trace", "opentelemetry.exporter")
print([name for name in sys.modules if name.startswith(ours)])
"""


@pytest.mark.parametrize("before", ["", WITHOUT_EXTRA], ids=["installed", "not installed"])
@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": NOBODY},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_SERVICE_NAME": "shop", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_traces_are_off_by_default(before: str, environ: dict[str, str], tmp_path: Path) -> None:
    """Where no traces are wanted, nothing is imported for them, and no part is replaced."""
    ended = run_script(before + OFF, tmp_path, environ)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("[]\n[]\n", "", 0)


def run_script(
    script: str, folder: Path, environ: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run Python in the environment of a gateway without a database, and with these variables."""
    settings = environment("postgresql://127.0.0.1:1/no", "redis://127.0.0.1:1/0", folder)
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=inherited() | settings | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


SERVE = """
import sys
from app.__main__ import main

sys.argv = ["app", "serve"]
sys.exit(main())
"""
OTLP = {"OTEL_TRACES_EXPORTER": "otlp"}


@pytest.mark.parametrize(
    ("script", "environ", "name"),
    [
        (WITHOUT_EXTRA + SERVE, OTLP, "OTEL_TRACES_EXPORTER"),
        (SERVE, {"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER"),
        (SERVE, OTLP | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ],
)
def test_wrong_variable_is_one_line(
    script: str, environ: dict[str, str], name: str, tmp_path: Path
) -> None:
    """An impossible value is reported in one line, and nothing is started."""
    ended = run_script(script, tmp_path, environ)
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("{")]  # the log's
    assert ended.returncode == 2, ended.stderr
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{name}: ")


def test_exporter_or_endpoint_turns_traces_on() -> None:
    """An exporter or an endpoint turns traces on; the SDK's own default does not."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": NOBODY}
    assert traces_wanted(endpoint)
    assert traces_wanted({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": NOBODY})
    assert traces_wanted({"OTEL_TRACES_EXPORTER": "otlp"})
    assert not traces_wanted({"OTEL_TRACES_EXPORTER": "none"} | endpoint)
    assert not traces_wanted({})
    with pytest.raises(SettingsError, match="OTEL_TRACES_EXPORTER"):
        traces_wanted({"OTEL_TRACES_EXPORTER": "console"})
