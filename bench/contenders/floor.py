"""The floor: Sanic with one route, whose constant answer is as long as a receipt.

The same settings, loop, socket and process as the gateway, without its own connection class, so
that the difference of the two is the cost of the gateway.
"""

import asyncio
import signal
from types import SimpleNamespace
from typing import Any

from sanic import Request, Sanic
from sanic.config import Config
from sanic.response import HTTPResponse
from sanic.server.loop import try_use_uvloop

from app.event import Outcome
from app.http.app import sanic_config
from app.http.server import BACKLOG, listen
from app.ingest import RECEIPTS
from app.settings import Settings, read_settings
from bench.testbed.callbacks import ENDPOINT

BODY = RECEIPTS[Outcome.WRITTEN]


def create_app() -> Sanic[Config, SimpleNamespace]:
    """Return an application with an empty handler."""
    app = Sanic("flokit-floor", config=sanic_config(), configure_logging=False)

    @app.route(ENDPOINT, ["GET", "POST"], ignore_body=True)
    async def answer(_: Request) -> HTTPResponse:
        return HTTPResponse(BODY, content_type="application/json")

    return app


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    listener = listen(settings)
    # Most of Sanic's methods have no types.
    server: Any = await create_app().create_server(
        sock=listener, backlog=BACKLOG, return_asyncio_server=True
    )
    await server.startup()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await server.after_start()
    await ended.wait()
    server.close()


if __name__ == "__main__":
    try_use_uvloop()
    asyncio.run(serve(read_settings()))
