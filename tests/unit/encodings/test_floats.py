"""F32, F16 and BF16."""

import math

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gptoss_convert.encodings import ENCODINGS, Encoding, EncodingError

F32, F16, BF16 = (ENCODINGS[name] for name in ("f32", "f16", "bf16"))
EVERY_HALF = np.arange(1 << 16, dtype=np.uint16).reshape(1, -1)

LARGEST_BF16 = float.fromhex("0x1.fep127")
FIRST_THAT_ROUNDS_BEYOND_BF16 = float.fromhex("0x1.ffp127")

any_bits = hnp.arrays(np.uint32, (3, 5))


def row(*values: float) -> NDArray[np.float32]:
    return np.array([values], np.float32)


@given(any_bits)
def test_f32_keeps_every_bit(bits: NDArray[np.uint32]) -> None:
    values = bits.view(np.float32)
    (stored,) = F32.encode(values)
    np.testing.assert_array_equal(F32.decode((stored,)).view(np.uint32), bits)


def test_f16_numbers_are_widened_as_numpy_does() -> None:
    values = F16.decode((EVERY_HALF.view(np.float16),))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, EVERY_HALF.view(np.float16))


def test_f16_keeps_every_number() -> None:
    halves = EVERY_HALF.view(np.float16)
    numbers = halves[~np.isnan(halves)].reshape(1, -1)
    (stored,) = F16.encode(F16.decode((numbers,)))
    np.testing.assert_array_equal(stored.view(np.uint16), numbers.view(np.uint16))


def test_bf16_is_the_upper_half_of_f32() -> None:
    values = BF16.decode((EVERY_HALF,))
    np.testing.assert_array_equal(values.view(np.uint32), EVERY_HALF.astype(np.uint32) << 16)


def test_bf16_keeps_every_number() -> None:
    values = BF16.decode((EVERY_HALF,))
    numbers = EVERY_HALF[~np.isnan(values)].reshape(1, -1)
    (stored,) = BF16.encode(BF16.decode((numbers,)))
    np.testing.assert_array_equal(stored, numbers)


@pytest.mark.parametrize("encoding", [F16, BF16])
def test_nan_stays_nan(encoding: Encoding) -> None:
    payloads = np.array([[0x7FC00000, 0xFFC00001, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF]], np.uint32)
    assert np.isnan(encoding.decode(encoding.encode(payloads.view(np.float32)))).all()


@pytest.mark.parametrize("encoding", [F16, BF16])
def test_infinity_stays_infinite(encoding: Encoding) -> None:
    values = row(math.inf, -math.inf)
    np.testing.assert_array_equal(encoding.decode(encoding.encode(values)), values)


@given(any_bits)
def test_bf16_rounds_as_ggml_does(bits: NDArray[np.uint32]) -> None:
    values = bits.view(np.float32)
    values[np.abs(values) >= FIRST_THAT_ROUNDS_BEYOND_BF16] = 0
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
    (stored,) = BF16.encode(values)
    np.testing.assert_array_equal(stored.view(np.uint8), expected)


@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(-65504, 65504, width=32)))
def test_f16_rounds_as_ggml_does(values: NDArray[np.float32]) -> None:
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.F16)
    (stored,) = F16.encode(values)
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [("0x1.01p0", "0x1p0"), ("0x1.03p0", "0x1.04p0"), ("0x1.011p0", "0x1.02p0"), ("-0x1.01p0", "-0x1p0")],
)
def test_bf16_rounds_ties_to_even(value: str, rounded: str) -> None:
    assert BF16.decode(BF16.encode(row(float.fromhex(value)))).item() == float.fromhex(rounded)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("encoding", "too_large", "largest"),
    [(F16, 65520.0, 65504.0), (BF16, FIRST_THAT_ROUNDS_BEYOND_BF16, LARGEST_BF16)],
)
def test_numbers_less_than_half_a_step_beyond_the_largest_are_rounded_to_it(
    encoding: Encoding, too_large: float, largest: float, sign: int
) -> None:
    values = row(np.nextafter(np.float32(too_large), np.float32(0)))
    assert encoding.decode(encoding.encode(sign * values)).item() == sign * largest


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("encoding", "value"),
    [(F16, 65520.0), (F16, 1e30), (BF16, FIRST_THAT_ROUNDS_BEYOND_BF16), (BF16, float(np.finfo(np.float32).max))],
)
def test_numbers_that_would_become_infinite_are_refused(encoding: Encoding, value: float, sign: int) -> None:
    with pytest.raises(EncodingError, match="exceeds the largest"):
        encoding.encode(row(1.0, math.inf, sign * value))


def test_the_smallest_number_that_would_become_infinite_is_refused_among_others() -> None:
    values = np.ones((1, 100_000), np.float32)
    values[0, 99_000] = FIRST_THAT_ROUNDS_BEYOND_BF16
    with pytest.raises(EncodingError, match="exceeds the largest"):
        BF16.encode(values)


def test_bf16_rounds_every_number_of_a_large_array() -> None:
    values = np.random.default_rng(0).standard_normal((70, 1001)).astype(np.float32)
    values[[0, 33, 69], [0, 7, 1000]] = np.nan, np.inf, -np.inf
    (stored,) = BF16.encode(values)
    assert np.isnan(BF16.decode((stored[:1, :1],))).all()
    expected = gguf.quants.quantize(values.reshape(-1)[1:], gguf.GGMLQuantizationType.BF16)
    np.testing.assert_array_equal(stored.reshape(-1)[1:].view(np.uint8), expected)


@pytest.mark.parametrize("encoding", [F32, F16, BF16])
def test_no_rows_are_encoded_as_no_rows(encoding: Encoding) -> None:
    (stored,) = encoding.encode(np.empty((0, 7), np.float32))
    assert stored.shape == (0, 7)
