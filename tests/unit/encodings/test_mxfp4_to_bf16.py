"""The direct way from MXFP4 to bfloat16 against the way over float32."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_convert.encodings import ENCODINGS, Array, Chunk, EncodingError, convert
from gptoss_convert.encodings.mxfp4_to_bf16 import decode_to_bf16 as decode_by
from gptoss_convert.kernels import NATIVE

MXFP4, BF16 = ENCODINGS["mxfp4"], ENCODINGS["bf16"]
ORDERS: list[Literal["C", "F"]] = ["C", "F"]
Order = Literal["C", "F"]
every_order = pytest.mark.parametrize("order", ORDERS)


def decode_to_bf16(codes: Array, scales: Array, order: Order) -> Array:
    """What numpy makes of a chunk, and the kernels in C where they are installed, which has to be the same."""
    if NATIVE is None:
        return decode_by(codes, scales, order, native=None)
    try:
        expected = decode_by(codes, scales, order, native=None)
    except EncodingError as error:
        with pytest.raises(EncodingError, match=re.escape(str(error))):
            decode_by(codes, scales, order, native=NATIVE)
        raise
    bits = decode_by(codes, scales, order, native=NATIVE)
    np.testing.assert_array_equal(bits, expected)
    return bits


def over_float32(chunk: Chunk) -> Array:
    return convert(chunk, MXFP4, BF16)[0]


def assert_decodes(chunk: Chunk, order: Order) -> None:
    bits = decode_to_bf16(*chunk, order)
    assert bits.dtype == np.uint16
    assert (bits if order == "C" else bits.T).flags.c_contiguous
    np.testing.assert_array_equal(bits, over_float32(chunk))


def random_chunk(rows: int, blocks: int, scales: tuple[int, int] = (0, 253), seed: int = 0) -> Chunk:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (rows, 16 * blocks), dtype=np.uint8)
    return codes, rng.integers(*scales, (rows, blocks), dtype=np.uint8)


@every_order
def test_every_pair_of_codes_at_every_scale(order: Order) -> None:
    codes = np.tile(np.arange(256, dtype=np.uint8), (253, 1))
    assert_decodes((codes, np.repeat(np.arange(253, dtype=np.uint8)[:, None], 16, axis=1)), order)


@every_order
@pytest.mark.parametrize("scales", [(2, 253), (110, 125), (0, 3)])
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (3, 2), (1025, 13), (2048, 1), (17, 200)])
def test_chunks_of_any_size(rows: int, blocks: int, scales: tuple[int, int], order: Order) -> None:
    assert_decodes(random_chunk(rows, blocks, scales), order)


@every_order
@pytest.mark.parametrize("scale", [0, 1])
def test_zeros_keep_their_sign_at_the_smallest_scales(scale: int, order: Order) -> None:
    codes, scales = random_chunk(5, 3, (100, 130))
    codes[:, 16:32] = 0x80
    scales[:, 1] = scale
    assert_decodes((codes, scales), order)


@given(
    hnp.arrays(np.uint8, (4, 48)),
    hnp.arrays(np.uint8, (4, 3), elements=st.sampled_from([0, 1, 2, 3, 127, 251, 252])),
    st.sampled_from(ORDERS),
)
def test_any_codes_at_extreme_scales(codes: Array, scales: Array, order: Order) -> None:
    assert_decodes((codes, scales), order)


@every_order
@pytest.mark.parametrize(("rows", "blocks"), [(0, 3), (3, 0)])
def test_nothing_is_decoded_as_nothing(rows: int, blocks: int, order: Order) -> None:
    chunk = np.empty((rows, 16 * blocks), np.uint8), np.empty((rows, blocks), np.uint8)
    assert decode_to_bf16(*chunk, order).shape == (rows, 32 * blocks)


@every_order
@pytest.mark.parametrize(("scale", "byte"), [(253, 0xD5), (254, 0xB3)])
def test_largest_codes_that_are_finite(scale: int, byte: int, order: Order) -> None:
    codes, scales = random_chunk(2, 2, (100, 130))
    codes[1, 16:] = byte
    scales[1, 1] = scale
    assert_decodes((codes, scales), order)


@every_order
@pytest.mark.parametrize(("scale", "byte"), [(253, 0x06), (253, 0xE0), (254, 0x04), (254, 0x70)])
def test_codes_beyond_the_largest_number_are_refused(scale: int, byte: int, order: Order) -> None:
    codes, scales = random_chunk(2, 2, (100, 130))
    codes[1, 16:] = byte
    scales[1, 1] = scale
    with pytest.raises(EncodingError, match=f"scale byte {scale}"):
        decode_to_bf16(codes, scales, order)


@every_order
def test_scale_byte_255_is_refused(order: Order) -> None:
    with pytest.raises(EncodingError, match="255"):
        decode_to_bf16(np.zeros((1, 16), np.uint8), np.full((1, 1), 255, np.uint8), order)


def test_parts_of_larger_arrays_are_decoded() -> None:
    codes, scales = random_chunk(40, 6)
    assert_decodes((codes[3:31], scales[3:31]), "F")
    assert_decodes((codes[3:31], scales[3:31]), "C")


def test_threads_do_not_disturb_each_other() -> None:
    chunks = [random_chunk(700, 7, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(lambda chunk: decode_to_bf16(*chunk, "F"), chunks))
    for bits, chunk in zip(decoded, chunks, strict=True):
        np.testing.assert_array_equal(bits, over_float32(chunk))
