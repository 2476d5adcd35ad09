"""Serves a sabotaged gateway: `python -m bench.sabotage.serve NAME`."""

import sys

from app.gateway import create_gateway
from app.http.lifecycle import serve_gateway
from app.http.server import listen
from app.settings import read_settings
from app.telemetry import logs
from bench.sabotage.catalogue import SABOTAGES

if __name__ == "__main__":
    logs.configure("info")
    SABOTAGES[sys.argv[1]].apply()
    settings = read_settings()
    serve_gateway(create_gateway(settings), listen(settings))
