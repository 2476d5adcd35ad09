"""A callback with other values of some parameters, wherever they were sent."""

import msgspec

from app.parameters import FORM
from app.set_parameters import set_parameters
from tests.adapter_cases import callback_of

BODY = b'{"user":{"id":7},"time":12345678901234567890,"name":"OPEN","name":"CLICK"}'


def test_parameter_of_the_url_is_set_or_taken_out() -> None:
    """Without a body, only the URL changes."""
    changed = set_parameters(callback_of(b"a=1&b=2&c=3"), {"a": "x", "b": None, "d": "y"})
    assert changed.parameters == changed.query == {"a": "x", "c": "3", "d": "y"}
    assert changed.body == b""


def test_parameter_of_a_form_is_set_or_taken_out() -> None:
    """The parameters of a form change with those of the URL."""
    changed = set_parameters(callback_of(b"a=1", b"b=2&c=3", FORM), {"b": None, "c": "x"})
    assert changed.parameters == {"a": "1", "c": "x"}


def test_member_of_a_json_object_is_set_or_taken_out() -> None:
    """An adapter sees the change in the body too, where all other members keep their text."""
    changed = set_parameters(callback_of(b"a=1", BODY), {"name": 'x"', "user": None})
    assert changed.parameters == {"a": "1", "time": "12345678901234567890", "name": 'x"'}
    assert changed.body == b'{"time":12345678901234567890,"name":"x\\""}'


def test_first_value_of_a_repeated_name_stays() -> None:
    """A change of another parameter leaves the first value of a repeated name in place."""
    changed = set_parameters(callback_of(b"", BODY), {"time": "1"})
    assert changed.parameters["name"] == "OPEN"
    assert msgspec.json.decode(changed.body)["time"] == "1"
