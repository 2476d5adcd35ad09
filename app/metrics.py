"""Every metric, declared once. Label sets are bounded: vendors, workspaces, reasons of our own."""

import os

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

# A second series for each counter, with the time of its creation, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

CALLBACK = ("vendor", "workspace")

RECEIVED = Counter(
    "flokit_callbacks_received",
    "Verified callbacks whose outcome is known: written + duplicate + dropped + failed.",
    CALLBACK,
)
WRITTEN = Counter("flokit_callbacks_written", "Callbacks answered `written`.", CALLBACK)
DUPLICATE = Counter("flokit_callbacks_duplicate", "Callbacks answered `duplicate`.", CALLBACK)
DROPPED = Counter(
    "flokit_callbacks_dropped", "Callbacks answered `dropped`, by reason.", (*CALLBACK, "reason")
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
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
BUFFER_EVENTS = Gauge(
    "flokit_buffer_events",
    "Events accepted and not yet committed.",
    multiprocess_mode="livesum",
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


def count(
    metric: Counter, vendor: str, workspace: str, reason: str | None = None, *, number: int = 1
) -> None:
    """Count callbacks of one outcome, together with what was received: the sum always holds."""
    RECEIVED.labels(vendor, workspace).inc(number)
    labels = (vendor, workspace) if reason is None else (vendor, workspace, reason)
    metric.labels(*labels).inc(number)


def exposition() -> bytes:
    """Return every metric as Prometheus text; with several workers, the sum of all."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
