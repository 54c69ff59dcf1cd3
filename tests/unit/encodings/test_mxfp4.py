"""MXFP4: every code at every scale, and the choice of scales."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gptoss_convert.encodings import ENCODINGS, Chunk, EncodingError

MXFP4 = ENCODINGS["mxfp4"]

# Positive codes 0 to 7, from the table of E2M1 in the OCP specification.
MAGNITUDES = [Fraction(0), Fraction(1, 2), Fraction(1), Fraction(3, 2), *map(Fraction, (2, 3, 4, 6))]
LARGEST_SAFE = 6 * 2.0**125

Floats = NDArray[np.float32]


def exact(code: int, scale: int) -> Fraction:
    """The value of a code by the definition."""
    sign = -1 if code & 8 else 1
    return sign * MAGNITUDES[code & 7] * Fraction(2) ** (scale - 127)


def packed(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes [rows, columns], two to a byte, the first one in the low nibble."""
    return codes[:, 0::2] | codes[:, 1::2] << np.uint8(4)


def one_block(codes: list[int], scale: int) -> Chunk:
    """A chunk of one block; codes that are not given are 0."""
    row = np.zeros((1, 32), np.uint8)
    row[0, : len(codes)] = codes
    return packed(row), np.array([[scale]], np.uint8)


def one_row(values: list[float]) -> Floats:
    """A row of one block; values that are not given are 0."""
    row = np.zeros((1, 32), np.float32)
    row[0, : len(values)] = values
    return row


def codes_of(chunk: Chunk) -> list[int]:
    """The codes of a chunk in order."""
    return [code for byte in chunk[0].reshape(-1).tolist() for code in (byte & 15, byte >> 4)]


def assert_same_bits(found: Floats, expected: Floats) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def chunks(*, scales: st.SearchStrategy[int]) -> st.SearchStrategy[Chunk]:
    """Two rows of three blocks with any codes."""
    return st.tuples(hnp.arrays(np.uint8, (2, 48)), hnp.arrays(np.uint8, (2, 3), elements=scales))


@st.composite
def canonical_chunks(draw: st.DrawFn) -> Chunk:
    """Chunks of which every block has the smallest scale for its values: one value is 4 or 6, or the scale is 0."""
    codes, scales = draw(chunks(scales=st.integers(0, 252)))
    largest = draw(hnp.arrays(np.uint8, scales.shape, elements=st.sampled_from([6, 7, 14, 15])))
    codes = codes.reshape(2, 3, 16).copy()
    codes[..., 0] = np.where(scales > 0, codes[..., 0] & 0xF0 | largest, codes[..., 0])
    return codes.reshape(2, 48), scales


def test_every_code_at_every_scale_has_the_value_of_the_definition() -> None:
    codes = np.tile(np.arange(32, dtype=np.uint8) % 16, (253, 1))
    values = MXFP4.decode((packed(codes), np.arange(253, dtype=np.uint8)[:, None]))
    for scale, row in enumerate(values.tolist()):
        assert [Fraction(value) for value in row[:16]] == [exact(code, scale) for code in range(16)]


@pytest.mark.parametrize("scale", [0, 1, 127, 252, 254])
def test_zero_keeps_its_sign(scale: int) -> None:
    values = MXFP4.decode(one_block([0, 8], scale))[0, :2]
    assert np.signbit(values).tolist() == [False, True]


def test_first_element_of_a_byte_is_its_low_nibble() -> None:
    chunk = np.full((1, 16), 0x21, np.uint8), np.full((1, 1), 127, np.uint8)
    assert MXFP4.decode(chunk)[0, :4].tolist() == [0.5, 1.0, 0.5, 1.0]


def test_each_block_has_its_own_scale() -> None:
    chunk = np.full((2, 32), 0x22, np.uint8), np.array([[127, 128], [129, 126]], np.uint8)
    values = MXFP4.decode(chunk)
    assert values[:, ::32].tolist() == [[1.0, 2.0], [4.0, 0.5]]


@pytest.mark.parametrize("sign", [0, 8])
@pytest.mark.parametrize(("scale", "magnitude"), [(253, 5), (254, 3)])
def test_largest_codes_that_fit_float32(scale: int, magnitude: int, sign: int) -> None:
    value = MXFP4.decode(one_block([magnitude | sign], scale))[0, 0]
    assert Fraction(float(value)) == exact(magnitude | sign, scale)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sign", [0, 8])
