"""What becomes of a number in a block of MXFP4, by its distance from the block's scale: tables for the quantiser.

A distance is an index. It counts the steps of bfloat16 from 2**-23 of the smaller of the two scales that a rule
chooses between; 0 is zero, and 1 stands for 2**-23 and everything below. Magnitudes and errors here are in units of
that scale. An error is exact but for numbers below 2**-16, whose square is rounded to a multiple of 2**-46.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.mxfp4_format import MAGNITUDES

BINADE = 1 << 7
"""Steps of bfloat16 from a power of two to the next."""
DEPTH = 23
"""Binades below the scale that tables reach; a number further down has the least squared error."""
STEPS = (DEPTH + 3) * BINADE
"""Number of distances: the largest number of a block is below 8."""
SIX = (DEPTH + 2) * BINADE + BINADE // 2
"""Distance of the number 6."""
LEAST_SQUARE = 2.0**-46
"""Squared errors are multiples of it: 32 of them add up to less than 2**53."""
LEAST_DIFFERENCE = 2.0**-9
"""What two scales make different is a multiple of it, since numbers below 1/4 become zero with both."""
GAIN_BITS = 10
LEAST_GAIN = 2.0**-8
"""Unit in which an upper bound is told of what the next smaller scale wins, in so many bits for a block."""

SIZES = MAGNITUDES.astype(np.float64)
MIDPOINTS = (SIZES[1:] + SIZES[:-1]) / 2
"""Boundaries between neighbouring codes: a tie goes to the even one, up from codes 1, 3 and 5."""


def _magnitudes() -> NDArray[np.float64]:
    """Return the magnitudes that distances stand for."""
    steps = np.arange(STEPS)
    sizes = np.ldexp(1 + steps % BINADE / BINADE, steps // BINADE - DEPTH)
    sizes[:2] = 0, 2.0**-DEPTH
    return sizes


def _codes(sizes: NDArray[np.float64]) -> NDArray[np.uint64]:
    up = [sizes > mid if code % 2 == 0 else sizes >= mid for code, mid in enumerate(MIDPOINTS)]
    codes: NDArray[np.uint64] = np.sum(up, axis=0).astype(np.uint64)
    return codes


def _rounded(scale: float) -> NDArray[np.float64]:
    """Return what magnitudes become with a scale."""
    rounded: NDArray[np.float64] = scale * SIZES[_codes(_magnitudes() / scale)]
    return rounded


def _squared_error(scale: float) -> NDArray[np.float64]:
    error: NDArray[np.float64] = np.square(_magnitudes() - _rounded(scale))
    return np.rint(error / LEAST_SQUARE) * LEAST_SQUARE


LOWERED = _rounded(0.5)
"""What magnitudes become with the next smaller scale, float64 `[STEPS]`."""

ROUNDED = np.concatenate([_rounded(1), _rounded(2)])
"""What magnitudes become with the smaller scale and, from `STEPS` on, the larger one: float64 `[2 * STEPS]`."""

CODE_SHIFT = 60
ERROR_MASK = (1 << CODE_SHIFT) - 1


def _outcomes(scale: float) -> NDArray[np.uint64]:
    errors = (_squared_error(scale) / LEAST_SQUARE).astype(np.uint64)
    return errors | _codes(_magnitudes() / scale) << np.uint64(CODE_SHIFT)


OUTCOMES = np.concatenate([_outcomes(1), _outcomes(2)])
"""Squared errors in units of `LEAST_SQUARE`, and codes from bit `CODE_SHIFT` on: uint64 `[2 * STEPS]`.

Scales as in `ROUNDED`. An error is below 2**48, so that the upper 16 bits are the code as the upper nibble of a
word, and in a sum over a block the errors stay below the codes.
"""


def _comparison() -> NDArray[np.int32]:
    difference = ((_squared_error(1) - _squared_error(2)) / LEAST_DIFFERENCE).astype(np.int32)
    gain = np.maximum(_squared_error(1) - np.square(_magnitudes() - LOWERED), 0)
    return difference << GAIN_BITS | np.ceil(gain / LEAST_GAIN).astype(np.int32)


COMPARISON = _comparison()
"""What scales differ in, int32 `[STEPS]`.

From bit `GAIN_BITS` on, how much larger the squared error is with the smaller scale than with the larger one, in
units of `LEAST_DIFFERENCE`. Below, what the next smaller scale can win at most, in units of `LEAST_GAIN`: 1/16 or
less, for no number wins more. Sums over a block keep both apart.
"""
