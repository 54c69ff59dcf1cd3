"""Blocks of MXFP4 side by side: scales, codes and errors of many at a time, by tables.

The work is done on numbers cut to the sixteen bits of bfloat16. A sticky bit in the last place stands for the bits
that a float32 number has beyond, and since no boundary between two codes and no boundary of a rule has that bit,
all decisions are those of the whole number. A number's distance from its block's scale, counted in steps of
bfloat16, is the index of tables of codes and of squared errors. Sums of errors of bfloat16 are compared exactly;
where those of float32 are too close together for float64 to tell, the block is quantised number by number
(`encodings.mxfp4_blocks`), as are blocks at the ends of the range.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import Array, EncodingError
from gptoss_convert.encodings.mxfp4_blocks import Outcome, quantise_blocks
from gptoss_convert.encodings.mxfp4_distances import (
    BINADE,
    CODE_SHIFT,
    COMPARISON,
    DEPTH,
    ERROR_MASK,
    GAIN_BITS,
    LEAST_DIFFERENCE,
    LEAST_GAIN,
    LEAST_SQUARE,
    LOWERED,
    OUTCOMES,
    ROUNDED,
    SIX,
    STEPS,
)
from gptoss_convert.encodings.mxfp4_format import BLOCK, NOT_NAMED, SCALE_BIAS
from gptoss_convert.encodings.mxfp4_rules import (
    LEAST_RAISED,
    NOT_COMPARED,
    QuantisationFigures,
    RuleComparison,
    ScaleRule,
)
from gptoss_convert.encodings.mxfp4_words import WORDS_PER_BLOCK, Bits16, pack_upper_nibbles, pack_words
from gptoss_convert.encodings.transpose import transpose_into

_LEAST_EXPONENT, _LARGEST_EXPONENT = DEPTH + 3, 253
"""Exponent fields of largest numbers for which all distances and both scales are in range."""
_SPECIAL_EXPONENT = 255
_CLOSE = 2.0**-40
"""Two sums of 32 errors with a relative difference beyond this differ whatever was rounded."""
_SAFE_EXPONENT = 40
"""Squares of numbers with a smaller exponent, and sums of many, are far from the ends of float32."""

_LOWERABLE = BINADE // 8
"""Mantissa of 4.5: from there on, cutting off costs more than the next smaller scale can win."""
_SQUARED_UNITS = np.ldexp(1.0, 2 * (np.arange(256) - SCALE_BIAS))
"""Squares of scales by their byte."""


@dataclass(frozen=True)
class _Pieces:
    """How many numbers are worked on at once."""

    tile: int
    """Numbers that are quantised side by side. Of all of them there are two to eight bytes each."""
    step: int
    """Numbers of a tile that a call takes: their temporaries, 18 to 26 bytes each, stay in second-level cache."""


_PIECES_OF_BFLOAT16 = _Pieces(tile=1 << 19, step=1 << 17)
"""As many as calls need to take long, since threads wait for each other's interpreter lock between them."""
_PIECES_OF_FLOAT32 = _Pieces(tile=1 << 18, step=1 << 16)


