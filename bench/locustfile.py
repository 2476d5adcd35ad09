"""Unique, realistic callbacks with locust, against any URL.

    export URL=http://127.0.0.1:8000/ingest/adjust RATE=100 DURATION=30
    locust --headless --locustfile bench/locustfile.py

In the environment:

    URL          where callbacks go           (http://127.0.0.1:8000/ingest/adjust)
    SECRET       the vendor's secret                              (demo-secret)
    APP_TOKEN    an app of the workspaces file                    (abc123token)
    EVENT_TOKEN  one of its events                                (g3mz3t)
    MESSAGE      a file of bench/messages: its vendor's POST in place of Adjust's GET ()
    RATE         callbacks a second                               (100)
    DURATION     seconds                                          (60)
    CALLERS      users of locust, each with a connection          (20)
    DUPLICATES   share of callbacks that were sent before, 0 to 1 (0)
    UNMAPPED     share of unmapped events, 0 to 1, which fill quarantine (0)
    P99_MS       the threshold of the 99th percentile             (500)
    RUN          names the users of the app                       (the time)

Exit code 1 when a callback was not answered with 200, or the threshold does not hold. A caller
waits for its answer before it sends again: where the server is slower than CALLERS / RATE, fewer
are sent. For more than some 500 a second on one machine use k6.
"""

import itertools
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode, urlsplit

from locust import FastHttpUser, LoadTestShape, constant_throughput, events, task

URL = urlsplit(os.environ.get("URL", "http://127.0.0.1:8000/ingest/adjust"))
SECRET = os.environ.get("SECRET", "demo-secret")
APP_TOKEN = os.environ.get("APP_TOKEN", "abc123token")
EVENT_TOKEN = os.environ.get("EVENT_TOKEN", "g3mz3t")
MESSAGE_FILE = os.environ.get("MESSAGE", "")
MESSAGE = Path(MESSAGE_FILE).read_text().strip() if MESSAGE_FILE else ""
RATE = float(os.environ.get("RATE", "100"))
DURATION_S = float(os.environ.get("DURATION", "60"))
CALLERS = int(os.environ.get("CALLERS", "20"))
DUPLICATES = float(os.environ.get("DUPLICATES", "0"))
UNMAPPED = float(os.environ.get("UNMAPPED", "0"))
P99_MS = float(os.environ.get("P99_MS", "500"))
STARTED = int(time.time())
RUN = os.environ.get("RUN", str(STARTED))
# At the end, unless --stop-timeout says otherwise.
ANSWER_MAX_S = 30.0
# Duplicates come this many callbacks after the first at the earliest.
LAG = 100

_numbers = itertools.count()
_sent: list[int] = []
_random = Random()  # noqa: S311 - no secrets are made of it


def message(number: int, token: str) -> str:
    """Return message `number` of a vendor that sends JSON, the same whenever it is sent."""
    cents = number * 7919 % 100_000 + 1
    moment = datetime.fromtimestamp(STARTED - number % 300, UTC)
    is_branch = Path(MESSAGE_FILE).stem == "branch"
    values = {
        "event": token,
        "time": f"{STARTED - number % 300}000" if is_branch else f"{moment:%Y-%m-%d %H:%M:%S}.000",
        "os": "android",
        "country": ("US", "DE", "BR", "JP", "IN")[number % 5],
        "device": f"{number}-{number * 40503}",
        "revenue": f"{cents / 100:.2f}",
        "currency": ("USD", "EUR", "JPY")[number % 3],
        "campaign": f"Campaign {number % 90}",
        "user": f"{RUN}-{number}",
        "id": f"{RUN}-{number}",
    }
    return re.sub(r"@(\w+)@", lambda blank: values[blank[1]], MESSAGE)


def query(number: int, token: str) -> str:
    """Return callback `number`, the same whenever it is sent."""
    cents = number * 7919 % 100_000 + 1
    return urlencode(
        {
            "secret": SECRET,
            "app_token": APP_TOKEN,
            "event_token": token,
            "activity_kind": "event",
            "created_at": STARTED - number % 300,
            "os_name": "android",
            "country": ("us", "de", "br", "jp", "in")[number % 5],
            "adid": f"{number * 40503 % 2**32:08x}" * 4,
            "gps_adid": "{gps_adid}",
            "revenue": cents,
            "revenue_float": f"{cents / 100:.2f}",
            "currency": ("USD", "EUR", "JPY")[number % 3],
            "environment": "production",
            "tracker_name": f"Network{number % 7}::Campaign {number % 90}::Größe",
            "user_id": f"{RUN}-{number}",
        }
    )


class Vendor(FastHttpUser):
    """One connection of the vendor's."""

    host = f"{URL.scheme}://{URL.netloc}"
    wait_time = constant_throughput(RATE / CALLERS)

    def on_start(self) -> None:
        """Begin at a random moment: the callers do not all send at once."""
        time.sleep(_random.uniform(0, CALLERS / RATE))

    @task
    def callback(self) -> None:
        """Send the next callback."""
        number, token = next(_numbers), EVENT_TOKEN
        dice = _random.random()
        if dice < UNMAPPED:
            token = "zzzzzz"  # noqa: S105 - an event of no app
        elif dice < UNMAPPED + DUPLICATES and len(_sent) > LAG:
            number = _sent[_random.randrange(len(_sent) - LAG)]
        else:
            _sent.append(number)
        if MESSAGE:
            path = f"{URL.path}?{urlencode({'secret': SECRET, 'app_token': APP_TOKEN})}"
            method, body = "POST", message(number, token)
        else:
            path, method, body = f"{URL.path}?{query(number, token)}", "GET", None
        with self.client.request(
            method,
            path,
            name="callback",
            data=body,
            headers={"Content-Type": "application/json"} if MESSAGE else None,
            allow_redirects=False,
            catch_response=True,
        ) as answer:
            # To locust a redirect, or any 2xx, is a success; to a vendor it is not.
            if answer.status_code != 200:  # noqa: PLR2004
                answer.failure(f"status {answer.status_code}")


class Steady(LoadTestShape):
    """All callers at once, for DURATION seconds."""

    def tick(self) -> tuple[int, float] | None:
        """Return the number of callers; None ends the run."""
        ran_s: float = self.get_run_time()  # type: ignore[no-untyped-call]
        return (CALLERS, CALLERS) if ran_s < DURATION_S else None


@events.init.add_listener  # type: ignore[untyped-decorator]
def wait_for_answers(environment: Any, **_: object) -> None:
    """Let each caller have its last answer: a callback without one has a row and is not counted."""
    environment.stop_timeout = environment.stop_timeout or ANSWER_MAX_S


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def judge(environment: Any, **_: object) -> None:
    """Set the exit code."""
    total = environment.stats.total
    p99_ms = total.get_response_time_percentile(0.99)
    print(f"p99 {p99_ms:.0f} ms, {total.num_failures} of {total.num_requests} failed")
    is_well = total.num_requests > 0 and total.num_failures == 0 and p99_ms <= P99_MS
    environment.process_exit_code = 0 if is_well else 1
