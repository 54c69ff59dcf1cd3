"""Int4 blocks: what onnxruntime's quantiser makes of the same numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gptoss_convert.encodings import ENCODINGS, EncodingError

INT4 = ENCODINGS["int4-block"]

Floats = NDArray[np.float32]


def test_value_is_nibble_less_8_times_scale_low_nibble_first() -> None:
    codes = np.full((1, 16), 0x88, np.uint8)
    codes[0, 0] = 0xF1
    assert INT4.decode((codes, np.array([[-0.5]], np.float32)))[0, :4].tolist() == [3.5, -3.5, 0.0, 0.0]


def test_zeros_have_no_sign() -> None:
    assert not np.signbit(INT4.decode((np.full((1, 16), 0x88, np.uint8), np.array([[-0.5]], np.float32)))).any()


@pytest.mark.parametrize("deviation", [1e-6, 0.02, 1.0, 1e5])
def test_codes_are_those_of_onnxruntime(deviation: float) -> None:
    """Its scales differ in the last of our 16 bits, and codes where a number lies between two of its steps."""
    from onnxruntime.quantization.matmul_nbits_quantizer import quantize_matmul_4bits

    values = np.random.default_rng(2).standard_normal((64, 256), np.float32) * np.float32(deviation)
    codes, scales = INT4.encode(values)
    theirs, their_scales = np.zeros((64, 8, 16), np.uint8), np.zeros(64 * 8, np.float32)
    quantize_matmul_4bits(
        theirs, np.ascontiguousarray(values.T), their_scales, np.zeros(64 * 4, np.uint8), 32, 64, 256, True
    )
    np.testing.assert_allclose(scales.reshape(-1), their_scales, rtol=2.0**-16)
    assert np.count_nonzero(codes.reshape(theirs.shape) != theirs) < 0.001 * theirs.size


@given(hnp.arrays(np.float32, (2, 64), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_error_is_half_a_step_or_one_where_no_code_is_left(values: Floats) -> None:
    encoded = INT4.encode(values)
    INT4.check(encoded)
    error = np.abs(INT4.decode(encoded).astype(np.float64) - values).reshape(2, 2, 32)
    largest = np.abs(values).reshape(2, 2, 32).max(axis=-1).astype(np.float64)
    assert (error <= (largest / 8 * 1.001 + 8 * 2.0**-141)[..., None]).all()


def test_number_of_largest_magnitude_is_kept() -> None:
    for sign in (1, -1):
        values = np.zeros((1, 32), np.float32)
        values[0, :3] = [1.0, sign * 12.0, -4.5]
        found = INT4.decode(INT4.encode(values))
        assert found[0, :4].tolist() == [1.5, sign * 12.0, -4.5, 0.0]


def test_worst_distribution_keeps_the_promised_signal() -> None:
    values = np.full((1, 32), 0.4999, np.float32)
    values[0, 0] = 8
    noise = np.square(INT4.decode(INT4.encode(values)) - values).sum()
    decibels = 10 * math.log10(np.square(values).sum() / noise)
    assert INT4.least_signal_to_noise < decibels < INT4.least_signal_to_noise + 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_without_a_finite_scale_are_refused(value: float) -> None:
    values = np.ones((1, 32), np.float32)
    values[0, 5] = value
    with pytest.raises(EncodingError, match="not finite, or too close"):
        INT4.encode(values)


def test_no_rows_are_no_rows() -> None:
    encoded = INT4.encode(np.empty((0, 64), np.float32))
    assert [part.shape for part in encoded] == [(0, 32), (0, 2)]
    assert INT4.decode(encoded).shape == (0, 64)
