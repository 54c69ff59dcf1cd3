"""One verdict of many: the worst outcome decides, and who is to blame is not forgotten."""

import pytest

from gptoss_convert.verify.judgement import Outcome
from gptoss_convert.verify.verdict import Cause, Verdict

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE


def verdict(outcome: Outcome, cause: Cause | None = None, reason: str = "because") -> Verdict:
    return Verdict(outcome=outcome, cause=cause, reason=reason)


@pytest.mark.parametrize(
    ("verdicts", "decides"),
    [
        ([verdict(PASS)], 0),
        ([verdict(PASS), verdict(INCONCLUSIVE, Cause.EVIDENCE)], 1),
        ([verdict(INCONCLUSIVE, Cause.EVIDENCE), verdict(FAIL, Cause.FILE), verdict(PASS)], 1),
        ([verdict(FAIL, Cause.FILE, "first"), verdict(FAIL, Cause.RUNTIME, "second")], 0),
        ([verdict(PASS), verdict(PASS, Cause.ROUTING)], 1),
        ([verdict(FAIL), verdict(FAIL, Cause.RUNTIME)], 1),
    ],
)
def test_first_of_the_worst_decides(verdicts: list[Verdict], decides: int) -> None:
    assert Verdict.of_all(verdicts) is verdicts[decides]


def test_nothing_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="nothing was judged"):
        Verdict.of_all([])


def test_is_json() -> None:
    assert verdict(PASS, Cause.RUNTIME).as_dict() == {"outcome": "pass", "cause": "runtime", "reason": "because"}
