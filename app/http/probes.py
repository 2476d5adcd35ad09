"""`/healthz`, `/readyz` and `/metrics`: for load balancers, orchestrators and Prometheus."""

import asyncio
from types import SimpleNamespace

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from sanic import Request, Sanic
from sanic.config import Config
from sanic.response import HTTPResponse

from app.gateway import Gateway
from app.http.responses import JSON
from app.telemetry.exposition import exposition

_HEALTHY = msgspec.json.encode({"status": "ok"})


def add(app: Sanic[Config, SimpleNamespace], gateway: Gateway) -> None:
    """Add the probes of a gateway to its application."""
    scraping = asyncio.Lock()

    async def healthz(_: Request) -> HTTPResponse:
        return HTTPResponse(_HEALTHY, content_type=JSON)

    async def readyz(_: Request) -> HTTPResponse:
        body = msgspec.json.encode(gateway.readiness())
        return HTTPResponse(body, 200 if gateway.is_ready else 503, content_type=JSON)

    async def metrics(_: Request) -> HTTPResponse:
        # One scrape at a time: each takes a slice of every loop iteration.
        async with scraping:
            gateway.measure()
            return HTTPResponse(await exposition(), content_type=CONTENT_TYPE_LATEST)

    # `ignore_body`: Sanic would read the body of any caller before it answers.
    probe = ["GET", "HEAD"]  # some load balancers probe with HEAD
    app.route("/healthz", probe, ignore_body=True)(healthz)
    app.route("/readyz", probe, ignore_body=True)(readyz)
    app.route("/metrics", ["GET"], ignore_body=True)(metrics)
