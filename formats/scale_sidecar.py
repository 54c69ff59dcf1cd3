"""The file that names the scales of MXFP4 blocks beside weights that were decoded from them.

Decoded values tell the scale of a block only if the block is canonical, as `encodings.mxfp4_canonical` has it. The
scales of all others are kept in a ZIP archive, so that quantising can restore every byte: a member for each matrix
that has such blocks, called by the tensor's canonical name, `/` and the index of the matrix. It holds a bit for
every block, row by row, the first one in the highest bit of the first byte, which is set where a scale is named,
and then the named scales, a byte each. The names are advice: a scale is used only for a block that it suits, so a
file that has become stale does no harm.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.assets import SIDECAR
from gptoss_convert.encodings.mxfp4_format import NOT_NAMED
from gptoss_convert.errors import InputError, OutputError
from gptoss_convert.formats.storage import FileRef

SIDECAR_NAME = SIDECAR
_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest that ZIP knows: the file depends on its contents alone."""
_ENCRYPTED = 1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LARGEST_READ = 8 << 20
"""Bytes that are read at once: a member is far smaller, and so is the list of all members."""
_DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)
"""What the standard library raises for archives that are none, or of a kind that it does not know."""


class ScaleSidecarWriter:
    """Writes the file while scales come in, tensor by tensor and row by row; without any there is no file."""

    def __init__(self, path: Path) -> None:
        """Take the path of the file, which must not exist."""
        self._path = path
        self._archive: zipfile.ZipFile | None = None
        self._name = ""
        self._rows: list[NDArray[np.uint8]] = []
        self.blocks = 0
        """Blocks whose scale was named so far."""

    def add(self, tensor: str, matrix: int, scales: NDArray[np.uint8]) -> None:
        """Add the next rows of matrix number `matrix`: uint8 `[rows, blocks]`, 255 where a block is canonical.

        Raises:
            OutputError: the file cannot be written.
        """
        name = f"{tensor}/{matrix}"
        if name != self._name:
            self._finish_matrix()
            self._name = name
        self._rows.append(scales)

    def close(self) -> None:
        """Complete the file.

        Raises:
            OutputError: it cannot be written.
        """
        self._finish_matrix()
        archive, self._archive = self._archive, None
        if archive is not None:
            with self._reported(archive):
                archive.close()

    def _finish_matrix(self) -> None:
        rows, self._rows = self._rows, []
        scales = np.concatenate(rows).reshape(-1) if rows else np.empty(0, np.uint8)
        is_named = scales != NOT_NAMED
        named = scales[is_named]
        if not named.size:
            return
        self.blocks += named.size
        with self._reported(self._archive):
            if self._archive is None:
                self._archive = zipfile.ZipFile(self._path, "w")
            member = zipfile.ZipInfo(self._name, _TIME)
            member.compress_type = zipfile.ZIP_DEFLATED
            self._archive.writestr(member, np.packbits(is_named).tobytes() + named.tobytes(), compresslevel=1)

    @contextmanager
    def _reported(self, archive: zipfile.ZipFile | None) -> Iterator[None]:
        """Turn an `OSError` into an `OutputError`, and give up the archive, which would complain once more."""
        try:
            yield
        except OSError as error:
            archive, self._archive = archive or self._archive, None
            if archive is not None and archive.fp is not None:
                file, archive.fp = archive.fp, None
                with suppress(OSError):
                    file.close()
            raise OutputError(f"cannot write: {error.strerror or error}", file=self._path) from error


@dataclass(frozen=True)
class NamedScales:
    """The scales that a sidecar names for one tensor of `rows` rows a matrix and `blocks` blocks a row."""

    file: FileRef
    tensor: str
    matrices: frozenset[int]
    """Matrices of which any scale is named."""
    rows: int
    blocks: int

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the scales of rows `start` to `stop` over all matrices, 255 where none is named.

        Raises:
            InputError: the file is damaged or changed.
        """
        scales = np.full((stop - start, self.blocks), NOT_NAMED, np.uint8)
        for matrix in range(start // self.rows, -(-stop // self.rows)):
            if matrix in self.matrices:
                first = matrix * self.rows
                low, high = max(start, first), min(stop, first + self.rows)
                scales[low - start : high - start] = self._matrix(matrix)[low - first : high - first]
        return scales

    def _matrix(self, matrix: int) -> NDArray[np.uint8]:
        name = f"{self.tensor}/{matrix}"
        try:
            content = _archive(self.file).read(name)
        except _DAMAGES as error:
            raise InputError(f"damaged file of scales: {error}", file=self.file.path, tensor=name) from None
        count = self.rows * self.blocks
        data = np.frombuffer(content, np.uint8)
        bits, named = np.split(data, [-(-count // 8)])
        is_named = np.unpackbits(bits, count=count).view(bool)
        if int(is_named.sum()) != named.size:
            raise InputError("damaged file of scales", file=self.file.path, tensor=name)
        scales = np.full(count, NOT_NAMED, np.uint8)
        scales[is_named] = named
        return scales.reshape(self.rows, self.blocks)


def read_sidecar(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NamedScales]:
    """Return the scales that the file at `path` names, by tensor.

    Args:
        path: the file.
        shapes: canonical shape `[experts, out, in]` of every tensor that may occur.

    Raises:
        InputError: it is no such file, or names scales of other tensors.
    """
    file = FileRef.at(path)
    found: dict[str, set[int]] = {}
    for info in _members(file):
        tensor, _, number = info.filename.rpartition("/")
        shape = shapes.get(tensor)
        if shape is None or not _is_index(number, shape[0]):
            raise InputError("scales of a tensor that the model has not", file=path, found=info.filename)
        matrices = found.setdefault(tensor, set())
        if int(number) in matrices:
            raise InputError("scales are named twice", file=path, tensor=info.filename)
        matrices.add(int(number))
        blocks = shape[1] * (shape[2] // 32)
        least = -(-blocks // 8)
        fits = least < info.file_size <= least + blocks
        if not fits or info.compress_type not in _METHODS or info.flag_bits & _ENCRYPTED:
            raise InputError(
                "scales do not fit the tensor",
                file=path,
                tensor=info.filename,
                found=f"{info.file_size} bytes",
                expected=f"{least} to {least + blocks} bytes, not encrypted",
            )
    return {
        tensor: NamedScales(file, tensor, frozenset(matrices), shapes[tensor][1], shapes[tensor][2] // 32)
        for tensor, matrices in found.items()
    }


def _members(file: FileRef) -> Collection[zipfile.ZipInfo]:
    try:
        return _archive(file).infolist()
    except _DAMAGES as error:
        raise InputError(f"damaged file of scales: {error}", file=file.path) from None


def _is_index(text: str, count: int) -> bool:
    return text.isascii() and text.isdigit() and text == str(int(text[:9])) and int(text) < count


@lru_cache(maxsize=4)
def _archive(file: FileRef) -> zipfile.ZipFile:
    """Return the file opened; any number of threads may read from it."""
    return zipfile.ZipFile(_PositionalFile(file))


class _PositionalFile(io.RawIOBase):
    """A file with a position of its own, which processes that were forked from each other do not share."""

    def __init__(self, file: FileRef) -> None:
        self._file = file
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise ValueError("position before the beginning")
        self._position = start + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        rest = max(self._file.size - self._position, 0)
        count = rest if size < 0 else min(size, rest)
        if count > _LARGEST_READ:
            raise zipfile.BadZipFile(f"{count} bytes in one piece")
        data = self._file.read(self._position, count)
        self._position += count
        return data
