"""The judgement on restores, and the times of a chronicle."""

from math import inf

import pytest

from bench.faults.cut import judge_restores
from bench.faults.verdict import Verdict
from bench.testbed.chronicle import Chronicle, Cut, Disturbance, Shift
from bench.testbed.ledger import AnswerKind, Ledger

WRITTEN, DUPLICATE = AnswerKind.WRITTEN, AnswerKind.DUPLICATE
TARGET, BACK = 1_000.0, 1_010.0
AFTER = 1_020.0
Answers = list[tuple[AnswerKind, float]]


def judged(answers: Answers, committed_at: float) -> Verdict:
    """Return the verdict on one event with these answers, and a row of this time."""
    ledger, verdict = Ledger(), Verdict()
    for kind, answered_at in answers:
        ledger.note(0, kind, answered_at, answered_at)
    chronicle = Chronicle(cuts=[Cut(TARGET, BACK)])
    judge_restores(ledger, chronicle, [committed_at], verdict)
    return verdict


@pytest.mark.parametrize(
    ("answers", "committed_at"),
    [
        # The restore has kept the row.
        ([(WRITTEN, 990), (DUPLICATE, 1_005)], 989),
        ([(WRITTEN, 1_005), (DUPLICATE, AFTER)], 999),
        # It is undone, and answered anew.
        ([(WRITTEN, 1_005), (WRITTEN, AFTER)], 1_019),
        ([(DUPLICATE, 1_005), (DUPLICATE, AFTER), (WRITTEN, AFTER)], 1_019),
        # A caller did not wait for the `written`.
        ([(WRITTEN, 1_005), (AnswerKind.TIMED_OUT, 1_015), (DUPLICATE, AFTER)], 1_012),
        ([(AnswerKind.TIMED_OUT, 999), (WRITTEN, 1_005), (DUPLICATE, AFTER)], 1_012),
    ],
)
def test_event_that_is_kept_or_written_anew_is_clean(answers: Answers, committed_at: float) -> None:
    """Nothing is broken where the row was kept, or where it was written once more."""
    assert judged(answers, committed_at).is_clean


def test_duplicate_of_an_undone_event_is_a_lie() -> None:
    """An undone event that is answered `duplicate` only was known from elsewhere."""
    assert judged([(WRITTEN, 1_005), (DUPLICATE, AFTER)], 1_019).lied


@pytest.mark.parametrize("committed_at", [1_019, inf])
def test_undone_event_without_another_answer_is_lost(committed_at: float) -> None:
    """An undone event is lost until it is answered again, also where it has a row."""
    assert judged([(WRITTEN, 1_005), (AnswerKind.ERROR, AFTER)], committed_at).lost


def test_answer_before_the_target_counts() -> None:
    """Only answers between the target and the end of the restore are undone."""
    chronicle = Chronicle(cuts=[Cut(TARGET, BACK)])
    undone = [chronicle.is_undone(at, 1_019) for at in (999, TARGET, 1_001, BACK, 1_011)]
    assert undone == [False, False, True, True, False]


def test_time_of_arrival_follows_the_clock_of_the_gateway() -> None:
    """A row may have the time of a wrong clock only while that was wrong."""
    chronicle = Chronicle(shifts=[Shift(TARGET, BACK, 3_600)])
    arrivals = [
        chronicle.is_arrival(received_at, sent_at, sent_at + 1)
        for received_at, sent_at in (
            (1_005.5, 1_005), (4_605.5, 1_005), (4_599.5, 999.5), (4_590, 989), (4_605, 1_020)
        )
    ]  # fmt: skip
    assert arrivals == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("sent_at", "answered_at", "is_disturbed"),
    [
        (990, 999, False),
        (990, 1_000, True),
        (1_005, 1_006, True),
        (1_010, 1_012, True),
        (1_011, 1_012, False),
        (1_011, 1_020, True),
        (990, 1_040, True),
        (1_031, 1_040, False),
    ],
)
def test_attempt_is_disturbed_by_a_fault_at_its_time(
    sent_at: float, answered_at: float, *, is_disturbed: bool
) -> None:
    """A fault disturbs the attempts that overlap with it, or with its recovery."""
    chronicle = Chronicle(disturbances=[Disturbance(1_000, 1_010), Disturbance(1_020, 1_030)])
    assert chronicle.is_disturbed(sent_at, answered_at) is is_disturbed


def test_any_attempt_may_be_disturbed_by_unknown_faults() -> None:
    """Without a record of the faults, each attempt may have met one."""
    assert Chronicle().is_disturbed(1_000, 1_001)
    assert not Chronicle(disturbances=[]).is_disturbed(1_000, 1_001)
