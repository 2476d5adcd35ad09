"""Bodies of verified requests: their credential goes, and everything else stays as it was sent."""

import msgspec
import pytest

import adapters
from app.bodies import Bodies
from app.callbacks import make_callback
from app.event import Callback
from app.parameters import AT_ONCE_BYTES
from tests.adapter_cases import RECEIVED_AT

ADJUST = adapters.load()["adjust"]
SECRET = b'hush-"hush"/hush'

HELD = {
    "in a member": b'{"a":"x hush-\\"hush\\"/hush","b":1}',
    "within an object": b'{"a":{"c":"hush-\\"hush\\"/hush"},"b":1}',
    "with an escaped slash": b'{"a":["hush-\\"hush\\"\\/hush"],"b":1}',
    "in other escapes": b'{"a":"\\u0068ush-\\u0022hush\\u0022/hush","b":1}',
    "in a member of its name": b'{"secret":"x","a":"hush-\\"hush\\"/hush","b":1}',
}


async def callback(body: bytes, secret: bytes = SECRET) -> Callback:
    """The callback of a JSON body after its credential was accepted."""
    readable = await Bodies().read({"content-type": "application/json"}, body, (secret,))
    return make_callback(ADJUST, b"c=2", readable, {}, RECEIVED_AT, (secret,), retention_d=0)


@pytest.mark.parametrize("padding", [b"", b" " * AT_ONCE_BYTES], ids=["small", "large"])
@pytest.mark.parametrize("body", HELD.values(), ids=HELD)
async def test_adapter_decodes_no_credential(body: bytes, padding: bytes) -> None:
    """A credential in a JSON object is neither in the parameters nor in the body of a callback."""
    found = await callback(body[:-1] + padding + b"}")
    decoded = msgspec.json.decode(found.body)
    assert "hush" not in str(decoded)
    assert "hush" not in str(found.parameters)
    assert decoded["b"] == 1
    assert (found.parameters["b"], found.parameters["c"]) == ("1", "2")


async def test_object_that_is_the_credential_alone_is_empty() -> None:
    """Nothing is left of an object whose only member holds the credential."""
    found = await callback(b'{"a":"hush-\\"hush\\"/hush"}')
    assert (msgspec.json.decode(found.body), found.parameters) == ({}, {"c": "2"})


@pytest.mark.parametrize(
    "body", [b'{"a":"hush"}', b'{ "a" : "\\u00e4\\/" , "a":2}', b'{"x":[{"b":"\\\\"}]}']
)
async def test_body_without_the_credential_is_unchanged(body: bytes) -> None:
    """Any other object has its bytes, whatever escapes it has."""
    assert (await callback(body)).body == body