class Scratch:
    """Sizes of lanes, tiles and steps of a matrix, and temporaries for them in flat arrays."""

    def __init__(self, values: Array) -> None:
        self.wide = values.dtype != np.uint16
        pieces = _PIECES_OF_FLOAT32 if self.wide else _PIECES_OF_BFLOAT16
        self._rows, columns = values.shape
        groups = max(-(-self._rows // (pieces.step // BLOCK)), 1)
        self._most_lanes = max(-(-self._rows // groups), 1)
        in_block = BLOCK * self._most_lanes
        blocks = columns // BLOCK
        self.tile_blocks = max(pieces.tile // in_block, 1)
        self.step_blocks = max(pieces.step // in_block, 1)
        tile, step = (min(count, blocks) * in_block for count in (self.tile_blocks, self.step_blocks))
        self.numbers = np.empty(tile, np.uint16)
        """Unused, and so not in memory, where numbers of bfloat16 lie in columns."""
        self.distances = np.empty(tile, np.uint16)
        self.indices = np.empty(step, np.intp)
        self.entries = np.empty(step, np.uint64)
        self.codes = np.empty(step, np.uint16)
        self.sizes = np.empty(step if self.wide else 0, np.float64)

    def lanes(self) -> Iterator[slice]:
        """Yield slices of rows that are worked on side by side."""
        for start in range(0, self._rows, self._most_lanes):
            yield slice(start, start + self._most_lanes)


@dataclass(frozen=True)
class _Heads:
    """What the largest magnitudes of blocks tell, uint16 `[blocks, lanes]`."""

    exponents: Bits16
    """Exponent fields, within the range of tables."""
    mantissas: Bits16

    @cached_property
    def floor(self) -> NDArray[np.uint8]:
        """Bytes of the smaller scales."""
        return (self.exponents - 2).astype(np.uint8)

    @cached_property
    def squared_unit(self) -> NDArray[np.float64]:
        """Squares of the smaller scales."""
        return _SQUARED_UNITS[self.floor]


@dataclass(frozen=True)
class _Comparison:
    """How scales compare, `[blocks, lanes]`."""

    excess: Array
    """How much larger the squared error is with the smaller scale than with the larger one."""
    close: Array
    """Where that number is not exact enough."""
    lowerable: Array
    """Where the next smaller scale might be better still."""
    errors: tuple[Array, Array] | None = None
    """The squared errors with both, where they were measured."""


class Tile(ABC):
    """A few blocks of some rows, which lie along the last axis: `[blocks * 32, lanes]`."""

    def __init__(self, values: Array, numbers: Bits16, scratch: Scratch) -> None:
        """Take `values` `[blocks * 32, lanes]`, and the same cut to bfloat16 with a sticky bit."""
        self._scratch = scratch
        self._columns, self._lanes = values.shape
        self._blocks = self._columns // BLOCK
        self._values, self._numbers = self._by_block(values), self._by_block(numbers)
        self._distances = self._by_block(_of_size(scratch.distances, values.shape))

    @abstractmethod
    def _compare(self, heads: _Heads) -> _Comparison:
        """Return how the scales compare."""

    @abstractmethod
    def _error(
        self, chosen: Array, sums: Array, heads: _Heads, comparison: _Comparison | None
    ) -> NDArray[np.float64]:
        """Return the squared errors with the scales that were chosen, given sums of `OUTCOMES`."""

    @abstractmethod
    def _errors(self, chosen: Array, error: Array, comparison: _Comparison) -> tuple[Array, Array]:
        """Return the squared errors with the smaller scale and with the larger one, `error` being the chosen's."""

    @abstractmethod
    def _widen_into(self, values: NDArray[np.float32], step: slice) -> None:
        """Set `values` `[blocks, 32, lanes]` to those of a step."""

    @abstractmethod
    def _some(self, block: Array, lane: Array) -> NDArray[np.float32]:
        """Return the values of some blocks, `[n, 32]`."""

    def _by_block(self, array: Array) -> Array:
        return array.reshape(self._blocks, BLOCK, self._lanes)

    def _of_step(self, flat: Array, step: slice) -> Array:
        blocks = step.stop - step.start
        return flat[: blocks * BLOCK * self._lanes].reshape(blocks, BLOCK, self._lanes)

    def _steps(self) -> Iterator[slice]:
        """Yield slices of blocks that are worked on at a time."""
        for start in range(0, self._blocks, self._scratch.step_blocks):
            yield slice(start, min(start + self._scratch.step_blocks, self._blocks))

    def quantise(self, rule: ScaleRule, named: Array | None, words: Bits16, scales: Array) -> QuantisationFigures:
        """Set `words` `[blocks * 8, lanes]`, four codes each, and `scales` `[blocks, lanes]`."""
        largest, signal = self._survey()
        exponents = np.right_shift(largest, 7, dtype=np.uint16)
        empty = largest == 0
        odd = ((exponents < _LEAST_EXPONENT) | (exponents > _LARGEST_EXPONENT)) & ~empty
        np.clip(exponents, _LEAST_EXPONENT, _LARGEST_EXPONENT, out=exponents)
        heads = _Heads(exponents, np.bitwise_and(largest, BINADE - 1, dtype=np.uint16))
        self._measure_distances(heads)

        comparison = self._compare(heads) if named is not None or rule is ScaleRule.MSE else None
        if comparison is not None and rule is ScaleRule.MSE:
            chosen = comparison.excess > 0
        else:
            chosen = heads.mantissas >= LEAST_RAISED[rule]
        kept = np.zeros(chosen.shape, np.bool_)
        if named is not None and comparison is not None:
            kept, far = _may_keep(named.T, heads.floor, chosen, comparison.excess)
            kept &= ~empty
            odd |= far & ~empty
            chosen = np.where(kept, heads.floor < named.T, chosen)
        np.add(heads.floor, chosen, out=scales, casting="unsafe")
        if empty.any():
            scales[empty] = 0
            if named is not None:
                named_empty = empty & (named.T != NOT_NAMED)
                np.copyto(scales, named.T, where=named_empty)
                kept |= named_empty

        sums, clipped = self._encode(chosen, words)
        error = self._error(chosen, sums, heads, comparison)
        errors = None
        if comparison is not None:
            errors = self._errors(chosen, error, comparison)
            odd |= comparison.close
            if comparison.lowerable.any():
                odd |= self._lowerable(comparison.lowerable, heads, np.minimum(*errors))
        outcome = self._requantise(odd, rule, named, words, scales) if odd.any() else None
        if outcome is not None:
            for array in (error, clipped, kept, *(errors or ())):
                array[odd] = 0
        figures = QuantisationFigures(
            values=self._columns * self._lanes,
            squared_signal=signal,
            squared_error=float((error * heads.squared_unit).sum()),
            clipped_values=int(clipped.sum()),
            clipped_blocks=int(np.count_nonzero(clipped)),
            kept_blocks=int(np.count_nonzero(kept)),
            comparison=NOT_COMPARED if errors is None else self._comparison_of_rules(signal, heads, *errors),
        )
        return figures if outcome is None else figures + outcome.figures(compared=errors is not None)

    def _comparison_of_rules(
        self, signal: float, heads: _Heads, smaller: NDArray[np.float64], larger: NDArray[np.float64]
    ) -> RuleComparison:
        """Sum errors `[blocks, lanes]` by rule; other rules go by the mantissa of the largest number alone."""
        smaller = smaller * heads.squared_unit
        larger = larger * heads.squared_unit
        mantissas = heads.mantissas.reshape(-1).astype(np.intp)
        by_mantissa = [
            np.bincount(mantissas, weights=each.reshape(-1), minlength=BINADE) for each in (smaller, larger)
        ]
        errors = {ScaleRule.MSE: float(np.minimum(smaller, larger).sum())}
        for rule, least in LEAST_RAISED.items():
            errors[rule] = float(by_mantissa[0][:least].sum() + by_mantissa[1][least:].sum())
        return RuleComparison(self._columns * self._lanes, signal, errors)

    def _survey(self) -> tuple[Bits16, float]:
        """Set distances to magnitudes; return the largest of each block, `[blocks, lanes]`, and the sum of squares.

        Raises:
            EncodingError: a value is not finite.
        """
        largest = np.empty((self._blocks, self._lanes), np.uint16)
        signal = 0.0
        for step in self._steps():
            magnitudes = self._distances[step]
            np.bitwise_and(self._numbers[step], 0x7FFF, out=magnitudes)
            np.maximum.reduce(magnitudes, axis=1, out=largest[step])
            exponent = int(largest[step].max()) >> 7
            if exponent == _SPECIAL_EXPONENT:
                raise EncodingError("a value that is not finite cannot be stored as MXFP4")
            signal += self._squared_signal(step, exponent - SCALE_BIAS)
        return largest, signal

    def _squared_signal(self, step: slice, exponent: int) -> float:
        """Return the sum of the squares of numbers below 2 * 2**`exponent`."""
        values = self._of_step(self._scratch.entries.view(np.float32), step)
        self._widen_into(values, step)
        safe = abs(exponent) <= _SAFE_EXPONENT
        if not safe:
            np.multiply(values, np.float32(2.0**-exponent), out=values)  # no square leaves the range of float32
        np.square(values, out=values)
        total = float(np.add.reduce(values, axis=1).sum(dtype=np.float64))
        return total if safe else math.ldexp(total, 2 * exponent)

    def _measure_distances(self, heads: _Heads) -> None:
        """Turn magnitudes into distances from the smaller scale."""
        lowest = ((heads.exponents - (2 + DEPTH)) << 7)[:, None]
        for step in self._steps():
            distances = self._distances[step]
            np.maximum(distances, lowest[step], out=distances)
            distances -= lowest[step]
            if np.count_nonzero(distances) < distances.size:  # numbers below the tables are not zeros
                np.maximum(distances, (self._numbers[step] & 0x7FFF) != 0, out=distances)

    def _look_up(self, table: Array, step: slice, offsets: Bits16 | None, entries: Array) -> Array:
        """Return entries of a table `[blocks, 32, lanes]`; `offsets` `[blocks, 1, lanes]` are added to distances.

        Then `scratch.codes` has what was looked up.
        """
        distances = self._distances[step]
        if offsets is not None:
            distances = np.add(distances, offsets[step], out=self._of_step(self._scratch.codes, step))
        indices = self._of_step(self._scratch.indices, step)
        np.copyto(indices, distances)
        found = self._of_step(entries, step)
        np.take(table, indices, out=found, mode="wrap")  # all are in range; this mode does not check it
        return found

    def _encode(self, chosen: Array, words: Bits16) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        """Set `words` with the scales that `chosen` tells `[blocks, lanes]`: the larger one where it is set.

        Returns:
            sums of entries of `OUTCOMES`, and numbers of values that are cut off, by block.
        """
        offsets = _offsets(chosen)
        # With the larger scale nothing is cut off.
        beyond = np.where(chosen, np.uint16(STEPS - 1), np.uint16(SIX))[:, None]
        sums = np.empty(chosen.shape, np.uint64)
        clipped = np.empty(chosen.shape, np.uint8)
        of_block = words.reshape(self._blocks, WORDS_PER_BLOCK, self._lanes)
        for step in self._steps():
            entries = self._look_up(OUTCOMES, step, offsets, self._scratch.entries)
            np.add.reduce(entries, axis=1, out=sums[step])
            np.right_shift(entries, CODE_SHIFT - 12, out=entries)
            codes = self._of_step(self._scratch.codes, step)
            np.copyto(codes, entries, casting="unsafe")
            signs = self._of_step(self._scratch.indices.view(np.uint16), step)
            np.bitwise_and(self._numbers[step], 0x8000, out=signs)
            codes |= signs
            few = of_block[step].reshape(-1, self._lanes)
            pack_upper_nibbles(few, codes.reshape(-1, self._lanes), signs.reshape(-1, self._lanes)[: len(few)])
            cut_off = self._of_step(self._scratch.entries.view(np.bool_), step)
            np.greater(self._distances[step], beyond[step], out=cut_off)
            np.add.reduce(cut_off.view(np.uint8), axis=1, out=clipped[step])
        return sums, clipped

    def _lowerable(self, doubtful: Array, heads: _Heads, error: Array) -> Array:
        """Return for which of some blocks `[blocks, lanes]` the next smaller scale may have less error."""
        block, lane = np.nonzero(doubtful)
        unit = 2 + SCALE_BIAS - heads.exponents[block, lane].astype(np.int32)
        sizes = np.ldexp(np.abs(self._some(block, lane)), unit[:, None])
        lowered = np.square(sizes - np.take(LOWERED, self._distances[block, :, lane], mode="clip")).sum(axis=1)
        found = np.zeros(doubtful.shape, np.bool_)
        found[block, lane] = lowered < error[block, lane] * (1 + _CLOSE)
        return found

    def _requantise(
        self, odd: Array, rule: ScaleRule, named: Array | None, words: Bits16, scales: Array
    ) -> Outcome:
        """Quantise the blocks `odd` `[blocks, lanes]` again, number by number."""
        block, lane = np.nonzero(odd)
        outcome = quantise_blocks(
            self._some(block, lane).astype(np.float64),
            rule,
            np.full(len(block), NOT_NAMED) if named is None else named[lane, block],
        )
        scales[block, lane] = outcome.rounded.scales
        packed = np.empty((WORDS_PER_BLOCK, len(block)), np.uint16)
        pack_words(packed, outcome.rounded.codes.T.astype(np.uint16, order="C"), np.empty_like(packed))
        words.reshape(self._blocks, WORDS_PER_BLOCK, self._lanes)[block, :, lane] = packed.T
        return outcome


class _NarrowTile(Tile):
    """Numbers of bfloat16: all sums are exact."""

    def __init__(self, values: Bits16, scratch: Scratch) -> None:
        """Take `values` `[lanes, blocks * 32]`."""
        columns = values.T
        if values.strides[0] != values.itemsize:
            columns = _of_size(scratch.numbers, columns.shape)
            transpose_into(columns, values)
        super().__init__(columns, columns, scratch)

    def _compare(self, heads: _Heads) -> _Comparison:
        sums = np.empty(heads.mantissas.shape, np.int32)
        for step in self._steps():
            entries = self._look_up(COMPARISON, step, None, self._scratch.entries.view(np.int32))
            np.add.reduce(entries, axis=1, dtype=np.int32, out=sums[step])
        # The largest number, 4 * (1 + m), becomes 3, which costs (1 + 4 * m)**2 instead of (4 * m)**2.
        loss = np.int32(1 / LEAST_GAIN) + heads.mantissas.astype(np.int32) * np.int32(8 / BINADE / LEAST_GAIN)
        gain = sums & ((1 << GAIN_BITS) - 1)
        lowerable = (gain > loss) & (heads.mantissas < _LOWERABLE)
        return _Comparison(sums >> GAIN_BITS, np.zeros(sums.shape, np.bool_), lowerable)

    def _error(
        self, chosen: Array, sums: Array, heads: _Heads, comparison: _Comparison | None
    ) -> NDArray[np.float64]:
        error = (sums & ERROR_MASK).astype(np.float64)
        error *= LEAST_SQUARE
        return error

    def _errors(self, chosen: Array, error: Array, comparison: _Comparison) -> tuple[Array, Array]:
        excess = comparison.excess * LEAST_DIFFERENCE
        smaller = error + excess * chosen
        return smaller, smaller - excess

    def _widen_into(self, values: NDArray[np.float32], step: slice) -> None:
        bits = values.view(np.uint32)
        np.copyto(bits, self._values[step])
        np.left_shift(bits, 16, out=bits)

    def _some(self, block: Array, lane: Array) -> NDArray[np.float32]:
        bits = self._values[block, :, lane].astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)


class _WideTile(Tile):
    """Numbers of float32, whose errors are measured in float64."""

    def __init__(self, values: NDArray[np.float32], scratch: Scratch) -> None:
        """Take `values` `[lanes, blocks * 32]`."""
        columns = values.T
        if values.strides[0] != values.itemsize:
            columns = np.empty(columns.shape, values.dtype)
            transpose_into(columns, values)
        numbers = _of_size(scratch.numbers, columns.shape)
        super().__init__(columns, numbers, scratch)
        for step in self._steps():
            bits = self._values[step].view(np.uint32)
            part = self._of_step(scratch.entries.view(np.uint32), step)
            np.right_shift(bits, 16, out=part)
            np.copyto(self._numbers[step], part, casting="unsafe")
            np.bitwise_and(bits, 0xFFFF, out=part)
            self._numbers[step] |= part != 0

    def _compare(self, heads: _Heads) -> _Comparison:
        none = np.zeros(heads.mantissas.shape, np.bool_)
        smaller, larger = self._measure([none, ~none], heads)
        excess = smaller - larger
        cut = 1 + heads.mantissas / np.float32(BINADE // 4)  # what the largest number, 4 * (1 + m), loses at 3
        lowerable = (heads.mantissas < _LOWERABLE) & (np.minimum(smaller, larger) > np.square(cut))
        close = (np.abs(excess) <= _CLOSE * smaller) & (smaller > 0)
        return _Comparison(excess, close, lowerable, (smaller, larger))

    def _measure(self, choices: Sequence[Array], heads: _Heads) -> list[NDArray[np.float64]]:
        """Return squared errors `[blocks, lanes]` with scales chosen in several ways."""
        offsets = [_offsets(chosen) for chosen in choices]
        inverse = np.ldexp(1.0, 2 + SCALE_BIAS - heads.exponents.astype(np.int32))[:, None]
        errors = [np.empty(chosen.shape, np.float64) for chosen in choices]
        for step in self._steps():
            sizes = self._of_step(self._scratch.sizes, step)
            np.copyto(sizes, self._values[step])
            np.abs(sizes, out=sizes)
            sizes *= inverse[step]
            for sums, offset in zip(errors, offsets, strict=True):
                error = self._look_up(ROUNDED, step, offset, self._scratch.entries.view(np.float64))
                np.subtract(sizes, error, out=error)
                np.square(error, out=error)
                np.add.reduce(error, axis=1, out=sums[step])
        return errors

    def _error(
        self, chosen: Array, sums: Array, heads: _Heads, comparison: _Comparison | None
    ) -> NDArray[np.float64]:
        if comparison is None or comparison.errors is None:
            return self._measure([chosen], heads)[0]
        smaller, larger = comparison.errors
        return np.where(chosen, larger, smaller)

    def _errors(self, chosen: Array, error: Array, comparison: _Comparison) -> tuple[Array, Array]:
        assert comparison.errors is not None
        return comparison.errors

    def _widen_into(self, values: NDArray[np.float32], step: slice) -> None:
        np.copyto(values, self._values[step])

    def _some(self, block: Array, lane: Array) -> NDArray[np.float32]:
        some: NDArray[np.float32] = self._values[block, :, lane]
        return some


def _of_size(flat: Array, shape: tuple[int, ...]) -> Array:
    return flat[: math.prod(shape)].reshape(shape)


def _offsets(chosen: Array) -> Bits16:
    """Return what distances are increased by in tables of both scales, `[blocks, 1, lanes]`."""
    return (chosen.astype(np.uint16) * np.uint16(STEPS))[:, None]


def _may_keep(named: Array, floor: Array, chosen: Array, excess: Array) -> tuple[Array, Array]:
    """Return which named scales are one of the two and as good as the chosen one, and which are neither."""
    higher = named == floor + 1
    near = higher | (named == floor)
    better = np.where(chosen, excess > 0, excess < 0) & (higher != chosen)  # the chosen one
    return near & ~better, ~near & (named != NOT_NAMED)


def new_tile(values: Array, scratch: Scratch) -> Tile:
    """Return `values` `[lanes, blocks * 32]`, bits of bfloat16 or float32, ready to be quantised."""
    return (_NarrowTile if values.dtype == np.uint16 else _WideTile)(values, scratch)
