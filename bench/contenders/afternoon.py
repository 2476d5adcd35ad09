"""The afternoon version, the obvious solution: FastAPI, one SET NX, one INSERT.

It keeps fewer promises than the gateway (a crash between its SET and its INSERT loses the event,
for one), and is tuned for speed as far as its shape allows:

- uvicorn with uvloop and httptools, no access log, and no model of FastAPI: the standard library
  parses the query once, the answers are constant bytes.
- asyncpg prepares the INSERT once for each connection. The reset query at the end of each use of a
  pooled connection is left out: nothing here changes a session.
- the pool has the size (POOL_SIZE) with the highest rate on this machine: `compare` measures
  several sizes first, and reports the rate of each.
- one process, as the gateway: a second one would compete with the database and the load for two
  cores.
"""

import hmac
import os
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from urllib.parse import parse_qsl
from uuid import UUID

import asyncpg
import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response
from redis.asyncio import Redis

from bench.testbed.callbacks import ENDPOINT

# The fastest size on two cores, without a measurement.
POOL_SIZE = 16
SEEN_WINDOW_S = 30 * 86_400
IN_COLUMNS = {
    "secret", "app_token", "created_at", "user_id", "adid", "idfa", "gps_adid", "os_name",
    "country",
}  # fmt: skip
INSERT = """
INSERT INTO events (event_id, occurred_at, received_at, workspace_id, vendor, app_token,
    event_type, user_id, adid, idfa, gps_adid, os_name, country, properties)
VALUES ($1, $2, $3, $4, 'adjust', $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT DO NOTHING
"""
_RECEIPT = '{{"received":1,"written":{},"duplicate":{},"dropped":{}}}'
WRITTEN = _RECEIPT.format(1, 0, 0).encode()
DUPLICATE = _RECEIPT.format(0, 1, 0).encode()
DROPPED = _RECEIPT.format(0, 0, 1).encode()


class App(msgspec.Struct, frozen=True):
    """One app: its workspace, and its events by token."""

    workspace: str
    events: Mapping[str, str]


def read_apps(path: Path) -> dict[str, App]:
    """Return the apps of a workspaces file by their tokens."""
    workspaces = tomllib.loads(path.read_text())["workspaces"]
    return {
        app["app_token"]: App(workspace["id"], app["events"])
        for workspace in workspaces
        for app in workspace["apps"]
    }


def row(sent: Mapping[str, str], app: App, event_type: str) -> tuple[UUID, *tuple[object, ...]]:
    """Return an event as the parameters of the INSERT; raises ValueError for a wrong time."""
    created_at = sent["created_at"]
    if created_at.isdigit():
        seconds = int(created_at)
        occurred_at = datetime.fromtimestamp(
            seconds / 1000 if len(created_at) > 10 else seconds,  # noqa: PLR2004 - milliseconds
            UTC,
        )
    else:
        occurred_at = datetime.fromisoformat(created_at.replace("Z+", "+"))
    user = sent.get("user_id") or sent.get("adid") or ""
    identity = f"{sent['app_token']}|{user}|{event_type}|{occurred_at.timestamp()}"
    properties = {name: value for name, value in sent.items() if name not in IN_COLUMNS}
    return (
        UUID(bytes=blake2b(identity.encode(), digest_size=16).digest()),
        occurred_at,
        datetime.now(UTC),
        app.workspace,
        sent["app_token"],
        event_type,
        sent.get("user_id"),
        sent.get("adid"),
        sent.get("idfa"),
        sent.get("gps_adid"),
        sent.get("os_name"),
        sent.get("country", "").upper() or None,
        msgspec.json.encode(properties).decode(),
    )


async def handle(request: Request) -> Response:
    """Answer one callback."""
    state = request.app.state
    sent = dict(parse_qsl(request.scope["query_string"].decode("latin-1")))
    if not hmac.compare_digest(sent.get("secret", "").encode(), state.secret):
        return Response(b'{"error":"Unverified callback."}', 401, media_type="application/json")
    app = state.apps.get(sent.get("app_token"))
    event_type = app.events.get(sent.get("event_token")) if app else None
    if event_type is None:
        return Response(DROPPED, media_type="application/json")
    values = row(sent, app, event_type)
    key = values[0].bytes
    if not await state.redis.set(key, b"1", nx=True, ex=SEEN_WINDOW_S):
        return Response(DUPLICATE, media_type="application/json")
    try:
        async with state.pool.acquire() as connection:
            done = await connection.execute(INSERT, *values)
    except BaseException:
        await state.redis.delete(key)
        raise
    is_new = done == "INSERT 0 1"
    return Response(WRITTEN if is_new else DUPLICATE, media_type="application/json")


async def _no_reset(_: object) -> None:
    pass


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    environ = os.environ
    size = int(environ.get("POOL_SIZE", POOL_SIZE))
    app.state.secret = environ["ADJUST_CALLBACK_SECRET"].encode()
    app.state.apps = read_apps(Path(environ["WORKSPACES_FILE"]))
    # The default limit of 100 connections fails the 101st waiting request.
    app.state.redis = Redis.from_url(environ["REDIS_URL"], max_connections=10_000)
    app.state.pool = await asyncpg.create_pool(
        environ["DATABASE_URL"], min_size=size, max_size=size, reset=_no_reset
    )
    yield
    await app.state.pool.close()
    await app.state.redis.aclose()


def create_app() -> FastAPI:
    """Return the application."""
    app = FastAPI(lifespan=_lifespan, openapi_url=None)
    app.add_api_route(ENDPOINT, handle, methods=["GET", "POST"], response_model=None)
    app.add_api_route("/readyz", lambda: {"status": "ok"})
    return app


if __name__ == "__main__":
    uvicorn.run(
        "bench.contenders.afternoon:create_app",
        factory=True,
        host=os.environ["HOST"],
        port=int(os.environ["PORT"]),
        workers=int(os.environ.get("WORKERS", "1")),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        backlog=4096,
    )
