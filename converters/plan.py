"""The plan of a conversion: every output file, tensor, encoding, offset and byte count, before any data is read.

`--dry-run` prints this object, the run executes it, and the space check and the progress bar take their numbers
from it. It is a plain value, so that it can be sent to another process.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gptoss_convert.assets import MANIFEST
from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.recoding import PLAIN, Recoding
from gptoss_convert.encodings import Encoding, LossClass, loss_class
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.storage import REMOTE_BYTES, FileRef, RemotePath, SameBytes


@dataclass(frozen=True)
class Transfer:
    """A tensor that is read, and the same tensor as it will be written, perhaps in another encoding."""

    source: Tensor
    target: Tensor
    recoding: Recoding = PLAIN
    """How its numbers get from one encoding to the other."""

    @property
    def loss(self) -> LossClass:
        """What happens to its numbers."""
        return loss_class(self.source.encoding, self.target.encoding)

    @property
    def keeps_hash(self) -> bool:
        """Whether the encodings promise that the canonical hash stays: values are kept, zeros with their sign."""
        source, target = self.source.encoding, self.target.encoding
        return self.loss is not LossClass.LOSSY and (target.signed_zeros or not source.signed_zeros)

    @property
    def same_bytes(self) -> SameBytes | None:
        """Where the rows lie, if source and target are the same bytes that nobody has to look at."""
        kept = self.recoding == PLAIN and self.loss is LossClass.BYTE_EXACT
        if self._is_remote or not kept or not self.source.encoding.takes_any_bytes:
            return None
        return SameBytes.of(self.source.storage, self.target.storage)

    @property
    def row_group(self) -> int:
        """Rows that source and target move best together."""
        return max(self.source.storage.row_group, self.target.storage.row_group)

    @property
    def rows_per_read(self) -> int:
        """Rows that should be read at once: of a remote file, so many that its server's delay does not count."""
        if not self._is_remote:
            return 1
        return max(REMOTE_BYTES // self.source.encoding.row_nbytes(self.source.columns), 1)

    @property
    def gathers(self) -> bool:
        """Whether the rows of a task are written in one piece, since the target lies in columns."""
        return self.target.storage.order == "F"

    @property
    def holding_bytes_per_row(self) -> int:
        """Upper estimate of the memory that a row takes for as long as its task runs."""
        stored = self.source.encoding.row_nbytes(self.source.columns)
        # Grouped rows are read in one piece and then arranged in another.
        read = 2 * stored if self.source.storage.row_group > 1 and self.source.storage.order == "C" else stored
        return read + (self._written if self.gathers and not self._keeps_arrays else 0)

    @property
    def in_one_step(self) -> bool:
        """Whether all rows of a task are recoded at once: that takes no memory, and they are held anyway."""
        light = not self.recoding.temporary_bytes(self.source, self.target)
        # What comes from a server is held as large as memory allows, and then recoded in steps.
        return light and (self.gathers or (self.source.storage.order == "F" and not self._is_remote))

    @property
    def working_bytes_per_row(self) -> int:
        """Upper estimate of the memory that a row takes on top while it is converted and written."""
        if self.gathers and self.in_one_step:
            return 0
        return self._written + self.recoding.temporary_bytes(self.source, self.target)

    @property
    def _keeps_arrays(self) -> bool:
        """Whether what is written is what was read, in the same place of memory."""
        same_order = self.source.storage.order == self.target.storage.order
        return self.recoding == PLAIN and self.source.encoding == self.target.encoding and same_order

    @property
    def _is_remote(self) -> bool:
        """Whether rows are fetched from a server, which no system copies and which should be asked once."""
        return any(isinstance(file, RemotePath) for file in self.source.storage.files)

    @property
    def _written(self) -> int:
        return self.target.encoding.row_nbytes(self.target.columns)


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
    """An output file: its final path, its exact size, what is known of its contents, and its tensors."""

    path: Path
    nbytes: int
    header: bytes = field(repr=False)
    """The bytes before the first tensor; all of a file without tensors."""
    entries: tuple[Entry, ...] = ()
    copied: FileRef | None = None
    """The file that this one is a copy of."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a conversion will do."""

    source: Path
    source_format: str
    inputs: tuple[Path, ...]
    """Files and folders that are read, and must never be written to."""
    format: str
    folder: Path | None = None
    """The folder that holds all files and appears as a whole; None for files that stand by themselves."""
    files: tuple[PlannedFile, ...]
    """The first one is what programs open; without `folder` it gets its final name last."""
    transfers: tuple[Transfer, ...]
    notes: tuple[str, ...] = ()
    """What the user should know about this conversion."""
    scale_sidecar: Path | None = None
    """Where the scales of non-canonical MXFP4 blocks are named; the file appears only if there are any."""
    manifest: Path | None = None
    """Where hashes of files and values are listed; None to compute none."""

    def with_manifest(self) -> Plan:
        """Return the same plan with a manifest in the folder, or beside the first file.

        Raises:
            UnsupportedError: the values of a tensor cannot be hashed on the way: they cannot be decoded, or its two
                halves are copied one by one.
        """
        names: set[str] = set()
        for transfer in self.transfers:
            source = transfer.source
            if source.name in names or not source.encoding.can_decode:
                raise UnsupportedError(
                    "no manifest: values of the source cannot be hashed while they are copied",
                    file=source.file,
                    tensor=source.name,
                    found=source.encoding.name,
                    hint="leave out --manifest",
                )
            names.add(source.name)
        first = self.files[0].path
        beside = first.with_name(f"{first.name}.{MANIFEST}")
        return replace(self, manifest=beside if self.folder is None else self.folder / MANIFEST)

    @property
    def output(self) -> Path:
        """The file or folder to open when the plan has been executed."""
        return self.folder or self.files[0].path

    @property
    def paths_made_at_the_end(self) -> tuple[Path, ...]:
        """Files whose contents only the run can tell."""
        return tuple(path for path in (self.scale_sidecar, self.manifest) if path is not None)

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
            "files_made_at_the_end": [str(path) for path in self.paths_made_at_the_end],
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
