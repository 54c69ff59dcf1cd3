"""Quantisation to MXFP4 number by number, with float64 arithmetic: for the few blocks that tables do not suit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import Array
from gptoss_convert.encodings.mxfp4_distances import BINADE, MIDPOINTS
from gptoss_convert.encodings.mxfp4_format import (
    EMAX_ELEMENT,
    LARGEST_EXACT_SCALE,
    MAGNITUDES,
    NOT_NAMED,
    SCALE_BIAS,
)
from gptoss_convert.encodings.mxfp4_rules import QuantisationFigures, RuleComparison, ScaleRule, raised_by_rule


@dataclass(frozen=True)
class _Rounded:
    """Blocks rounded with given scales; errors are absolute."""

    codes: Array
    """`[n, 32]`."""
    scales: Array
    error: NDArray[np.float64]
    clipped: Array
    sizes: NDArray[np.float64]
    """What the magnitudes `[n, 32]` became."""


@dataclass(frozen=True)
class Outcome:
    """Blocks that were quantised number by number."""

    rounded: _Rounded
    errors: Mapping[ScaleRule, NDArray[np.float64]]
    """By rule, without scales to keep."""
    kept: NDArray[np.bool_]

    def figures(self, compared: bool) -> QuantisationFigures:
        """Return the errors and counts of these blocks; they are counted as values elsewhere."""
        errors = {rule: float(error.sum()) for rule, error in self.errors.items()} if compared else {}
        return QuantisationFigures(
            squared_error=float(self.rounded.error.sum()),
            clipped_values=int(self.rounded.clipped.sum()),
            clipped_blocks=int(np.count_nonzero(self.rounded.clipped)),
            kept_blocks=int(np.count_nonzero(self.kept)),
            comparison=RuleComparison(squared_error=errors),
        )


def quantise_blocks(values: NDArray[np.float64], rule: ScaleRule, named: Array) -> Outcome:
    """Quantise blocks `[n, 32]` at any magnitude, with float64 arithmetic."""
    sizes = np.abs(values)
    mantissa, exponent = np.frexp(sizes.max(axis=1))
    unbounded = exponent - 1 - EMAX_ELEMENT + SCALE_BIAS
    floor = np.clip(unbounded, 0, LARGEST_EXACT_SCALE)
    lowered, smaller, larger = (
        _round(values, np.clip(floor + step, 0, LARGEST_EXACT_SCALE)) for step in (-1, 0, 1)
    )
    steps = (2 * mantissa - 1) * BINADE
    sticky = np.floor(steps).astype(np.int64) | (steps % 1 > 0)
    raised = raised_by_rule(sticky)
    raised[ScaleRule.MSE] = _excess(sizes, smaller, larger) > 0
    # Raised from below the least scale, a scale is the least one.
    by_rule = {each: _select(up & (unbounded >= 0), larger, smaller) for each, up in raised.items()}
    best = by_rule[ScaleRule.MSE]
    by_rule[ScaleRule.MSE] = _select(_excess(sizes, best, lowered) > 0, lowered, best)
    rounded = by_rule[rule]
    other = _round(values, np.where(named == NOT_NAMED, rounded.scales, named))
    kept = (named != NOT_NAMED) & (_excess(sizes, other, rounded) <= 0) & np.isfinite(other.error)
    return Outcome(_select(kept, other, rounded), {each: outcome.error for each, outcome in by_rule.items()}, kept)


def _select(mask: Array, one: _Rounded, other: _Rounded) -> _Rounded:
    """Return the blocks of `one` where `mask` `[n]` is set, and those of `other` elsewhere."""
    wide = mask[:, None]
    return _Rounded(
        np.where(wide, one.codes, other.codes),
        np.where(mask, one.scales, other.scales),
        np.where(mask, one.error, other.error),
        np.where(mask, one.clipped, other.clipped),
        np.where(wide, one.sizes, other.sizes),
    )


def _excess(sizes: NDArray[np.float64], one: _Rounded, other: _Rounded) -> NDArray[np.float64]:
    """Return a number for each block with the sign of the squared error of `one` less that of `other`.

    With x rounded to a or b, (x - a)**2 - (x - b)**2 = (b - a) * (2 * x - a - b). Where both scales are near the
    largest number, all that counts are the 24 bits of numbers that round differently, and float64 holds the sum;
    a scale so much smaller that it does not cuts off so much that rounding the sum cannot matter.
    """
    unit = np.frexp(sizes.max(axis=1))[1][:, None]
    x, a, b = (np.ldexp(each, -unit) for each in (sizes, one.sizes, other.sizes))
    excess: NDArray[np.float64] = ((b - a) * (2 * x - a - b)).sum(axis=1)
    return excess


def _round(values: NDArray[np.float64], scales: Array) -> _Rounded:
    exponents = scales.astype(np.int64)[:, None] - SCALE_BIAS
    sizes = np.ldexp(np.abs(values), -exponents)
    codes = np.zeros(values.shape, np.int64)
    for code, midpoint in enumerate(MIDPOINTS):
        codes += sizes > midpoint if code % 2 == 0 else sizes >= midpoint
    rounded = MAGNITUDES[codes].astype(np.float64)
    error = np.ldexp(np.square(sizes - rounded).sum(axis=1), 2 * exponents[:, 0])
    # A scale that may be named, but not with codes that are beyond float32 then.
    error[np.ldexp(rounded.max(axis=1), exponents[:, 0]) >= 2.0**128] = np.inf
    codes |= np.signbit(values).astype(np.int64) << 3
    clipped = (sizes > MAGNITUDES[-1]).sum(axis=1)
    return _Rounded(codes, scales, error, clipped, np.ldexp(rounded, exponents))
