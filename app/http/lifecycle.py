"""The life of a gateway: start, drain, stop."""

import asyncio
import logging
import multiprocessing
import os

import adapters
from app.http import probes
from app.http.probes import SanicApp
from app.settings import VendorAccess
from app.version import VERSION

log = logging.getLogger(__name__)


def add(app: SanicApp) -> None:
    """Start, drain and stop the gateway in the application's context together with its server."""
    app.after_server_start(_start)
    app.before_server_stop(_drain)
    app.after_server_stop(_stop)


async def _start(app: SanicApp) -> None:
    gateway = app.ctx.gateway
    # Not `app.add_task`: Sanic cancels its own tasks before it stops to accept connections.
    for vendor in adapters.load():
        if not gateway.settings.vendors.get(vendor, VendorAccess()).has_secret:
            log.warning("no secret: every callback is answered 503", extra={"vendor": vendor})
    for work in (probes.ask_sink(app), probes.measure(app), gateway.workspaces.watch()):
        gateway.tasks.append(asyncio.create_task(work))
    log.info("serving", extra={"pid": os.getpid(), "version": VERSION})


async def _drain(app: SanicApp) -> None:
    """Turn readiness red and go on serving, until nobody sends new callbacks here."""
    app.ctx.draining = True
    parent = multiprocessing.parent_process()
    # Workers whose parent was killed make way: whoever starts all of it again needs the port.
    if parent is None or parent.is_alive():
        await asyncio.sleep(app.ctx.gateway.settings.drain_pause_s)


async def _stop(app: SanicApp) -> None:
    await app.ctx.gateway.close()
