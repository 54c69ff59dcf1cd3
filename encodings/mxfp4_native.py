"""Quantisation to MXFP4 by the kernel in C, which leaves only unusual blocks to numpy.

The kernel works in float arithmetic that is exact wherever a decision depends on it (`kernels/mxfp4_quantise.h`).
Blocks at the ends of the range, with a scale that is named but neither of the two that rules choose between, or
with the least error at a third one, are quantised number by number (`encodings.mxfp4_blocks`), as in numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import Array, EncodingError
from gptoss_convert.encodings.mxfp4_blocks import quantise_blocks
from gptoss_convert.encodings.mxfp4_format import BLOCK, NOT_NAMED
from gptoss_convert.encodings.mxfp4_rules import (
    LEAST_RAISED,
    NOT_COMPARED,
    QuantisationFigures,
    RuleComparison,
    ScaleRule,
)
from gptoss_convert.kernels import Native

_LEAST_ERROR = -1
_ODD_AT_ONCE = 4096
"""Blocks that are quantised number by number at a time; each takes about 10 kB then."""


def quantise_natively(
    native: Native,
    values: Array,
    rule: ScaleRule,
    named: NDArray[np.uint8] | None,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
) -> QuantisationFigures:
    """Quantise `values` `[rows, columns]` into `codes` and `scales`, which are C-contiguous.

    Raises:
        EncodingError: a value is not finite.
    """
    odd = np.zeros(scales.shape, np.uint8)
    named = None if named is None else np.ascontiguousarray(named)
    sums = native.quantise(values, LEAST_RAISED.get(rule, _LEAST_ERROR), named, codes, scales, odd)
    if sums is None:
        raise EncodingError("a value that is not finite cannot be stored as MXFP4")
    signal, error, least_error, smaller, larger, clipped_values, clipped_blocks, kept_blocks, odd_blocks = sums
    compares = values.size > 0 and (named is not None or rule is ScaleRule.MSE)
    comparison = NOT_COMPARED
    if compares:
        # All rules but the least squared error go by the mantissa of the largest number alone.
        errors = {each: sum(smaller[:least]) + sum(larger[least:]) for each, least in LEAST_RAISED.items()}
        comparison = RuleComparison(values.size, signal, {ScaleRule.MSE: least_error, **errors})
    figures = QuantisationFigures(
        values.size, signal, error, clipped_values, clipped_blocks, kept_blocks, comparison
    )
    if odd_blocks:
        rows, blocks = np.nonzero(odd)
        for start in range(0, odd_blocks, _ODD_AT_ONCE):
            few = slice(start, start + _ODD_AT_ONCE)
            figures += _quantise_odd(values, rows[few], blocks[few], rule, named, codes, scales, compares)
    return figures


def _quantise_odd(
    values: Array,
    rows: Array,
    blocks: Array,
    rule: ScaleRule,
    named: NDArray[np.uint8] | None,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    compares: bool,
) -> QuantisationFigures:
    numbers = values[rows[:, None], blocks[:, None] * BLOCK + np.arange(BLOCK)]
    if numbers.dtype == np.uint16:
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    names = np.full(len(rows), NOT_NAMED, np.uint8) if named is None else named[rows, blocks]
    outcome = quantise_blocks(numbers.astype(np.float64), rule, names)
    scales[rows, blocks] = outcome.rounded.scales
    found = outcome.rounded.codes
    packed = (found[:, 0::2] | found[:, 1::2] << 4).astype(np.uint8)
    codes.reshape(*scales.shape, BLOCK // 2)[rows, blocks] = packed
    return outcome.figures(compared=compares)
