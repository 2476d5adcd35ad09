"""From the bytes of a verified request to a callback: its parameters, clean and counted."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

from app.access import PublicHeaders
from app.errors import TooManyParameters
from app.event import OLDEST_OCCURRED_AT, Callback
from app.hidden import HELD_MIN
from app.parameters import NO_BODY, PARAMETERS_MAX, Body, parse_form
from app.settings import ROW_LIFE_MIN_D
from app.vendor import Vendor


def make_callback(  # noqa: PLR0917 - by position: keywords cost more on the path
    vendor: Vendor,
    query: bytes,
    body: Body,
    headers: Mapping[str, str],
    received_at: datetime,
    accepted: Sequence[bytes] = (),
    *,
    retention_d: int,
) -> Callback:
    """Return the callback of a raw query and a body.

    `retention_d` is the setting. A parameter that holds the last of the `accepted` credentials is
    left out. Raises TooManyParameters.
    """
    secret = accepted[-1].decode(errors="replace") if accepted else ""
    in_query = parse_form(query)
    in_query.pop("secret", None)
    if secret and secret in "\n".join(in_query.values()):
        in_query = _without(secret, in_query)
    occurred_from = OLDEST_OCCURRED_AT
    if retention_d:
        kept_d = retention_d - ROW_LIFE_MIN_D
        occurred_from = max(OLDEST_OCCURRED_AT, received_at - timedelta(days=kept_d))
    callback = Callback(
        query=in_query,
        received_at=received_at,
        occurred_from=occurred_from,
        headers=PublicHeaders(headers),
        body=body.json,
        in_body=None if body is NO_BODY else partial(_in_body, body, secret),
        unfilled=vendor.unfilled,
    )
    may_be_many = body is not NO_BODY and len(in_query) + body.members_max > PARAMETERS_MAX
    if may_be_many and len(callback.parameters) > PARAMETERS_MAX:
        raise TooManyParameters
    return callback


def _in_body(body: Body, secret: str) -> Mapping[str, str]:
    parameters = {name: value for name, value in body.parse().items() if name != "secret"}
    return _without(secret, parameters) if secret else parameters


def _without(secret: str, parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that do not hold a secret; a short one may occur in ordinary text."""
    is_short = len(secret) < HELD_MIN
    return {
        name: value
        for name, value in parameters.items()
        if not (value == secret if is_short else secret in value)
    }
