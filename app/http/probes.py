"""What operators and their machines ask: is it alive, is it ready, how is it doing."""

import asyncio
import logging
import time
from contextlib import suppress
from math import nan
from types import SimpleNamespace

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from sanic import Request, Sanic
from sanic.config import Config
from sanic.response import HTTPResponse

from app.telemetry.exposition import exposition
from app.telemetry.metrics import (
    BUFFER_EVENTS,
    BUFFER_LIMIT,
    BUILD_INFO,
    BY_WORKSPACE,
    CLOCK_AHEAD,
    IN_FLIGHT,
    SECRET_LAST_USED,
    begin,
)
from app.version import PYTHON_VERSION, VERSION

PROBE_S = 1.0

log = logging.getLogger(__name__)

SanicApp = Sanic[Config, SimpleNamespace]


def add(app: SanicApp) -> None:
    """Serve `/healthz`, `/readyz` and `/metrics` of the gateway in the application's context."""
    begin()
    BUILD_INFO.labels(VERSION, PYTHON_VERSION).set(1)
    app.ctx.scraping = asyncio.Lock()
    # Some load balancers probe with HEAD.
    probe = ["GET", "HEAD"]
    for path, methods, handler in (
        ("/healthz", probe, _healthz),
        ("/readyz", probe, _readyz),
        ("/metrics", ["GET"], _metrics),
    ):
        # Else Sanic reads a body, of whomever, before it answers.
        app.route(path, methods, ignore_body=True)(handler)


async def ask_sink(app: SanicApp) -> None:
    """Ask the sink until it has answered once: from then on the gateway is ready."""
    gateway = app.ctx.gateway
    while not gateway.sink_answered:
        try:
            await gateway.sink.ping()
            gateway.sink_answered = True
        except Exception as error:  # noqa: BLE001 - asked again, whatever it was
            log.warning("not ready: the sink does not answer", extra={"error": str(error)})
            await asyncio.sleep(PROBE_S)


async def measure(app: SanicApp) -> None:
    """Keep the gauges, for a scrape that another worker answers; never returns."""
    was_right = True
    while True:
        with suppress(OSError):  # a full disk: a gauge in a file stays as it was
            _measure(app)
        is_right = app.ctx.gateway.ingest.is_clock_right
        if is_right != was_right and app.ctx.gateway.sink_answered:
            was_right = is_right
            if is_right:
                log.info("the clock agrees with that of the database")
            else:
                log.error(
                    "the clock differs from that of the database, or that is not known: "
                    "times that it would refuse are answered 503",
                    extra={"ahead_s": app.ctx.gateway.sink.clock_ahead_s},
                )
        await asyncio.sleep(PROBE_S)


def _measure(app: SanicApp) -> None:
    """Tell the metrics what the path keeps in plain numbers, since these cost it next to nothing.

    Of a secret only its place in the list of the vendor is told.
    """
    gateway = app.ctx.gateway
    IN_FLIGHT.set(gateway.in_flight)
    BUFFER_EVENTS.set(len(gateway.buffer))
    BUFFER_LIMIT.set(gateway.settings.buffer_max_events)
    ahead_s = gateway.sink.clock_ahead_s
    CLOCK_AHEAD.set(nan if ahead_s is None else ahead_s)
    last_used = BY_WORKSPACE[SECRET_LAST_USED]
    for vendor, owners in gateway.access.used.items():
        for owner, used in owners.items():
            for position, is_used in enumerate(used):
                labels = (vendor, owner, str(position + 1))
                if is_used:
                    last_used.set(labels, time.time())
                    used[position] = False
                else:
                    last_used.add(labels, 0)


async def _healthz(_: Request) -> HTTPResponse:
    return _json({"status": "ok"})


async def _readyz(request: Request) -> HTTPResponse:
    context = request.app.ctx
    gateway, draining = context.gateway, context.draining
    body = {
        "draining": draining,
        "sink": "answered" if gateway.sink_answered else "waiting",
        "claims": "bypassed" if gateway.claims.is_bypassed else "in use",
        "buffer": {
            "events": len(gateway.buffer),
            "max_events": gateway.settings.buffer_max_events,
        },
        "clock": _clock(gateway.ingest.is_clock_right, gateway.sink.clock_ahead_s),
        "version": VERSION,
    }
    return _json(body, 503 if draining or not gateway.sink_answered else 200)


def _clock(is_right: bool, ahead_s: float | None) -> dict[str, object]:
    state = "right" if is_right else "not known" if ahead_s is None else "wrong"
    return {"state": state, "ahead_s": None if ahead_s is None else round(ahead_s, 3)}


async def _metrics(request: Request) -> HTTPResponse:
    # One after the other: each has its slice of every turn of the loop.
    async with request.app.ctx.scraping:
        _measure(request.app)
        return HTTPResponse(await exposition(), content_type=CONTENT_TYPE_LATEST)


def _json(body: object, status: int = 200) -> HTTPResponse:
    return HTTPResponse(msgspec.json.encode(body), status, content_type="application/json")
