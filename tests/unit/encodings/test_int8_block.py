"""Int8 blocks: MXFP4 fits exactly, other numbers to 45 dB."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gptoss_convert.encodings import ENCODINGS, Chunk, EncodingError, convert
from gptoss_convert.encodings.int8_block import minus_zeros, mxfp4_scales

INT8, MXFP4 = ENCODINGS["int8-block"], ENCODINGS["mxfp4"]

Floats = NDArray[np.float32]


@st.composite
def mxfp4_chunks(draw: st.DrawFn) -> Chunk:
    codes = draw(hnp.arrays(np.uint8, (3, 32)))
    return codes, draw(hnp.arrays(np.uint8, (3, 2), elements=st.integers(0, 252)))


def exact_value(code: int, scale: int) -> float:
    magnitude = [0, 0.5, 1, 1.5, 2, 3, 4, 6][code & 7]
    return math.copysign(math.ldexp(magnitude, scale - 127), -1 if code & 8 else 1)


def test_value_is_byte_less_128_times_scale() -> None:
    values = np.full((1, 64), 128, np.uint8)
    values[0, [0, 1, 32]] = [131, 0, 255]
    found = INT8.decode((values, np.array([[0.5, -2.0]], np.float32)))
    assert found[0, [0, 1, 2, 32]].tolist() == [1.5, -64.0, 0.0, -254.0]


@pytest.mark.parametrize("scale", [0, 1, 103, 104, 127, 252])
def test_every_code_of_mxfp4_becomes_twice_its_value_and_half_its_scale(scale: int) -> None:
    """As operator QMoE computes: `(byte - 128) * scale`, in numbers of Python."""
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    values, scales = convert((codes, np.full((16, 1), scale, np.uint8)), MXFP4, INT8)
    assert set(scales.reshape(-1).tolist()) == {math.ldexp(1, scale - 128)}
    for row in range(16):
        for place, byte in enumerate(codes[row].tolist()):
            for half, code in enumerate((byte & 15, byte >> 4)):
                integer = int(values[row, 2 * place + half]) - 128
                assert integer * float(scales[row, 0]) == exact_value(code, scale)


@given(mxfp4_chunks())
def test_mxfp4_keeps_every_value(chunk: Chunk) -> None:
    converted = convert(chunk, MXFP4, INT8)
    INT8.check(converted)
    np.testing.assert_array_equal(INT8.decode(converted), MXFP4.decode(chunk))


@given(mxfp4_chunks())
def test_numbers_that_came_from_mxfp4_are_kept_whatever_way_they_took(chunk: Chunk) -> None:
    values = MXFP4.decode(chunk)
    encoded = INT8.encode(values)
    INT8.check(encoded)
    np.testing.assert_array_equal(INT8.decode(encoded), values)


@given(mxfp4_chunks())
def test_minus_zeros_are_counted(chunk: Chunk) -> None:
    values = MXFP4.decode(chunk)
    assert minus_zeros(chunk[0]) == int(np.count_nonzero(np.signbit(values) & (values == 0)))


@pytest.mark.parametrize("scale", [253, 254])
def test_codes_beyond_float32_are_refused(scale: int) -> None:
    small, large = np.full((1, 16), 0x11, np.uint8), np.full((1, 16), 0x77, np.uint8)
    scales = np.full((1, 1), scale, np.uint8)
    np.testing.assert_array_equal(INT8.decode(convert((small, scales), MXFP4, INT8)), MXFP4.decode((small, scales)))
    with pytest.raises(EncodingError, match="beyond the largest float32"):
        convert((large, scales), MXFP4, INT8)


def test_scale_that_is_nan_is_refused() -> None:
    with pytest.raises(EncodingError, match="255"):
        convert((np.zeros((1, 16), np.uint8), np.full((1, 1), 255, np.uint8)), MXFP4, INT8)


@given(hnp.arrays(np.float32, (2, 64), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
@example(np.full((2, 64), 55 * 2.0**-149, np.float32))
def test_error_is_at_most_half_a_step_and_the_rounding_of_the_scale(values: Floats) -> None:
    encoded = INT8.encode(values)
    INT8.check(encoded)
    error = np.abs(INT8.decode(encoded).astype(np.float64) - values).reshape(2, 2, 32)
    largest = np.abs(values).reshape(2, 2, 32).max(axis=-1).astype(np.float64)
    bound = largest / 127 * 0.5 + largest * 2.0**-15 + 127 * 2.0**-141
    assert (error <= bound[..., None]).all()


def test_decoding_is_exact() -> None:
    """A scale of 16 bits times an integer of 8 bits needs no rounding."""
    rng = np.random.default_rng(1)
    values, scales = INT8.encode(rng.standard_normal((20, 320), np.float32))
    exact = (values.astype(np.float64) - 128) * np.repeat(scales.astype(np.float64), 32, axis=1)
    np.testing.assert_array_equal(INT8.decode((values, scales)).astype(np.float64), exact)


@pytest.mark.parametrize(
    ("bits", "message"), [(0x7F80_0000, "not finite"), (0x7FC0_0000, "not finite"), (0x3F80_0001, "16 significant")]
)
def test_scales_that_round_products_are_refused(bits: int, message: str) -> None:
    scales = np.array([[bits]], np.uint32).view(np.float32)
    with pytest.raises(EncodingError, match=message):
        INT8.check((np.full((1, 32), 128, np.uint8), scales))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_without_a_finite_scale_are_refused(value: float) -> None:
    values = np.ones((1, 32), np.float32)
    values[0, 5] = value
    with pytest.raises(EncodingError, match="not finite, or too close"):
        INT8.encode(values)


def test_no_rows_are_no_rows() -> None:
    empty = convert((np.empty((0, 32), np.uint8), np.empty((0, 2), np.uint8)), MXFP4, INT8)
    assert [part.shape for part in empty] == [(0, 64), (0, 2)]
    assert INT8.decode(empty).shape == (0, 64)


# --- the way back


@given(mxfp4_chunks())
def test_blocks_that_came_from_mxfp4_get_their_codes_and_scales_back(chunk: Chunk) -> None:
    codes, scales = convert(convert(chunk, MXFP4, INT8), INT8, MXFP4)
    np.testing.assert_array_equal(scales, chunk[1])
    expected = chunk[0].copy()
    expected[expected & 0x0F == 0x08] &= 0xF0
    expected[expected & 0xF0 == 0x80] &= 0x0F
    np.testing.assert_array_equal(codes, expected)


def test_other_blocks_are_quantised_as_their_numbers_are() -> None:
    chunk = INT8.encode(np.random.default_rng(3).standard_normal((100, 64), np.float32))
    for found, expected in zip(convert(chunk, INT8, MXFP4), MXFP4.encode(INT8.decode(chunk)), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("scale", "byte"),
    [(2.0**-128, 0), (2.0**-1, 127), (2.0**124, 252), (2.0**125, 255), (2.0**-129, 255), (0.75, 255), (0.0, 255)],
)
def test_scale_bytes_are_those_of_powers_of_two(scale: float, byte: int) -> None:
    assert mxfp4_scales(np.array([[scale]], np.float32)).tolist() == [[byte]]