@pytest.mark.parametrize(("scale", "magnitude"), [(253, 6), (253, 7), (254, 4), (254, 5), (254, 6), (254, 7)])
def test_codes_beyond_float32_are_refused(scale: int, magnitude: int, sign: int) -> None:
    with pytest.raises(EncodingError, match=f"scale byte {scale}"):
        MXFP4.decode(one_block([magnitude | sign], scale))


@pytest.mark.parametrize("codes", [[0], [1], [7]])
def test_scale_byte_255_is_refused(codes: list[int]) -> None:
    chunk = one_block(codes, 255)
    with pytest.raises(EncodingError, match="255"):
        MXFP4.check(chunk)
    with pytest.raises(EncodingError, match="255"):
        MXFP4.decode(chunk)


def test_scale_bytes_up_to_254_are_sound() -> None:
    MXFP4.check((np.zeros((1, 255 * 16), np.uint8), np.arange(255, dtype=np.uint8)[None]))


@given(chunks(scales=st.integers(0, 252)))
def test_values_that_came_from_mxfp4_return_exactly(chunk: Chunk) -> None:
    values = MXFP4.decode(chunk)
    assert_same_bits(MXFP4.decode(MXFP4.encode(values)), values)


@given(canonical_chunks())
def test_canonical_blocks_return_as_the_same_bytes(chunk: Chunk) -> None:
    codes, scales = MXFP4.encode(MXFP4.decode(chunk))
    np.testing.assert_array_equal(codes, chunk[0])
    np.testing.assert_array_equal(scales, chunk[1])


@pytest.mark.parametrize(
    ("code", "scale", "canonical_code", "canonical_scale"),
    [(5, 100, 7, 99), (4, 100, 6, 99), (3, 100, 7, 98), (2, 100, 6, 98), (1, 100, 6, 97), (1, 2, 4, 0)],
)
def test_other_blocks_return_with_the_smallest_scale(
    code: int, scale: int, canonical_code: int, canonical_scale: int
) -> None:
    chunk = MXFP4.encode(MXFP4.decode(one_block([code, code | 8], scale)))
    assert codes_of(chunk)[:2] == [canonical_code, canonical_code | 8]
    assert chunk[1].item() == canonical_scale


# The scale rules of other programs, as exponents k: a block is stored as multiples of 2**k.


