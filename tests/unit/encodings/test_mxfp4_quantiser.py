"""Quantisation to MXFP4, held against a reference in whole numbers.

A finite float32 is a whole multiple of 2**-149. The reference counts in half of that, and so compares and adds
without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_convert.encodings import ENCODINGS, Array, Chunk, EncodingError
from gptoss_convert.encodings.mxfp4_canonical import canonical_blocks, noncanonical_scales
from gptoss_convert.encodings.mxfp4_quantiser import (
    QuantisationFigures,
    Quantised,
    RuleComparison,
    ScaleRule,
)
from gptoss_convert.encodings.mxfp4_quantiser import quantise as quantise_by
from gptoss_convert.kernels import NATIVE

MXFP4, BF16 = ENCODINGS["mxfp4"], ENCODINGS["bf16"]

Floats = NDArray[np.float32]
Bits = NDArray[np.uint16]

RULES = list(ScaleRule)
VALUE_KEEPING = [ScaleRule.MSE, ScaleRule.EVEN, ScaleRule.FLOOR, ScaleRule.RCEIL]
NONE = 255
LAST = 252
LARGEST = float(np.finfo(np.float32).max)

# --- the reference

UNIT = 150
"""Everything is counted in units of 2**-150."""
HALVES = (0, 1, 2, 3, 4, 6, 8, 12)
"""Magnitudes in units of code 1."""


def units(value: float) -> int:
    numerator, denominator = value.as_integer_ratio()
    whole, rest = divmod(numerator << UNIT, denominator)
    assert rest == 0
    return whole


def of_units(squared: int) -> float:
    """The float64 of a squared number of units."""
    mantissa = max(squared.bit_length() - 60, 0)
    return math.ldexp(squared >> mantissa, mantissa - 2 * UNIT)


def half(scale: int) -> int:
    """The value of code 1 in units."""
    return 1 << (scale - 128 + UNIT)


@lru_cache(maxsize=1 << 14)
def nearest(size: int, scale: int) -> int:
    return min(range(8), key=lambda code: (abs(size - HALVES[code] * half(scale)), code % 2))


def error_of(block: Sequence[int], scale: int) -> int:
    return sum((abs(x) - HALVES[nearest(abs(x), scale)] * half(scale)) ** 2 for x in block)


def scale_of(block: Sequence[int], rule: ScaleRule) -> int:
    largest = max(abs(x) for x in block)
    if largest == 0:
        return 0
    floor = largest.bit_length() - 1 - UNIT - 2 + 127  # the largest scale with 4 * 2**scale <= largest
    inside = [max(0, min(scale, LAST)) for scale in (floor, floor + 1)]
    match rule:
        case ScaleRule.MSE:
            tried = [*inside, max(inside[0] - 1, 0)]
            return min(tried, key=lambda scale: (error_of(block, scale), tried.index(scale)))
        case ScaleRule.FLOOR:
            return inside[0]
        case ScaleRule.RCEIL:
            return next((scale for scale in range(LAST) if 12 * half(scale) >= largest), LAST)
        case ScaleRule.CEIL:
            return next((scale for scale in range(LAST) if 8 * half(scale) >= largest), LAST)
        case ScaleRule.EVEN:
            step = 1 << (largest.bit_length() - 2)  # the last place of one bit of mantissa
            below, rest = divmod(largest, step)
            rounded = below + (2 * rest > step or (2 * rest == step and below % 2 == 1))
            return inside[1 if rounded == 4 else 0]


@dataclass(frozen=True)
class Expected:
    codes: Array
    scales: Array
    figures: QuantisationFigures


def reference(values: Floats, rule: ScaleRule, named: Array | None = None) -> Expected:
    """What a rule makes of `[rows, columns]`, in plain Python."""
    rows, columns = values.shape
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, columns // 32), np.uint8)
    signal = error = clipped_values = clipped_blocks = kept = 0
    compared = RuleComparison()
    for row in range(rows):
        for place in range(columns // 32):
            part = slice(32 * place, 32 * place + 32)
            block = [units(float(x)) for x in values[row, part]]
            scale = scale_of(block, rule)
            name = NONE if named is None else int(named[row, place])
            if name != NONE:
                highest = max(HALVES[nearest(abs(x), name)] for x in block) * half(name)
                if highest < 1 << (128 + UNIT) and error_of(block, name) <= error_of(block, scale):
                    scale = name
                    kept += 1
            scales[row, place] = scale
            codes[row, part] = [nearest(abs(x), scale) for x in block]
            beyond = sum(abs(x) > 12 * half(scale) for x in block)
            clipped_values += beyond
            clipped_blocks += beyond > 0
            signal += sum(x * x for x in block)
            error += error_of(block, scale)
            if place in compared_places(columns // 32, rule, named):
                compared += comparison_of(block)
    codes |= np.signbit(values).astype(np.uint8) << 3
    figures = QuantisationFigures(
        values=values.size,
        squared_signal=of_units(signal),
        squared_error=of_units(error),
        clipped_values=clipped_values,
        clipped_blocks=clipped_blocks,
        kept_blocks=kept,
        comparison=compared,
    )
    return Expected(codes[:, 0::2] | codes[:, 1::2] << 4, scales, figures)


def compared_places(blocks: int, rule: ScaleRule, named: Array | None) -> range:
    """The blocks of a row of which a report says what other rules would have made of them."""
    return range(blocks) if rule is ScaleRule.MSE or named is not None else range(0, blocks, 16)


def comparison_of(block: Sequence[int]) -> RuleComparison:
    scales = {rule: scale_of(block, rule) for rule in RULES}
    return RuleComparison(
        len(block),
        of_units(sum(x * x for x in block)),
        {rule: of_units(error_of(block, scale)) for rule, scale in scales.items()},
    )


def assert_figures(figures: QuantisationFigures, expected: QuantisationFigures) -> None:
    """Errors are told to twelve digits, and numbers far below their block's scale to 2**-46 of its square."""
    assert figures.values == expected.values
    assert figures.squared_signal == pytest.approx(expected.squared_signal, rel=1e-5, abs=0)
    assert figures.squared_error == pytest.approx(
        expected.squared_error, rel=1e-9, abs=expected.squared_signal * 2**-43
    )
    assert_comparison(figures.comparison, expected.comparison)
    assert (figures.squared_error > 0) == (expected.squared_error > 0)
    assert figures.clipped_values == expected.clipped_values
    assert figures.clipped_blocks == expected.clipped_blocks
    assert figures.kept_blocks == expected.kept_blocks


