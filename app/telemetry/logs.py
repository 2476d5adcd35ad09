"""JSON lines on standard error; never a secret."""

import json
import logging
import re
import sys
from datetime import UTC, datetime

# The gateway logs no URL; a secret in the URL of a dependency's line is masked.
_SECRET = re.compile(r"(secret=)[^&\s\"'\\]*", re.IGNORECASE)
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object for each record; `extra` fields stand beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _SECRET.sub(r"\1***", json.dumps(line, default=str, ensure_ascii=False))


def configure(level: str) -> None:
    """Send every log line of this process to standard error, from `level` upwards."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Warnings too, such as the driver's about a password file that others may read.
    logging.captureWarnings(capture=True)
    # Sanic logs requests and its own start at level info; the gateway does not.
    for name in ("sanic.root", "sanic.server", "sanic.access", "sanic.websockets", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("sanic.error").addFilter(_is_actionable)


def _is_actionable(record: logging.LogRecord) -> bool:
    """Whether a record is other than the one that any caller can provoke at will."""
    return not record.getMessage().endswith("body not consumed.")