def floor_rule(largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """OCP specification 6.3, torchao, llama.cpp."""
    return np.floor(np.log2(largest)) - 2


def ceiling_rule(largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """triton_kernels, ModelOpt."""
    return np.ceil(np.log2(largest / 6))


def even_rule(largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """compressed-tensors, Quark: the largest number is first rounded to one bit after the point."""
    exponent: NDArray[np.float64] = np.floor(np.log2(largest)) - 2
    return np.where(largest / 2**exponent >= 7, exponent + 1, exponent)


RULES = [floor_rule, ceiling_rule, even_rule]
Rule = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def squared_errors(values: Floats, rule: Rule) -> NDArray[np.float64]:
    """Squared error of each block when its scale follows `rule` and elements become the nearest number."""
    blocks = values.astype(np.float64).reshape(-1, 32)
    largest = np.abs(blocks).max(axis=1)
    scale = 2.0 ** np.clip(rule(largest), -127, 127)[:, None]
    numbers = np.array([float(magnitude) for magnitude in MAGNITUDES])
    distances = np.abs(np.abs(blocks)[..., None] - numbers * scale[..., None]).min(axis=-1)
    errors: NDArray[np.float64] = np.square(distances).sum(axis=1)
    return errors


def assert_no_worse(values: Floats, rule: Rule) -> None:
    decoded = MXFP4.decode(MXFP4.encode(values)).astype(np.float64)
    errors = np.square(decoded - values).reshape(-1, 32).sum(axis=1)
    assert (errors <= squared_errors(values, rule) * (1 + 1e-9)).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("distribution", ["normal", "laplace", "student"])
def test_squared_error_is_never_above_that_of_other_rules(distribution: str, rule: Rule) -> None:
    rng = np.random.default_rng(1)
    shape = (500, 320)
    values = {
        "normal": rng.standard_normal(shape),
        "laplace": rng.laplace(size=shape),
        "student": rng.standard_t(4, size=shape),
    }[distribution]
    assert_no_worse((0.02 * values).astype(np.float32), rule)


@pytest.mark.parametrize("rule", RULES)
@given(
    values=hnp.arrays(
        np.float32,
        (1, 32),
        elements=st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False),
    ).filter(lambda values: values.any())
)
def test_squared_error_is_never_above_that_of_other_rules_for_odd_blocks(values: Floats, rule: Rule) -> None:
    assert_no_worse(values, rule)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("midpoint", "code"), [(0.25, 0), (0.75, 2), (1.25, 2), (1.75, 4), (2.5, 4), (3.5, 6), (5.0, 6)]
)
def test_ties_round_to_the_even_code(midpoint: float, code: int, sign: int) -> None:
    # 6 and 0.5 together leave but one scale, 2**0.
    chunk = MXFP4.encode(one_row([6.0, 0.5, sign * midpoint]))
    assert chunk[1].item() == 127
    assert codes_of(chunk)[2] == (code if sign > 0 else code | 8)


def test_values_between_codes_round_to_the_nearest() -> None:
    chunk = MXFP4.encode(one_row([6.0, 0.5, 0.26, 0.74, 1.24, 1.76, 2.49, 2.51, 3.49, 4.99, 5.01]))
    assert codes_of(chunk)[2:11] == [1, 1, 2, 4, 4, 5, 5, 6, 7]


def test_zeros_and_values_that_round_to_zero_keep_their_sign() -> None:
    values = MXFP4.decode(MXFP4.encode(one_row([6.0, 0.0, -0.0, 0.1, -0.1])))
    assert values[0, 1:5].tolist() == [0, 0, 0, 0]
    assert np.signbit(values[0, 1:5]).tolist() == [False, True, False, True]


def test_blocks_of_zeros_have_scale_0() -> None:
    chunk = MXFP4.encode(np.array([[0.0] * 32, [-0.0] * 32], np.float32))
    assert chunk[1].tolist() == [[0], [0]]
    assert chunk[0].tolist() == [[0x00] * 16, [0x88] * 16]


def test_multiples_of_the_smallest_value_are_kept() -> None:
    smallest = math.ldexp(0.5, -127)
    chunk = MXFP4.encode(one_row([smallest, -smallest, 3 * smallest]))
    assert chunk[1].item() == 0
    assert codes_of(chunk)[:3] == [1, 9, 3]


@given(
    hnp.arrays(np.float32, (1, 32), elements=st.floats(0, 2.0**-126, width=32)).filter(lambda values: values.any())
)
def test_subnormal_values_round_to_the_nearest(values: Floats) -> None:
    decoded = MXFP4.decode(MXFP4.encode(values))
    assert (np.abs(decoded.astype(np.float64) - values) <= 2.0**-128).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(EncodingError, match="not finite"):
        MXFP4.encode(one_row([1.0, value]))


@pytest.mark.parametrize("sign", [1, -1])
def test_largest_value_is_kept(sign: int) -> None:
    assert MXFP4.decode(MXFP4.encode(one_row([sign * LARGEST_SAFE])))[0, 0] == sign * LARGEST_SAFE


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1.8 * 2.0**127, float(np.finfo(np.float32).max)])
def test_larger_values_become_the_largest(value: float) -> None:
    assert MXFP4.decode(MXFP4.encode(one_row([value, -value])))[0, :2].tolist() == [LARGEST_SAFE, -LARGEST_SAFE]


@pytest.mark.parametrize(("scale", "magnitudes"), [(253, range(6)), (254, range(4))])
def test_values_of_the_largest_scales_return_exactly(scale: int, magnitudes: range) -> None:
    values = MXFP4.decode(one_block([code | sign for code in magnitudes for sign in (0, 8)], scale))
    assert_same_bits(MXFP4.decode(MXFP4.encode(values)), values)


def test_no_rows_are_encoded_as_no_rows() -> None:
    codes, scales = MXFP4.encode(np.empty((0, 64), np.float32))
    assert (codes.shape, scales.shape) == ((0, 32), (0, 2))


def test_no_rows_are_decoded_as_no_rows() -> None:
    assert MXFP4.decode((np.empty((0, 32), np.uint8), np.empty((0, 2), np.uint8))).shape == (0, 64)