def assert_comparison(comparison: RuleComparison, expected: RuleComparison) -> None:
    assert comparison.values == expected.values
    assert comparison.squared_signal == pytest.approx(expected.squared_signal, rel=1e-5, abs=0)
    assert list(comparison.squared_error) == RULES
    for rule, error in expected.squared_error.items():
        found = comparison.squared_error[rule]
        assert found == pytest.approx(error, rel=1e-9, abs=expected.squared_signal * 2**-43)
        assert (found > 0) == (error > 0)


def quantise(values: Array, rule: ScaleRule = ScaleRule.MSE, named: Array | None = None) -> Quantised:
    """What numpy makes of numbers, and the kernels in C where they are installed, which has to be the same."""
    if NATIVE is None:
        return quantise_by(values, rule, named, native=None)
    try:
        expected = quantise_by(values, rule, named, native=None)
    except EncodingError as error:
        with pytest.raises(EncodingError, match=str(error)):
            quantise_by(values, rule, named, native=NATIVE)
        raise
    found = quantise_by(values, rule, named, native=NATIVE)
    np.testing.assert_array_equal(found.scales, expected.scales)
    np.testing.assert_array_equal(found.codes, expected.codes)
    if values.size:
        assert_figures(expected.figures, found.figures)
    return found


def assert_as_reference(values: Array, rule: ScaleRule, named: Array | None = None) -> Quantised:
    """`values` are bits of bfloat16, or float32."""
    found = quantise(values, rule, named)
    expected = reference(widened(values), rule, named)
    np.testing.assert_array_equal(found.scales, expected.scales)
    np.testing.assert_array_equal(found.codes, expected.codes)
    assert_figures(found.figures, expected.figures)
    return found


def widened(values: Array) -> Floats:
    return BF16.decode((values,)) if values.dtype == np.uint16 else values


