"""How much of a fine-tune is left after quantising: tuned weights, and what became of them, against their base."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gptoss_convert.encodings import Float32

LEAST_SURVIVING = 0.5
"""A change of which less is left than this share has been rounded away, as far as anybody would notice it."""

_SAFE_LEAST, _SAFE_MOST = 1e-24, 1e24


@dataclass(frozen=True)
class Survival:
    """Sums over the values of a tensor, or of a piece of one."""

    values: int = 0
    tuned: int = 0
    """Values in which the tuned weights differ from the base."""
    moved: int = 0
    """Values in which the quantised weights differ from the base."""
    squared_base: float = 0.0
    squared_change: float = 0.0
    """Of the tuned weights against the base."""
    kept_change: float = 0.0
    """Product of the change that was wanted and the one that is left."""

    def __add__(self, other: Survival) -> Survival:
        return Survival(
            self.values + other.values,
            self.tuned + other.tuned,
            self.moved + other.moved,
            self.squared_base + other.squared_base,
            self.squared_change + other.squared_change,
            self.kept_change + other.kept_change,
        )

    @property
    def relative_change(self) -> float | None:
        """Size of the change relative to the base; None if the base is all zeros."""
        return math.sqrt(self.squared_change / self.squared_base) if self.squared_base else None

    @property
    def share_tuned(self) -> float:
        """Share of the values that tuning changed."""
        return self.tuned / self.values if self.values else 0.0

    @property
    def share_moved(self) -> float:
        """Share of the values that differ from the base after quantising."""
        return self.moved / self.values if self.values else 0.0

    @property
    def share_kept(self) -> float | None:
        """How far the quantised weights went in the direction of the change, 1 for all of it; None without one."""
        return self.kept_change / self.squared_change if self.squared_change else None

    @property
    def rounded_away(self) -> bool:
        """Whether there was a change and most of it is gone."""
        return self.share_kept is not None and self.share_kept < LEAST_SURVIVING


def survival(base: Float32, tuned: Float32, quantised: Float32) -> Survival:
    """Compare three arrays of the same shape."""
    change = tuned - base
    left = quantised - base
    tuned_count, moved_count = int(np.count_nonzero(change)), int(np.count_nonzero(left))
    return Survival(
        values=base.size,
        tuned=tuned_count,
        moved=moved_count,
        squared_base=_product_sum(base, base),
        squared_change=_product_sum(change, change) if tuned_count else 0.0,
        kept_change=_product_sum(change, left) if tuned_count and moved_count else 0.0,
    )


def _product_sum(left: Float32, right: Float32) -> float:
    """Return the sum of products; in float32 row by row, where the sums stay far from its ends, which is faster."""
    with np.errstate(over="ignore"):
        sums = np.vecdot(left, right)
    total = float(sums.sum(dtype=np.float64))
    if _SAFE_LEAST < abs(total) < _SAFE_MOST:
        return total
    return float(np.multiply(left, right, dtype=np.float64).sum())
