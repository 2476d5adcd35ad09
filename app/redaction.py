"""Bytes of a callback without its secrets, and without the parameters that an app omits."""

from collections.abc import Collection


def redact_query(query: bytes, omitted: Collection[str], secrets: Collection[str]) -> bytes:
    """Return a query or form without its secrets and the omitted parameters.

    A pair is taken out where its decoded name is `secret` or an omitted one, or its value is or
    holds one of the secrets. All other pairs keep their bytes and their order.
    """
    raise NotImplementedError


def redact_body(
    content_type: str, body: bytes, omitted: Collection[str], secrets: Collection[str]
) -> bytes:
    """Return a body without its secrets and the omitted parameters; as it is where it has none.

    An unreadable body that holds a secret is returned empty.
    """
    raise NotImplementedError


def redact_text(text: str, secrets: Collection[str]) -> str:
    """Return a text; empty where it is or holds one of the secrets."""
    raise NotImplementedError
