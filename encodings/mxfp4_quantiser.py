"""Quantisation to MXFP4: the choice of a block's scale, the codes, and how much is lost.

Source: OCP Microscaling Formats (MX) Specification v1.0, section 6.3, for the floor rule and the rounding of
elements; docs/quantisation.md says who uses which rule.

With k = floor(log2(largest)) - 2, every rule takes the scale 2**k or 2**(k + 1), so both errors of a block tell
what each would do; only the least squared error may need another. A larger scale has no code in reach that
2**(k + 1) has not. With a smaller one the largest number is cut off by a quarter of itself or more, which pays for
2**(k - 1) alone, if that number is below 4.5 * 2**k and nearly all others are near 2**k / 4 or 3 * 2**k / 4. Such
blocks are rare, and are looked for only where the error of the others does not rule them out.

The work is done on numbers cut to the sixteen bits of bfloat16. A sticky bit in the last place stands for the bits
that a float32 number has beyond, and since no boundary between two codes and no boundary of a rule has that bit,
all decisions are those of the whole number. A number's distance from its block's scale, counted in steps of
bfloat16, is the index of tables of codes and of squared errors. Sums of errors of bfloat16 are compared exactly;
where those of float32 are too close together for float64 to tell, the difference is summed instead, which is exact.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import Array, EncodingError
from gptoss_convert.encodings.mxfp4_format import (
    BLOCK,
    EMAX_ELEMENT,
    LARGEST_EXACT_SCALE,
    MAGNITUDES,
    NOT_NAMED,
    SCALE_BIAS,
)
from gptoss_convert.encodings.mxfp4_words import CODES_PER_WORD, WORDS_PER_BLOCK, Bits16, pack_words
from gptoss_convert.encodings.transpose import transpose_into, transposed

_TILE = 1 << 17
"""Numbers that are quantised side by side: all temporaries, about 10 bytes for each, stay in second-level cache."""
_MOST_LANES = 1024

_BINADE = 1 << 7
"""Steps of bfloat16 from a power of two to the next."""
_DEPTH = 23
"""Binades below the scale that tables reach; a number further down has the least squared error."""
_LEAST_SQUARE = 2.0**-46
"""Squared errors in units of the scale are rounded to multiples of it: 32 of them add up without rounding."""
_STEPS = (_DEPTH + 3) * _BINADE
_SIX = (_DEPTH + 2) * _BINADE + _BINADE // 2
"""Distance of the number 6 * 2**k."""
_LEAST_EXPONENT, _LARGEST_EXPONENT = _DEPTH + 3, 253
"""Exponent fields of largest numbers for which all distances and both scales are in range."""
_SPECIAL_EXPONENT = 255
_CLOSE = 2.0**-40
"""Two sums of 32 errors with a relative difference beyond this differ whatever was rounded."""
_SAFE_EXPONENT = 40
"""Squares of numbers with a smaller exponent, and sums of many, are far from the ends of float32."""


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


_LEAST_RAISED: Mapping[ScaleRule, int] = {
    ScaleRule.EVEN: 3 * _BINADE // 4,
    ScaleRule.FLOOR: _BINADE,
    ScaleRule.RCEIL: _BINADE // 2 + 1,
    ScaleRule.CEIL: 1,
}
"""Mantissa of the largest magnitude, in steps of bfloat16, from which on a rule takes the larger scale."""


@dataclass(frozen=True)
class QuantisationFigures:
    """What quantising did; sums over the pieces of a tensor."""

    values: int = 0
    squared_signal: float = 0.0
    squared_error: float = 0.0
    squared_error_by_rule: Mapping[ScaleRule, float] = field(default_factory=dict)
    """What each rule would have made of the same blocks, without scales to keep."""
    clipped_values: int = 0
    """Values beyond the largest code of their block."""
    clipped_blocks: int = 0
    """Blocks with such a value."""
    kept_blocks: int = 0
    """Blocks that took the scale that was named for them."""

    def __add__(self, other: QuantisationFigures) -> QuantisationFigures:
        rules = self.squared_error_by_rule.keys() | other.squared_error_by_rule.keys()
        return QuantisationFigures(
            self.values + other.values,
            self.squared_signal + other.squared_signal,
            self.squared_error + other.squared_error,
            {
                rule: self.squared_error_by_rule.get(rule, 0.0) + other.squared_error_by_rule.get(rule, 0.0)
                for rule in ScaleRule
                if rule in rules
            },
            self.clipped_values + other.clipped_values,
            self.clipped_blocks + other.clipped_blocks,
            self.kept_blocks + other.kept_blocks,
        )

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.values // BLOCK

    @property
    def relative_error(self) -> float:
        """Root of the squared error relative to the squared values; 0 if every value is exact."""
        return self.relative_error_of(self.squared_error)

    def relative_error_of(self, squared_error: float) -> float:
        """Return the relative error that a squared error means for these values."""
        return math.sqrt(squared_error / self.squared_signal) if squared_error else 0.0

    @property
    def signal_to_noise(self) -> float | None:
        """Signal-to-quantisation-noise ratio in dB; None if every value is exact."""
        return None if self.squared_error == 0 else -20 * math.log10(self.relative_error)


@dataclass(frozen=True)
class Quantised:
    """Numbers in MXFP4."""

    codes: NDArray[np.uint8]
    """`[rows, columns / 2]`, C-contiguous."""
    scales: NDArray[np.uint8]
    """`[rows, columns / 32]`, C-contiguous."""
    figures: QuantisationFigures


def quantise(values: Array, rule: ScaleRule = ScaleRule.MSE, named: NDArray[np.uint8] | None = None) -> Quantised:
    """Quantise numbers to MXFP4.

    Elements round to nearest, ties to an even code, and keep the sign of zero. A block of zeros has scale byte 0
    unless another is named. Working memory is bounded, however many rows there are.

    Args:
        values: `[rows, columns]` in C or F order, columns a multiple of 32: uint16 bits of bfloat16, or float32.
        rule: how the scale of a block is chosen.
        named: uint8 `[rows, columns / 32]`: a scale byte that a block takes if its squared error is then at most
            that of the rule's choice; 255 where none is named.

    Raises:
        EncodingError: a value is not finite.
    """
    rows, columns = values.shape
    codes = np.empty((rows, columns // 2), np.uint8)
    scales = np.empty((rows, columns // BLOCK), np.uint8)
    figures = QuantisationFigures()
    lanes = min(rows, _MOST_LANES)
    tile_blocks = max(_TILE // (BLOCK * lanes), 1) if lanes else 1
    scratch = _Scratch(min(tile_blocks, columns // BLOCK) * BLOCK * lanes)
    for start in range(0, rows, _MOST_LANES):
        lane = slice(start, start + _MOST_LANES)
        few = values[lane]
        words = np.empty((columns // CODES_PER_WORD, len(few)), np.uint16)
        by_block = np.empty((columns // BLOCK, len(few)), np.uint8)
        for block in range(0, columns // BLOCK, tile_blocks):
            last = min(block + tile_blocks, columns // BLOCK)
            tile = _Tile(few[:, block * BLOCK : last * BLOCK], scratch)
            figures += tile.quantise(
                rule,
                None if named is None else named[lane, block:last],
                words[block * WORDS_PER_BLOCK : last * WORDS_PER_BLOCK],
                by_block[block:last],
            )
        codes[lane] = transposed(words).view(np.uint8)
        scales[lane] = transposed(by_block)
    return Quantised(codes, scales, figures)


_SIZES = MAGNITUDES.astype(np.float64)
_MIDPOINTS = (_SIZES[1:] + _SIZES[:-1]) / 2
"""Boundaries between neighbouring codes: a tie goes to the even one, up from codes 1, 3 and 5."""


def _code_table() -> NDArray[np.uint16]:
    """Return the code of a magnitude by its distance from the scale."""
    size = _distances()
    up = [size > mid if code % 2 == 0 else size >= mid for code, mid in enumerate(_MIDPOINTS)]
    codes: NDArray[np.uint16] = np.sum(up, axis=0).astype(np.uint16)
    return codes


def _distances() -> NDArray[np.float64]:
    """Return the magnitudes, in units of the scale, that the indices of tables stand for.

    Index 0 is zero, and index 1 is any number that reaches down to the end of the table or below.
    """
    steps = np.arange(_STEPS)
    sizes = np.ldexp(1 + steps % _BINADE / _BINADE, steps // _BINADE - _DEPTH)
    sizes[:2] = 0, 2.0**-_DEPTH
    return sizes


_CODES = _code_table()
_RAISED_CODES = np.concatenate([np.zeros(_BINADE, np.uint16), _CODES[:-_BINADE]])
"""With the larger scale, the same number is a binade lower."""


def _error_table() -> NDArray[np.complex128]:
    """Return the squared errors with the smaller scale (real part) and the larger one, in units of the smaller."""
    sizes = _distances()
    errors = np.empty(_STEPS, np.complex128)
    errors.real = np.square(sizes - _SIZES[_CODES])
    errors.imag = np.square(sizes - 2 * _SIZES[_RAISED_CODES])
    parts = errors.view(np.float64)
    np.rint(parts / _LEAST_SQUARE, out=parts)
    parts *= _LEAST_SQUARE
    return errors


_ERRORS = _error_table()
_ROUNDED = _SIZES[_CODES].astype(np.float32)
_RAISED_ROUNDED = (2 * _SIZES[_RAISED_CODES]).astype(np.float32)


_LOWERABLE = _BINADE // 8
"""Mantissa of 4.5: from there on, cutting off costs more than the next smaller scale can win."""
_LOWERED = _SIZES[np.concatenate([_CODES[_BINADE:], np.full(_BINADE, len(_SIZES) - 1, np.uint16)])] / 2
"""What magnitudes become with the next smaller scale, by their distance, in units of the smaller one."""


class _Scratch:
    """Temporaries of a tile, one after the other in flat arrays."""

    def __init__(self, size: int) -> None:
        self.numbers = np.empty(size, np.uint16)
        self.distances = np.empty(size, np.uint16)
        self.codes = np.empty(size, np.uint16)
        self.errors = np.empty(BLOCK * _MOST_LANES, np.complex128)
        self.squares = np.empty(BLOCK * _MOST_LANES, np.float32)


class _Tile:
    """A few blocks of up to `_MOST_LANES` rows, which lie along the last axis: `[blocks * 32, lanes]`."""

    def __init__(self, values: Array, scratch: _Scratch) -> None:
        """Take `values` `[lanes, blocks * 32]`."""
        self._scratch = scratch
        self._lanes, self._columns = values.shape
        self._blocks = self._columns // BLOCK
        if values.strides[0] == values.itemsize:
            self._values = values.T
        else:
            self._values = np.empty(values.shape[::-1], values.dtype)
            transpose_into(self._values, values)
        self._wide = values.dtype != np.uint16
        self._numbers = self._cut() if self._wide else self._values

    def _array(self, flat: Array) -> Array:
        return flat[: self._columns * self._lanes].reshape(self._columns, self._lanes)

    def _by_block(self, array: Array) -> Array:
        return array.reshape(self._blocks, BLOCK, self._lanes)

    def _cut(self) -> Bits16:
        """Return float32 numbers cut to bfloat16 with a sticky bit."""
        bits = self._values.view(np.uint32)
        numbers = self._array(self._scratch.numbers)
        np.copyto(numbers, bits >> 16, casting="unsafe")
        numbers |= (bits & 0xFFFF) != 0
        return numbers

    def quantise(self, rule: ScaleRule, named: Array | None, words: Bits16, scales: Array) -> QuantisationFigures:
        """Set `words` `[blocks * 8, lanes]`, four codes each, and `scales` `[blocks, lanes]`."""
        distances = self._array(self._scratch.distances)
        np.bitwise_and(self._numbers, 0x7FFF, out=distances)
        largest = self._by_block(distances).max(axis=1)
        exponents = largest >> 7
        if (exponents == _SPECIAL_EXPONENT).any():
            raise EncodingError("a value that is not finite cannot be stored as MXFP4")
        odd = ((exponents < _LEAST_EXPONENT) | (exponents > _LARGEST_EXPONENT)) & (largest > 0)
        np.clip(exponents, _LEAST_EXPONENT, _LARGEST_EXPONENT, out=exponents)
        lowest = ((exponents - (2 + _DEPTH)) << 7)[:, None]
        by_block = self._by_block(distances)
        present = np.count_nonzero(distances)
        np.maximum(by_block, lowest, out=by_block)
        by_block -= lowest
        if np.count_nonzero(distances) < present:  # numbers below the tables are not zeros
            np.maximum(distances, (self._numbers & 0x7FFF) != 0, out=distances)
        smaller, larger = self._errors(distances, exponents)
        if self._wide:
            odd |= (np.abs(smaller - larger) <= _CLOSE * smaller) & (smaller > 0)
        mantissas = largest & (_BINADE - 1)
        odd |= self._may_be_lowered(by_block, exponents, mantissas, np.minimum(smaller, larger))
        raised = _raised(mantissas)
        raised[ScaleRule.MSE] = larger < smaller
        chosen = raised[rule]
        floor = (exponents - 2).astype(np.uint8)
        kept = np.zeros(chosen.shape, np.bool_)
        if named is not None:
            wanted = named.T
            near = (wanted == floor) | (wanted == floor + 1)
            named_error = np.where(wanted == floor, smaller, larger)
            kept = near & (named_error <= np.where(chosen, larger, smaller)) & (largest > 0) & ~odd
            chosen = np.where(kept, wanted > floor, chosen)
            odd |= ~near & (wanted != NOT_NAMED) & (largest > 0)
        np.add(floor, chosen, out=scales, casting="unsafe")
        empty = largest == 0
        if empty.any():
            scales[empty] = 0
            if named is not None:
                kept |= empty & (named.T != NOT_NAMED)
                np.copyto(scales, named.T, where=kept & empty)
        shift = (chosen.astype(np.uint16) << 7)[:, None]
        np.maximum(by_block, shift, out=by_block)
        by_block -= shift
        clipped = np.zeros(chosen.shape, np.uint8)
        if (mantissas > _BINADE // 2).any():
            np.add.reduce((by_block > _SIX).view(np.uint8), axis=1, out=clipped)
        self._encode(distances, words)
        unit = np.ldexp(1.0, 2 * (floor.astype(np.int32) - SCALE_BIAS))
        smaller *= unit
        larger *= unit
        errors = {each: np.where(up, larger, smaller) for each, up in raised.items()}
        figures = _Sums(
            errors=errors,
            error=errors[rule] if named is None else np.where(chosen, larger, smaller),
            clipped=clipped,
            kept=kept,
        )
        if odd.any():
            self._requantise(odd, rule, named, words, scales, figures)
        return figures.total(self._columns * self._lanes, self._squared_signal(int(largest.max())))

    def _errors(self, distances: Bits16, exponents: Bits16) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return squared errors `[blocks, lanes]` with the smaller scale and the larger, in units of the smaller.

        A number of the table is exact, and so is a sum of 32.
        """
        if not self._wide:
            errors = self._scratch.errors[: BLOCK * self._lanes].reshape(BLOCK, self._lanes)
            sums = np.empty((self._blocks, self._lanes), np.complex128)
            for block, few in enumerate(self._by_block(distances)):
                np.take(_ERRORS, few, out=errors, mode="wrap")
                np.add.reduce(errors, axis=0, out=sums[block])
            return sums.real.copy(), sums.imag.copy()
        inverse = np.ldexp(1.0, 2 + SCALE_BIAS - exponents.astype(np.int32))[:, None]
        sizes = self._by_block(np.abs(self._values)) * inverse
        found = []
        for rounded in (_ROUNDED, _RAISED_ROUNDED):
            error = sizes - self._by_block(np.take(rounded, distances, mode="wrap"))
            found.append(np.square(error, out=error).sum(axis=1))
        return found[0], found[1]

    def _may_be_lowered(self, by_block: Bits16, exponents: Bits16, mantissas: Bits16, error: Array) -> Array:
        """Return for which blocks `[blocks, lanes]` the next smaller scale may have less than `error`.

        Args:
            by_block: distances `[blocks, 32, lanes]`.
            exponents: exponent fields of the largest magnitudes, `[blocks, lanes]`.
            mantissas: their mantissas.
            error: the least squared error of the other scales, in units of the smaller one.
        """
        cut = 1 + mantissas / np.float32(_BINADE // 4)  # what the largest number, 4 * (1 + m), loses at 3
        found: Array = (mantissas < _LOWERABLE) & (error > np.square(cut))
        block, lane = np.nonzero(found)
        values = self._by_block(self._values)[block, :, lane]
        unit = 2 + SCALE_BIAS - exponents[block, lane].astype(np.int32)
        sizes = np.ldexp(np.abs(values if self._wide else _widened(values)), unit[:, None])
        lowered = np.square(sizes - np.take(_LOWERED, by_block[block, :, lane], mode="clip")).sum(axis=1)
        found[block, lane] = lowered < error[block, lane] * (1 + _CLOSE)
        return found

    def _encode(self, distances: Bits16, words: Bits16) -> None:
        """Set `words` from distances to the chosen scales and the signs of the numbers."""
        codes = self._array(self._scratch.codes)
        np.take(_CODES, distances, out=codes, mode="wrap")
        signs = np.bitwise_and(self._numbers, 0x8000, out=distances)
        signs >>= 12
        codes |= signs
        pack_words(words, codes, np.empty_like(words))

    def _squared_signal(self, largest: int) -> float:
        """Return the sum of the squares; `largest` is the largest magnitude, as bits of bfloat16."""
        exponent = (largest >> 7) - SCALE_BIAS
        # A power of two, so that no square leaves the range of float32.
        factor = np.float32(2.0**-exponent) if abs(exponent) > _SAFE_EXPONENT else None
        total = 0.0
        squares = self._scratch.squares[: BLOCK * self._lanes].reshape(BLOCK, self._lanes)
        for few in self._by_block(self._values):
            if self._wide:
                squares[...] = few
            else:
                bits = squares.view(np.uint32)
                np.copyto(bits, few)
                np.left_shift(bits, 16, out=bits)
            if factor is not None:
                np.multiply(squares, factor, out=squares)
            np.square(squares, out=squares)
            total += float(np.add.reduce(squares, axis=0).sum(dtype=np.float64))
        return total if factor is None else math.ldexp(total, 2 * exponent)

    def _requantise(
        self, odd: Array, rule: ScaleRule, named: Array | None, words: Bits16, scales: Array, sums: _Sums
    ) -> None:
        """Quantise the blocks `odd` `[blocks, lanes]` again, number by number."""
        block, lane = np.nonzero(odd)
        values = self._by_block(self._values if self._wide else _widened(self._values))[block, :, lane]
        outcome = _quantise_blocks(
            values.astype(np.float64), rule, np.full(len(block), NOT_NAMED) if named is None else named[lane, block]
        )
        scales[block, lane] = outcome.rounded.scales
        packed = np.empty((WORDS_PER_BLOCK, len(block)), np.uint16)
        pack_words(packed, outcome.rounded.codes.T.astype(np.uint16, order="C"), np.empty_like(packed))
        words.reshape(self._blocks, WORDS_PER_BLOCK, self._lanes)[block, :, lane] = packed.T
        sums.replace(block, lane, outcome)


def _raised(mantissas: Array) -> dict[ScaleRule, Array]:
    """Return where each closed rule takes the larger scale; mantissas are in steps of bfloat16."""
    return {rule: mantissas >= least for rule, least in _LEAST_RAISED.items()}


def _widened(bits: Bits16) -> NDArray[np.float32]:
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


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
class _Outcome:
    """Blocks that were quantised number by number."""

    rounded: _Rounded
    errors: Mapping[ScaleRule, NDArray[np.float64]]
    """By rule, without scales to keep."""
    kept: NDArray[np.bool_]


def _quantise_blocks(values: NDArray[np.float64], rule: ScaleRule, named: Array) -> _Outcome:
    """Quantise blocks `[n, 32]` at any magnitude, with float64 arithmetic."""
    sizes = np.abs(values)
    mantissa, exponent = np.frexp(sizes.max(axis=1))
    unbounded = exponent - 1 - EMAX_ELEMENT + SCALE_BIAS
    floor = np.clip(unbounded, 0, LARGEST_EXACT_SCALE)
    lowered, smaller, larger = (
        _round(values, np.clip(floor + step, 0, LARGEST_EXACT_SCALE)) for step in (-1, 0, 1)
    )
    steps = (2 * mantissa - 1) * _BINADE
    sticky = np.floor(steps).astype(np.int64) | (steps % 1 > 0)
    raised = _raised(sticky)
    raised[ScaleRule.MSE] = _excess(sizes, smaller, larger) > 0
    # Raised from below the least scale, a scale is the least one.
    by_rule = {each: _select(up & (unbounded >= 0), larger, smaller) for each, up in raised.items()}
    best = by_rule[ScaleRule.MSE]
    by_rule[ScaleRule.MSE] = _select(_excess(sizes, best, lowered) > 0, lowered, best)
    rounded = by_rule[rule]
    other = _round(values, np.where(named == NOT_NAMED, rounded.scales, named))
    kept = (named != NOT_NAMED) & (_excess(sizes, other, rounded) <= 0) & np.isfinite(other.error)
    return _Outcome(_select(kept, other, rounded), {each: outcome.error for each, outcome in by_rule.items()}, kept)


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
    for code, midpoint in enumerate(_MIDPOINTS):
        codes += sizes > midpoint if code % 2 == 0 else sizes >= midpoint
    rounded = MAGNITUDES[codes].astype(np.float64)
    error = np.ldexp(np.square(sizes - rounded).sum(axis=1), 2 * exponents[:, 0])
    # A scale that may be named, but not with codes that are beyond float32 then.
    error[np.ldexp(rounded.max(axis=1), exponents[:, 0]) >= 2.0**128] = np.inf
    codes |= np.signbit(values).astype(np.int64) << 3
    clipped = (sizes > MAGNITUDES[-1]).sum(axis=1)
    return _Rounded(codes, scales, error, clipped, np.ldexp(rounded, exponents))


@dataclass
class _Sums:
    """Figures of a tile by block, `[blocks, lanes]`, in absolute units."""

    errors: dict[ScaleRule, NDArray[np.float64]]
    error: NDArray[np.float64]
    clipped: NDArray[np.uint8]
    kept: NDArray[np.bool_]

    def replace(self, block: Array, lane: Array, outcome: _Outcome) -> None:
        for rule, error in self.errors.items():
            error[block, lane] = outcome.errors[rule]
        self.error[block, lane] = outcome.rounded.error
        self.clipped[block, lane] = outcome.rounded.clipped
        self.kept[block, lane] = outcome.kept

    def total(self, values: int, squared_signal: float) -> QuantisationFigures:
        return QuantisationFigures(
            values=values,
            squared_signal=squared_signal,
            squared_error=float(self.error.sum()),
            squared_error_by_rule={rule: float(self.errors[rule].sum()) for rule in ScaleRule},
            clipped_values=int(self.clipped.sum()),
            clipped_blocks=int(np.count_nonzero(self.clipped)),
            kept_blocks=int(self.kept.sum()),
        )
