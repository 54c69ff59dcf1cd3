"""The one MXFP4 form of a block's values: the smallest scale that holds them.

A block whose largest magnitude index is at most 5 (that is 3) has the same values with the next smaller scale and
every number doubled, down to scale byte 0. What is left when that ends is *canonical*: some code has magnitude
index 6 or 7 (4 or 6), or the scale byte is 0. A block of zeros has scale byte 0. Signs of zeros are kept, so two
blocks hold the same numbers, zeros of different sign apart, exactly if their canonical bytes are equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import Array, Chunk, EncodingError
from gptoss_convert.encodings.mxfp4 import MXFP4
from gptoss_convert.encodings.mxfp4_format import BLOCK, EMAX_ELEMENT, LARGEST_EXACT_SCALE, NOT_NAMED, SCALE_BIAS
from gptoss_convert.encodings.mxfp4_words import CODES_PER_WORD, WORDS_PER_BLOCK, Bits16, pack_words
from gptoss_convert.encodings.transpose import transposed

_BLOCKS_AT_ONCE = 65_536
"""Blocks for which the temporaries stay in the second-level cache.

Fewer would be as good for one thread, but threads that make many short calls wait for each other's interpreter
lock.
"""
_MOST_LANES = 6144
"""Rows whose numbers are recovered side by side."""
_TILE_NUMBERS = _MOST_LANES * 2 * BLOCK
"""Numbers that are recovered at once; the reasons are those for `_BLOCKS_AT_ONCE`."""

_EVERY_NIBBLE = 0x1111_1111_1111_1111
_LEAST_NORMAL_EXPONENT = 4
"""A block whose largest number has this exponent field has scale byte 2: all its codes are normal numbers."""
_SPECIAL_EXPONENT = 255

_NONE = np.empty(0, np.intp)
_NOT_A_CODE = 255
_CODE_OF_HALVES = np.full(16, _NOT_A_CODE, np.uint8)
"""Magnitude index by value in units of half the scale."""
_CODE_OF_HALVES[[0, 1, 2, 3, 4, 6, 8, 12]] = range(8)


def noncanonical_scales(codes: Array, scales: Array) -> NDArray[np.uint8] | None:
    """Return the scales `[rows, blocks]` of the blocks that are not canonical, 255 for the others; None if all are.

    Args:
        codes: uint8 `[rows, columns / 2]`, C-contiguous.
        scales: uint8 `[rows, columns / 32]`, C-contiguous.
    """
    words, flat = codes.reshape(-1).view(np.uint64).reshape(-1, 2), scales.reshape(-1)
    scratch = np.empty((_BLOCKS_AT_ONCE, 2), np.uint64)
    named: NDArray[np.uint8] | None = None
    for start in range(0, len(flat), _BLOCKS_AT_ONCE):
        piece = slice(start, start + _BLOCKS_AT_ONCE)
        rest = _lowerable(words[piece], flat[piece], scratch)
        if rest.size:
            named = np.full(len(flat), NOT_NAMED, np.uint8) if named is None else named
            named[piece][rest] = flat[piece][rest]
    return None if named is None else named.reshape(scales.shape)


def canonical_blocks(codes: Array, scales: Array) -> Chunk:
    """Return a chunk of the same values in canonical form; the same arrays if it is canonical already.

    Args:
        codes: uint8 `[rows, columns / 2]`, C-contiguous.
        scales: uint8 `[rows, columns / 32]`, C-contiguous.

    Raises:
        EncodingError: a scale byte is 255, or a value is beyond the largest float32 number.
    """
    MXFP4().check((codes, scales))
    largest = scales.max(initial=0)
    words, flat = codes.reshape(-1).view(np.uint64).reshape(-1, 2), scales.reshape(-1)
    scratch = np.empty((_BLOCKS_AT_ONCE, 2), np.uint64)
    lowered: tuple[Array, Array] | None = None
    for start in range(0, len(flat), _BLOCKS_AT_ONCE):
        piece = slice(start, start + _BLOCKS_AT_ONCE)
        lowerable = _lowerable(words[piece], flat[piece], scratch)
        if lowerable.size:
            lowered = lowered or (words.copy(), flat.copy())
            _lower(lowered[0][piece], lowered[1][piece], lowerable)
    if lowered is not None:
        codes, scales = lowered[0].view(np.uint8).reshape(codes.shape), lowered[1].reshape(scales.shape)
    if scales.max(initial=0) > LARGEST_EXACT_SCALE:
        raise EncodingError(f"scale byte {largest} with a code beyond the largest float32 number")
    return codes, scales


def _has_large_code(words: Array, scratch: Array) -> Array:
    """Return for blocks `[n, 2]` whether some code has bits 1 and 2 set: magnitude index 6 or 7."""
    large = scratch[: len(words)]
    np.right_shift(words, 1, out=large)
    large &= words
    either: Array = large[:, 0] | large[:, 1]
    either &= 2 * _EVERY_NIBBLE
    return either.astype(np.bool_)


def _lowerable(words: Array, scales: Array, scratch: Array) -> Array:
    """Return the indices of blocks that are not canonical."""
    canonical = _has_large_code(words, scratch)
    canonical |= scales == 0
    return _NONE if canonical.all() else np.flatnonzero(~canonical)


def _lower(words: Array, scales: Array, rest: Array) -> None:
    """Bring the blocks with the indices `rest`, which are not canonical, into canonical form."""
    few, few_scales = words.take(rest, axis=0), scales.take(rest)
    magnitudes = few & (7 * _EVERY_NIBBLE)
    few_scales *= (magnitudes[:, 0] | magnitudes[:, 1]).astype(np.bool_)
    scales[rest] = few_scales
    scratch, records = magnitudes, words.view("V16")[:, 0]
    while (left := np.flatnonzero(few_scales)).size:
        rest, few, few_scales = rest[left], _doubled(few.take(left, axis=0)), few_scales.take(left) - 1
        records[rest] = few.view("V16")[:, 0]  # quicker than rows of two words
        scales[rest] = few_scales
        few_scales *= ~_has_large_code(few, scratch)


def _doubled(words: Array) -> Array:
    """Return codes of twice the value; magnitude indices up to 5. Index 1 becomes 2, larger ones rise by 2."""
    from_two = (words >> 1 | words >> 2) & _EVERY_NIBBLE
    one = words & _EVERY_NIBBLE & ~from_two
    doubled: Array = words + one + (from_two << 1)
    return doubled


class Recovered(NamedTuple):
    """Numbers in canonical MXFP4 form, as far as MXFP4 holds them."""

    codes: Array
    """uint8 `[rows, columns / 2]`; meaningless in rows that are not exact."""
    scales: Array
    """uint8 `[rows, columns / 32]`; meaningless in rows that are not exact."""
    exact: NDArray[np.bool_]
    """bool `[rows]`: whether the row has exactly the values that were given."""


def recover_blocks(bits: Bits16) -> Recovered:
    """Return bfloat16 numbers, given as bits `[rows, columns]` in C or F order, in canonical MXFP4 form.

    A block of numbers that came from MXFP4 has the scale byte `exponent of the largest - 2`, and a code follows
    from the exponent's distance and the top bit of the mantissa: no number has to be rounded or compared.
    """
    rows, columns = bits.shape
    codes = np.empty((rows, columns // 2), np.uint8)
    scales = np.empty((rows, columns // BLOCK), np.uint8)
    exact = np.ones(rows, np.bool_)
    most = max(min(rows, _MOST_LANES), 1)
    blocks = min(max(_TILE_NUMBERS // (BLOCK * most), 1), columns // BLOCK)
    scratch = np.empty((2, blocks * BLOCK * most), np.uint16)
    for start in range(0, rows, most):
        lanes = slice(start, start + most)
        numbers = bits[lanes]
        words = np.empty((columns // CODES_PER_WORD, len(numbers)), np.uint16)
        by_block = np.empty((columns // BLOCK, len(numbers)), np.uint8)
        for block in range(0, columns // BLOCK, blocks):
            last = block + blocks
            tile = numbers[:, block * BLOCK : last * BLOCK]
            tile = tile.T if tile.strides[0] == tile.itemsize else transposed(tile)
            targets = words[block * WORDS_PER_BLOCK : last * WORDS_PER_BLOCK], by_block[block:last]
            if not _recover_tile(tile, *targets, scratch):
                exact[lanes] &= _recover_any(tile, *targets)
        codes[lanes] = transposed(words).view(np.uint8)
        scales[lanes] = transposed(by_block)
    return Recovered(codes, scales, exact)


def _recover_tile(numbers: Bits16, words: Bits16, scales: Array, scratch: Bits16) -> bool:
    """Recover `numbers` `[blocks * 32, lanes]` if all came from MXFP4 and are normal or zero; else return False.

    Sets `words` `[blocks * 8, lanes]`, four codes each, and `scales` `[blocks, lanes]`; `scratch` is
    `[2, at least numbers.size]`.
    """
    blocks, lanes = scales.shape
    magnitudes, steps = (part[: numbers.size].reshape(numbers.shape) for part in scratch)
    np.bitwise_and(numbers, 0x7FFF, out=magnitudes)
    if (np.bitwise_or.reduce(magnitudes, axis=0) & 0x3F).any():
        return False
    largest = magnitudes.reshape(blocks, BLOCK, lanes).max(axis=1)
    exponents = largest >> 7
    if ((exponents < _LEAST_NORMAL_EXPONENT) & (largest != 0)).any() or exponents.max() == _SPECIAL_EXPONENT:
        return False
    np.maximum(exponents, EMAX_ELEMENT, out=exponents)
    exponents -= EMAX_ELEMENT
    np.copyto(scales, exponents, casting="unsafe")
    # Counted in steps of half a binade from zero, code 1 is step 1, code 2 is step 3, and larger ones follow.
    lowest = (2 * exponents - 3)[:, None]
    np.right_shift(magnitudes, 6, out=steps)
    by_block = steps.reshape(blocks, BLOCK, lanes)
    np.maximum(by_block, lowest, out=by_block)
    np.subtract(by_block, lowest, out=by_block)
    if np.count_nonzero(steps) != np.count_nonzero(magnitudes):  # a number below the smallest code
        return False
    packed, other = (part[: words.size].reshape(words.shape) for part in (scratch[0], scratch[0][words.size :]))
    pack_words(packed, steps, other)
    np.bitwise_or(packed >> 1, packed >> 2, out=other)
    other |= packed >> 3
    other &= _EVERY_NIBBLE & 0xFFFF
    packed -= other  # steps from 2 on lie one above their code
    if (other & packed & ~(packed >> 1 | packed >> 2)).any():  # step 2, which is no code
        return False
    signs = np.bitwise_and(numbers, 0x8000, out=steps)
    signs >>= 12
    pack_words(words, signs, other)
    words |= packed
    return True


def _recover_any(numbers: Bits16, words: Bits16, scales: Array) -> NDArray[np.bool_]:
    """Recover any `numbers`, as `_recover_tile` does, and return bool `[lanes]`: which are exact."""
    blocks, lanes = scales.shape
    values = (numbers.astype(np.uint32) << 16).view(np.float32).reshape(blocks, BLOCK, lanes)
    sizes = np.abs(values)
    largest = sizes.max(axis=1)
    finite = np.isfinite(largest)
    exponents = np.frexp(np.where(finite, largest, 0))[1] - 1 - EMAX_ELEMENT + SCALE_BIAS
    scales[...] = np.where(largest > 0, np.clip(exponents, 0, LARGEST_EXACT_SCALE), 0)
    halves = np.ldexp(np.where(finite[:, None], sizes, 0), 1 + SCALE_BIAS - scales.astype(np.int32)[:, None])
    whole = np.minimum(halves, len(_CODE_OF_HALVES) - 1).astype(np.uint8)
    codes = _CODE_OF_HALVES[whole]
    exact = finite & ((whole == halves) & (codes != _NOT_A_CODE)).all(axis=1)
    codes |= np.signbit(values).astype(np.uint8) << 3
    pack_words(words, codes.astype(np.uint16).reshape(-1, lanes), np.empty_like(words))
    return np.asarray(exact.all(axis=0))
