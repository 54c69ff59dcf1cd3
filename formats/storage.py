"""Where and how the rows of a tensor lie in files: read and written by the same description.

A file is read with `pread` at offsets that were checked when its header was parsed. It is never mapped, so a
file that shrinks while it is read gives an error and not a crash, and never loaded as a whole.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gptoss_convert.checkpoint import FileWriter, Storage
from gptoss_convert.encodings import Array, Chunk, Encoding, Order
from gptoss_convert.encodings.transpose import row_major
from gptoss_convert.errors import InputError

OPEN_FILES = 64
"""Descriptors that are kept open for reading; a checkpoint may have more shards than a process may open files."""
REMOTE_BYTES = 8 << 20
"""Bytes to ask a server for at once, so that the time until it answers does not count."""


class OpenedFile(Protocol):
    """A file opened for positional reads by any number of threads."""

    def read_some(self, view: memoryview, offset: int) -> int:
        """Fill the beginning of `view` with bytes from `offset` on; return how many, 0 at the end of the file."""


@runtime_checkable
class RemotePath(Protocol):
    """The path of a file that this machine does not have, and that cannot change: its commit is part of it."""

    def open_ranges(self) -> OpenedFile:
        """Open the file for positional reads.

        Raises:
            InputError: it cannot be read.
        """


def is_there(path: Path) -> bool:
    """Return whether something has the name `path`, which may be one that no file can have."""
    try:
        return path.exists()
    except OSError:
        return False


@dataclass(frozen=True)
class FileRef:
    """A file as it was when it was looked at, or as a plan will write it.

    It is a plain value: it can be compared, hashed and sent to another process, which opens the file for itself.
    """

    path: Path
    """Absolute."""
    size: int
    """Bytes."""
    modified_ns: int | None = None
    """Time of last modification; None for a file that is yet to be written."""

    @classmethod
    def at(cls, path: Path) -> FileRef:
        """Look at the regular file `path`.

        Raises:
            InputError: it does not exist, is not a regular file, or cannot be opened.
        """
        try:
            if not path.is_file():
                raise InputError("not a regular file" if path.exists() else "file is missing", file=path)
            status = path.stat()
            file = cls(path.absolute(), status.st_size, status.st_mtime_ns)
            _opened(file)
        except OSError as error:
            raise InputError(f"cannot open file: {error.strerror}", file=path) from error
        return file

    def read_into(self, buffer: Array, offset: int) -> None:
        """Fill the contiguous array `buffer` with the bytes from `offset` on.

        Raises:
            InputError: the file changed since it was looked at, ends before the buffer is full, or cannot be read.
        """
        view = buffer.reshape(-1).view(np.uint8).data
        done = 0
        try:
            opened = _opened(self)
            while done < len(view):
                count = opened.read_some(view[done:], offset + done)
                if count == 0:
                    raise InputError(
                        "file is truncated or became shorter while it was read",
                        file=self.path,
                        found=f"{offset + done} bytes",
                        expected=f"at least {offset + len(view)}",
                    )
                done += count
        except OSError as error:
            raise InputError(f"cannot read file: {error.strerror}", file=self.path) from error

    def copy_some(self, offset: int, count: int, target: int, target_offset: int) -> int:
        """Let the system copy up to `count` bytes from `offset` on to the open file `target`.

        Returns:
            Bytes that it copied; 0 if it does not, for whatever reason. Reading and writing them instead either
            does it or tells what is wrong.

        Raises:
            InputError: the file changed since it was looked at.
        """
        if not hasattr(os, "copy_file_range"):
            return 0
        try:
            opened = _opened(self)
            if not isinstance(opened, _OpenFile):
                return 0
            return os.copy_file_range(opened.descriptor, target, count, offset, target_offset)
        except OSError:
            return 0

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on.

        Raises:
            InputError: as `read_into`.
        """
        buffer = np.empty(count, np.uint8)
        self.read_into(buffer, offset)
        return buffer.tobytes()


