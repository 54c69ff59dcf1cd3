"""What differs between the numbers of some rows and the numbers that are expected there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings import Array, Float32
from gptoss_convert.encodings.deviation import LARGEST_ERROR, absolute_error, squared_sum, unequal_values

BLOCK = 32
"""Numbers of a row that are looked at together, as in MXFP4 and Q8_0; the last block of a row may be shorter."""


@dataclass(frozen=True)
class WorstBlock:
    """The block of a tensor that has the largest squared error; the first one of several."""

    expert: int | None
    """None for a tensor that is not one matrix per expert."""
    row: int
    """Of the matrix; 0 for a vector."""
    column: int
    """Of the first number of the block."""
    squared_error: float
    relative_error: float
    """Root of the squared error relative to the squares of the block's finite reference values."""
    reference_range: tuple[float, float] | None
    """Least and largest value in the reference, NaN not counted; None if all are NaN."""
    artifact_range: tuple[float, float] | None

    @property
    def place(self) -> str:
        """Where the block is, in words."""
        expert = "" if self.expert is None else f"expert {self.expert}, "
        return f"{expert}row {self.row}, column {self.column}"


@dataclass(frozen=True)
class Differences:
    """What differs; sums over the pieces of a tensor."""

    values: int = 0
    different: int = 0
    """Values that are not equal; zeros of different sign are equal, and so are two NaN."""
    blocks: int = 0
    """Blocks with such a value."""
    largest_error: float = 0.0
    squared_error: float = 0.0
    signs_of_zero: int = 0
    """Zeros that have the other sign."""
    rescaled_blocks: int = 0
    """MXFP4 blocks of equal values that have another scale."""
    new_nan: int = 0
    """NaN where the reference has a finite value."""
    new_infinite: int = 0
    """Infinities where the reference has a finite value."""
    worst: WorstBlock | None = None

    def __add__(self, other: Differences) -> Differences:
        return Differences(
            self.values + other.values,
            self.different + other.different,
            self.blocks + other.blocks,
            max(self.largest_error, other.largest_error),
            self.squared_error + other.squared_error,
            self.signs_of_zero + other.signs_of_zero,
            self.rescaled_blocks + other.rescaled_blocks,
            self.new_nan + other.new_nan,
            self.new_infinite + other.new_infinite,
            _worse(self.worst, other.worst),
        )


def _worse(first: WorstBlock | None, second: WorstBlock | None) -> WorstBlock | None:
    if first is None or second is None:
        return first or second
    return second if second.squared_error > first.squared_error else first


def differences(
    expected: Float32,
    found: Float32,
    first_row: int,
    shape: tuple[int, ...],
    other_scales: NDArray[np.bool_] | None = None,
) -> Differences:
    """Return how `found` differs from `expected`.

    Args:
        expected: float32 `[rows, columns]` of the reference.
        found: of the artifact, as many.
        first_row: number of the first row in its tensor, all dimensions but the last flattened.
        shape: of the tensor.
        other_scales: `[rows, columns / 32]`, which blocks of MXFP4 have another scale; None for other encodings.
    """
    unequal = unequal_values(expected, found)
    zeros = (expected == 0) & (found == 0) & (np.signbit(expected) != np.signbit(found))
    rescaled = 0 if other_scales is None else _count(other_scales)
    rows = np.flatnonzero(unequal.any(axis=1))
    if not rows.size:
        return Differences(expected.size, signs_of_zero=_count(zeros), rescaled_blocks=rescaled)
    expected, found, unequal = expected[rows], found[rows], unequal[rows]
    error = absolute_error(expected, found)
    error[~unequal] = 0
    starts = np.arange(0, expected.shape[1], BLOCK)
    changed = np.logical_or.reduceat(unequal, starts, axis=1)
    block_errors = np.add.reduceat(np.square(error), starts, axis=1)
    if other_scales is not None:
        rescaled -= _count(other_scales[rows] & changed)
    row, block = (int(index) for index in np.unravel_index(block_errors.argmax(), block_errors.shape))
    numbers = slice(block * BLOCK, (block + 1) * BLOCK)
    finite = np.isfinite(expected)
    return Differences(
        values=zeros.size,
        different=_count(unequal),
        blocks=_count(changed),
        largest_error=float(error.max()),
        squared_error=float(block_errors.sum()),
        signs_of_zero=_count(zeros),
        rescaled_blocks=rescaled,
        new_nan=_count(np.isnan(found) & finite),
        new_infinite=_count(np.isinf(found) & finite),
        worst=_block(
            expected[row, numbers], found[row, numbers], first_row + int(rows[row]), numbers.start, shape,
            float(block_errors[row, block]),
        ),
    )  # fmt: skip


def _count(flags: Array) -> int:
    return int(np.count_nonzero(flags))


def _block(
    expected: Array, found: Array, row: int, column: int, shape: tuple[int, ...], squared_error: float
) -> WorstBlock:
    expert = None
    if len(shape) == 3:
        expert, row = divmod(row, shape[1])
    signal = squared_sum(expected)
    return WorstBlock(
        expert=expert,
        row=row,
        column=column,
        squared_error=squared_error,
        relative_error=float(np.sqrt(squared_error / signal)) if signal else LARGEST_ERROR,
        reference_range=_range(expected),
        artifact_range=_range(found),
    )


def _range(values: Array) -> tuple[float, float] | None:
    """Return the least and the largest number; infinite ones as `LARGEST_ERROR`, for JSON has no infinity."""
    known = values[~np.isnan(values)]
    if not known.size:
        return None
    least, largest = (max(-LARGEST_ERROR, min(LARGEST_ERROR, float(value))) for value in (known.min(), known.max()))
    return least, largest
