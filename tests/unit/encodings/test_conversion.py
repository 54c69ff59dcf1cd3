"""Chunks from one encoding to another: the same numbers by whichever way, in either memory order."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_convert.encodings import ENCODINGS, Chunk, Encoding, EncodingError, Order, convert
from gptoss_convert.encodings.conversion import temporary_bytes

MXFP4, BF16 = ENCODINGS["mxfp4"], ENCODINGS["bf16"]
PLAIN = ("f32", "f16", "bf16", "q8_0", "mxfp4")
ORDERS: tuple[Order, ...] = ("C", "F")


def chunk_of(encoding: Encoding, rows: int = 40, columns: int = 96) -> Chunk:
    values = np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)
    return encoding.encode(values)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", PLAIN)
def test_encoding_that_stays_is_not_touched(name: str, order: Order) -> None:
    chunk = chunk_of(ENCODINGS[name])
    assert convert(chunk, ENCODINGS[name], ENCODINGS[name], order) is chunk


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("target", PLAIN)
@pytest.mark.parametrize("source", PLAIN)
def test_numbers_are_those_of_decoding_and_encoding(source: str, target: str, order: Order) -> None:
    one, other = ENCODINGS[source], ENCODINGS[target]
    chunk = chunk_of(one)
    found = convert(chunk, one, other, order)
    expected = chunk if source == target else other.encode(one.decode(chunk))
    assert [part.dtype for part in found] == [part.dtype for part in other.parts]
    for part, other_part in zip(found, expected, strict=True):
        np.testing.assert_array_equal(part, other_part)


chunks = st.tuples(hnp.arrays(np.uint8, (3, 64)), hnp.arrays(np.uint8, (3, 4), elements=st.integers(0, 252)))


@given(chunks, st.sampled_from(ORDERS))
def test_blocks_of_any_scale_become_bfloat16_exactly(chunk: Chunk, order: Order) -> None:
    (bits,) = convert(chunk, MXFP4, BF16, order)
    wide = bits.astype(np.uint32) << 16
    np.testing.assert_array_equal(wide, MXFP4.decode(chunk).view(np.uint32))
    assert bits.flags.f_contiguous if order == "F" else bits.flags.c_contiguous


@pytest.mark.parametrize("target", ["bf16", "f32", "q8_0"])
def test_scale_that_is_no_number_is_an_error(target: str) -> None:
    chunk = np.zeros((1, 16), np.uint8), np.full((1, 1), 255, np.uint8)
    with pytest.raises(EncodingError, match="255"):
        convert(chunk, MXFP4, ENCODINGS[target])


@pytest.mark.parametrize("columns", [512, 4096])
@pytest.mark.parametrize("target", PLAIN)
@pytest.mark.parametrize("source", PLAIN)
def test_estimate_of_memory_is_an_upper_one(source: str, target: str, columns: int) -> None:
    """What numpy takes beyond chunk and result, a fixed amount for pieces apart."""
    one, other = ENCODINGS[source], ENCODINGS[target]
    rows = 512
    chunk = chunk_of(one, rows, columns)
    convert(tuple(part[:1] for part in chunk), one, other)  # tables are made once
    tracemalloc.start()
    result: Any = convert(chunk, one, other)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    taken = peak - sum(part.nbytes for part in result)
    assert taken <= rows * temporary_bytes(one, other, columns) + (4 << 20)
    if source == target:
        assert temporary_bytes(one, other, columns) == 0
