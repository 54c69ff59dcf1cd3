"""Holds a prediction against a measurement, and says where the difference comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gptoss_convert.verify.footprint.child import DECODE, LOAD, PREFILL
from gptoss_convert.verify.footprint.measurement import Measurement, PhaseMemory
from gptoss_convert.verify.footprint.parts import Kind, Phase
from gptoss_convert.verify.footprint.prediction import Prediction


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure, predicted and measured, in bytes."""

    name: str
    predicted: int
    measured: int
    source: str
    """Parts of the prediction that this figure holds against what was measured."""

    @property
    def bytes(self) -> int:
        """Predicted minus measured."""
        return self.predicted - self.measured


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A prediction for what was run, and what the run took."""

    prediction: Prediction
    """For the positions that were computed."""
    peak: Difference
    """Largest resident memory: the figure to judge by."""
    causes: tuple[Difference, ...]
    """The difference split up: by what was loaded or computed, and by whose memory it is. Their sum is not exactly
    the difference of the peaks, which need not be those of private and of mapped memory at once."""

    @property
    def error(self) -> float:
        """By how much of the measurement the prediction is off: positive if it is too large."""
        return self.peak.bytes / max(self.peak.measured, 1)

    @property
    def explanation(self) -> str:
        """Which part of the memory most of the difference lies in."""
        worst = max(self.causes, key=lambda cause: abs(cause.bytes))
        direction = "more" if worst.bytes > 0 else "less"
        return f"{worst.name}: {abs(worst.bytes) / 1e6:.1f} MB {direction} predicted than measured ({worst.source})"

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready data."""
        return {
            "prediction": self.prediction.as_dict(),
            "error": self.error,
            "explanation": self.explanation,
            "figures": [
                {
                    "name": figure.name,
                    "predicted": figure.predicted,
                    "measured": figure.measured,
                    "difference": figure.bytes,
                    "source": figure.source,
                }
                for figure in (self.peak, *self.causes)
            ],
        }


def compare(prediction: Prediction, measurement: Measurement) -> Comparison | None:
    """Compare a prediction for the conditions of a measurement with it; None if it was not completed."""
    if measurement.conditions.device == "gpu":
        on_gpu = measurement.peak_on_gpu
        if on_gpu is None or measurement.phase(DECODE) is None:
            return None
        gpu = Difference(name="GPU memory", predicted=prediction.resident, measured=on_gpu, source="all parts")
        return Comparison(prediction=prediction, peak=gpu, causes=(gpu,))
    loaded, computed = measurement.phase(LOAD), measurement.phase(PREFILL)
    decoded, resident = measurement.phase(DECODE), measurement.peak_resident
    if loaded is None or computed is None or decoded is None or resident is None:
        return None
    peak = Difference(name="peak", predicted=prediction.resident, measured=resident, source="all parts")
    return Comparison(
        prediction=prediction, peak=peak, causes=tuple(_causes(prediction, loaded, (computed, decoded)))
    )


def _causes(prediction: Prediction, loaded: PhaseMemory, computing: tuple[PhaseMemory, ...]) -> list[Difference]:
    always = _names(prediction, Phase.ALWAYS, Kind.PRIVATE)
    causes = []
    if loaded.private is not None:
        causes.append(
            Difference(
                name="private memory once loaded",
                predicted=_sum(prediction, Phase.ALWAYS, Kind.PRIVATE),
                measured=loaded.private,
                source=always,
            )
        )
        peak = max(phase.peak_private or 0 for phase in computing)
        causes.append(
            Difference(
                name="private memory while computing",
                predicted=_sum(prediction, Phase.RUN, Kind.PRIVATE),
                measured=max(peak - loaded.private, 0),
                source=_names(prediction, Phase.RUN, Kind.PRIVATE),
            )
        )
    if loaded.mapped is not None:
        causes.append(
            Difference(
                name="mapped files",
                predicted=prediction.mapped,
                measured=max(phase.mapped or 0 for phase in computing),
                source=", ".join(
                    _names(prediction, phase, Kind.MAPPED) for phase in (Phase.ALWAYS, Phase.RUN)
                ).strip(", "),
            )
        )
    return causes


def _sum(prediction: Prediction, phase: Phase, kind: Kind) -> int:
    return sum(part.resident for part in prediction.parts if part.phase is phase and part.kind is kind)


def _names(prediction: Prediction, phase: Phase, kind: Kind) -> str:
    return ", ".join(part.name for part in prediction.parts if part.phase is phase and part.kind is kind)
