"""Those that are measured side by side: one file each, started as `python -m bench.contenders.X`.

All of them take the environment of a gateway (docs/configuration.md), and all that speak HTTP
answer the same callbacks under the same URL.
"""

from typing import NamedTuple

PATH = "/ingest/adjust"


class Contender(NamedTuple):
    """What a server is started with; `ready` is the path that answers 200 once it serves."""

    name: str
    ready: str
    is_durable: bool = True

    @property
    def arguments(self) -> tuple[str, str]:
        """The command, for Python."""
        return ("-m", f"bench.contenders.{self.name}")


GATEWAY = Contender("gateway", "/readyz")
AFTERNOON = Contender("afternoon", "/readyz")
# Answers without a look at what it was sent, and writes nothing.
FLOOR = Contender("floor", PATH, is_durable=False)
