"""bfloat16 to float16: the bits of numpy, and what was rounded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gptoss_convert.encodings import ENCODINGS, EncodingError
from gptoss_convert.encodings.bf16_to_f16 import bf16_to_f16
from gptoss_convert.encodings.deviation import deviation

BF16, F16 = ENCODINGS["bf16"], ENCODINGS["f16"]


def in_range(bits: NDArray[np.uint16]) -> NDArray[np.uint16]:
    magnitudes = bits & 0x7FFF
    return bits[(magnitudes <= 0x477F) | (magnitudes >= 0x7F80)]


def test_every_number_in_range_becomes_what_numpy_makes_of_it() -> None:
    bits = in_range(np.arange(1 << 16, dtype=np.uint16))
    with np.errstate(invalid="ignore"):
        expected = BF16.decode((bits,)).astype(np.float16)
    for few in (bits[None], np.repeat(bits, 3)[None], np.random.default_rng(0).permutation(bits)[None]):
        found = bf16_to_f16(few).halves
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(
                found.view(np.uint16), BF16.decode((few,)).astype(np.float16).view(np.uint16)
            )
    np.testing.assert_array_equal(bf16_to_f16(bits[None]).halves[0].view(np.uint16), expected.view(np.uint16))


@given(hnp.arrays(np.uint16, st.tuples(st.integers(1, 3), st.integers(1, 70)), elements=st.integers(0, 0x477F)))
def test_figures_are_those_of_comparing_the_numbers(bits: NDArray[np.uint16]) -> None:
    found = bf16_to_f16(bits)
    values, halves = BF16.decode((bits,)), F16.decode((found.halves,))
    expected = deviation(values, halves)
    assert (found.deviation.values, found.deviation.different) == (expected.values, expected.different)
    assert found.deviation.largest_error == expected.largest_error
    assert found.deviation.squared_error == pytest.approx(expected.squared_error)
    assert found.deviation.squared_signal == pytest.approx(expected.squared_signal, rel=1e-5)
    assert found.figures.values == bits.size
    assert found.figures.subnormal == np.count_nonzero((halves != 0) & (np.abs(halves) < 2.0**-14))
    assert found.figures.vanished == np.count_nonzero((halves == 0) & (values != 0))


@pytest.mark.parametrize("bits", [0x4780, 0xC780, 0x7F7F])
def test_numbers_beyond_the_range_are_refused(bits: int) -> None:
    values = np.full((2, 40_000), 0x3F80, np.uint16)
    values[1, -1] = bits
    with pytest.raises(EncodingError, match=r"exceeds the largest f16 number 65504"):
        bf16_to_f16(values)


def test_largest_numbers_in_range_are_kept() -> None:
    bits = np.array([[0x477F, 0xC77F, 0x3880, 0x0000, 0x8000]], np.uint16)
    found = bf16_to_f16(bits)
    np.testing.assert_array_equal(F16.decode((found.halves,)).view(np.uint32), BF16.decode((bits,)).view(np.uint32))
    assert found.deviation.different == found.figures.subnormal == found.figures.vanished == 0


def test_infinity_and_nan_stay() -> None:
    found = bf16_to_f16(np.array([[0x7F80, 0xFF80, 0x7FC0, 0x3F80]], np.uint16))
    assert found.halves[0].astype(str).tolist() == ["inf", "-inf", "nan", "1.0"]
    assert found.deviation.different == 0
    assert found.deviation.squared_signal == 1
