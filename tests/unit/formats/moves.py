"""Rows of a storage, read and written in any ranges and in any order."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from gptoss_convert.checkpoint import Storage
from gptoss_convert.encodings import Array, Chunk
from gptoss_convert.formats.storage import FileRef, StoredArray

UNTOUCHED = b"\xa5"
BEFORE, AFTER = UNTOUCHED * 3, UNTOUCHED * 5


@dataclass
class Memory:
    """Takes what is written to files of known sizes; no byte may be written twice."""

    files: dict[Path, bytearray]
    written: dict[Path, Array] = field(init=False)

    def __post_init__(self) -> None:
        self.written = {path: np.zeros(len(content), bool) for path, content in self.files.items()}

    def write(self, path: Path, data: bytes | Array, offset: int) -> None:
        assert isinstance(data, bytes) or data.flags.c_contiguous
        piece = data if isinstance(data, bytes) else data.tobytes()
        place = slice(offset, offset + len(piece))
        assert 0 <= offset <= place.stop <= len(self.files[path])
        assert not self.written[path][place].any()
        self.files[path][place] = piece
        self.written[path][place] = True

    def copy(self, path: Path, offset: int, source: FileRef, start: int, count: int) -> None:
        self.write(path, source.read(start, count), offset)


@dataclass(frozen=True)
class Case:
    """A storage, all its rows, and the files that hold them."""

    storage: Storage
    chunk: Chunk
    contents: Mapping[Path, bytes]

    @property
    def rows(self) -> int:
        return len(self.chunk[0])

    def assert_reads(self, start: int, stop: int) -> None:
        read = self.storage.read(start, stop)
        for part, expected in zip(read, self.chunk, strict=True):
            assert part.dtype == expected.dtype
            np.testing.assert_array_equal(part, expected[start:stop])

    def assert_is_a_value(self) -> None:
        """The storage is equal to a copy that another process would get, which reads the same."""
        copy = pickle.loads(pickle.dumps(self.storage))
        assert copy == self.storage
        assert hash(copy) == hash(self.storage)
        Case(copy, self.chunk, self.contents).assert_reads(0, self.rows)

    def assert_writes(self, pieces: list[tuple[int, int]]) -> None:
        """Write all rows, in these pieces."""
        memory = Memory({path: bytearray(UNTOUCHED * len(content)) for path, content in self.contents.items()})
        for start, stop in pieces:
            self.storage.write(memory, start, tuple(part[start:stop] for part in self.chunk))
        assert memory.files == self.contents


def stored_in(path: Path, rows: Array, contents: dict[Path, bytes]) -> StoredArray:
    """`rows` in a file of their own among other bytes, which is added to `contents`."""
    contents[path] = BEFORE + rows.tobytes() + AFTER
    path.write_bytes(contents[path])
    return StoredArray(FileRef.at(path), len(BEFORE), rows.dtype, rows.shape[1])


@st.composite
def ranges(draw: st.DrawFn, rows: int) -> tuple[int, int]:
    """Some of the rows, at least one."""
    start = draw(st.integers(0, rows - 1))
    return start, draw(st.integers(start + 1, rows))


@st.composite
def pieces(draw: st.DrawFn, rows: int) -> list[tuple[int, int]]:
    """All of the rows in pieces, in any order."""
    cuts = sorted({0, rows, *draw(st.lists(st.integers(1, rows), max_size=6))})
    return draw(st.permutations(list(pairwise(cuts))))
