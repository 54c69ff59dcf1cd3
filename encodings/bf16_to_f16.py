"""bfloat16 to float16: exact where both have normal numbers, and rounded below; what was rounded is counted.

float16 has the same sign and three more bits of mantissa, but its exponents begin at -14 for normal numbers and at
-24 for subnormal ones. Most weights are normal numbers of both, for which bits are only moved; the few others come
from a table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import Array, EncodingError, Float32
from gptoss_convert.encodings.deviation import Deviation, deviation, squared_sum

_STEP = 1 << 16
"""Numbers that are converted at once, so that they stay in the second-level cache."""
_SIGN, _MAGNITUDE = 0x8000, 0x7FFF
_LEAST_NORMAL, _LARGEST = 0x3880, 0x477F
"""bfloat16 bits of 2**-14 and of 65280, between which every number is a normal float16."""
_BIASES = (127 - 15) << 7


@dataclass(frozen=True)
class HalfFigures:
    """How numbers fit the range of float16; sums over several pieces of a tensor."""

    values: int = 0
    subnormal: int = 0
    """Numbers that became subnormal: they have fewer bits than others."""
    vanished: int = 0
    """Numbers other than zero that became zero."""

    def __add__(self, other: HalfFigures) -> HalfFigures:
        return HalfFigures(
            self.values + other.values, self.subnormal + other.subnormal, self.vanished + other.vanished
        )


def half_figures(values: Float32, halves: Array) -> HalfFigures:
    """Return how `values` fit the range of the float16 numbers `halves` that they became."""
    magnitudes = halves.view(np.uint16) & _MAGNITUDE
    subnormal = int(np.count_nonzero((magnitudes < 0x0400) & (magnitudes != 0)))
    vanished = int(np.count_nonzero((magnitudes == 0) & (values != 0)))
    return HalfFigures(halves.size, subnormal, vanished)


@dataclass(frozen=True)
class Halved:
    """Numbers in float16, and what that did to them."""

    halves: NDArray[np.float16]
    deviation: Deviation
    figures: HalfFigures


def bf16_to_f16(bits: Array) -> Halved:
    """Return bfloat16 numbers in float16, rounded to nearest even.

    Args:
        bits: uint16 `[rows, columns]`, C-contiguous.

    Raises:
        EncodingError: a finite number is beyond the range of float16.
    """
    halves: NDArray[np.float16] = np.empty(bits.shape, np.float16)
    numbers, found = bits.reshape(-1), halves.view(np.uint16).reshape(-1)
    scratch = np.zeros((min(_STEP, numbers.size), 2), np.uint16)
    unusual: list[Array] = [np.empty(0, np.uint16)]
    signal = 0.0
    for start in range(0, numbers.size, _STEP):
        piece = slice(start, start + _STEP)
        few = _convert(numbers[piece], found[piece])
        if few.size:
            unusual.append(few)
        signal += _signal(numbers[piece], scratch)
    rounded, figures = _round(np.concatenate(unusual))
    return Halved(
        halves,
        replace(rounded, values=numbers.size, squared_signal=signal),
        replace(figures, values=numbers.size),
    )


def _table() -> NDArray[np.uint16]:
    """Return the float16 bits of every bfloat16 number."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _widened(np.arange(1 << 16, dtype=np.uint16)).astype(np.float16).view(np.uint16)


def _widened(bits: Array) -> Float32:
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


_TABLE = _table()


def _convert(bits: Array, halves: Array) -> NDArray[np.uint16]:
    """Fill `halves` with the float16 bits of a piece, and return those of `bits` that are no normal float16."""
    magnitudes = bits & _MAGNITUDE
    np.subtract(magnitudes, _BIASES, out=halves)
    halves <<= 3
    halves |= bits & _SIGN
    magnitudes -= _LEAST_NORMAL
    unusual = np.flatnonzero(magnitudes > _LARGEST - _LEAST_NORMAL)
    few: NDArray[np.uint16] = bits[unusual]
    halves[unusual] = _TABLE[few]
    return few


def _signal(bits: Array, scratch: Array) -> float:
    """Return the sum of the squares of all finite numbers of a piece; the first half of `scratch` is zeros."""
    scratch[: bits.size, 1] = bits  # the upper half of a float32, whose bytes are little endian
    values = scratch[: bits.size].view("<f4")[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):
        signal = float(np.dot(values, values))
    return signal if np.isfinite(signal) else squared_sum(values)


def _round(few: Array) -> tuple[Deviation, HalfFigures]:
    """Return what rounding did to bfloat16 numbers that are no normal float16."""
    values, halves = _widened(few), _TABLE[few].view(np.float16)
    if (overflow := np.isinf(halves) & np.isfinite(values)).any():
        raise EncodingError(f"value {values[overflow][0]:g} exceeds the largest f16 number 65504")
    return deviation(values, halves.astype(np.float32)), half_figures(values, halves)
