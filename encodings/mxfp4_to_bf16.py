"""MXFP4 to bfloat16 without float32 in between.

Both kernels work in pieces whose temporaries stay in the second-level cache (`SCRATCH_BYTES` per call), use no
global state but constant tables, and may run in several threads.

Row-major results come from a table of 65,536 entries: the two bfloat16 numbers for every (scale, packed byte).

Column-major results are what a `[in, out]` tensor stores for a matrix `[out, in]`. Here the codes are transposed
while they are packed, four to a 16-bit word, which moves a quarter of the bytes, and then decoded by arithmetic on
whole rows of words. Where kernels in C are installed (`kernels`) they do the same, a block of some rows at a time.
For a code with magnitude index m >= 2 and scale byte s, exponent and mantissa are

    (m << 6) + ((s - 1) << 7)

since m is a two-bit exponent of bias 1 and one bit of mantissa, and bfloat16 has the mantissa below bit 7. Index 1
is 0.5 = 1.0 * 2**-1, for which the term m << 6 has to be left out, and index 0 is zero whatever the scale.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import Array, EncodingError
from gptoss_convert.encodings.mxfp4 import MXFP4, PAIR_VALUES, look_up_pairs
from gptoss_convert.encodings.mxfp4_format import BLOCK, LARGEST_EXACT_SCALE
from gptoss_convert.encodings.mxfp4_words import CODES_PER_WORD, WORDS_PER_BLOCK, Bits16
from gptoss_convert.encodings.transpose import transpose_into
from gptoss_convert.kernels import NATIVE, Native

SCRATCH_BYTES = 1536 << 10
"""Temporaries of a call.

Half of it would be as good for one thread, but threads that make many short calls wait for each other's interpreter
lock.
"""

_MOST_LANES = 1024
"""Rows of a chunk that are decoded side by side: fewer make short inner loops, more leave too few blocks."""
_LEAST_NORMAL_SCALE = 2
"""From this scale byte on every code but zero is a normal number of bfloat16."""
_EXPONENT = 0x7F80


def decode_to_bf16(
    codes: Array, scales: Array, order: Literal["C", "F"] = "C", native: Native | None = NATIVE
) -> Bits16:
    """Return the numbers of an MXFP4 chunk as the bits of bfloat16, exactly; the sign of zero is kept.

    Args:
        codes: uint8 `[rows, columns / 2]`, C-contiguous.
        scales: uint8 `[rows, columns / 32]`.
        order: "C" for a C-contiguous result, "F" for one whose `.T` is C-contiguous.
        native: the kernels in C; None for numpy.

    Returns:
        uint16 `[rows, columns]`.

    Raises:
        EncodingError: a scale byte is 255, or is above 252 with a code beyond the largest finite number.
    """
    MXFP4().check((codes, scales))
    rows, columns = codes.shape[0], codes.shape[1] * 2
    if order == "C":
        bits: Bits16 = np.empty((rows, columns), np.uint16)
        _decode_rows(bits, codes, scales)
        return bits
    stored: Bits16 = np.empty((columns, rows), np.uint16)
    if native is None:
        _decode_columns(stored, codes, scales)
    elif not native.decode_columns(np.ascontiguousarray(codes), np.ascontiguousarray(scales), _PAIRS, stored):
        raise _not_finite(scales)
    return stored.T


_PAIR_HALVES = PAIR_VALUES.view(np.uint32) >> 16
_PAIRS: NDArray[np.uint32] = (_PAIR_HALVES[:, 0] | _PAIR_HALVES[:, 1] << 16).astype(np.uint32)
"""Two bfloat16 numbers, the low nibble's in the low half, for every index `scale << 8 | byte`."""


def _decode_rows(bits: Bits16, codes: Array, scales: Array) -> None:
    """Decode into `bits` `[rows, columns]`, C-contiguous."""
    look_up_pairs(_PAIRS, codes, scales, bits.view(np.uint32))
    largest = scales.max(initial=0)
    if largest > LARGEST_EXACT_SCALE and ((bits & _EXPONENT) == _EXPONENT).any():
        raise _not_finite(scales)


def _not_finite(scales: Array) -> EncodingError:
    return EncodingError(f"scale byte {scales.max()} with a code beyond the largest bfloat16 number")


def _decode_columns(stored: Bits16, codes: Array, scales: Array) -> None:
    """Decode into `stored` `[columns, rows]`, C-contiguous."""
    words = np.ascontiguousarray(codes).view("<u2")
    lanes = max(min(len(codes), _MOST_LANES), 1)
    blocks = max(SCRATCH_BYTES // (4 * 2 * WORDS_PER_BLOCK * lanes), 1)
    scratch = np.empty((4, min(blocks, scales.shape[1]) * WORDS_PER_BLOCK * lanes), np.uint16)
    for first in range(0, len(codes), lanes):
        rows = slice(first, first + lanes)
        for block in range(0, scales.shape[1], blocks):
            few = scales[rows, block : block + blocks]
            last = block + few.shape[1]
            tile = words[rows, block * WORDS_PER_BLOCK : last * WORDS_PER_BLOCK]
            target = stored[block * BLOCK : last * BLOCK, rows]
            if _is_plain(tile, few):
                _decode_tile(target, tile, few, scratch)
            else:
                bits = np.empty((few.shape[0], few.shape[1] * BLOCK), np.uint16)
                _decode_rows(bits, np.ascontiguousarray(tile).view(np.uint8), few)
                transpose_into(target, bits)


def _is_plain(words: Array, scales: Array) -> bool:
    """Return whether every code stands for zero or a normal number."""
    if scales.max() > LARGEST_EXACT_SCALE:
        return False
    small = scales < _LEAST_NORMAL_SCALE
    return not (small.any() and (words.reshape(*scales.shape, WORDS_PER_BLOCK)[small] & 0x7777).any())


def _decode_tile(stored: Bits16, words: Array, scales: Array, scratch: Bits16) -> None:
    """Decode plain `words` `[lanes, blocks * 8]` into `stored` `[blocks * 32, lanes]`.

    `scratch` is `[4, at least words.size]`.
    """
    lanes, count = words.shape
    blocks = scales.shape[1]
    codes, nonzero, number, other = (part[: words.size].reshape(count, lanes) for part in scratch)
    transpose_into(codes, words)
    exponents = scales.T.astype(np.uint16, order="C")
    exponents -= 1
    # What the flag of a number that is not zero is multiplied by, when it lies at bit 0 and when at bit 4.
    factors = (exponents << 7)[:, None], (exponents << 3)[:, None]

    # Per nibble: flag for a number that is not zero, and the code with magnitude 1 replaced by 0.
    np.right_shift(codes, 1, out=other)
    np.right_shift(codes, 2, out=number)
    other |= number
    np.bitwise_or(other, codes, out=nonzero)
    nonzero &= 0x1111
    other |= 0xEEEE
    codes &= other

    by_block = other.reshape(blocks, WORDS_PER_BLOCK, lanes)
    for position in range(CODES_PER_WORD):
        if position == 2:
            codes >>= 8
            nonzero >>= 8
        upper = position % 2
        # The nibble n becomes n << 6 | n << 12: magnitude from bit 6, sign in bit 15, and bits to be cleared.
        np.bitwise_and(codes, 0xF0 if upper else 0x0F, out=number)
        np.multiply(number, 0x0104 if upper else 0x1040, out=number)
        np.bitwise_and(number, 0x81C0, out=number)
        np.bitwise_and(nonzero, 0x10 if upper else 0x01, out=other)
        np.multiply(by_block, factors[upper], out=by_block)
        np.add(number, other, out=stored[position::CODES_PER_WORD])
