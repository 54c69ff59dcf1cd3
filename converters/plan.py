"""The plan of a conversion: every output file, tensor, encoding, offset and byte count, before any data is read.

`--dry-run` prints this object, the run executes it, and the space check and the progress bar take their numbers
from it. It is a plain value, so that it can be sent to another process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.encodings import Encoding, LossClass, loss_class


@dataclass(frozen=True)
class Transfer:
    """A tensor that is read, and the same tensor as it will be written, perhaps in another encoding."""

    source: Tensor
    target: Tensor

    @property
    def loss(self) -> LossClass:
        """What happens to its numbers."""
        return loss_class(self.source.encoding, self.target.encoding)

    @property
    def row_group(self) -> int:
        """Rows that source and target move best together."""
        return max(self.source.storage.row_group, self.target.storage.row_group)

    @property
    def reading_bytes_per_row(self) -> int:
        """Upper estimate of the memory that reading a row takes."""
        stored = self.source.encoding.row_nbytes(self.source.columns)
        gathered = self.source.storage.row_group > 1  # read in one piece, then arranged in another
        return 2 * stored if gathered else stored

    @property
    def working_bytes_per_row(self) -> int:
        """Upper estimate of the memory that a row takes from reading to writing."""
        packed = self.target.encoding.row_nbytes(self.target.columns)
        converting = self.source.encoding != self.target.encoding
        # A conversion needs float32 values and temporaries of their size.
        return self.reading_bytes_per_row + packed + (8 * 4 * self.source.columns if converting else 0)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor as an output file lists it, for people and programs that read the plan."""

    name: str
    shape: tuple[int, ...]
    """In elements."""
    encoding: Encoding
    offset: int
    """Where its data begin, in bytes from the start of the file."""
    nbytes: int
    source: str
    """Canonical name of the tensor that it is, or is a part of."""
    source_encoding: Encoding
    note: str | None = None
    """Why it is not stored as asked for."""

    @property
    def loss(self) -> LossClass:
        """What happens to its numbers."""
        return loss_class(self.source_encoding, self.encoding)


@dataclass(frozen=True)
class PlannedFile:
    """An output file: its final path, its exact size, the bytes before its first tensor, and its tensors."""

    path: Path
    nbytes: int
    header: bytes = field(repr=False)
    entries: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a conversion will do."""

    source: Path
    source_format: str
    inputs: tuple[Path, ...]
    """Files and folders that are read, and must never be written to."""
    format: str
    files: tuple[PlannedFile, ...]
    """The first one is what programs open; it gets its final name last, when all others have theirs."""
    transfers: tuple[Transfer, ...]
    notes: tuple[str, ...] = ()
    """What the user should know about this conversion."""

    @property
    def output(self) -> Path:
        """The file to open when the plan has been executed."""
        return self.files[0].path

    @property
    def nbytes(self) -> int:
        """Size of all output files."""
        return sum(file.nbytes for file in self.files)

    @property
    def data_nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(transfer.target.nbytes for transfer in self.transfers)

    @property
    def loss(self) -> LossClass:
        """The worst that happens to any tensor."""
        return LossClass.worst(transfer.loss for transfer in self.transfers)

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
                    "name": entry.name,
                    "shape": list(entry.shape),
                    "encoding": entry.encoding.name,
                    "file": index,
                    "offset": entry.offset,
                    "nbytes": entry.nbytes,
                    "source": entry.source,
                    "source_encoding": entry.source_encoding.name,
                    "loss": str(entry.loss),
                    "note": entry.note,
                }
                for index, file in enumerate(self.files)
                for entry in file.entries
            ],
            "notes": list(self.notes),
        }
