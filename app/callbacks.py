"""From the bytes of a verified request to a callback: its parameters, clean and counted."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from app.access import PublicHeaders
from app.apart import Apart
from app.errors import MalformedBody, TooManyParameters
from app.event import OLDEST_OCCURRED_AT, Callback
from app.hidden import HELD_MIN
from app.parameters import PARAMETERS_MAX, parse_body, parse_form
from app.settings import ROW_LIFE_MIN_D

# A larger body is parsed in a thread, since it would block the event loop too long.
BODY_AT_ONCE_BYTES = 16 * 1024
# Limit on large bodies that wait for the thread: the connections' budget counts them no longer.
WAITING_MAX_BYTES = 64 * 1024 * 1024


def make_callback(  # noqa: PLR0917 - by position: keywords cost more on the path
    query: bytes,
    in_body: dict[str, str],
    body: bytes,
    headers: Mapping[str, str],
    received_at: datetime,
    accepted: Sequence[bytes] = (),
    *,
    retention_d: int,
) -> Callback:
    """Return the callback of a raw query and a body; the parameters of the URL win.

    `in_body` are the parameters of `body`, and `retention_d` is the setting. A parameter that holds
    the last of the `accepted` credentials is left out. Raises TooManyParameters.
    """
    in_query = parse_form(query)
    in_query.pop("secret", None)
    in_body.pop("secret", None)
    parameters = in_body | in_query if in_body else in_query
    if accepted:
        secret = accepted[-1].decode(errors="replace")
        if secret in "\n".join(parameters.values()):
            in_query, parameters = _without(secret, in_query), _without(secret, parameters)
    if len(parameters) > PARAMETERS_MAX:
        raise TooManyParameters
    occurred_from = OLDEST_OCCURRED_AT
    if retention_d:
        kept_d = retention_d - ROW_LIFE_MIN_D
        occurred_from = max(OLDEST_OCCURRED_AT, received_at - timedelta(days=kept_d))
    return Callback(
        query=in_query,
        parameters=parameters,
        received_at=received_at,
        occurred_from=occurred_from,
        headers=PublicHeaders(headers),
        body=body,
    )


def _without(secret: str, parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that do not hold a secret; a short one may occur in ordinary text."""
    is_short = len(secret) < HELD_MIN
    return {
        name: value
        for name, value in parameters.items()
        if not (value == secret if is_short else secret in value)
    }


class Bodies:
    """Parses bodies: small ones at once, large ones in a thread, within a limit on their bytes."""

    def __init__(self) -> None:
        self.apart = Apart("large-bodies", WAITING_MAX_BYTES)

    async def parse(self, content_type: str, body: bytes) -> dict[str, str]:
        """Return the parameters of a body; raises MalformedBody, TooManyParameters, Unavailable."""
        if len(body) <= BODY_AT_ONCE_BYTES:
            parameters = parse_body(content_type, body)
        else:
            parameters = await self.apart.run(len(body), parse_body, content_type, body)
        if parameters is None:
            raise MalformedBody
        return parameters
