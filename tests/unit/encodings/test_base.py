"""What all encodings have in common: sizes, names, and the loss of converting one to another."""

import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gptoss_convert.encodings import (
    ENCODINGS,
    Chunk,
    EncodingError,
    LossClass,
    Span,
    convert,
    encoding,
    loss_class,
)
from gptoss_convert.encodings.integer_scales import shortened
from gptoss_convert.errors import OptionError

NAMES = ("f32", "f16", "bf16", "mxfp4", "q8_0", "int8-block", "int4-block")
VALUE_EXACT = {
    ("f16", "f32"),
    ("bf16", "f32"),
    ("mxfp4", "f32"),
    ("mxfp4", "bf16"),
    ("q8_0", "f32"),
    ("int8-block", "f32"),
    ("int4-block", "f32"),
    ("mxfp4", "int8-block"),
}


def sample(name: str) -> Chunk:
    """Random bytes as four rows of 64 elements, without codes that stand for no finite number."""
    rng = np.random.default_rng(3)
    if name == "f32":
        return (rng.standard_normal((4, 64), np.float32),)
    if name == "f16":
        return (rng.standard_normal((4, 64)).astype(np.float16),)
    if name == "bf16":
        return (rng.integers(0, 0x7F80, (4, 64), np.uint16),)
    if name == "mxfp4":
        return rng.integers(0, 256, (4, 32), np.uint8), rng.integers(0, 253, (4, 2), np.uint8)
    if name.startswith("int"):
        codes = rng.integers(0, 256, (4, 64 if name == "int8-block" else 32), np.uint8)
        return codes, shortened(rng.standard_normal((4, 2), np.float32))
    codes = rng.integers(-128, 128, (4, 64)).astype(np.int8)
    return codes, rng.integers(0, 0x7C00, (4, 2)).astype(np.uint16).view(np.float16)


def expected_loss(source: str, target: str) -> LossClass:
    if source == target:
        return LossClass.BYTE_EXACT
    return LossClass.VALUE_EXACT if (source, target) in VALUE_EXACT else LossClass.LOSSY


def test_encodings_are_known_by_their_names() -> None:
    assert tuple(ENCODINGS) == NAMES
    assert [encoding(name).name for name in NAMES] == list(NAMES)


def test_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"q4_k.*f32, f16, bf16, mxfp4, q8_0, int8-block, int4-block"):
        encoding("q4_k")


@pytest.mark.parametrize("name", NAMES)
def test_encodings_are_values(name: str) -> None:
    copy = pickle.loads(pickle.dumps(ENCODINGS[name]))
    assert copy == ENCODINGS[name]
    assert hash(copy) == hash(ENCODINGS[name])
    assert [other for other in NAMES if ENCODINGS[other] == copy] == [name]
    assert copy != name


@pytest.mark.parametrize("name", NAMES)
def test_numbers_can_be_decoded(name: str) -> None:
    assert ENCODINGS[name].can_decode


@pytest.mark.parametrize(
    ("name", "bits", "row", "tensor"),
    [
        ("f32", 32, 11520, 46080),
        ("f16", 16, 5760, 23040),
        ("bf16", 16, 5760, 23040),
        ("mxfp4", 4.25, 1530, 6120),
        ("q8_0", 8.5, 3060, 12240),
        ("int8-block", 9, 3240, 12960),
        ("int4-block", 5, 1800, 7200),
    ],
)
def test_sizes(name: str, bits: float, row: int, tensor: int) -> None:
    assert ENCODINGS[name].bits_per_weight == bits
    assert ENCODINGS[name].row_nbytes(2880) == row
    assert ENCODINGS[name].nbytes((2, 2, 2880)) == tensor
    assert ENCODINGS[name].nbytes((2880,)) == row


@pytest.mark.parametrize("name", NAMES)
def test_size_is_that_of_the_encoded_parts(name: str) -> None:
    chunk = ENCODINGS[name].encode(np.ones((3, 96), np.float32))
    assert sum(part.nbytes for part in chunk) == ENCODINGS[name].nbytes((3, 96))
    assert [part.dtype for part in chunk] == [part.dtype for part in ENCODINGS[name].parts]


@pytest.mark.parametrize(
    ("name", "columns"),
    [("mxfp4", 33), ("mxfp4", 16), ("q8_0", 1), ("q8_0", 100), ("int8-block", 33), ("int4-block", 2)],
)
def test_rows_of_broken_blocks_do_not_fit(name: str, columns: int) -> None:
    assert not ENCODINGS[name].fits(columns)
    with pytest.raises(EncodingError, match=f"whole blocks of 32, not of {columns}"):
        ENCODINGS[name].row_nbytes(columns)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", [32, 2880])
def test_rows_of_whole_blocks_fit(name: str, columns: int) -> None:
    assert ENCODINGS[name].fits(columns)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_rows_of_plain_floats_always_fit(name: str) -> None:
    assert ENCODINGS[name].fits(7)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(NAMES, NAMES)))
def test_loss_class(source: str, target: str) -> None:
    expected = expected_loss(source, target)
    assert loss_class(ENCODINGS[source], ENCODINGS[target]) is expected
    assert ENCODINGS[target].holds(ENCODINGS[source]) is (expected is not LossClass.LOSSY)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([], LossClass.BYTE_EXACT),
        ([LossClass.BYTE_EXACT, LossClass.VALUE_EXACT], LossClass.VALUE_EXACT),
        ([LossClass.LOSSY, LossClass.BYTE_EXACT], LossClass.LOSSY),
    ],
)
def test_worst_loss(classes: list[LossClass], expected: LossClass) -> None:
    assert LossClass.worst(classes) is expected


