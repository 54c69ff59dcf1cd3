"""Powers in float32 as torch's vector function gives them, bit for bit.

Frequencies of rotary embeddings are powers, and a last bit of one turns a pair of dimensions at position 130,000 by
up to 0.008. torch takes powers from SLEEF's `Sleef_powf8_u10` and `Sleef_powf16_u10`, which compute the same with
fused multiply-add; results are within one unit of the last place, and of the 32 powers of gpt-oss two are not the
nearest float32. Source of the method and its constants: SLEEF 3.6, `xpowf`, `logkf` and `expkf` in sleefsimdsp.c.

Numbers are pairs of float32 `(high, low)` that stand for their sum (Dekker, 1971). Names of sums tell what they ask
of their operands: `_sum` takes any, `_sum_ordered` needs the larger first and loses more where it is not.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32: TypeAlias = NDArray[np.float32]
_Pair: TypeAlias = tuple[Float32, Float32]

_LOG_COEFFICIENTS = (0.240320354700088500976562, 0.285112679004669189453125, 0.400007992982864379882812)
_TWO_THIRDS = (0.66666662693023681640625, 3.69183861259614332084311e-09)
_LOG_2 = (0.69314718246459960938, -1.904654323148236017e-09)
_EXP_COEFFICIENTS = (
    0.00136324646882712841033936,
    0.00836596917361021041870117,
    0.0416710823774337768554688,
    0.166665524244308471679688,
    0.499999850988388061523438,
)
_LOG_2_UPPER, _LOG_2_LOWER = np.float32(0.693145751953125), np.float32(1.428606765330187045e-06)
_ONE_OVER_LOG_2 = np.float32(1.4426950408889634)
_FOUR_THIRDS = np.float32(1 / 0.75)


def vector_power(base: float, exponents: Float32) -> Float32:
    """Return `base` to each of the `exponents`.

    Args:
        base: positive; it is rounded to float32.
        exponents: float32 `[count]`; neither they nor the powers may be close to the ends of the range of float32.
    """
    return _exponential(_scaled(_logarithm(np.full_like(exponents, base)), exponents))


def _logarithm(values: Float32) -> _Pair:
    """Return the logarithms of positive numbers: `m * 2**e` gives `e log 2 + 2 artanh((m - 1) / (m + 1))`."""
    exponents = np.frexp(values * _FOUR_THIRDS)[1] - 1
    mantissas = np.ldexp(values, -exponents)
    one = np.ones_like(values)
    ratio = _quotient(_sum(-one, mantissas), _sum(one, mantissas))
    square = _squared(ratio)
    series = _polynomial(_LOG_COEFFICIENTS, square[0])
    cubed = _product(_product(square, ratio), _sum_of_pairs(_scaled(square, series), _constant(_TWO_THIRDS, one)))
    total = _scaled(_constant(_LOG_2, one), exponents.astype(np.float32))
    total = _sum_ordered(total, (ratio[0] + ratio[0], ratio[1] + ratio[1]))
    return _sum_ordered(total, cubed)


def _exponential(values: _Pair) -> Float32:
    whole = np.rint((values[0] + values[1]) * _ONE_OVER_LOG_2)
    rest = _plus(_plus(values, -whole * _LOG_2_UPPER), -whole * _LOG_2_LOWER)
    high = rest[0] + rest[1]
    rest = high, (rest[0] - high) + rest[1]
    series = _polynomial(_EXP_COEFFICIENTS, rest[0])
    above_one = _sum_ordered(rest, _scaled(_squared(rest), series))
    one = np.ones_like(high)
    high, low = _sum_ordered((one, np.zeros_like(one)), above_one)
    powers: Float32 = np.ldexp(high + low, whole.astype(np.int32))
    return powers


def _fused(a: Float32, b: Float32, c: Float32) -> Float32:
    """Return `a * b + c`, rounded once: float64 holds the product, and rounds the sum some 29 bits further down."""
    total: Float32 = (a.astype(np.float64) * b + c).astype(np.float32)
    return total


def _polynomial(coefficients: tuple[float, ...], values: Float32) -> Float32:
    total = np.full_like(values, coefficients[0])
    for coefficient in coefficients[1:]:
        total = _fused(total, values, np.full_like(values, coefficient))
    return total


def _constant(pair: tuple[float, float], like: Float32) -> _Pair:
    return np.full_like(like, pair[0]), np.full_like(like, pair[1])


def _sum(a: Float32, b: Float32) -> _Pair:
    high = a + b
    part = high - a
    return high, (a - (high - part)) + (b - part)


def _plus(a: _Pair, b: Float32) -> _Pair:
    high, low = _sum(a[0], b)
    return high, low + a[1]


def _sum_of_pairs(a: _Pair, b: _Pair) -> _Pair:
    high, low = _sum(a[0], b[0])
    return high, low + (a[1] + b[1])


def _sum_ordered(a: _Pair, b: _Pair) -> _Pair:
    high = a[0] + b[0]
    return high, (((a[0] - high) + b[0]) + a[1]) + b[1]


def _product(a: _Pair, b: _Pair) -> _Pair:
    high = a[0] * b[0]
    return high, _fused(a[0], b[1], _fused(a[1], b[0], _fused(a[0], b[0], -high)))


def _scaled(a: _Pair, b: Float32) -> _Pair:
    high = a[0] * b
    return high, _fused(a[1], b, _fused(a[0], b, -high))


def _squared(a: _Pair) -> _Pair:
    high = a[0] * a[0]
    return high, _fused(a[0] + a[0], a[1], _fused(a[0], a[0], -high))


def _quotient(a: _Pair, b: _Pair) -> _Pair:
    inverse = np.float32(1) / b[0]
    high = a[0] * inverse
    rest = _fused(inverse, a[0], -high)
    error = _fused(-b[1], inverse, _fused(-b[0], inverse, np.ones_like(high)))
    return high, _fused(high, error, _fused(a[1], inverse, rest))
