"""Q8_0: the bytes of ggml."""

import math

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gptoss_convert.encodings import ENCODINGS, Chunk, EncodingError

Q8_0 = ENCODINGS["q8_0"]

Floats = NDArray[np.float32]

LARGEST = 127 * 65504.0
"""The largest code at the largest scale."""


def records(chunk: Chunk) -> NDArray[np.uint8]:
    """The blocks as ggml stores them: scale, then codes."""
    rows = len(chunk[0])
    codes = chunk[0].view(np.uint8).reshape(rows, -1, 32)
    scales = chunk[1].view(np.uint8).reshape(rows, -1, 2)
    return np.concatenate([scales, codes], axis=-1).reshape(rows, -1)


def assert_as_ggml(values: Floats) -> None:
    with np.errstate(all="ignore"):  # gguf-py divides by the scales of blocks of zeros
        expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(records(Q8_0.encode(values)), expected)


@st.composite
def full_range_chunks(draw: st.DrawFn) -> Chunk:
    """Chunks of which every block uses code 127 or -127, as every encoder leaves them."""
    codes = draw(hnp.arrays(np.int8, (2, 64), elements=st.integers(-127, 127))).copy()
    codes[:, ::32] = draw(hnp.arrays(np.int8, (2, 2), elements=st.sampled_from([127, -127])))
    scales = draw(hnp.arrays(np.float16, (2, 2), elements=st.floats(2.0**-24, 65504, width=16)))
    return codes, scales


def test_value_is_code_times_scale() -> None:
    codes = np.zeros((1, 64), np.int8)
    codes[0, [0, 1, 32]] = [3, -128, 127]
    values = Q8_0.decode((codes, np.array([[0.5, -2.0]], np.float16)))
    assert values[0, [0, 1, 2, 32]].tolist() == [1.5, -64.0, 0.0, -254.0]


@given(full_range_chunks())
def test_values_that_came_from_q8_0_return_as_the_same_bytes(chunk: Chunk) -> None:
    codes, scales = Q8_0.encode(Q8_0.decode(chunk))
    np.testing.assert_array_equal(codes, chunk[0])
    np.testing.assert_array_equal(scales, chunk[1])


@pytest.mark.parametrize("deviation", [1e-6, 0.02, 1.0, 1e5])
def test_random_numbers_become_the_bytes_of_ggml(deviation: float) -> None:
    assert_as_ggml(np.random.default_rng(2).standard_normal((100, 256), np.float32) * np.float32(deviation))


@given(hnp.arrays(np.float32, (2, 64), elements=st.floats(-LARGEST, LARGEST, width=32, allow_subnormal=False)))
def test_any_numbers_become_the_bytes_of_ggml(values: Floats) -> None:
    assert_as_ggml(values)


@pytest.mark.parametrize("half", [0.5, 1.5, 2.5, 126.5])
def test_halves_round_away_from_zero(half: float) -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, :3] = [127, half, -half]
    codes, scales = Q8_0.encode(values)
    assert scales.item() == 1
    assert codes[0, :3].tolist() == [127, half + 0.5, -half - 0.5]


@given(hnp.arrays(np.float32, (1, 32), elements=st.floats(-1e6, 1e6, width=32)))
def test_error_is_at_most_half_a_step_and_the_rounding_of_the_scale(values: Floats) -> None:
    step = float(np.abs(values).max()) / 127
    error = np.abs(Q8_0.decode(Q8_0.encode(values)).astype(np.float64) - values).max()
    assert error <= step / 2 + 127 * max(step * 2.0**-11, 2.0**-25) + step * 1e-5


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-40, -1e-9])
def test_numbers_too_small_for_the_scale_become_zero(value: float) -> None:
    values = Q8_0.decode(Q8_0.encode(np.full((1, 32), value, np.float32)))
    assert not values.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 128 * 65504.0, -1e38])
def test_numbers_without_a_finite_scale_are_refused(value: float) -> None:
    values = np.ones((1, 32), np.float32)
    values[0, 5] = value
    with pytest.raises(EncodingError, match="not finite, or exceeds"):
        Q8_0.encode(values)


def test_largest_number_is_kept() -> None:
    values = np.full((1, 32), -LARGEST, np.float32)
    np.testing.assert_array_equal(Q8_0.decode(Q8_0.encode(values)), values)


def test_no_rows_are_encoded_as_no_rows() -> None:
    codes, scales = Q8_0.encode(np.empty((0, 64), np.float32))
    assert (codes.shape, scales.shape) == ((0, 64), (0, 2))


def test_no_rows_are_decoded_as_no_rows() -> None:
    assert Q8_0.decode((np.empty((0, 64), np.int8), np.empty((0, 2), np.float16))).shape == (0, 64)
