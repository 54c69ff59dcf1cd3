"""Whether a model fits a budget, by its prediction and by what it took."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from gptoss_convert.verify.footprint.measurement import Ending, Measurement
from gptoss_convert.verify.footprint.parts import Kind
from gptoss_convert.verify.footprint.prediction import Prediction
from gptoss_convert.verify.footprint.profiles import Budget


class Fit(enum.StrEnum):
    """What a verdict says."""

    FITS = "fits"
    OVER = "over budget"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judgement on one budget."""

    budget: Budget
    fit: Fit
    reason: str
    prediction: Prediction
    """For the device of the budget."""
    largest_context: int | None
    """The largest one that fits, by prediction; None if none does."""

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON-ready data."""
        return {
            "budget": self.budget.name,
            "title": self.budget.title,
            "device": self.budget.device,
            "memory": self.budget.memory,
            "reserved": self.budget.reserved,
            "available": self.budget.available,
            "verdict": str(self.fit),
            "reason": self.reason,
            "needed": self.prediction.needed,
            "largest_context": self.largest_context,
        }


def judge(
    budget: Budget, prediction: Prediction, largest_context: int | None, measurement: Measurement | None
) -> Verdict:
    """Return whether a model fits: what is needed, predicted and measured, has to be within the budget.

    A measurement is about the memory of what computed, and says nothing about another device. Pages of files that
    are mapped and never read again are resident where nothing presses, but not needed: they are taken off what was
    measured by as much as the prediction says.
    """
    fit, reason = _by_prediction(budget, prediction)
    if measurement is not None and budget.device == measurement.conditions.device:
        worse = _by_measurement(budget, prediction, measurement)
        if worse is not None:
            fit, reason = Fit.OVER, worse
    return Verdict(budget=budget, fit=fit, reason=reason, prediction=prediction, largest_context=largest_context)


def _by_prediction(budget: Budget, prediction: Prediction) -> tuple[Fit, str]:
    left = budget.available - prediction.needed
    figures = f"{_size(prediction.needed)} needed, {_size(budget.available)} available"
    if left < 0:
        return Fit.OVER, f"{figures}: {_size(-left)} too much"
    close = f"; {_size(left)} left, less than the error of the prediction" if left < prediction.error else ""
    return Fit.FITS, figures + close


def _by_measurement(budget: Budget, prediction: Prediction, measurement: Measurement) -> str | None:
    """Return why what was measured is too much; None if it is not."""
    if measurement.ending is Ending.OUT_OF_MEMORY:
        return f"the process ran out of memory in phase {measurement.died_in}: {measurement.reason}"
    if budget.device == "gpu":
        on_gpu = measurement.peak_on_gpu or 0
        over = on_gpu > budget.available
        return f"{_size(on_gpu)} measured, {_size(budget.available)} available" if over else None
    private, resident = measurement.peak_private or 0, measurement.peak_resident or 0
    droppable = sum(max(part.resident - part.needed, 0) for part in prediction.parts if part.kind is Kind.MAPPED)
    needed = max(private, resident - droppable)
    if needed <= budget.available:
        return None
    return (
        f"{_size(needed)} needed as measured, of them {_size(private)} private, {_size(budget.available)} available"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
