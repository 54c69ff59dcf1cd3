"""Puts together what is said about the memory of an artifact: prediction, measurement, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gptoss_convert.verify.footprint.comparison import Comparison, compare
from gptoss_convert.verify.footprint.measurement import Ending, Measurement, measure
from gptoss_convert.verify.footprint.parts import Conditions
from gptoss_convert.verify.footprint.prediction import MemoryModel, Prediction, largest_context, predict
from gptoss_convert.verify.footprint.profiles import Budget
from gptoss_convert.verify.footprint.subject import Subject
from gptoss_convert.verify.footprint.verdict import Fit, Verdict, judge

SCHEMA_VERSION = 1
LARGEST_ERROR = 0.1
"""Share of what was measured by which a prediction may be off, unless another limit is chosen."""


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How an artifact is measured."""

    prompt: int | None = None
    answer: int | None = None
    limit: int | None = None
    """Bytes of private memory that the process may reserve."""
    timeout: float | None = None
    largest_error: float = LARGEST_ERROR


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The memory of one artifact in one runtime."""

    subject: Subject
    prediction: Prediction
    measurement: Measurement | None
    comparison: Comparison | None
    """None without a measurement that was completed."""
    verdicts: tuple[Verdict, ...]
    largest_error: float

    @property
    def is_over_budget(self) -> bool:
        """Whether it is more than a budget allows, or ended for want of memory."""
        starved = self.measurement is not None and self.measurement.ending is Ending.OUT_OF_MEMORY
        return starved or any(verdict.fit is Fit.OVER for verdict in self.verdicts)

    @property
    def failure(self) -> str | None:
        """Why something else than a budget is not as it should be; None if all is."""
        if self.measurement is None or self.measurement.ending is Ending.OUT_OF_MEMORY:
            return None
        if self.comparison is None:
            if self.measurement.ending is Ending.COMPLETED:
                return "nothing tells what the GPU holds: neither NVML nor DXGI is there"
            return f"the measurement {self.measurement.ending} in phase {self.measurement.died_in}"
        if abs(self.comparison.error) > self.largest_error:
            return (
                f"the prediction is off by {self.comparison.error:+.1%}, more than {self.largest_error:.0%}: "
                f"{self.comparison.explanation}"
            )
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data, as docs/footprint.schema.json describes it."""
        subject = self.subject
        return {
            "schema_version": SCHEMA_VERSION,
            "path": str(subject.path),
            "form": subject.form,
            "format": subject.format,
            "weights": [asdict(group) for group in subject.weights],
            "weight_bytes": subject.nbytes,
            "prediction": self.prediction.as_dict(),
            "measurement": None if self.measurement is None else self.measurement.as_dict(),
            "comparison": None if self.comparison is None else self.comparison.as_dict(),
            "verdicts": [verdict.as_dict() for verdict in self.verdicts],
            "over_budget": self.is_over_budget,
            "failure": self.failure,
        }


def take_footprint(
    subject: Subject,
    model: MemoryModel,
    how: Conditions,
    *,
    budgets: Sequence[Budget] = (),
    measuring: MeasureOptions | None = None,
) -> Footprint:
    """Predict the memory of an artifact, measure it if that is asked for, and judge both by budgets.

    Raises:
        OptionError: it cannot be measured as asked for.
        UnsupportedError: the runtime is not installed.
    """
    measurement = comparison = None
    if measuring is not None:
        measurement = measure(
            subject,
            model.runtime,
            how,
            prompt=measuring.prompt,
            answer=measuring.answer,
            limit=measuring.limit,
            timeout=measuring.timeout,
        )
        comparison = compare(predict(subject, model, measurement.conditions), measurement)
    return Footprint(
        subject=subject,
        prediction=predict(subject, model, how),
        measurement=measurement,
        comparison=comparison,
        verdicts=tuple(_verdict(subject, model, how, budget, measurement) for budget in budgets),
        largest_error=LARGEST_ERROR if measuring is None else measuring.largest_error,
    )


def _verdict(
    subject: Subject, model: MemoryModel, how: Conditions, budget: Budget, measurement: Measurement | None
) -> Verdict:
    there = replace(how, device=budget.device)
    return judge(
        budget,
        predict(subject, model, there),
        largest_context(subject, model, there, budget.available),
        measurement,
    )
