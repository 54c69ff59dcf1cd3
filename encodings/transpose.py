"""Transposition of matrices at the speed of the cache rather than of the memory."""

from __future__ import annotations

import numpy as np

from gptoss_convert.encodings.base import Array

TILE_ROWS = 96
TILE_COLUMNS = 1024
"""A tile of the source: a cache line of each of its rows fits the first-level cache, the whole tile the second."""


def transpose_into(target: Array, source: Array) -> None:
    """Write the transpose of `source` `[rows, columns]` into `target` `[columns, rows]`, tile by tile."""
    for row in range(0, source.shape[0], TILE_ROWS):
        for column in range(0, source.shape[1], TILE_COLUMNS):
            tile = source[row : row + TILE_ROWS, column : column + TILE_COLUMNS]
            target[column : column + TILE_COLUMNS, row : row + TILE_ROWS] = tile.T


def transposed(array: Array) -> Array:
    """Return the transpose of `array` `[rows, columns]` as a new C-contiguous array `[columns, rows]`."""
    result = np.empty(array.shape[::-1], array.dtype)
    transpose_into(result, array)
    return result


def row_major(array: Array) -> Array:
    """Return `array` `[rows, columns]` C-contiguous: itself if it is so already, else a copy."""
    if array.strides[0] < array.strides[1] and not array.flags.c_contiguous:
        return transposed(array.T)
    return np.ascontiguousarray(array)
