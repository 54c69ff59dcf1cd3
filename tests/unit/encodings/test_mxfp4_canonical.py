"""Canonical MXFP4 blocks, made of MXFP4 and recovered from bfloat16."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_convert.encodings import ENCODINGS, Array, Chunk, EncodingError, convert
from gptoss_convert.encodings.mxfp4_canonical import canonical_blocks, noncanonical_scales, recover_blocks

MXFP4, BF16 = ENCODINGS["mxfp4"], ENCODINGS["bf16"]


def bits_of(chunk: Chunk) -> Array:
    return convert(chunk, MXFP4, BF16)[0]


def block(code: int, scale: int, rest: int = 0) -> Chunk:
    """A block with one code that is not `rest`."""
    codes = np.full((1, 16), rest * 0x11, np.uint8)
    codes[0, 7] = code | rest << 4
    return codes, np.array([[scale]], np.uint8)


chunks = st.tuples(
    hnp.arrays(np.uint8, (3, 64), elements=st.integers(0, 255) | st.sampled_from([0x00, 0x08, 0x11, 0x23, 0x9D])),
    hnp.arrays(np.uint8, (3, 4), elements=st.integers(0, 252) | st.integers(0, 6)),
) | st.tuples(
    hnp.arrays(np.uint8, (3, 16)).flatmap(
        lambda codes: st.sampled_from([0x88, 0x99, 0xBB, 0xDD]).map(lambda mask: codes & np.uint8(mask))
    ),
    hnp.arrays(np.uint8, (3, 1), elements=st.integers(0, 252)),
)


def assert_is_canonical(chunk: Chunk) -> None:
    codes, scales = chunk
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*scales.shape, 32) & 7
    largest = nibbles.max(axis=-1)
    assert ((scales == 0) | (largest >= 6)).all()


@given(chunks)
def test_canonical_blocks_have_the_same_values_and_the_smallest_scale(chunk: Chunk) -> None:
    canonical = canonical_blocks(*chunk)
    assert_is_canonical(canonical)
    np.testing.assert_array_equal(MXFP4.decode(canonical).view(np.uint32), MXFP4.decode(chunk).view(np.uint32))


@given(chunks)
def test_canonical_blocks_are_left_alone(chunk: Chunk) -> None:
    canonical = canonical_blocks(*chunk)
    again = canonical_blocks(*canonical)
    assert again[0] is canonical[0]
    assert again[1] is canonical[1]


def test_input_is_not_changed() -> None:
    codes, scales = block(1, 100)
    canonical_blocks(codes, scales)
    assert (codes.max(), scales.max()) == (1, 100)


@pytest.mark.parametrize(
    ("code", "scale", "canonical_code", "canonical_scale"),
    [(5, 100, 7, 99), (4, 1, 6, 0), (3, 100, 7, 98), (2, 100, 6, 98), (1, 100, 6, 97), (1, 2, 4, 0), (0, 9, 0, 0)],
)
@pytest.mark.parametrize("sign", [0, 8])
def test_scales_are_lowered_and_codes_doubled(
    code: int, scale: int, canonical_code: int, canonical_scale: int, sign: int
) -> None:
    codes, scales = canonical_blocks(*block(code | sign, scale, rest=8))
    expected = block(canonical_code | sign, canonical_scale, rest=8)
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(scales, expected[1])


def test_lowerable_blocks_are_found_anywhere() -> None:
    codes, scales = np.full((100, 16 * 90), 0x67, np.uint8), np.full((100, 90), 120, np.uint8)
    places = [(0, 0), (99, 89), (91, 1), (50, 45)]
    for row, column in places:
        codes[row, 16 * column : 16 * column + 16] = 0x45
    canonical, lowered = canonical_blocks(codes, scales)
    assert [tuple(place) for place in np.argwhere(lowered == 119).tolist()] == sorted(places)
    assert (canonical == 0x67).all()


@pytest.mark.parametrize(("code", "scale"), [(6, 253), (4, 254), (0, 255)])
def test_values_beyond_float32_are_refused(code: int, scale: int) -> None:
    with pytest.raises(EncodingError, match=f"scale byte {scale}"):
        canonical_blocks(*block(code, scale))


@given(chunks)
def test_blocks_are_recovered_from_bfloat16(chunk: Chunk) -> None:
    bits = bits_of(chunk)
    for order in "CF":
        recovered = recover_blocks(np.array(bits, order=order))  # type: ignore[call-overload]
        assert recovered.exact.all()
        expected = canonical_blocks(*chunk)
        np.testing.assert_array_equal(recovered.codes, expected[0])
        np.testing.assert_array_equal(recovered.scales, expected[1])


def normal_chunk(rows: int, blocks: int) -> Chunk:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (rows, 16 * blocks), dtype=np.uint8)
    return codes, rng.integers(110, 125, (rows, blocks), dtype=np.uint8)


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (1025, 5), (40, 13)])
def test_chunks_of_any_size_are_recovered(rows: int, blocks: int) -> None:
    chunk = normal_chunk(rows, blocks)
    recovered = recover_blocks(bits_of(chunk))
    expected = canonical_blocks(*chunk)
    assert recovered.exact.all()
    np.testing.assert_array_equal(recovered.codes, expected[0])
    np.testing.assert_array_equal(recovered.scales, expected[1])


@pytest.mark.parametrize(
    "intruder",
    [
        pytest.param("0x1.8p-1", id="three quarters, between codes 1 and 2"),
        pytest.param("0x1.4p1", id="a mantissa of two bits"),
        pytest.param("0x1p-2", id="half of the smallest code"),
        pytest.param("0x1.8p-2", id="three quarters of the smallest code"),
        pytest.param("0x1p-120", id="far below the smallest code"),
        pytest.param("0x1p-133", id="the smallest number"),
        pytest.param("0x1.cp2", id="7, beyond the largest code"),
        pytest.param("inf", id="infinity"),
        pytest.param("nan", id="NaN"),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_rows_with_another_number_are_told(intruder: str, sign: int) -> None:
    chunk = np.full((1030, 48), 0x67, np.uint8), np.full((1030, 3), 127, np.uint8)
    values = MXFP4.decode(chunk)
    values[1027, 40] = sign * float.fromhex(intruder)
    recovered = recover_blocks(BF16.encode(values)[0])
    assert np.flatnonzero(~recovered.exact).tolist() == [1027]
    others = np.arange(1030) != 1027
    np.testing.assert_array_equal(recovered.codes[others], chunk[0][others])
    np.testing.assert_array_equal(recovered.scales[others], chunk[1][others])


def test_rows_with_another_number_are_told_in_every_block() -> None:
    chunk = np.full((6200, 48), 0x67, np.uint8), np.full((6200, 3), 127, np.uint8)
    values = MXFP4.decode(chunk)
    values[[5, 9, 6190, 6195], [0, 95, 95, 33]] = 5
    recovered = recover_blocks(BF16.encode(values)[0])
    assert np.flatnonzero(~recovered.exact).tolist() == [5, 9, 6190, 6195]


# --- scales that the values do not tell


@given(chunks)
def test_scales_of_blocks_that_are_not_canonical_are_named(chunk: Chunk) -> None:
    codes, scales = chunk
    canonical_scales = canonical_blocks(codes, scales)[1]
    named = noncanonical_scales(codes, scales)
    expected = np.where(canonical_scales == scales, 255, scales)
    if named is None:
        assert (expected == 255).all()
    else:
        assert (expected != 255).any()
        np.testing.assert_array_equal(named, expected)


@pytest.mark.parametrize(
    ("code", "scale", "is_named"),
    [(5, 100, True), (1, 1, True), (6, 100, False), (7, 100, False), (5, 0, False), (0, 9, True), (0, 0, False)],
)
@pytest.mark.parametrize("sign", [0, 8])
def test_block_is_named_if_a_smaller_scale_holds_it(code: int, scale: int, is_named: bool, sign: int) -> None:
    named = noncanonical_scales(*block(code | sign, scale, rest=8))
    assert (None if named is None else named.tolist()) == ([[scale]] if is_named else None)


def test_blocks_to_name_are_found_anywhere() -> None:
    codes, scales = np.full((100, 16 * 90), 0x67, np.uint8), np.full((100, 90), 120, np.uint8)
    places = [(0, 0), (50, 45), (91, 1), (99, 89)]
    for row, column in places:
        codes[row, 16 * column : 16 * column + 16] = 0x45
    named = noncanonical_scales(codes, scales)
    assert named is not None
    assert [tuple(place) for place in np.argwhere(named == 120).tolist()] == places
    assert (named == 255).sum() == named.size - len(places)
    assert (codes[0, 0], scales.max()) == (0x45, 120)


def test_no_rows_name_nothing() -> None:
    assert noncanonical_scales(np.empty((0, 16), np.uint8), np.empty((0, 1), np.uint8)) is None
