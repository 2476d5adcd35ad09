"""Every metric, declared once. Label sets are bounded: vendors, workspaces, reasons of our own."""

import multiprocessing
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, values

from app.telemetry.tallies import Labels, Numbers, Tally, read
from app.version import PYTHON_VERSION, VERSION

# The folder of the workers' numbers: any worker can report the sum of all.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
if FOLDER in os.environ:
    # Files are named for the worker, not for its process: a replacement continues in them.
    values.ValueClass = values.MultiProcessValue(  # type: ignore[no-untyped-call]
        lambda: multiprocessing.current_process().name
    )
# The series with the creation time of each counter are unused.
disable_created_metrics()  # type: ignore[no-untyped-call]

Metric = Counter | Gauge

CALLBACK = ("vendor", "workspace")
# Label values that are exposed at 0 from the start. Prometheus counts no increase up to the first
# value of a new series, and would miss the first failures of a kind.
FAILURES = (
    "write_failed", "too_late", "buffer_full", "clock_differs", "quarantine_failed",
    "quarantine_busy", "other_cell",
)  # fmt: skip
DROPS = ("invalid_timestamp", "refused", "malformed", "other_cell")
REJECTIONS = (
    "wrong_secret", "address_not_allowed", "no_secret_configured", "unknown_vendor",
    "unknown_path", "method_not_allowed", "response_timeout",
)  # fmt: skip
KEPT = (
    "unknown_app", "unfilled_placeholder", "unmapped_event", "invalid_timestamp", "refused",
    "malformed", "other_cell",
)  # fmt: skip
SKIPS = ("off", "too_large", "full", "workspace_share", "account_share", "reserved")
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

# Metrics by workspace. prometheus_client declares them, but neither counts nor renders them: it is
# slower at the one, and blocks the loop for the other where there are thousands of workspaces.
# RECEIVED is not counted: it is the sum of the outcomes as they are read, so that it adds up even
# while another worker counts.
RECEIVED = Counter(
    "flokit_callbacks_received",
    "Verified callbacks whose outcome is known: written + duplicate + dropped + failed.",
    CALLBACK,
    registry=None,
)
WRITTEN = Counter(
    "flokit_callbacks_written", "Callbacks answered `written`.", CALLBACK, registry=None
)
DUPLICATE = Counter(
    "flokit_callbacks_duplicate", "Callbacks answered `duplicate`.", CALLBACK, registry=None
)
DROPPED = Counter(
    "flokit_callbacks_dropped",
    "Callbacks answered `dropped`, by reason; those that cannot be read are answered 400.",
    (*CALLBACK, "reason"),
    registry=None,
)
IGNORED = Counter(
    "flokit_callbacks_ignored",
    "Callbacks dropped on purpose, by the entry of the app's `ignore`; among the dropped ones too.",
    (*CALLBACK, "subject"),
    registry=None,
)
IDENTIFIERS_IGNORED = Counter(
    "flokit_identifiers_ignored",
    "Identifiers that were sent as a null-like word or as zeros, by parameter.",
    ("vendor", "name"),
)
FAILED = Counter(
    "flokit_callbacks_failed",
    "Callbacks answered 500 or 503 after they were verified, by reason.",
    (*CALLBACK, "reason"),
    registry=None,
)
OUTCOMES = (WRITTEN, DUPLICATE, DROPPED, FAILED)
REJECTED = Counter(
    "flokit_requests_rejected",
    "Requests answered with an error that is not counted as a callback, by reason.",
    ("reason",),
)
QUARANTINE_ROWS = Counter(
    "flokit_quarantine_rows",
    "Dropped callbacks kept in quarantine, by reason.",
    ("reason",),
)
QUARANTINE_SKIPPED = Counter(
    "flokit_quarantine_skipped",
    "Dropped callbacks that had no place in quarantine, by cause: they cannot be replayed.",
    ("why",),
)
QUARANTINE_BYTES = Gauge(
    "flokit_quarantine_bytes",
    "Size of quarantine, as last read from the database.",
    multiprocess_mode="livemax",
)
QUARANTINE_LIMIT = Gauge(
    "flokit_quarantine_limit_bytes",
    "Size that quarantine may reach; 0 while it is off.",
    multiprocess_mode="livemax",
)
UNEXPECTED = Counter(
    "flokit_errors_unexpected",
    "Requests answered 500 for an unexpected error: each is a defect.",
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
    "Batches without claims, because Redis or the database's generation was unavailable.",
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
    "A hash of the workspaces file in use: equal for equal content.",
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
    registry=None,
)


class ByWorkspace:
    """The numbers of the metrics by workspace, labelled with vendor, workspace and often one more.

    `of_callbacks` are metrics that follow the workspaces file, each with the further label values
    that are exposed at 0 from the start; `of_settings` do not follow it. `in_use` are the pairs of
    vendor and workspace in the file: no other pair is exposed.
    """

    def __init__(
        self, of_callbacks: Mapping[Metric, Sequence[Labels]], of_settings: Sequence[Metric]
    ) -> None:
        self.of_callbacks = of_callbacks
        self.in_use: Collection[Labels] = ()
        self.folder: Path | None = None
        self._tallies = {metric: Tally(self.is_in_use) for metric in of_callbacks}
        self._tallies |= {metric: Tally(lambda _: True) for metric in of_settings}

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._tallies)

    def __getitem__(self, metric: Metric) -> Tally:
        return self._tallies[metric]

    def share(self, folder: Path) -> None:
        """Keep the numbers in this worker's files in a folder."""
        self.folder = folder
        for metric, tally in self._tallies.items():
            tally.share(folder / f"{_name(metric)}.{multiprocessing.current_process().name}.tally")

    def is_in_use(self, labels: Labels) -> bool:
        """Whether the workspace is in the file; unknown apps have the empty one."""
        return not labels[1] or labels[:2] in self.in_use

    def read(self, metric: Metric) -> Iterator[Numbers]:
        """Yield the current numbers of each worker."""
        if self.folder is None:
            yield self._tallies[metric].snapshot()
            return
        for path in self.folder.glob(f"{_name(metric)}.*.tally"):
            yield read(path)


def _name(metric: Metric) -> str:
    [family] = metric.describe()
    return family.name


BY_WORKSPACE = ByWorkspace(
    of_callbacks={
        WRITTEN: [()],
        DUPLICATE: [()],
        DROPPED: [(reason,) for reason in DROPS],
        IGNORED: [],
        FAILED: [(reason,) for reason in FAILURES],
    },
    of_settings=[SECRET_LAST_USED],
)


def begin() -> None:
    """Expose labelled metrics at 0, and resume the numbers of the previous worker of this name."""
    BUILD_INFO.labels(VERSION, PYTHON_VERSION).set(1)
    for metric, reasons in (
        (REJECTED, REJECTIONS),
        (UNANSWERED, CLOSINGS),
        (QUARANTINE_ROWS, KEPT),
        (QUARANTINE_SKIPPED, SKIPS),
    ):
        for reason in reasons:
            metric.labels(reason)
    if (folder := os.environ.get(FOLDER)) and BY_WORKSPACE.folder is None:
        BY_WORKSPACE.share(Path(folder))
