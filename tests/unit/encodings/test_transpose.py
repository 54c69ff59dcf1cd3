"""Transposition in tiles."""

import numpy as np
import pytest

from gptoss_convert.encodings.transpose import TILE_COLUMNS, TILE_ROWS, row_major, transpose_into, transposed

SHAPES = [(0, 5), (5, 0), (1, 1), (7, 3), (TILE_ROWS, TILE_COLUMNS), (TILE_ROWS + 1, 2 * TILE_COLUMNS + 3)]
DTYPES = [np.uint8, np.uint16, np.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_element_finds_its_place(shape: tuple[int, int], dtype: type) -> None:
    array = np.random.default_rng(0).integers(0, 1 << 8, shape).astype(dtype)
    result = transposed(array)
    assert (result.dtype, result.flags.c_contiguous) == (array.dtype, True)
    assert result.tolist() == [list(column) for column in zip(*array.tolist(), strict=True)] or 0 in shape
    assert result.shape == shape[::-1]


def test_source_and_target_may_be_parts_of_larger_arrays() -> None:
    source, target = np.arange(600, dtype=np.uint16).reshape(20, 30), np.zeros((40, 50), np.uint16)
    transpose_into(target[3:13, 5:10], source[2:7, 20:30])
    expected = np.zeros((40, 50), np.uint16)
    for row in range(5):
        for column in range(10):
            expected[3 + column, 5 + row] = source[2 + row, 20 + column]
    np.testing.assert_array_equal(target, expected)


def test_row_major_array_is_not_copied() -> None:
    array = np.zeros((3, 4), np.uint16)
    assert row_major(array) is array


@pytest.mark.parametrize("array", [np.arange(12).reshape(3, 4).T, np.arange(24).reshape(4, 6)[:, ::2]])
def test_other_arrays_become_row_major(array: np.ndarray) -> None:
    result = row_major(array)
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, array)