def truncated(values: Floats) -> Bits:
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def decoded(quantised: Quantised) -> Floats:
    return MXFP4.decode((quantised.codes, quantised.scales))


# --- numbers to try

BOUNDARIES = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 7.5]
"""All codes, all numbers half way between two, and all numbers at which a rule changes, in units of the scale."""


NUDGES = st.sampled_from([-(1 << 16), -(1 << 15), -1, 0, 1, 1 << 15, 1 << 16])
"""Steps of float32; 2**16 are one of bfloat16."""


def beside(value: float, exponent: int, ulps: int, sign: int) -> float:
    """A number `ulps` steps of float32 beside `sign * value * 2**exponent`, within the finite ones."""
    exact = math.ldexp(value, exponent)
    bits = int(np.float32(min(exact, LARGEST)).view(np.uint32)) + ulps
    number = float(np.uint32(max(0, min(bits, 0x7F7F_FFFF))).view(np.float32))
    return math.copysign(number, sign)


def numbers(exponent: int) -> st.SearchStrategy[float]:
    """Numbers of a block with a scale of about 2**exponent."""
    places = st.sampled_from(BOUNDARIES)
    signs = st.sampled_from([1, -1])
    coarse = st.builds(beside, places, st.just(exponent), st.just(0), signs)
    edges = st.builds(beside, places, st.integers(exponent - 2, exponent + 1), NUDGES, signs)
    small = st.builds(beside, st.just(1.0), st.integers(exponent - 60, exponent), st.integers(0, 3), signs)
    return coarse | edges | small | st.sampled_from([0.0, -0.0])


@st.composite
def matrices(draw: st.DrawFn) -> Floats:
    """A few rows of one to three blocks, each of a size of its own."""
    rows, blocks = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    exponents = st.integers(-149, 126) | st.integers(-128, -100) | st.integers(120, 126) | st.integers(-8, 2)
    found = []
    for _ in range(rows * blocks):
        few = draw(st.lists(numbers(draw(exponents)), min_size=1, max_size=6))
        found += [few[draw(st.integers(0, len(few) - 1))] for _ in range(8)] * 4
    return np.array(found, np.float32).reshape(rows, 32 * blocks)


rules = st.sampled_from(RULES)


def names_beside(scales: Array, shift: int) -> Array:
    return np.clip(scales.astype(np.int64) + shift, 0, NONE).astype(np.uint8)


