"""Positional reads of stored tensors.

A file is read with `pread` at offsets that were checked when its header was parsed. It is never mapped, so a
file that shrinks while it is read gives an error and not a crash, and never loaded as a whole.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_convert.encodings import Array, Chunk
from gptoss_convert.errors import InputError


class InputFile:
    """A regular file, opened for positional reads by any number of threads."""

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            InputError: it does not exist, is not a regular file, or cannot be opened.
        """
        self.path = path
        try:
            if not path.is_file():
                raise InputError("file is missing" if not path.exists() else "not a regular file", file=path)
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise InputError(f"cannot open file: {error.strerror}", file=path) from error
        self.size = os.fstat(self._descriptor).st_size
        self._seek_lock = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return InputFile, (self.path,)

    def read_into(self, buffer: Array, offset: int) -> None:
        """Fill the contiguous array `buffer` with the bytes from `offset` on.

        Raises:
            InputError: the file ends before the buffer is full, or cannot be read.
        """
        view = buffer.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            try:
                count = self._read_some(view[done:], offset + done)
            except OSError as error:
                raise InputError(f"cannot read file: {error.strerror}", file=self.path) from error
            if count == 0:
                raise InputError(
                    "file is truncated or became shorter while it was read",
                    file=self.path,
                    found=f"{offset + done} bytes",
                    expected=f"at least {offset + len(view)}",
                )
            done += count

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on.

        Raises:
            InputError: as `read_into`.
        """
        buffer = np.empty(count, np.uint8)
        self.read_into(buffer, offset)
        return buffer.tobytes()

    def _read_some(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [view], offset)
        with self._seek_lock:  # Windows has no positional read in the standard library
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            data = os.read(self._descriptor, len(view))
        view[: len(data)] = data
        return len(data)


@dataclass(frozen=True)
class StoredArray:
    """A stored array seen as rows: `items` numbers of `dtype` each, one row after the other from `offset`."""

    file: InputFile
    offset: int
    dtype: np.dtype[Any]
    items: int

    def read(self, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` as an array `[rows, items]`."""
        rows = np.empty((stop - start, self.items), self.dtype)
        self.file.read_into(rows, self.offset + start * self.items * self.dtype.itemsize)
        return rows

    def from_row(self, row: int) -> StoredArray:
        """Return the array that begins at `row` of this one."""
        offset = self.offset + row * self.items * self.dtype.itemsize
        return StoredArray(self.file, offset, self.dtype, self.items)


@dataclass(frozen=True)
class PartsSource:
    """Rows of a tensor whose parts are stored one by one, each row-major; also when they lie in several files."""

    parts: tuple[StoredArray, ...]
    row_group: int = field(default=1, init=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the parts."""
        return tuple(part.file.path for part in self.parts)

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop` of every part."""
        return tuple(part.read(start, stop) for part in self.parts)


@dataclass(frozen=True)
class TransposedSource:
    """Rows of matrices `[out, in]` that are stored as `[in, out]`, one matrix after the other.

    A row is a stored column. Whole matrices are read in one piece; a narrower range of rows is gathered from
    each stored row, which costs one read per stored row.
    """

    stored: StoredArray
    """Its rows are the stored rows: `items` is the `out` dimension."""
    stored_rows: int
    """Rows of one stored matrix: the `in` dimension."""

    @property
    def files(self) -> tuple[Path, ...]:
        """File of the stored matrices."""
        return (self.stored.file.path,)

    @property
    def row_group(self) -> int:
        """Rows of one matrix."""
        return self.stored.items

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop` over all matrices, as one array `[rows, in]`."""
        rows = np.empty((stop - start, self.stored_rows), self.stored.dtype)
        position = start
        while position < stop:
            matrix, first = divmod(position, self.row_group)
            last = min(first + stop - position, self.row_group)
            block = self._columns(matrix, first, last)
            transpose_into(rows[position - start : position - start + last - first], block)
            position += last - first
        return (rows,)

    def _columns(self, matrix: int, first: int, last: int) -> Array:
        """Return stored columns `first` to `last` of a matrix, `[in, last - first]`."""
        base = matrix * self.stored_rows
        if last - first == self.row_group:
            return self.stored.read(base, base + self.stored_rows)
        block = np.empty((self.stored_rows, last - first), self.stored.dtype)
        for row in range(self.stored_rows):
            item = (base + row) * self.row_group + first
            self.stored.file.read_into(block[row], self.stored.offset + item * self.stored.dtype.itemsize)
        return block


def transpose_into(target: Array, source: Array) -> None:
    """Write the transpose of `source` into `target`, tile by tile so that both stay in cache."""
    tile = 192
    for row in range(0, source.shape[0], tile):
        for column in range(0, source.shape[1], tile):
            target[column : column + tile, row : row + tile] = source[row : row + tile, column : column + tile].T
