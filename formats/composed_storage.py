"""Tensors that lie in files as several tensors: one per expert, or one half of each row after the other.

`InterleavedStorage` of `gptoss_convert.formats.storage` belongs to the same family; these compose with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gptoss_convert.checkpoint import FileWriter, Storage
from gptoss_convert.encodings import Chunk, Order
from gptoss_convert.errors import InputError, UnsupportedError

LARGEST_SCALE = 254
"""The largest E8M0 byte that is a number."""


@dataclass(frozen=True)
class StackedStorage:
    """Rows that lie one piece after the other, each piece in a storage of its own: experts, for example.

    All pieces have the same number of rows and the same memory order.
    """

    pieces: tuple[Storage, ...]
    """At least one."""
    rows: int
    """Of each piece."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of all pieces, each once."""
        return tuple(dict.fromkeys(file for piece in self.pieces for file in piece.files))

    @property
    def row_group(self) -> int:
        """That of the pieces."""
        return max(piece.row_group for piece in self.pieces)

    @property
    def order(self) -> Order:
        """That of the pieces."""
        return self.pieces[0].order

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop` over all pieces."""
        chunks = [self.pieces[index].read(first, last) for index, first, last in self._spans(start, stop)]
        if len(chunks) == 1:
            return chunks[0]
        return tuple(np.concatenate(parts) for parts in zip(*chunks, strict=True))

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        """Write `chunk` from row `start` on."""
        done = 0
        for index, first, last in self._spans(start, start + len(chunk[0])):
            rows = slice(done, done + last - first)
            self.pieces[index].write(writer, first, tuple(part[rows] for part in chunk))
            done = rows.stop

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (piece, first row, last row) for each piece that rows `start` to `stop` touch; at least one."""
        index = min(start // self.rows, len(self.pieces) - 1)
        while True:
            base = index * self.rows
            yield index, start - base, min(stop - base, self.rows)
            start = base + self.rows
            if start >= stop:
                return
            index += 1


@dataclass(frozen=True)
class AdjoinedStorage:
    """Rows whose first `columns` elements lie in one tensor and the rest in another.

    The encoding must have one part and be one of single elements, not of blocks.
    """

    first: Storage
    second: Storage
    columns: int
    """Elements of a row in `first`."""
    order: Order = field(default="C", init=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of both, each once."""
        return tuple(dict.fromkeys(self.first.files + self.second.files))

    @property
    def row_group(self) -> int:
        """Rows that take whole groups of both."""
        return max(self.first.row_group, self.second.row_group)

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop`, as one array."""
        return (np.concatenate([*self.first.read(start, stop), *self.second.read(start, stop)], axis=1),)

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        """Write `chunk`, one array, from row `start` on."""
        (rows,) = chunk
        self.first.write(writer, start, (rows[:, : self.columns],))
        self.second.write(writer, start, (rows[:, self.columns :],))


@dataclass(frozen=True)
class OffsetScalesStorage:
    """MXFP4 whose scales are stored smaller than they are: with a bias of `127 - offset`."""

    stored: Storage
    offset: int

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the stored tensor."""
        return self.stored.files

    @property
    def row_group(self) -> int:
        """That of the stored tensor."""
        return self.stored.row_group

    @property
    def order(self) -> Order:
        """That of the stored tensor."""
        return self.stored.order

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop`, scales with a bias of 127.

        Raises:
            InputError: a scale would be no number.
        """
        codes, scales = self.stored.read(start, stop)
        if scales.size and scales.max() > LARGEST_SCALE - self.offset:
            raise InputError(
                f"scale byte is too large for a file whose scales are {self.offset} too small",
                file=self.files[0],
                found=scales.max(),
                expected=f"at most {LARGEST_SCALE - self.offset}",
            )
        return codes, scales + np.uint8(self.offset)

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        """Write `chunk`, whose scales have a bias of 127, from row `start` on.

        Raises:
            UnsupportedError: a scale is too small to be stored smaller.
        """
        codes, scales = chunk
        if scales.size and scales.min() < self.offset:
            raise UnsupportedError(
                f"scale byte cannot be stored {self.offset} smaller", file=self.files[0], found=scales.min()
            )
        self.stored.write(writer, start, (codes, scales - np.uint8(self.offset)))
