"""A gateway that stores nothing: a request takes the product's own path, and leaves a trace."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

import msgspec
from msgspec.structs import replace

import adapters
from app.claims import Claim
from app.commands.explain.http_request import HttpRequest
from app.dropped import Dropped, RejectedRequest
from app.errors import Answer, Unverified
from app.event import App, Callback, Drop, Event, Outcome
from app.gateway import Gateway, create_gateway
from app.http.offline import Answered, OfflineServer
from app.ingest import Request, utc_now
from app.settings import Settings
from app.telemetry.observer import Observer, R, Verifier
from app.vendor import Parse
from sinks import Account

QUARANTINE_MAX_MB = 1_000_000


class SecretInUse(msgspec.Struct, frozen=True):
    """The secret that a request was verified by: its owner, and its place in the setting."""

    owner: str  # empty for the vendor itself
    position: int
    number: int


class Trace(msgspec.Struct):
    """The way of one request through the gateway, as far as it came."""

    request: Request | None = None
    is_secret_compared: bool = False
    secret: SecretInUse | None = None
    callback: Callback | None = None
    app: App | None = None
    result: Event | Drop | None = None
    dropped: Dropped | None = None
    answered: Answered = Answered(None)

    @property
    def answer(self) -> Answer | None:
        """The answer; None if the connection was closed."""
        return self.answered.answer

    @property
    def error(self) -> BaseException | None:
        """The error behind the answer, or behind the lack of one."""
        return self.answered.error


class DryRun:
    """Sends requests to a gateway whose sink, claims and quarantine store nothing."""

    def __init__(
        self, settings: Settings, *, address: str | None, now: Callable[[], datetime] = utc_now
    ) -> None:
        """Build the gateway; without an `address` none is checked. Raises WorkspacesError."""
        if address is None:
            vendors = {
                name: replace(access, allowlist=()) for name, access in settings.vendors.items()
            }
            settings = replace(settings, vendors=vendors)
        # Nothing is stored: one explained callback leaves no less room for the next.
        settings = replace(settings, quarantine_max_mb=QUARANTINE_MAX_MB)
        self._recorder = _Recorder(address or "")
        self.gateway: Gateway = create_gateway(
            settings,
            vendors={
                name: replace(vendor, parse=_recorded(vendor.parse, self._recorder))
                for name, vendor in adapters.load().items()
            },
            claims=_NoClaims(),
            sink=_NoSink(),
            quarantine=_NoQuarantine(self._recorder),
            observer=self._recorder,
            now=now,
        )
        self._server = OfflineServer(self.gateway)

    async def start(self) -> None:
        """Prepare the server."""
        await self._server.start()

    async def close(self) -> None:
        """Close the server."""
        await self._server.close()

    async def send(self, request: HttpRequest) -> Trace:
        """Return the trace of a request."""
        self._recorder.trace = trace = Trace()
        trace.answered = await self._server.answer(request.encode())
        if trace.request is not None:
            trace.secret = self._take_secret(trace.request.vendor)
        return trace

    def _take_secret(self, vendor: str) -> SecretInUse | None:
        for owner, used in self.gateway.access.used.get(vendor, {}).items():
            for position, is_used in enumerate(used):
                if is_used:
                    used[position] = False
                    return SecretInUse(owner, position, len(used))
        return None


class _WithoutPauseError(Exception):
    """Passes the pause that makes the guessing of secrets slow."""

    def __init__(self, error: Unverified) -> None:
        super().__init__()
        self.error = error


class _Recorder(Observer):
    def __init__(self, address: str) -> None:
        self.trace = Trace()
        self._address = address

    def handle(self, handle: Callable[[R], Awaitable[bytes]]) -> Callable[[R], Awaitable[bytes]]:
        async def recorded(request: R) -> bytes:
            if isinstance(request, Request):
                request = replace(request, address=self._address)
                self.trace.request = request
            try:
                return await handle(request)
            except _WithoutPauseError as passed:
                raise passed.error from None

        return recorded

    def access(self, access: Verifier) -> Verifier:
        return _RecordedAccess(access, self)


class _RecordedAccess:
    def __init__(self, access: Verifier, recorder: _Recorder) -> None:
        self._access = access
        self._recorder = recorder

    def verify(
        self, vendor: str, workspace: str | None, candidates: Sequence[bytes], address: str
    ) -> None:
        self._recorder.trace.is_secret_compared = True
        try:
            self._access.verify(vendor, workspace, candidates, address)
        except Unverified as error:
            raise _WithoutPauseError(error) from None


def _recorded(parse: Parse, recorder: _Recorder) -> Parse:
    def recorded(callback: Callback, app: App) -> Event | Drop:
        trace = recorder.trace
        trace.callback, trace.app = callback, app
        trace.result = parse(callback, app)
        return trace.result

    return recorded


class _NoSink:
    generation: str | None = None
    clock_ahead_s: float | None = 0.0

    async def write(self, events: Sequence[Event]) -> Sequence[Outcome]:
        return [Outcome.WRITTEN] * len(events)

    async def write_contested(self, _: Event) -> Outcome:
        return Outcome.WRITTEN

    async def ping(self) -> None:
        pass

    async def close(self) -> None:
        pass


class _NoClaims:
    is_bypassed = False

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        return [Claim.HELD] * len(event_ids)

    async def settle(self, event_ids: Sequence[bytes]) -> None:
        pass

    async def release(self, event_ids: Sequence[bytes]) -> None:
        pass

    async def close(self) -> None:
        pass


class _NoQuarantine:
    def __init__(self, recorder: _Recorder) -> None:
        self._recorder = recorder

    async def keep(self, drops: Sequence[Dropped]) -> None:
        (self._recorder.trace.dropped,) = drops

    async def reject(self, requests: Sequence[RejectedRequest]) -> None:
        pass

    async def usage(self, _: int) -> Mapping[Account, int]:
        return {}

    async def close(self) -> None:
        pass