def gaussian(rows: int, blocks: int, seed: int = 0) -> Floats:
    """Rows of very different sizes."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, 32 * blocks)) * np.exp2(rng.integers(-9, 3, (rows, 1)))).astype(np.float32)


# --- codes, scales and figures


@given(matrices(), rules)
def test_float32_is_quantised_as_the_reference_does(values: Floats, rule: ScaleRule) -> None:
    assert_as_reference(values, rule)


@given(matrices().map(truncated), rules)
def test_bfloat16_is_quantised_as_the_reference_does(bits: Bits, rule: ScaleRule) -> None:
    assert_as_reference(bits, rule)


@given(matrices(), rules, st.integers(-3, 3), st.booleans())
def test_named_scales_are_kept_as_the_reference_does(
    values: Floats, rule: ScaleRule, shift: int, narrow: bool
) -> None:
    few = truncated(values) if narrow else values
    assert_as_reference(few, rule, names_beside(quantise(few, rule).scales, shift))


@given(matrices(), rules, st.integers(0, 255))
def test_scales_far_off_are_kept_where_they_are_as_good(values: Floats, rule: ScaleRule, name: int) -> None:
    named = np.full((values.shape[0], values.shape[1] // 32), name, np.uint8)
    found = assert_as_reference(values, rule, named)
    without = quantise(values, rule)
    assert found.figures.squared_error <= without.figures.squared_error * (1 + 1e-12)


@given(matrices(), rules, st.integers(-2, 2))
def test_bfloat16_bits_give_what_the_float32_numbers_they_stand_for_give(
    values: Floats, rule: ScaleRule, shift: int
) -> None:
    bits = truncated(values)
    named = names_beside(quantise(bits, rule).scales, shift)
    for names in (None, named):
        narrow, wide = quantise(bits, rule, names), quantise(widened(bits), rule, names)
        np.testing.assert_array_equal(narrow.codes, wide.codes)
        np.testing.assert_array_equal(narrow.scales, wide.scales)
        assert_figures(narrow.figures, wide.figures)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("rows", "blocks"), [(1, 1), (1, 90), (3, 90), (7, 5), (1024, 1), (1025, 5), (2050, 1)], ids=str
)
def test_matrices_of_any_size_in_any_order(rule: ScaleRule, rows: int, blocks: int) -> None:
    values = gaussian(rows, blocks)
    expected = quantise(values, rule)
    for row in {0, rows - 1}:
        single = reference(values[row : row + 1], rule)
        np.testing.assert_array_equal(expected.scales[row], single.scales[0])
        np.testing.assert_array_equal(expected.codes[row], single.codes[0])
    for array in (values, truncated(values)):
        expected = quantise(array, rule)
        for arranged in arrangements(array):
            found = quantise(arranged, rule)
            np.testing.assert_array_equal(found.codes, expected.codes)
            np.testing.assert_array_equal(found.scales, expected.scales)
            assert_figures(found.figures, expected.figures)


def arrangements(array: Array) -> list[Array]:
    """The same matrix in all the ways in which it may lie in memory."""
    rows, columns = array.shape
    around = np.full((rows + 4, columns + 64), 77, array.dtype)
    around[2:-2, 32:-32] = array
    stack = np.full((3, columns, rows), 77, array.dtype)
    stack[1] = array.T
    every_other = np.full((2 * rows, 2 * columns), 77, array.dtype)
    every_other[::2, ::2] = array
    return [
        np.asfortranarray(array),
        around[2:-2, 32:-32],
        np.asfortranarray(around)[2:-2, 32:-32],
        stack[1].T,
        every_other[::2, ::2],
        np.asfortranarray(every_other)[::2, ::2],
        np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
    ]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(0, 64), (0, 0), (5, 0)])
def test_nothing_is_quantised_to_nothing(shape: tuple[int, int], dtype: type) -> None:
    found = quantise(np.empty(shape, dtype))
    assert found.codes.shape == (shape[0], shape[1] // 2)
    assert found.scales.shape == (shape[0], shape[1] // 32)
    assert found.figures.blocks == 0
    assert found.figures.relative_error == 0
    assert found.figures.signal_to_noise is None


def test_input_is_not_changed() -> None:
    values, named = gaussian(40, 3), np.full((40, 3), 120, np.uint8)
    bits = truncated(values)
    copies = [array.copy() for array in (values, bits, named)]
    for array in (values, bits, np.asfortranarray(values), np.asfortranarray(bits)):
        quantise(array, named=named)
    for array, copy in zip((values, bits, named), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@given(matrices(), rules)
def test_figures_of_pieces_add_up(values: Floats, rule: ScaleRule) -> None:
    named = names_beside(quantise(values, rule).scales, 0)
    named[::2] = NONE
    whole = quantise(values, rule, named).figures
    pieces = [quantise(values[row : row + 1], rule, named[row : row + 1]).figures for row in range(len(values))]
    assert_figures(sum(pieces, QuantisationFigures()), whole)


def test_the_error_is_that_of_the_decoded_numbers() -> None:
    values = gaussian(300, 4)
    for rule in RULES:
        found = quantise(values, rule)
        error = np.square(decoded(found).astype(np.float64) - values).sum()
        signal = np.square(values.astype(np.float64)).sum()
        assert found.figures.squared_error == pytest.approx(error, rel=1e-12)
        assert found.figures.relative_error == pytest.approx(math.sqrt(error / signal), rel=1e-5)
        assert found.figures.signal_to_noise == pytest.approx(10 * math.log10(signal / error), abs=1e-4)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_smallest_error_is_compared_with_what_each_rule_would_have_made(dtype: type, order: Any) -> None:
    values = gaussian(300, 40)
    array = np.asarray(truncated(values) if dtype == np.uint16 else values, order=order)
    found = quantise(array).figures
    assert found.comparison.values == found.values
    for rule in RULES:
        error = quantise(array, rule).figures.squared_error
        assert found.comparison.squared_error[rule] == pytest.approx(error, rel=1e-12)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule is not ScaleRule.MSE])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_rule_of_the_largest_number_is_compared_in_every_sixteenth_block_of_a_row(
    rule: ScaleRule, dtype: type, order: Any
) -> None:
    """However the rows are divided, it is the same sample, and the figures of the rule itself are of all blocks."""
    values = gaussian(300, 40)
    array = np.asarray(truncated(values) if dtype == np.uint16 else values, order=order)
    picked = np.concatenate([array[:, 32 * block : 32 * block + 32] for block in (0, 16, 32)], axis=1)
    expected = quantise(picked).figures.comparison
    assert_comparison(quantise(array, rule).figures.comparison, expected)
    pieces = [quantise(array[:7], rule).figures, quantise(array[7:], rule).figures]
    assert_comparison((pieces[0] + pieces[1]).comparison, expected)
    assert_comparison(
        quantise(array, rule, np.full((300, 40), NONE, np.uint8)).figures.comparison,
        quantise(array).figures.comparison,
    )


def test_numbers_far_below_the_scale_count_as_changed() -> None:
    """A zero that became 2**-30 while all others are exact: as if a tiny step of training had been added."""
    values = np.ones((1, 32), np.float32)
    values[0, 5] = 2.0**-30
    for array in (values, truncated(values)):
        assert quantise(array).figures.squared_error > 0
        assert decoded(quantise(array))[0, 5] == 0


# --- the search for the smallest error


def best_scales(block: Floats) -> tuple[int, int]:
    """The smallest error of any scale byte, and the smallest byte that has it."""
    whole = [units(float(x)) for x in block]
    return min((error_of(whole, scale), scale) for scale in range(LAST + 1))


@settings(max_examples=25)
@given(st.integers(-20, 20), st.integers(0, 2**32 - 1))
def test_no_scale_is_better_than_that_of_the_smallest_error(exponent: int, seed: int) -> None:
    """Of all 253, for numbers like those of a model."""
    rng = np.random.default_rng(seed)
    values = np.ldexp(rng.choice([rng.standard_normal(32), rng.laplace(size=32)]), exponent).astype(np.float32)
    scale = int(quantise(values[None]).scales[0, 0])
    assert best_scales(values)[1] == scale


@settings(max_examples=40)
@given(matrices())
def test_no_scale_is_better_for_any_numbers(values: Floats) -> None:
    for block, scale in zip(values.reshape(-1, 32), quantise(values).scales.reshape(-1).tolist(), strict=True):
        assert error_of([units(float(x)) for x in block], scale) == best_scales(block)[0]


@settings(max_examples=200)
@given(
    largest=st.floats(4, 4.625, width=32),
    others=st.lists(
        st.tuples(st.sampled_from([0.25, 0.75]), st.floats(-0.0625, 0.0625, width=32)), min_size=31, max_size=31
    ),
    exponent=st.integers(-120, 120),
    narrow=st.booleans(),
)
def test_blocks_that_the_next_smaller_scale_may_suit_better(
    largest: float, others: list[tuple[float, float]], exponent: int, narrow: bool
) -> None:
    """The largest number is barely above 4 units, and all others lie near odd quarters."""
    numbers = np.array([[*(quarter + off for quarter, off in others), largest]])
    block = np.ldexp(numbers, exponent).astype(np.float32)
    values = truncated(block) if narrow else block
    whole = widened(values) if narrow else block
    assert error_of([units(float(x)) for x in whole[0]], quantise(values).scales.item()) == best_scales(whole[0])[0]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_block_that_the_next_smaller_scale_suits_better(dtype: type) -> None:
    values = np.full((1, 32), 0.25, np.float32)
    values[0, 0] = 4
    found = quantise(truncated(values) if dtype == np.uint16 else values)
    assert found.scales.item() == 126
    assert found.figures.squared_error == 1
    assert found.figures.comparison.squared_error[ScaleRule.FLOOR] == 31 / 16
    assert best_scales(values[0]) == (units(1.0) ** 2, 126)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_tie_takes_the_smaller_scale(dtype: type) -> None:
    """7 is one away from both 6 and 8; a half step is as far from 2.5 with either scale."""
    values = np.zeros((1, 32), np.float32)
    values[0, :3] = [7, 2.5, 2.0**-20]
    array = truncated(values) if dtype == np.uint16 else values
    assert quantise(array).scales.item() == 127
    assert quantise(array, named=np.array([[128]], np.uint8)).scales.item() == 128
    array = array.copy()
    array[0, 0] += 1 if dtype == np.uint16 else np.float32(2.0**-20)
    assert quantise(array).scales.item() == 128


@pytest.mark.parametrize("tiny", [2.0**-k for k in (14, 17, 25, 27, 28, 30, 40)])
@pytest.mark.parametrize("place", [0, 15, 31])
def test_numbers_far_below_the_scale_do_not_break_ties(tiny: float, place: int) -> None:
    values = np.full((1, 32), tiny, np.float32)
    values[0, [7, 8, 9]] = [7, 2.5, 5]
    values[0, place] *= 3
    for array in (values, truncated(values)):
        assert quantise(array).scales.item() == 127
        assert quantise(array, ScaleRule.RCEIL, np.array([[127]], np.uint8)).scales.item() == 127


def test_sums_that_float64_rounds_do_not_break_ties() -> None:
    """7.5 costs 2 more with the smaller scale, eight halves cost 2 more with the larger one, the others no more."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 0.25, (2000, 32)).astype(np.float32)
    values[:, 0] = 7.5
    values[:, 1:9] = 0.5
    values = rng.permuted(values, axis=1)
    for name in (NONE, 127, 128):
        found = quantise(values, named=np.full((2000, 1), name, np.uint8))
        assert (found.scales == (128 if name == 128 else 127)).all()
    values[values == 7.5] = np.nextafter(np.float32(7.5), np.float32(8))
    assert (quantise(values).scales == 128).all()


