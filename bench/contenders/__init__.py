"""The contenders of `compare`, one file each, started as `python -m bench.contenders.NAME`.

All take the environment of a gateway; the HTTP servers answer the same callbacks at the same URL.
"""

from typing import NamedTuple

from bench.testbed.callbacks import ENDPOINT


class Contender(NamedTuple):
    """The command of a server; `ready` is the path that answers 200 once it serves."""

    name: str
    ready: str
    is_durable: bool = True

    @property
    def arguments(self) -> tuple[str, str]:
        """The command, for Python."""
        return ("-m", f"bench.contenders.{self.name}")


GATEWAY = Contender("gateway", "/readyz")
AFTERNOON = Contender("afternoon", "/readyz")
# Ignores the request, and writes nothing.
FLOOR = Contender("floor", ENDPOINT, is_durable=False)
