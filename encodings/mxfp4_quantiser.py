"""Quantisation to MXFP4: the choice of a block's scale, the codes, and how much is lost.

Source: OCP Microscaling Formats (MX) Specification v1.0, section 6.3, for the floor rule and the rounding of
elements; docs/quantisation.md says who uses which rule.

With k = floor(log2(largest)) - 2, every rule takes the scale 2**k or 2**(k + 1), so both errors of a block tell
what each would do; only the least squared error may need another. A larger scale has no code in reach that
2**(k + 1) has not. With a smaller one the largest number is cut off by a quarter of itself or more, which pays for
2**(k - 1) alone, if that number is below 4.5 * 2**k and nearly all others are near 2**k / 4 or 3 * 2**k / 4. Such
blocks are rare, and are looked for only where what the others lose or could win does not rule them out.

Where kernels in C are installed (`kernels`) they do the work. Otherwise a matrix is cut into tiles
(`encodings.mxfp4_tiles`), and what its numbers become is put together in columns. Codes and scales are the same
bytes either way; sums of errors may differ in their last digits, since numbers are added in another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import Array
from gptoss_convert.encodings.mxfp4_format import BLOCK
from gptoss_convert.encodings.mxfp4_native import quantise_natively
from gptoss_convert.encodings.mxfp4_rules import QuantisationFigures, RuleComparison, ScaleRule
from gptoss_convert.encodings.mxfp4_tiles import Scratch, new_tile
from gptoss_convert.encodings.mxfp4_words import CODES_PER_WORD, WORDS_PER_BLOCK, Bits16
from gptoss_convert.encodings.transpose import transposed
from gptoss_convert.kernels import NATIVE, Native

__all__ = ["QuantisationFigures", "Quantised", "RuleComparison", "ScaleRule", "quantise"]

_COMPARED = 16
"""Where rules are compared for the report alone, one of so many blocks of a row is looked at."""


@dataclass(frozen=True)
class Quantised:
    """Numbers in MXFP4."""

    codes: NDArray[np.uint8]
    """`[rows, columns / 2]`, C-contiguous."""
    scales: NDArray[np.uint8]
    """`[rows, columns / 32]`, C-contiguous."""
    figures: QuantisationFigures


def quantise(
    values: Array,
    rule: ScaleRule = ScaleRule.MSE,
    named: NDArray[np.uint8] | None = None,
    native: Native | None = NATIVE,
) -> Quantised:
    """Quantise numbers to MXFP4.

    Elements round to nearest, ties to an even code, and keep the sign of zero. A block of zeros has scale byte 0
    unless another is named. Working memory is bounded, however many rows there are.

    Args:
        values: `[rows, columns]` in C or F order, columns a multiple of 32: uint16 bits of bfloat16, or float32.
        rule: how the scale of a block is chosen.
        named: uint8 `[rows, columns / 32]`: a scale byte that a block takes if its squared error is then at most
            that of the rule's choice; 255 where none is named.
        native: the kernels in C; None for numpy.

    Raises:
        EncodingError: a value is not finite.
    """
    rows, columns = values.shape
    codes = np.empty((rows, columns // 2), np.uint8)
    scales = np.empty((rows, columns // BLOCK), np.uint8)
    if native is None:
        figures = _quantise_by_tables(values, rule, named, codes, scales)
    else:
        figures = quantise_natively(native, values, rule, named, codes, scales)
        if _compared_apart(rule, named):
            sample = _sample(values)
            compared = quantise(sample, native=native).figures.comparison
            figures += QuantisationFigures(comparison=compared)
    return Quantised(codes, scales, figures)


def _compared_apart(rule: ScaleRule, named: Array | None) -> bool:
    """Return whether a rule looks at one scale only, so that others have to be tried on a sample for the report."""
    return named is None and rule is not ScaleRule.MSE


def _sample(values: Array) -> Array:
    """Return the blocks of `[lanes, columns]` on which rules are compared, in F order."""
    by_block = values.T.reshape(-1, BLOCK, len(values))[::_COMPARED]
    return np.ascontiguousarray(by_block).reshape(-1, len(values)).T


def _quantise_by_tables(
    values: Array, rule: ScaleRule, named: Array | None, codes: Array, scales: Array
) -> QuantisationFigures:
    """Quantise `[rows, columns]` into `codes` and `scales` with numpy, some rows at a time."""
    columns = values.shape[1]
    figures = QuantisationFigures()
    scratch = Scratch(values)
    for lane in scratch.lanes():
        few = values[lane]
        words = np.empty((columns // CODES_PER_WORD, len(few)), np.uint16)
        by_block = np.empty((columns // BLOCK, len(few)), np.uint8)
        figures += _quantise_lanes(few, rule, None if named is None else named[lane], words, by_block, scratch)
        codes[lane] = transposed(words).view(np.uint8)
        scales[lane] = transposed(by_block)
        if _compared_apart(rule, named):
            figures += _compare_rules(few, words, by_block, scratch)
    return figures


def _quantise_lanes(
    values: Array, rule: ScaleRule, named: Array | None, words: Bits16, scales: Array, scratch: Scratch
) -> QuantisationFigures:
    """Quantise `[lanes, columns]` tile by tile into `words` `[columns / 4, lanes]` and `scales`."""
    figures = QuantisationFigures()
    blocks = scratch.tile_blocks
    for block in range(0, len(scales), blocks):
        last = min(block + blocks, len(scales))
        tile = new_tile(values[:, block * BLOCK : last * BLOCK], scratch)
        figures += tile.quantise(
            rule,
            None if named is None else named[:, block:last],
            words[block * WORDS_PER_BLOCK : last * WORDS_PER_BLOCK],
            scales[block:last],
        )
    return figures


def _compare_rules(values: Array, words: Bits16, scales: Array, scratch: Scratch) -> QuantisationFigures:
    """Return what all rules make of a sample of `[lanes, columns]`; `words` and `scales` are overwritten."""
    sample = _sample(values)
    blocks = sample.shape[1] // BLOCK
    figures = _quantise_lanes(
        sample, ScaleRule.MSE, None, words[: blocks * WORDS_PER_BLOCK], scales[:blocks], scratch
    )
    return QuantisationFigures(comparison=figures.comparison)
