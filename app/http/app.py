"""The gateway as a Sanic application: routes, limits and errors."""

from functools import partial
from types import SimpleNamespace

from sanic import Request, Sanic
from sanic.config import Config
from sanic.response import HTTPResponse

from app.gateway import Gateway
from app.http import probes
from app.http.protocol import BODY_MAX_BYTES, read_body
from app.http.responses import JSON, GatewayErrors, caller_address
from app.ingest import Request as GatewayRequest

RESPONSE_TIMEOUT_S = 60.0
KEEP_ALIVE_TIMEOUT_S = 75.0

SanicApp = Sanic[Config, SimpleNamespace]


def sanic_config() -> Config:
    """Return the settings of the HTTP server, under Sanic's names."""
    # No prefix: `Settings` alone is read from the environment.
    config = Config(env_prefix="")
    config.update(
        ACCESS_LOG=False,
        AUTO_EXTEND=False,
        FALLBACK_ERROR_FORMAT="json",
        KEEP_ALIVE_TIMEOUT=KEEP_ALIVE_TIMEOUT_S,
        MOTD=False,
        REQUEST_MAX_SIZE=BODY_MAX_BYTES,
        RESPONSE_TIMEOUT=RESPONSE_TIMEOUT_S,
    )
    return config


def create_app(gateway: Gateway, errors: GatewayErrors) -> SanicApp:
    """Return the application that a `GatewayProtocol` serves."""
    app = Sanic("flokit-gateway", config=sanic_config(), configure_logging=False)
    app.error_handler = errors
    proxies = gateway.settings.proxies_count

    async def ingest(request: Request, vendor: str) -> HTTPResponse:
        receipt = await gateway.handle(_gateway_request(request, vendor, proxies))
        return HTTPResponse(receipt, content_type=JSON)

    app.route("/ingest/<vendor>", ["GET", "POST"], ignore_body=True, unquote=True)(ingest)
    probes.add(app, gateway)
    return app


def _gateway_request(request: Request, vendor: str, proxies: int) -> GatewayRequest:
    # Not `query_string`: that ends at a `#`, which some senders do not encode.
    query = request.raw_url.partition(b"?")[2]
    address = caller_address(request, proxies)
    body = partial(read_body, request)
    return GatewayRequest(vendor, query, address, request.headers, body, request.method)
