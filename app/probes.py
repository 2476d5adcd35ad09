"""What operators and their machines ask: is it alive, is it ready, how is it doing."""

from types import SimpleNamespace

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from sanic import Request, Sanic
from sanic.config import Config
from sanic.response import HTTPResponse

from app.metrics import exposition


def add(app: Sanic[Config, SimpleNamespace]) -> None:
    """Serve `/healthz`, `/readyz` and `/metrics` of the gateway in the application's context."""
    for path, handler in (("/healthz", _healthz), ("/readyz", _readyz), ("/metrics", _metrics)):
        # Else Sanic reads a body, of whomever, before it answers.
        app.route(path, ignore_body=True)(handler)


async def _healthz(_: Request) -> HTTPResponse:
    return _json({"status": "ok"})


async def _readyz(request: Request) -> HTTPResponse:
    context = request.app.ctx
    gateway, draining = context.gateway, context.draining
    body = {
        "draining": draining,
        "sink": "answered" if gateway.sink_answered else "waiting",
        "claims": "bypassed" if getattr(gateway.claims, "is_bypassed", False) else "in use",
        "buffer": {
            "events": len(gateway.buffer),
            "max_events": gateway.settings.buffer_max_events,
        },
    }
    return _json(body, 503 if draining or not gateway.sink_answered else 200)


async def _metrics(_: Request) -> HTTPResponse:
    return HTTPResponse(exposition(), content_type=CONTENT_TYPE_LATEST)


def _json(body: object, status: int = 200) -> HTTPResponse:
    return HTTPResponse(msgspec.json.encode(body), status, content_type="application/json")