class _OpenFile:
    """A descriptor for positional reads by any number of threads, closed when nobody refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._seek_lock = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read_some(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.descriptor, [view], offset)
        with self._seek_lock:  # Windows has no positional read in the standard library
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            data = os.read(self.descriptor, len(view))
        view[: len(data)] = data
        return len(data)


def open_local(path: Path) -> OpenedFile:
    """Open a file of this machine for positional reads.

    Raises:
        OSError: it cannot be opened.
    """
    return _OpenFile(path)


@lru_cache(maxsize=OPEN_FILES)
def _opened(file: FileRef) -> OpenedFile:
    """Return the file opened; a descriptor that falls out of the cache lives on while a thread reads from it."""
    if isinstance(file.path, RemotePath):
        return file.path.open_ranges()
    opened = _OpenFile(file.path)
    status = os.fstat(opened.descriptor)
    if file.modified_ns not in (None, status.st_mtime_ns) or status.st_size != file.size:
        raise InputError("file changed while it was in use", file=file.path)
    return opened


@dataclass(frozen=True)
class StoredArray:
    """A stored array seen as rows: `items` numbers of `dtype` each, one row after the other from `offset`."""

    file: FileRef
    offset: int
    dtype: np.dtype[Any]
    items: int

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row."""
        return self.items * self.dtype.itemsize

    def position(self, row: int) -> int:
        """Return where `row` begins, in bytes from the start of the file."""
        return self.offset + row * self.row_nbytes

    def read(self, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` as an array `[rows, items]`."""
        rows = np.empty((stop - start, self.items), self.dtype)
        self.file.read_into(rows, self.position(start))
        return rows

    def write(self, writer: FileWriter, start: int, rows: Array) -> None:
        """Write `rows` `[rows, items]` from row `start` on."""
        data = row_major(rows.astype(self.dtype, copy=False))
        writer.write(self.file.path, data, self.position(start))


class ReadOnlyStorage:
    """Base of storages whose rows are gathered or computed while they are read."""

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        """Refuse: no plan has such a target."""
        raise TypeError(f"{type(self).__name__} can only be read")


class FileCopier(FileWriter, Protocol):
    """Takes what a storage writes, and ranges of other files."""

    def copy(self, path: Path, offset: int, source: FileRef, start: int, count: int) -> None:
        """Copy `count` bytes of `source` from `start` on to `offset` of the planned file `path`.

        Raises:
            InputError: the source changed, or cannot be read.
            OutputError: the system refused to write.
        """


@runtime_checkable
class RowsStorage(Storage, Protocol):
    """A storage whose rows may lie as they are, one after the other."""

    @property
    def rows_in_file(self) -> StoredArray | None:
        """The array whose rows are those of the tensor, byte for byte; None if there is none."""


@dataclass(frozen=True)
class SameBytes:
    """Rows that are the same bytes in two files."""

    source: StoredArray
    target: StoredArray

    @classmethod
    def of(cls, source: Storage, target: Storage) -> SameBytes | None:
        """Return where the rows of a tensor lie in two storages, which both have it in the same encoding.

        None says that they do not lie in rows, or not in the same ones, in both of them.
        """
        if not isinstance(source, RowsStorage) or not isinstance(target, RowsStorage):
            return None
        rows, new_rows = source.rows_in_file, target.rows_in_file
        if rows is None or new_rows is None or rows.row_nbytes != new_rows.row_nbytes:
            return None
        return cls(rows, new_rows)

    def copy(self, writer: FileCopier, start: int, stop: int) -> None:
        """Copy rows `start` to `stop`.

        Raises:
            InputError: as `FileCopier.copy`.
            OutputError: as `FileCopier.copy`.
        """
        count = (stop - start) * self.source.row_nbytes
        writer.copy(
            self.target.file.path, self.target.position(start), self.source.file, self.source.position(start), count
        )


@dataclass(frozen=True)
class PartsStorage:
    """A tensor whose parts are stored one by one, each row-major; also when they lie in several files."""

    parts: tuple[StoredArray, ...]
    row_group: int = field(default=1, init=False)
    order: Order = field(default="C", init=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the parts."""
        return tuple(part.file.path for part in self.parts)

    @property
    def rows_in_file(self) -> StoredArray | None:
        """The only part, if there is one only."""
        return self.parts[0] if len(self.parts) == 1 else None

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop` of every part."""
        return tuple(part.read(start, stop) for part in self.parts)

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        """Write every part of `chunk` from row `start` on."""
        for part, rows in zip(self.parts, chunk, strict=True):
            part.write(writer, start, rows)


@dataclass(frozen=True)
class TransposedStorage:
    """Matrices `[out, in]` of plain numbers that are stored as `[in, out]`, one after the other.

    A row of the tensor is a stored column, so arrays are in column order: nothing is rearranged between them and
    the file. Whole matrices are moved in one piece; a narrower range of rows is gathered from, or scattered to,
    each stored row, which costs a system call per stored row.
    """

    stored: StoredArray
    """Its rows are the stored rows: `items` is the `out` dimension."""
    stored_rows: int
    """Rows of one stored matrix: the `in` dimension."""
    order: Order = field(default="F", init=False)

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
        columns = np.empty((self.stored_rows, stop - start), self.stored.dtype)
        for matrix, first, last in self._stripes(start, stop):
            base = matrix * self.stored_rows
            position = matrix * self.row_group + first - start
            if last - first == self.row_group == stop - start:
                self.stored.file.read_into(columns, self._position(base, 0))
            elif last - first == self.row_group:
                columns[:, position : position + last - first] = self.stored.read(base, base + self.stored_rows)
            else:
                for row in range(self.stored_rows):
                    place = columns[row, position : position + last - first]
                    self.stored.file.read_into(place, self._position(base + row, first))
        return (columns.T,)

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        """Write `chunk`, one array `[rows, in]`, from row `start` on."""
        (rows,) = chunk
        for matrix, first, last in self._stripes(start, start + len(rows)):
            base = matrix * self.stored_rows
            position = matrix * self.row_group + first - start
            stripe = row_major(rows[position : position + last - first].T)
            if last - first == self.row_group:
                self.stored.write(writer, base, stripe)
            else:
                for row in range(self.stored_rows):
                    writer.write(self.stored.file.path, stripe[row], self._position(base + row, first))

    def _stripes(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Return (matrix, first row, last row) for each matrix that rows `start` to `stop` touch."""
        stripes = []
        while start < stop:
            matrix, first = divmod(start, self.row_group)
            last = min(first + stop - start, self.row_group)
            stripes.append((matrix, first, last))
            start += last - first
        return stripes

    def _position(self, stored_row: int, item: int) -> int:
        return self.stored.offset + stored_row * self.stored.row_nbytes + item * self.stored.dtype.itemsize


@dataclass(frozen=True)
class DecodedStorage:
    """A tensor that is stored in some encoding and moved as float32."""

    stored: Storage
    encoding: Encoding

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the stored tensor."""
        return self.stored.files

    @property
    def row_group(self) -> int:
        """As of the stored tensor."""
        return self.stored.row_group

    @property
    def order(self) -> Order:
        """As of the stored tensor."""
        return self.stored.order

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop` as float32 numbers `[rows, columns]`.

        Raises:
            EncodingError: the stored bytes are no sound numbers.
            InputError: as the stored tensor.
        """
        chunk = self.stored.read(start, stop)
        self.encoding.check(chunk)
        return (self.encoding.decode(chunk),)

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        """Write the numbers of `chunk` from row `start` on.

        Raises:
            EncodingError: the encoding cannot hold them.
        """
        self.stored.write(writer, start, self.encoding.encode(chunk[0]))


@dataclass(frozen=True)
class InterleavedStorage:
    """A tensor whose even and odd rows (or, with `axis` 1, elements of a row) are stored as two tensors.

    With `axis` 1 the encoding must be one of single elements, not of blocks.
    """

    even: Storage
    odd: Storage
    axis: int
    order: Order = field(default="C", init=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of both halves."""
        return tuple(dict.fromkeys(self.even.files + self.odd.files))

    @property
    def row_group(self) -> int:
        """Rows that take whole groups of both halves."""
        return max(self.even.row_group, self.odd.row_group) * (2 if self.axis == 0 else 1)

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop`."""
        if self.axis == 1:
            halves = self.even.read(start, stop), self.odd.read(start, stop)
            return tuple(np.stack(parts, axis=2).reshape(stop - start, -1) for parts in zip(*halves, strict=True))
        even = self.even.read((start + 1) // 2, (stop + 1) // 2)
        odd = self.odd.read(start // 2, stop // 2)
        chunk = []
        for even_part, odd_part in zip(even, odd, strict=True):
            part = np.empty((stop - start, even_part.shape[1]), even_part.dtype)
            part[start % 2 :: 2] = even_part
            part[1 - start % 2 :: 2] = odd_part
            chunk.append(part)
        return tuple(chunk)

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        """Write `chunk` from row `start` on."""
        if self.axis == 1:
            self.even.write(writer, start, tuple(part[:, 0::2] for part in chunk))
            self.odd.write(writer, start, tuple(part[:, 1::2] for part in chunk))
            return
        if len(chunk[0]) > start % 2:
            self.even.write(writer, (start + 1) // 2, tuple(part[start % 2 :: 2] for part in chunk))
        if len(chunk[0]) > 1 - start % 2:
            self.odd.write(writer, start // 2, tuple(part[1 - start % 2 :: 2] for part in chunk))
