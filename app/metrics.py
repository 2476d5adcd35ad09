"""Every metric, declared once. Label sets are bounded: vendors, workspaces, reasons of our own."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

# A second series for each counter, with the time of its creation, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

CALLBACK = ("vendor", "workspace")
# Those that begin at 0. Prometheus takes no rise from the first value of a series that appears, and
# so would not see the failures of a minute in which everything fails for the first time.
FAILURES = ("write_failed", "buffer_full", "clock_differs")
REJECTIONS = (
    "wrong_secret", "address_not_allowed", "no_secret_configured", "unknown_vendor",
    "malformed_body", "too_many_parameters", "unknown_path", "method_not_allowed",
    "response_timeout",
)  # fmt: skip
CLOSINGS = (
    "too_large", "head_too_slow", "body_too_slow", "not_http", "no_room", "answers_not_read",
)  # fmt: skip
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

BUILD_INFO = Gauge(
    "flokit_build_info",
    "1, with the version of the gateway and of its Python.",
    ("version", "python"),
    multiprocess_mode="livemax",
)
# Nobody counts it: it is the sum of the others as they are read, so that it is right also while
# another worker counts.
RECEIVED = Counter(
    "flokit_callbacks_received",
    "Verified callbacks whose outcome is known: written + duplicate + dropped + failed.",
    CALLBACK,
    registry=None,
)
WRITTEN = Counter("flokit_callbacks_written", "Callbacks answered `written`.", CALLBACK)
DUPLICATE = Counter("flokit_callbacks_duplicate", "Callbacks answered `duplicate`.", CALLBACK)
DROPPED = Counter(
    "flokit_callbacks_dropped", "Callbacks answered `dropped`, by reason.", (*CALLBACK, "reason")
)
IGNORED = Counter(
    "flokit_callbacks_ignored",
    "Callbacks dropped on purpose, by the entry of the app's `ignore`; among the dropped ones too.",
    (*CALLBACK, "subject"),
)
IDENTIFIERS_IGNORED = Counter(
    "flokit_identifiers_ignored",
    "Identifiers that were sent as a machine-made word for nothing, or as zeros, by parameter.",
    ("vendor", "name"),
)
FAILED = Counter(
    "flokit_callbacks_failed",
    "Callbacks answered 500 or 503 after they were verified, by reason.",
    (*CALLBACK, "reason"),
)
REJECTED = Counter(
    "flokit_requests_rejected",
    "Requests answered with an error before they were callbacks, by reason.",
    ("reason",),
)
UNEXPECTED = Counter(
    "flokit_errors_unexpected",
    "Requests answered 500 for an error that nobody expected: each is a defect.",
)
UNANSWERED = Counter(
    "flokit_connections_unanswered",
    "Connections closed without an answer: too large, too slow, not HTTP, not read, no room.",
    ("reason",),
)
BATCH_EVENTS = Histogram(
    "flokit_batch_events",
    "Events in a batch.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
COMMIT_SECONDS = Histogram(
    "flokit_commit_seconds",
    "Time from the claim of a batch to its outcome.",
    buckets=SECONDS,
)
STAGE_SECONDS = Histogram(
    "flokit_batch_stage_seconds",
    "Time of a batch in each stage: claim, write, settle (or release).",
    ("stage",),
    buckets=(0.0001, 0.0005, *SECONDS),
)
CLAIM_SECONDS, WRITE_SECONDS, SETTLE_SECONDS = map(
    STAGE_SECONDS.labels, ("claim", "write", "settle")
)
IN_FLIGHT = Gauge(
    "flokit_callbacks_in_flight",
    "Requests to /ingest that are being handled now.",
    multiprocess_mode="livesum",
)
BUFFER_EVENTS = Gauge(
    "flokit_buffer_events",
    "Events accepted and not yet committed.",
    multiprocess_mode="livesum",
)
BUFFER_LIMIT = Gauge(
    "flokit_buffer_limit_events",
    "Events that may be accepted and not yet committed.",
    multiprocess_mode="livesum",
)
CHUNKS = Gauge(
    "flokit_chunks",
    "Chunks of `events`; 0 = a plain table, or not known.",
    multiprocess_mode="livemax",
)
CLAIMS_BYPASSED = Counter(
    "flokit_claims_bypassed",
    "Batches whose claims were skipped, because Redis or its generation was not to be had.",
)
WORKSPACES_LOADED = Gauge(
    "flokit_workspaces_loaded_timestamp_seconds",
    "When the workspaces file in use was read.",
    multiprocess_mode="livemin",
)
WORKSPACES_REFUSED = Gauge(
    "flokit_workspaces_refused",
    "1 while the workspaces file on disk is refused and the last good one is in use.",
    multiprocess_mode="livemax",
)

WORKSPACES_VERSION = Gauge(
    "flokit_workspaces_version",
    "A number made of the content of the workspaces file in use: equal wherever that is equal.",
    multiprocess_mode="livemax",
)
CLOCK_AHEAD = Gauge(
    "flokit_clock_ahead_seconds",
    "The gateway's clock less the database's; NaN = not known.",
    multiprocess_mode="livemostrecent",
)
SECRET_LAST_USED = Gauge(
    "flokit_secret_last_used_timestamp_seconds",
    "When a secret was last accepted, by its place in the list; 0 = not since the start.",
    ("vendor", "workspace", "position"),
    multiprocess_mode="max",  # also of workers that have ended
)


def begin(callbacks: Iterable[tuple[str, str]] = ()) -> None:
    """Let what has labels begin at 0; `callbacks` are pairs of vendor and workspace."""
    for metric, reasons in ((REJECTED, REJECTIONS), (UNANSWERED, CLOSINGS)):
        for reason in reasons:
            metric.labels(reason)
    for vendor, workspace in callbacks:
        WRITTEN.labels(vendor, workspace)
        DUPLICATE.labels(vendor, workspace)
        for reason in FAILURES:
            FAILED.labels(vendor, workspace, reason)


def count(
    metric: Counter, vendor: str, workspace: str, reason: str | None = None, *, number: int = 1
) -> None:
    """Count callbacks of one outcome."""
    labels = (vendor, workspace) if reason is None else (vendor, workspace, reason)
    metric.labels(*labels).inc(number)


def exposition() -> bytes:
    """Return every metric as Prometheus text; with several workers, the sum of all."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    read = MultiProcessCollector.merge(_files(folder)) if folder else REGISTRY.collect()  # type: ignore[no-untyped-call]
    return generate_latest(_Snapshot(read))


def _files(folder: str) -> Iterator[str]:
    """Yield the files of the workers, but none that is just being made or taken away.

    prometheus_client fails on one that has been opened and has no length yet.
    """
    for path in Path(folder).glob("*.db"):
        with suppress(FileNotFoundError):
            if path.stat().st_size:
                yield str(path)


class _Snapshot(Collector):
    """All metrics as they were read at one moment, and what follows from them."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics
        received: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for metric in self._metrics:
            if metric.name in _OUTCOMES:
                for sample in metric.samples:
                    received[tuple(sample.labels[name] for name in CALLBACK)] += sample.value
        [total] = RECEIVED.describe()
        for labels, value in received.items():
            total.add_sample(f"{total.name}_total", dict(zip(CALLBACK, labels, strict=True)), value)
        yield total


_OUTCOMES = {
    metric.name
    for outcome in (WRITTEN, DUPLICATE, DROPPED, FAILED)
    for metric in outcome.describe()
}
