"""How far numbers lie from the ones that they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import Float32

LARGEST_DECIBELS = 1000.0
"""Stands for a ratio without bound, negative for noise where there should be zeros."""
LARGEST_ERROR = 1e39
"""Stands for the error of a number that became infinite or NaN: more than any two float32 numbers differ."""


@dataclass(frozen=True)
class Deviation:
    """What differs between some values and the values expected; sums over several pieces of a tensor."""

    values: int = 0
    different: int = 0
    """Values that are not equal; zeros of different sign are equal, and so are two NaN."""
    largest_error: float = 0.0
    squared_error: float = 0.0
    squared_signal: float = 0.0
    """Sum of the squares of the finite expected values."""

    def __add__(self, other: Deviation) -> Deviation:
        return Deviation(
            self.values + other.values,
            self.different + other.different,
            max(self.largest_error, other.largest_error),
            self.squared_error + other.squared_error,
            self.squared_signal + other.squared_signal,
        )

    @property
    def signal_to_noise(self) -> float | None:
        """Signal-to-quantisation-noise ratio in dB; None when every value is equal."""
        if self.squared_error == 0:
            return None
        if self.squared_signal == 0:
            return -LARGEST_DECIBELS
        return 10 * math.log10(self.squared_signal / self.squared_error)

    @property
    def relative_error(self) -> float:
        """Root of the squared error relative to the squared values; 0 when every value is equal."""
        if self.squared_error == 0:
            return 0.0
        return math.sqrt(self.squared_error / self.squared_signal) if self.squared_signal else LARGEST_ERROR


def deviation(expected: Float32, found: Float32) -> Deviation:
    """Return how `found` deviates from `expected`, an array of the same shape."""
    unequal = unequal_values(expected, found)
    different = int(unequal.sum())
    largest = squared = 0.0
    if different:
        error = absolute_error(expected[unequal], found[unequal])
        largest = float(error.max())
        squared = float(np.square(error).sum())
    return Deviation(expected.size, different, largest, squared, squared_sum(expected))


def unequal_values(expected: Float32, found: Float32) -> NDArray[np.bool_]:
    """Return which values are not equal; zeros of different sign are equal, and so are two NaN."""
    unequal: NDArray[np.bool_] = expected != found
    if unequal.any():
        unequal &= ~(np.isnan(expected) & np.isnan(found))
    return unequal


def absolute_error(expected: Float32, found: Float32) -> NDArray[np.float64]:
    """Return how far values lie apart, float64: `LARGEST_ERROR` where only one is NaN or infinite."""
    with np.errstate(invalid="ignore"):
        error = np.abs(expected.astype(np.float64) - found)
    return np.nan_to_num(error, nan=LARGEST_ERROR, posinf=LARGEST_ERROR)


def squared_sum(values: Float32) -> float:
    """Return the sum of the squares of all finite values."""
    total = float(np.square(values, dtype=np.float64).sum())
    return total if math.isfinite(total) else squared_sum(values[np.isfinite(values)])
