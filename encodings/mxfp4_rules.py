"""Rules for the scale of a block of MXFP4, and figures of what they do to numbers; see docs/quantisation.md."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from gptoss_convert.encodings.base import Array
from gptoss_convert.encodings.mxfp4_distances import BINADE
from gptoss_convert.encodings.mxfp4_format import BLOCK


class ScaleRule(enum.StrEnum):
    """How the scale 2**k of a block is chosen from its largest magnitude, m * 2**e with 1 <= m < 2."""

    MSE = "mse"
    """The scale with the least squared error: e - 2, e - 1 or, seldom, e - 3, in a tie the first of these."""
    EVEN = "even"
    """e - 2, or e - 1 from m = 1.75 on, where the largest magnitude rounds up to a power of two."""
    FLOOR = "floor"
    """e - 2: the rule of the specification; cuts off magnitudes with m > 1.5."""
    RCEIL = "rceil"
    """e - 2, or e - 1 if m > 1.5: nothing is cut off."""
    CEIL = "ceil"
    """e - 2 for powers of two, else e - 1."""


LEAST_RAISED: Mapping[ScaleRule, int] = {
    ScaleRule.EVEN: 3 * BINADE // 4,
    ScaleRule.FLOOR: BINADE,
    ScaleRule.RCEIL: BINADE // 2 + 1,
    ScaleRule.CEIL: 1,
}
"""Mantissa of the largest magnitude, in steps of bfloat16, from which on a rule takes the larger scale."""


def raised_by_rule(mantissas: Array) -> dict[ScaleRule, Array]:
    """Return where each closed rule takes the larger scale; mantissas are in steps of bfloat16."""
    return {rule: mantissas >= least for rule, least in LEAST_RAISED.items()}


def _relative(squared_error: float, squared_signal: float) -> float:
    return math.sqrt(squared_error / squared_signal) if squared_error else 0.0


@dataclass(frozen=True)
class RuleComparison:
    """What each rule makes of the same numbers, without scales to keep; sums over the pieces of a tensor."""

    values: int = 0
    """Numbers that were looked at: all, or a sample."""
    squared_signal: float = 0.0
    squared_error: Mapping[ScaleRule, float] = field(default_factory=dict)

    def __add__(self, other: RuleComparison) -> RuleComparison:
        rules = self.squared_error.keys() | other.squared_error.keys()
        return RuleComparison(
            self.values + other.values,
            self.squared_signal + other.squared_signal,
            {
                rule: self.squared_error.get(rule, 0.0) + other.squared_error.get(rule, 0.0)
                for rule in ScaleRule
                if rule in rules
            },
        )

    @property
    def blocks(self) -> int:
        """Number of blocks that were looked at."""
        return self.values // BLOCK

    @property
    def relative_error(self) -> dict[ScaleRule, float]:
        """Root of the squared error relative to the squared values, by rule."""
        return {rule: _relative(error, self.squared_signal) for rule, error in self.squared_error.items()}


NOT_COMPARED = RuleComparison()


@dataclass(frozen=True)
class QuantisationFigures:
    """What quantising did; sums over the pieces of a tensor."""

    values: int = 0
    squared_signal: float = 0.0
    squared_error: float = 0.0
    clipped_values: int = 0
    """Values beyond the largest code of their block."""
    clipped_blocks: int = 0
    """Blocks with such a value."""
    kept_blocks: int = 0
    """Blocks that took the scale that was named for them."""
    comparison: RuleComparison = NOT_COMPARED
    """What other rules would have made of the same numbers, or of a sample."""

    def __add__(self, other: QuantisationFigures) -> QuantisationFigures:
        return QuantisationFigures(
            self.values + other.values,
            self.squared_signal + other.squared_signal,
            self.squared_error + other.squared_error,
            self.clipped_values + other.clipped_values,
            self.clipped_blocks + other.clipped_blocks,
            self.kept_blocks + other.kept_blocks,
            self.comparison + other.comparison,
        )

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.values // BLOCK

    @property
    def relative_error(self) -> float:
        """Root of the squared error relative to the squared values; 0 if every value is exact."""
        return _relative(self.squared_error, self.squared_signal)

    @property
    def signal_to_noise(self) -> float | None:
        """Signal-to-quantisation-noise ratio in dB; None if every value is exact."""
        return None if self.squared_error == 0 else -20 * math.log10(self.relative_error)
