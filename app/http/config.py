"""The settings of the HTTP server: Sanic's own words for our limits."""

from sanic.config import Config

from app.http.protocol import BODY_MAX_BYTES
from app.settings import Settings

RESPONSE_TIMEOUT_S = 60.0
KEEP_ALIVE_TIMEOUT_S = 75.0


def sanic_config(settings: Settings) -> Config:
    """Return the settings of the HTTP server."""
    # No prefix: nothing but `Settings` is read from the environment.
    config = Config(env_prefix="")
    config.update(
        ACCESS_LOG=False,
        AUTO_EXTEND=False,
        FALLBACK_ERROR_FORMAT="json",
        KEEP_ALIVE_TIMEOUT=KEEP_ALIVE_TIMEOUT_S,
        MOTD=False,
        REQUEST_MAX_SIZE=BODY_MAX_BYTES,
        RESPONSE_TIMEOUT=RESPONSE_TIMEOUT_S,
        # What is in flight gets its answer, so this is longer than any commit.
        GRACEFUL_SHUTDOWN_TIMEOUT=settings.commit_timeout_s * 3,
    )
    return config