# --- rules and rounding


@pytest.mark.parametrize(
    ("largest", "ulps", "raised"),
    [
        (4, 0, []),
        (4, 1, ["ceil"]),
        (4, 1 << 15, ["ceil"]),
        (6, 0, ["ceil"]),
        (6, 1, ["ceil", "rceil"]),
        (6, 1 << 15, ["ceil", "rceil"]),
        (7, -1, ["ceil", "rceil"]),
        (7, 0, ["ceil", "rceil", "even"]),
        (7, 1, ["ceil", "rceil", "even", "mse"]),
        (8, -1, ["ceil", "rceil", "even", "mse"]),
        (8, 0, RULES),
    ],
)
def test_the_scale_follows_from_the_largest_number(largest: float, ulps: int, raised: list[str]) -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, 9] = beside(largest, 0, ulps, -1)
    found = {rule: quantise(values, rule).scales.item() for rule in RULES}
    assert found == {rule: 128 if rule in raised else 127 for rule in RULES}


@pytest.mark.parametrize("scale", [0, 1, 100, 127, 251, 252])
def test_elements_round_to_the_nearest_code_and_ties_to_even(scale: int) -> None:
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    middle = (magnitudes[1:] + magnitudes[:-1]) / 2
    values = np.zeros((1, 32), np.float32)
    values[0, :8], values[0, 8:15], values[0, 15] = magnitudes, middle, 6
    values[0, 16:] = -values[0, :16]
    scaled = np.ldexp(values, scale - 127)
    found = quantise(scaled, ScaleRule.FLOOR)
    assert found.scales.item() == scale
    codes = np.stack([found.codes & 15, found.codes >> 4], axis=-1).reshape(-1)
    assert codes[:8].tolist() == list(range(8))
    assert codes[8:15].tolist() == [0, 2, 2, 4, 4, 6, 6]
    np.testing.assert_array_equal(codes[16:], codes[:16] | 8)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bit", range(16))
