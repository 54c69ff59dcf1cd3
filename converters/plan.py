"""The plan of a conversion: every output file, tensor, encoding, offset and byte count, before any data is read.

`--dry-run` prints this object, the run executes it, and the space check and the progress bar take their numbers
from it. It holds no open output and no callback, so that it can be sent to another process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.encodings import Array, Chunk, Encoding, LossClass, loss_class

Pack: TypeAlias = Callable[[Encoding, Chunk], Array]
"""A function of an output format, importable by name: a chunk as the contiguous bytes of its rows."""

_SEVERITY = list(LossClass)


@dataclass(frozen=True)
class Selection:
    """Every `step`-th row (`axis` 0) or element of each row (`axis` 1) of a tensor, from `start` on."""

    axis: int = 0
    start: int = 0
    step: int = 1

    def apply(self, chunk: Chunk, first_row: int) -> tuple[Chunk, int]:
        """Select from a chunk whose first row is row `first_row` of the tensor.

        Returns:
            The selected part of the chunk, and the row of the selection at which it begins.
        """
        if self.step == 1:
            return chunk, first_row
        if self.axis == 1:
            return tuple(part[:, self.start :: self.step] for part in chunk), first_row
        skipped = (self.start - first_row) % self.step
        row = (first_row + skipped - self.start) // self.step
        return tuple(part[skipped :: self.step] for part in chunk), row


WHOLE = Selection()


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """A tensor of the output."""

    name: str
    shape: tuple[int, ...]
    """In elements."""
    encoding: Encoding
    file: int
    """Index into the plan's files."""
    offset: int
    """Where its data begin, in bytes from the start of the file."""
    note: str | None = None
    """Why it is not stored as asked for."""

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return self.encoding.nbytes(self.shape)

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row of its data."""
        return self.encoding.row_nbytes(self.shape[-1])


@dataclass(frozen=True)
class Target:
    """What becomes of a source tensor, or of a selection of it, in the output."""

    tensor: PlannedTensor
    selection: Selection
    pack: Pack


@dataclass(frozen=True)
class Transfer:
    """A source tensor that is read once, chunk by chunk, and everything that is written from it."""

    source: Tensor
    targets: tuple[Target, ...]

    @property
    def loss(self) -> LossClass:
        """The worst that happens to its numbers."""
        return worst(loss_class(self.source.encoding, target.tensor.encoding) for target in self.targets)

    @property
    def nbytes(self) -> int:
        """Bytes that are written from it."""
        return sum(target.tensor.nbytes for target in self.targets)

    @property
    def reading_bytes_per_row(self) -> int:
        """Upper estimate of the memory that reading a row takes."""
        stored = self.source.encoding.row_nbytes(self.source.columns)
        gathered = self.source.source.row_group > 1  # read in one piece, then arranged in another
        return 2 * stored if gathered else stored

    @property
    def working_bytes_per_row(self) -> int:
        """Upper estimate of the memory that a row takes from reading to writing."""
        packed = max(target.tensor.row_nbytes for target in self.targets)
        converting = any(target.tensor.encoding is not self.source.encoding for target in self.targets)
        # A conversion needs float32 values and temporaries of their size.
        return self.reading_bytes_per_row + packed + (8 * 4 * self.source.columns if converting else 0)


@dataclass(frozen=True)
class PlannedFile:
    """An output file: its final path, the bytes before its first tensor, and its exact size."""

    path: Path
    header: bytes
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a conversion will do."""

    source: Path
    source_format: str
    source_files: tuple[Path, ...]
    """Files that must never be written to."""
    format: str
    files: tuple[PlannedFile, ...]
    """In the order in which they get their final names; the last one makes the artifact complete."""
    transfers: tuple[Transfer, ...]
    notes: tuple[str, ...] = ()
    """What the user should know about this conversion."""

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """All tensors of the output, in order of transfer."""
        return tuple(target.tensor for transfer in self.transfers for target in transfer.targets)

    @property
    def nbytes(self) -> int:
        """Size of all output files."""
        return sum(file.nbytes for file in self.files)

    @property
    def data_nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(transfer.nbytes for transfer in self.transfers)

    @property
    def loss(self) -> LossClass:
        """The worst that happens to any tensor."""
        return worst(transfer.loss for transfer in self.transfers)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        return {
            "source": str(self.source),
            "source_format": self.source_format,
            "format": self.format,
            "loss": str(self.loss),
            "nbytes": self.nbytes,
            "files": [{"path": str(file.path), "nbytes": file.nbytes} for file in self.files],
            "tensors": [
                {
                    "name": target.tensor.name,
                    "shape": list(target.tensor.shape),
                    "encoding": target.tensor.encoding.name,
                    "file": target.tensor.file,
                    "offset": target.tensor.offset,
                    "nbytes": target.tensor.nbytes,
                    "source": transfer.source.name,
                    "source_encoding": transfer.source.encoding.name,
                    "loss": str(loss_class(transfer.source.encoding, target.tensor.encoding)),
                    "note": target.tensor.note,
                }
                for transfer in self.transfers
                for target in transfer.targets
            ],
            "notes": list(self.notes),
        }


def worst(losses: Any) -> LossClass:
    """Return the worst of some loss classes; byte-exact if there are none."""
    return max(losses, key=_SEVERITY.index, default=LossClass.BYTE_EXACT)
