"""The judgement on events whose commit a restore has undone: they are answered anew."""

from collections.abc import Sequence
from math import inf

from bench.faults.verdict import Verdict
from bench.testbed.chronicle import Chronicle
from bench.testbed.ledger import AnswerKind, Ledger

# A caller has given an answer up; its event may be committed so long after that, or never.
_UNKNOWN_S = 30.0


def judge_restores(
    ledger: Ledger, chronicle: Chronicle, committed_at: Sequence[float], verdict: Verdict
) -> None:
    """Add the events to the verdict that a restore has undone, and that were not written anew.

    `committed_at` has the time of the present row for each event, infinity without one.
    """
    if not chronicle.cuts:
        return
    targets = _undone(ledger, chronicle, committed_at)
    anew: dict[int, list[AnswerKind]] = {number: [] for number in targets}
    unknown: set[int] = set()
    for number, kind, _, answered_at in ledger:
        target = targets.get(number, inf)
        if kind.is_unknown and answered_at > target - _UNKNOWN_S:
            unknown.add(number)
        elif (
            kind.has_row
            and answered_at > target
            and not chronicle.is_undone(answered_at, committed_at[number])
        ):
            anew[number].append(kind)
    for number, kinds in anew.items():
        if not kinds:
            verdict.lost[number] = "undone by a restore, and never answered again"
        # After an unknown outcome the row may be there before an answer.
        elif AnswerKind.WRITTEN not in kinds and number not in unknown:
            verdict.lied[number] = "undone by a restore, then answered duplicate and never written"


def _undone(
    ledger: Ledger, chronicle: Chronicle, committed_at: Sequence[float]
) -> dict[int, float]:
    """Return the target of the last restore that has undone it, by event."""
    targets: dict[int, float] = {}
    for number, kind, _, answered_at in ledger:
        for cut in chronicle.cuts if kind.has_row else ():
            if cut.undoes(answered_at, committed_at[number]):
                targets[number] = max(cut.target, targets.get(number, 0.0))
    return targets
