"""The ledger of the bench: the meaning of each answer to a vendor."""

import pytest

from bench.testbed.client import UNANSWERED, Answer, NoAnswer
from bench.testbed.ledger import AnswerKind, classify

WRITTEN = b'{"received":1,"written":1,"duplicate":0,"dropped":0}'
RETRY = {"retry-after": "1"}


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind"),
    [
        (200, WRITTEN, {}, AnswerKind.WRITTEN),
        (200, WRITTEN.replace(b"1,", b"2,", 1), {}, AnswerKind.OTHER_2XX),
        (200, b"ok", {}, AnswerKind.OTHER_2XX),
        (201, WRITTEN, {}, AnswerKind.OTHER_2XX),
        (204, b"", {}, AnswerKind.OTHER_2XX),
        (301, b"", {}, AnswerKind.REFUSED),
        (400, b'{"error":"Malformed body."}', {}, AnswerKind.MALFORMED),
        (400, b'{"error":"Too many parameters."}', {}, AnswerKind.MALFORMED),
        (400, b"Bad Request", {}, AnswerKind.REFUSED),
        (429, b"", {}, AnswerKind.REFUSED),
        (500, b'{"error":"Internal Server Error"}', {}, AnswerKind.ERROR),
        (500, b"Traceback", {}, AnswerKind.OTHER_5XX),
        (503, b'{"error":"Service Unavailable"}', RETRY, AnswerKind.UNAVAILABLE),
        (503, b'{"error":"Service Unavailable"}', {}, AnswerKind.OTHER_5XX),
        (502, b"", {}, AnswerKind.OTHER_5XX),
    ],
)
def test_answer_is_classified_to_the_letter(
    status: int, body: bytes, headers: dict[str, str], kind: AnswerKind
) -> None:
    """Only the documented answers count as such."""
    assert classify(Answer(status, headers, body)) is kind


@pytest.mark.parametrize("reason", NoAnswer)
def test_missing_answer_has_its_reason(reason: NoAnswer) -> None:
    """A missing answer is never final, whatever its reason."""
    kind = classify(UNANSWERED._replace(missing=reason))
    assert not kind.is_final
    assert reason.value.removeprefix("not ") in kind.value
