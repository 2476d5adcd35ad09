"""Explains inputs, one after another, on one gateway that stores nothing."""

from datetime import datetime
from functools import cache
from pathlib import Path

import adapters
from app import workspaces_file
from app.commands.explain.discretion import Discretion, sent_as_secret
from app.commands.explain.dry_run import DryRun
from app.commands.explain.explanation import Explanation, Verdict
from app.commands.explain.hints import ESCAPED_AMPERSAND, Facts
from app.commands.explain.http_request import HttpRequest, UnreadableInput
from app.commands.explain.inputs import TOO_LONG
from app.commands.explain.records import Records
from app.commands.explain.requests_in_text import read_request
from app.commands.explain.steps import explain
from app.commands.explain.vendors import NAMELESS, VENDORS
from app.event import Event
from app.ingest import utc_now
from app.settings import Settings
from app.workspaces_file import Apps

# The events of earlier inputs that are remembered.
REMEMBERED_MAX = 100_000


class Explainer:
    """Explains one input at a time."""

    def __init__(
        self, settings: Settings, *, vendor: str, address: str | None, at: datetime | None
    ) -> None:
        """Read the workspaces file; raises WorkspacesError."""
        self._vendor = vendor
        self._at = at
        self._dry_run = DryRun(settings, address=address, now=self._now)
        self._records = Records(settings.database_url)
        self._vendors = adapters.load()
        self._numbers: dict[bytes, int] = {}
        path = Path(settings.workspaces_file)

        @cache
        def read_apps() -> Apps:
            return workspaces_file.read(path, self._vendors)

        self._read_apps = read_apps

    def _now(self) -> datetime:
        return self._at or utc_now()

    async def start(self) -> None:
        """Prepare the gateway."""
        await self._dry_run.start()

    async def close(self) -> None:
        """Close the gateway and the connection to the database."""
        await self._dry_run.close()
        await self._records.close()

    async def explain(self, number: int, text: str | None) -> Explanation:
        """Return the explanation of one input; None is one that was too long to be read."""
        try:
            if text is None:
                raise UnreadableInput(TOO_LONG)
            request = read_request(text, self._vendor)
        except UnreadableInput as error:
            return Explanation(
                input=number, verdict=Verdict.UNREADABLE, becomes=f"unreadable: {error}"
            )
        return await self.explain_request(number, request)

    async def explain_request(self, number: int, request: HttpRequest) -> Explanation:
        """Return the explanation of a request, and of its mended form if there is one."""
        explanation = await self._explain(number, request)
        target = ESCAPED_AMPERSAND.sub("&", request.target)
        if target != request.target:
            mended = HttpRequest(request.method, target, request.headers, request.body)
            explanation.mended = await self._explain(number, mended)
        return explanation

    async def _explain(self, number: int, request: HttpRequest) -> Explanation:
        discretion = Discretion((*self._dry_run.gateway.settings.secrets, *sent_as_secret(request)))
        arrival = self._now()
        trace = await self._dry_run.send(request)
        vendor = trace.request.vendor if trace.request else ""
        facts = Facts(
            request=request,
            trace=trace,
            gateway=self._dry_run.gateway,
            names=VENDORS.get(vendor, NAMELESS),
            arrival=arrival,
            read_apps=self._read_apps,
            shown=discretion.shown,
        )
        explanation = explain(facts, self._vendors.get(vendor), discretion)
        explanation.input = number
        if isinstance(trace.result, Event):
            first = self._numbers.setdefault(trace.result.event_id, number)
            if first != number:
                explanation.notes.append(f"the same event as input {first}: one row for both")
            if len(self._numbers) > REMEMBERED_MAX:
                self._numbers.pop(next(iter(self._numbers)))
        explanation.table = await self._records.find(trace)
        return explanation
