"""Tensors and files that lie in memory."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptoss_convert.checkpoint import FileWriter, Tensor
from gptoss_convert.encodings import ENCODINGS, Array, Chunk, Order
from gptoss_convert.formats.storage import FileRef

PLACE = Path("model.safetensors")


@dataclass(frozen=True, eq=False)
class InMemory:
    """A storage of rows that lie in memory; what is written is put there."""

    parts: Chunk
    row_group: int = 1
    files: tuple[Path, ...] = (PLACE,)
    order: Order = "C"

    def read(self, start: int, stop: int) -> Chunk:
        return tuple(part[start:stop] for part in self.parts)

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        for part, rows in zip(self.parts, chunk, strict=True):
            part[start : start + len(rows)] = rows


class FilesInMemory:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self._pieces: dict[Path, list[tuple[int, bytes]]] = defaultdict(list)

    def write(self, path: Path, data: bytes | Array, offset: int) -> None:
        self._pieces[path].append((offset, data if isinstance(data, bytes) else data.tobytes()))

    def copy(self, path: Path, offset: int, source: FileRef, start: int, count: int) -> None:
        self.write(path, source.read(start, count), offset)

    def runs(self) -> dict[Path, dict[int, bytes]]:
        """The bytes of every file without gaps, by their offset; no byte may have been written twice."""
        found: dict[Path, dict[int, bytes]] = {}
        for path, pieces in self._pieces.items():
            runs: dict[int, bytearray] = {}
            start = end = -1
            for offset, data in sorted(pieces):
                assert offset >= end
                if offset > end:
                    start, end = offset, offset
                    runs[start] = bytearray()
                runs[start] += data
                end += len(data)
            found[path] = {offset: bytes(run) for offset, run in runs.items()}
        return found


def zeros(
    name: str,
    shape: tuple[int, ...],
    encoding: str = "f32",
    *,
    row_group: int = 1,
    order: Order = "C",
    file: Path = PLACE,
) -> Tensor:
    """A tensor of zeros, which takes no memory."""
    rows = int(np.prod(shape[:-1]))
    codec = ENCODINGS[encoding]
    blocks = shape[-1] // codec.block
    parts = tuple(np.broadcast_to(np.zeros(1, p.dtype), (rows, blocks * p.per_block)) for p in codec.parts)
    return Tensor(name, shape, codec, InMemory(parts, row_group, (file,), order))
