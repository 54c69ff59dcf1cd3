"""What it all comes to: one outcome, who is to blame, and the reason in a sentence."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from gptoss_convert.verify.judgement import Outcome
from gptoss_convert.verify.metrics.plain import Plain


class Cause(enum.StrEnum):
    """Where a deviation comes from."""

    FILE = "file"
    """The artifact holds other numbers, or says other things about the model."""
    RUNTIME = "runtime"
    """The file is right, and the runtime computes something else."""
    ROUTING = "routing"
    """Only where the runtime chose other experts, by scores that are close."""
    EVIDENCE = "evidence"
    """Too little is known to say."""


@dataclass(frozen=True, kw_only=True)
class Verdict(Plain):
    """An outcome and its reason."""

    outcome: Outcome
    cause: Cause | None
    """None if nothing deviates more than expected."""
    reason: str
    """One sentence."""

    @classmethod
    def of_all(cls, verdicts: Sequence[Verdict]) -> Verdict:
        """Return the verdict that decides: the first of the worst outcome, and among passes one that has a cause.

        Raises:
            ValueError: there is none.
        """
        if not verdicts:
            raise ValueError("nothing was judged")
        outcome = Outcome.worst(verdict.outcome for verdict in verdicts)
        deciding = [verdict for verdict in verdicts if verdict.outcome is outcome]
        return next((verdict for verdict in deciding if verdict.cause is not None), deciding[0])