def test_every_bit_of_float32_counts(rule: ScaleRule, bit: int) -> None:
    """Each half way between two codes, and each largest number at which a rule changes, just above it."""
    values = np.full((5, 32), 0.5, np.float32)
    values[:, :7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5]
    values[1:, 8] = [4, 6, 7, 7.5]
    values.view(np.uint32)[:, :9] += np.uint32(1 << bit)
    assert_as_reference(values, rule)


def test_zeros_and_what_becomes_zero_keep_their_sign() -> None:
    values = np.tile(np.array([4, -0.0, 0.0, -0.2, 0.2, -1e-30, -4, 1e-30], np.float32), (1, 4))
    for array in (values, truncated(values)):
        codes = quantise(array).codes[0, :4].tolist()
        assert codes == [0x86, 0x80, 0x80, 0x0E]


@pytest.mark.parametrize("name", [None, 0, 93, 254, 255])
def test_blocks_of_zeros(name: int | None) -> None:
    values = np.zeros((2, 64), np.float32)
    values[0, 3] = -0.0
    named = None if name is None else np.full((2, 2), name, np.uint8)
    for array in (values, truncated(values)):
        found = quantise(array, named=named)
        assert (found.scales == (0 if name in (None, 255) else name)).all()
        assert np.flatnonzero(found.codes).tolist() == [1]
        assert found.codes[0, 1] == 0x80
        assert found.figures.kept_blocks == (0 if name in (None, 255) else 4)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -math.nan])