def test_severity_grows_with_the_loss() -> None:
    assert [kind.severity for kind in LossClass] == [0, 1, 2]


@pytest.mark.parametrize("distribution", ["normal", "uniform", "laplace", "student"])
@pytest.mark.parametrize("name", ["f16", "bf16", "mxfp4", "q8_0", "int8-block", "int4-block"])
def test_rounding_leaves_more_signal_than_the_floor(name: str, distribution: str) -> None:
    rng = np.random.default_rng(5)
    draw = {
        "normal": rng.standard_normal,
        "uniform": rng.random,
        "laplace": lambda shape: rng.laplace(size=shape),
        "student": lambda shape: rng.standard_t(4, size=shape),
    }[distribution]
    values = (0.02 * draw((100, 320))).astype(np.float32)
    rounded = ENCODINGS[name].decode(ENCODINGS[name].encode(values))
    noise = np.square(rounded.astype(np.float64) - values).sum()
    decibels = 10 * math.log10(np.square(values.astype(np.float64)).sum() / noise)
    assert decibels > ENCODINGS[name].least_signal_to_noise


@pytest.mark.parametrize("name", ["f16", "bf16", "mxfp4", "q8_0"])
def test_rounding_takes_less_from_a_block_than_the_limit(name: str) -> None:
    """From blocks of one large number, of all kinds of numbers, and of those that lie between two codes."""
    rng = np.random.default_rng(6)
    heavy = 0.02 * rng.standard_t(1.5, size=(20000, 32))
    one_large = np.where(np.arange(32) == 7, rng.uniform(4, 8, (2000, 1)), 0.25)
    ties = rng.choice([0.25, 0.75, 1.75, 2.5, 5.0, 7.99], size=(20000, 32))
    values = np.concatenate([heavy, one_large, ties]).astype(np.float32)
    rounded = ENCODINGS[name].decode(ENCODINGS[name].encode(values)).astype(np.float64)
    errors = np.linalg.norm(rounded - values, axis=1) / np.linalg.norm(values.astype(np.float64), axis=1)
    limit = ENCODINGS[name].largest_block_error
    assert limit is not None
    assert errors.max() < limit


@pytest.mark.parametrize(("source", "target"), sorted(VALUE_EXACT))
def test_value_exact_conversions_keep_every_bit_of_the_values(source: str, target: str) -> None:
    chunk = sample(source)
    values = ENCODINGS[source].decode(chunk)
    converted = convert(chunk, ENCODINGS[source], ENCODINGS[target])
    if not ENCODINGS[target].signed_zeros:
        values = values + np.float32(0)  # -0 becomes 0
    np.testing.assert_array_equal(
        ENCODINGS[target].decode(converted).view(np.uint32),
        values.view(np.uint32),
    )


@pytest.mark.parametrize("name", NAMES)
def test_sign_of_zero(name: str) -> None:
    values = np.full((1, 32), -0.0, np.float32)
    values[0, 0] = 1
    kept = np.signbit(ENCODINGS[name].decode(ENCODINGS[name].encode(values))[0, 1:])
    assert kept.all() == ENCODINGS[name].signed_zeros or name == "q8_0"


@pytest.mark.parametrize("name", NAMES)
def test_conversion_to_the_same_encoding_returns_the_same_object(name: str) -> None:
    chunk = sample(name)
    assert convert(chunk, ENCODINGS[name], ENCODINGS[name]) is chunk


@pytest.mark.parametrize("name", NAMES)
def test_every_value_lies_within_the_span(name: str) -> None:
    span = ENCODINGS[name].span
    for value in ENCODINGS[name].decode(sample(name)).reshape(-1).tolist():
        units = abs(Fraction(value)) / Fraction(2) ** span.lowest_bit
        assert abs(value) <= span.largest
        assert units.denominator == 1
        odd_part = units.numerator // (units.numerator & -units.numerator) if units else 0
        assert odd_part.bit_length() <= span.precision


@pytest.mark.parametrize(
    ("span", "held"),
    [
        (Span(8, -133, 1e38), True),
        (Span(7, -100, 1.0), True),
        (Span(9, -133, 1e38), False),
        (Span(8, -134, 1e38), False),
        (Span(8, -133, math.inf), False),
    ],
)
def test_span_holds_spans_that_are_nowhere_wider(span: Span, held: bool) -> None:
    assert Span(8, -133, 1e38).holds(span) is held


@given(values=hnp.arrays(np.float32, (2, 32), elements=st.floats(-6e4, 6e4, width=32)))
@pytest.mark.parametrize("name", NAMES)
def test_encoding_leaves_its_input_alone(name: str, values: NDArray[np.float32]) -> None:
    before = values.copy()
    ENCODINGS[name].encode(values)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("name", NAMES)
def test_decoding_leaves_its_input_alone(name: str) -> None:
    chunk = sample(name)
    before = [part.copy() for part in chunk]
    ENCODINGS[name].decode(chunk)
    for part, copy in zip(chunk, before, strict=True):
        np.testing.assert_array_equal(part, copy)


@pytest.mark.parametrize("name", NAMES)
def test_every_second_row_decodes_like_a_copy_of_it(name: str) -> None:
    chunk = sample(name)
    strided = tuple(part[1::2] for part in chunk)
    copied = tuple(part.copy() for part in strided)
    np.testing.assert_array_equal(ENCODINGS[name].decode(strided), ENCODINGS[name].decode(copied))


def test_scales_of_some_blocks_have_to_be_checked() -> None:
    assert [name for name in NAMES if not ENCODINGS[name].takes_any_bytes] == ["mxfp4", "int8-block", "int4-block"]
