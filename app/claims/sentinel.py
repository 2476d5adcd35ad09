"""Redis Sentinel: the primary of a service."""

from collections.abc import Mapping, Sequence
from random import sample
from typing import cast

from app.claims.connection import Connect, Endpoint, RedisUnavailable, execute

_DOWN = {"s_down", "o_down"}

# The reply to SENTINEL MASTERS, a master each: a map in RESP3, else names and values in turn.
_Masters = Sequence[Mapping[bytes, bytes] | Sequence[bytes]]


class Sentinels:
    """Discovers the primary through any Sentinel that has one which is not down."""

    def __init__(
        self, endpoints: Sequence[Endpoint], service: str, connect: Connect, timeout_s: float
    ) -> None:
        """Take the Sentinels of REDIS_URL; each one has `timeout_s` to answer."""
        self._endpoint = endpoints[0]
        # A Sentinel has users of its own. With the password alone, it accepts a client if its own
        # password is the same, or if it has none.
        self._sentinels = [
            {name: value for name, value in endpoint.items() if name not in ("username", "db")}
            for endpoint in endpoints
        ]
        self._service = service
        self._connect = connect
        self._timeout_s = timeout_s

    async def discover(self, slots: Sequence[int]) -> dict[int, Endpoint]:
        """Return the primary for each slot; raises RedisUnavailable."""
        errors: list[str] = []
        # In random order: a Sentinel that is out of reach, or cut off, is not always the first.
        for sentinel in sample(self._sentinels, len(self._sentinels)):
            try:
                reply = await execute(
                    self._connect, sentinel, self._timeout_s, "SENTINEL", "MASTERS"
                )
            except RedisUnavailable as error:
                errors.append(str(error))
                continue
            for state in map(_read, cast("_Masters", reply)):
                flags = set(state["flags"].split(","))
                if state["name"] == self._service and "master" in flags and not flags & _DOWN:
                    host, port = state["ip"], int(state["port"])
                    primary = {**self._endpoint, "host": host, "port": port}
                    return {slot: primary for slot in slots}  # noqa: C420 - of one type
        raise RedisUnavailable("; ".join([f"No master found for {self._service!r}", *errors]))


def _read(master: Mapping[bytes, bytes] | Sequence[bytes]) -> dict[str, str]:
    pairs = (
        master.items()
        if isinstance(master, Mapping)
        else zip(master[::2], master[1::2], strict=True)
    )
    return {name.decode(): value.decode() for name, value in pairs}