@pytest.mark.parametrize("place", [(0, 0), (1030, 95), (1024, 40)])
def test_numbers_that_are_not_finite_are_refused(number: float, place: tuple[int, int]) -> None:
    values = gaussian(1031, 3)
    values[place] = number
    for array in (values, truncated(values), np.asfortranarray(values)):
        with pytest.raises(EncodingError, match="not finite"):
            quantise(array)


def test_a_signalling_nan_whose_upper_half_is_infinity_is_refused() -> None:
    values = np.ones((1, 32), np.float32)
    values.view(np.uint32)[0, 3] = 0x7F80_0001
    with pytest.raises(EncodingError, match="not finite"):
        quantise(values)


# --- the ends of the range


@pytest.mark.parametrize("rule", RULES)
def test_the_largest_numbers_are_cut_off(rule: ScaleRule) -> None:
    """6 * 2**125 is the largest value that MXFP4 has in float32."""
    values = np.full((1, 32), LARGEST, np.float32)
    for array in (values, truncated(values)):
        found = assert_as_reference(array, rule)
        assert (found.codes == 0x77).all()
        assert found.scales.item() == LAST
        assert found.figures.clipped_values == 32


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("exponent", [-149, -148, -140, -133, -130, -129, -128, -127, -126, -125, -124])
def test_the_smallest_numbers(rule: ScaleRule, exponent: int) -> None:
    values = np.ldexp(np.array(BOUNDARIES + [-x for x in BOUNDARIES[:15]]), exponent).astype(np.float32)
    assert_as_reference(values[None], rule)
    assert_as_reference(truncated(values)[None], rule)


@pytest.mark.parametrize("exponent", [-120, -100, -75, -60, -41, -39, 0, 39, 41, 60, 75, 100, 120])
def test_squares_that_leave_the_range_of_float32(exponent: int) -> None:
    values = np.ldexp(np.clip(gaussian(5, 2), -60, 60), exponent).astype(np.float32)
    for rule in RULES:
        assert_as_reference(values, rule)
        assert_as_reference(truncated(values), rule)


def test_blocks_of_all_sizes_side_by_side() -> None:
    values = np.ldexp(np.random.default_rng(4).standard_normal((260, 32)), np.arange(-145, 115)[:, None])
    found = values.astype(np.float32).reshape(-1, 64)
    assert_as_reference(found, ScaleRule.MSE)
    assert_as_reference(truncated(found), ScaleRule.MSE)


# --- what came from MXFP4


@given(matrices(), st.sampled_from([ScaleRule.MSE, ScaleRule.EVEN, ScaleRule.FLOOR]), st.booleans())
def test_blocks_are_made_canonical(values: Floats, rule: ScaleRule, narrow: bool) -> None:
    found = quantise(truncated(values) if narrow else values, rule)
    assert noncanonical_scales(found.codes, found.scales) is None


@pytest.mark.parametrize("rule", [ScaleRule.RCEIL, ScaleRule.CEIL])
def test_rules_that_round_up_make_others(rule: ScaleRule) -> None:
    found = quantise(np.full((1, 32), 6.5, np.float32), rule)
    assert noncanonical_scales(found.codes, found.scales) == 128


def every_block() -> Chunk:
    """For each scale byte from 0 to 252 a block of each largest code, with all codes up to it and of both signs."""
    rng = np.random.default_rng(0)
    magnitudes = np.concatenate([rng.integers(0, largest + 1, (1, 32)) for largest in range(8)])
    magnitudes[:, :8] = np.minimum(np.arange(8), np.arange(8)[:, None])
    codes = magnitudes | rng.integers(0, 2, (8, 32)) << 3
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
    return np.tile(packed, (LAST + 1, 1)), np.repeat(np.arange(LAST + 1, dtype=np.uint8), 8)[:, None]


