"""How far numbers lie from others: figures that add up, also for numbers that are not finite."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_convert.encodings import Float32
from gptoss_convert.encodings.deviation import (
    LARGEST_DECIBELS,
    LARGEST_ERROR,
    Deviation,
    deviation,
    squared_sum,
)

numbers = hnp.arrays(
    np.float32, (4, 5), elements=st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, math.inf, math.nan])
)
finite = hnp.arrays(np.float32, (4, 5), elements=st.floats(-1e6, 1e6, width=32))


def array(*values: float) -> Float32:
    return np.array([values], np.float32)


@given(finite, finite)
def test_figures_are_those_of_the_definition(expected: Float32, found: Float32) -> None:
    error = [float(a) - float(b) for a, b in zip(expected.flat, found.flat, strict=True)]
    result = deviation(expected, found)
    assert result.values == 20
    assert result.different == sum(each != 0 for each in error)
    assert result.largest_error == max(map(abs, error))
    assert result.squared_error == pytest.approx(math.fsum(each**2 for each in error), rel=1e-12)
    assert result.squared_signal == pytest.approx(math.fsum(float(each) ** 2 for each in expected.flat), rel=1e-12)


@given(numbers, numbers, st.integers(0, 4))
def test_figures_of_pieces_add_up(expected: Float32, found: Float32, cut: int) -> None:
    whole = deviation(expected, found)
    parts = deviation(expected[:cut], found[:cut]) + deviation(expected[cut:], found[cut:])
    assert (parts.values, parts.different, parts.largest_error) == (
        whole.values, whole.different, whole.largest_error,
    )  # fmt: skip
    assert parts.squared_error == pytest.approx(whole.squared_error, rel=1e-12)
    assert parts.squared_signal == pytest.approx(whole.squared_signal, rel=1e-12)


@given(numbers)
def test_numbers_do_not_deviate_from_themselves(values: Float32) -> None:
    result = deviation(values, values.copy())
    assert (result.different, result.largest_error, result.squared_error) == (0, 0, 0)
    assert result.signal_to_noise is None
    assert result.relative_error == 0


def test_zeros_of_different_sign_are_equal() -> None:
    assert deviation(array(0.0, -0.0), array(-0.0, 0.0)).different == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("expected", "found"),
    [(1, math.inf), (1, math.nan), (math.inf, 1), (math.nan, 0), (math.inf, -math.inf), (math.inf, math.nan)],
)
def test_numbers_that_are_not_finite_are_the_largest_error(expected: float, found: float) -> None:
    result = deviation(array(2, expected), array(2, found))
    assert result.different == 1
    assert result.largest_error == LARGEST_ERROR
    assert math.isfinite(result.squared_error)
    largest = float(np.finfo(np.float32).max)
    assert deviation(array(largest), array(-largest)).largest_error < LARGEST_ERROR


@pytest.mark.filterwarnings("error")
def test_smallest_difference_counts() -> None:
    result = deviation(array(0.0), array(2.0**-149))
    assert (result.different, result.largest_error) == (1, 2.0**-149)
    assert result.squared_error > 0


def test_ratio_in_decibels() -> None:
    result = deviation(array(10, 10), array(11, 9))
    assert result.signal_to_noise == pytest.approx(20)
    assert result.relative_error == pytest.approx(0.1)


def test_noise_where_zeros_should_be_has_no_ratio() -> None:
    result = deviation(array(0, 0), array(1, 0))
    assert result.signal_to_noise == -LARGEST_DECIBELS
    assert result.relative_error == LARGEST_ERROR


def test_nothing_deviates_from_nothing() -> None:
    assert deviation(np.empty((0, 32), np.float32), np.empty((0, 32), np.float32)) == Deviation()
    assert Deviation().signal_to_noise is None


@pytest.mark.filterwarnings("error")
@given(numbers)
def test_squares_of_finite_numbers_are_summed(values: Float32) -> None:
    expected = math.fsum(float(value) ** 2 for value in values.flat if math.isfinite(value))
    assert squared_sum(values) == pytest.approx(expected, rel=1e-12)
