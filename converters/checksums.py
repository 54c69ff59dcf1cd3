"""Checksums of what is written, taken while it is still in the cache, and held against what can be read again.

A checksum is a CRC-32: it is there to find what storage and memory do to bytes, at more than 4 GB/s on one core,
three times as fast as SHA-256 with instructions of its own. It finds every change within 32 bits in a row, and
misses one of 4 billion others. Whoever changes a partial output on purpose could change its journal too.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gptoss_convert.encodings import Array
from gptoss_convert.formats.storage import FileCopier, FileRef, SameBytes

_SCATTERED_BYTES = 32 << 10
"""Pieces that are smaller than this are looked for at equal distances."""
_WRITE_BYTES = 1 << 20
"""Bytes that are written at once, right after they were summed up: they are in the cache then."""
_READ_BYTES = 256 << 10
"""Bytes that are read at once: they stay in the cache."""

Read = Callable[[Path, Array, int], None]
"""Fills an array with the bytes of a file under its final name from an offset on."""


@dataclass(frozen=True)
class Run:
    """Pieces of a file at equal distances, mostly a single one, and the checksum of their bytes in this order."""

    path: Path
    """The file's final name."""
    offset: int
    """Of the first piece."""
    nbytes: int
    """Of each piece."""
    crc: int
    pieces: int = 1
    stride: int = 0
    """From one piece to the next."""

    def checked(self, read: Read) -> bool:
        """Return whether the file has these bytes."""
        crc = 0
        buffer = np.empty(min(self.nbytes, _READ_BYTES), np.uint8)
        for piece in range(self.pieces):
            start = self.offset + piece * self.stride
            for done in range(0, self.nbytes, _READ_BYTES):
                part = buffer[: min(_READ_BYTES, self.nbytes - done)]
                read(self.path, part, start + done)
                crc = zlib.crc32(part.data, crc)
        return crc == self.crc


class Recorder:
    """Passes on what one task writes, and keeps checksums of it."""

    def __init__(self, writer: FileCopier) -> None:
        self._writer = writer
        self._runs: list[Run] = []
        self._ends: dict[tuple[Path, int], int] = {}
        """Runs of a single piece, by where they end."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """What was written by `write` so far."""
        return tuple(self._runs)

    def write(self, path: Path, data: bytes | Array, offset: int) -> None:
        """As `FileWriter.write`."""
        view = memoryview(data) if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data
        for done in range(0, len(view), _WRITE_BYTES):
            piece = view[done : done + _WRITE_BYTES]
            self._add(path, piece, offset + done)
            self._writer.write(path, np.frombuffer(piece, np.uint8), offset + done)

    def copy(self, path: Path, offset: int, source: FileRef, start: int, count: int) -> None:
        """As `FileCopier.copy`; nothing is recorded, since the source has the same bytes."""
        self._writer.copy(path, offset, source, start, count)

    def _add(self, path: Path, view: memoryview, offset: int) -> None:
        count = len(view)
        index = self._ends.pop((path, offset), None)
        if index is not None:
            run = self._runs[index]
            self._runs[index] = replace(run, nbytes=run.nbytes + count, crc=zlib.crc32(view, run.crc))
            self._ends[path, offset + count] = index
            return
        if self._runs and count < _SCATTERED_BYTES:
            last = self._runs[-1]
            stride = last.stride or offset - last.offset
            fits = (last.path, last.nbytes) == (path, count) and offset == last.offset + last.pieces * stride
            if fits and stride > count:
                self._ends.pop((path, last.offset + count), None)
                crc = zlib.crc32(view, last.crc)
                self._runs[-1] = replace(last, crc=crc, pieces=last.pieces + 1, stride=stride)
                return
        self._ends[path, offset + count] = len(self._runs)
        self._runs.append(Run(path, offset, count, zlib.crc32(view)))


def are_written(runs: Sequence[Run], read: Read) -> bool:
    """Return whether all runs can be read as they were written."""
    return all(run.checked(read) for run in runs)


def is_copied(same: SameBytes, start: int, stop: int, read: Read) -> bool:
    """Return whether rows `start` to `stop` are the same bytes in source and target.

    Raises:
        InputError: the source cannot be read.
    """
    count = (stop - start) * same.source.row_nbytes
    return is_copy(
        same.source.file,
        same.source.position(start),
        same.target.file.path,
        same.target.position(start),
        count,
        read,
    )


def is_copy(source: FileRef, start: int, path: Path, offset: int, count: int, read: Read) -> bool:
    """Return whether `count` bytes of `source` from `start` on are those at `offset` of the file `path`.

    Raises:
        InputError: the source cannot be read.
    """
    ours, theirs = np.empty((2, min(count, _READ_BYTES) + 7 & ~7), np.uint8)  # both begin at a multiple of 8
    for done in range(0, count, _READ_BYTES):
        part = slice(0, min(_READ_BYTES, count - done))
        source.read_into(theirs[part], start + done)
        read(path, ours[part], offset + done)
        if not _are_equal(ours[part], theirs[part]):
            return False
    return True


def _are_equal(left: Array, right: Array) -> bool:
    """Compare bytes, eight at a time: numpy takes as long for a small number as for a large one."""
    whole = len(left) - len(left) % 8
    words = left[:whole].view(np.uint64), right[:whole].view(np.uint64)
    return np.array_equal(*words) and np.array_equal(left[whole:], right[whole:])