def chunk_of(seed: int, rows: int = 200, blocks: int = 3) -> Chunk:
    """Random codes, many of them small, and scales over the whole range."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (rows, 16 * blocks)).astype(np.uint8)
    codes[::3] &= rng.choice([0x88, 0x99, 0xBB, 0xDD, 0x80], (len(codes[::3]), 1)).astype(np.uint8)
    return codes, rng.integers(0, LAST + 1, (rows, blocks)).astype(np.uint8)


chunks = st.integers(0, 2**32 - 1).map(chunk_of) | st.builds(every_block)


def both_ways(chunk: Chunk) -> list[Array]:
    values = MXFP4.decode(chunk)
    return [values, truncated(values), np.asfortranarray(truncated(values))]


@settings(max_examples=15)
@given(chunks, st.sampled_from(VALUE_KEEPING))
def test_values_that_came_from_mxfp4_return_and_canonical_blocks_as_the_same_bytes(
    chunk: Chunk, rule: ScaleRule
) -> None:
    for array in both_ways(chunk):
        found = quantise(array, rule)
        np.testing.assert_array_equal(decoded(found).view(np.uint32), MXFP4.decode(chunk).view(np.uint32))
        assert found.figures.squared_error == 0
        expected = canonical_blocks(*chunk)
        np.testing.assert_array_equal(found.codes, expected[0])
        np.testing.assert_array_equal(found.scales, expected[1])


@settings(max_examples=15)
@given(chunks, rules)
def test_with_the_scales_of_the_source_every_byte_returns(chunk: Chunk, rule: ScaleRule) -> None:
    for array in both_ways(chunk):
        found = quantise(array, rule, chunk[1])
        np.testing.assert_array_equal(found.codes, chunk[0])
        np.testing.assert_array_equal(found.scales, chunk[1])
        assert found.figures.kept_blocks == chunk[1].size
        assert found.figures.squared_error == 0


@settings(max_examples=15)
@given(chunks, st.sampled_from(VALUE_KEEPING))
def test_the_scales_of_blocks_that_are_not_canonical_are_enough(chunk: Chunk, rule: ScaleRule) -> None:
    for array in both_ways(chunk):
        found = quantise(array, rule, noncanonical_scales(*chunk))
        np.testing.assert_array_equal(found.codes, chunk[0])
        np.testing.assert_array_equal(found.scales, chunk[1])


@pytest.mark.parametrize(("scale", "largest"), [(253, 5), (254, 3)])
def test_scales_beyond_the_last_return_where_their_codes_are_finite(scale: int, largest: int) -> None:
    codes = np.random.default_rng(0).integers(0, largest + 1, (50, 32))
    codes[:, 0] = largest
    chunk = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8), np.full((50, 1), scale, np.uint8)
    for array in both_ways(chunk):
        found = quantise(array, named=chunk[1])
        np.testing.assert_array_equal(found.codes, chunk[0])
        np.testing.assert_array_equal(found.scales, chunk[1])
        alone = quantise(array)
        assert (alone.scales <= LAST).all()
        np.testing.assert_array_equal(decoded(alone), MXFP4.decode(chunk))


@pytest.mark.parametrize("scale", [253, 254])
def test_named_scales_are_not_kept_where_a_code_would_be_infinite(scale: int) -> None:
    values = np.full((1, 32), LARGEST, np.float32)
    found = quantise(values, named=np.array([[scale]], np.uint8))
    assert found.scales.item() == LAST
    assert found.figures.kept_blocks == 0


@pytest.mark.parametrize("rule", [ScaleRule.MSE, ScaleRule.FLOOR])
def test_a_named_scale_that_would_add_an_error_is_not_kept(rule: ScaleRule) -> None:
    values = np.tile(np.array([6, 0.5, 1.5, -3], np.float32), (1, 8))
    for name in [*range(127), *range(128, 256)]:
        assert quantise(values, rule, np.array([[name]], np.uint8)).scales.item() == 127
