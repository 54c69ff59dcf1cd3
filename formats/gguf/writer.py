"""GGUF files before they are written: which tensor lies where in which file, and the headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss_convert.encodings import Encoding
from gptoss_convert.formats.gguf.container import TensorInfo, Value, ValueType, aligned, serialise_header
from gptoss_convert.formats.gguf.reader import split_path
from gptoss_convert.formats.gguf.tensors import PlacedTensor
from gptoss_convert.formats.storage import FileRef

# `llama_ftype` in llama.h
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_FILE_TYPE_MXFP4_MOE = 38


@dataclass(frozen=True)
class NewTensor:
    """A tensor of a file that is yet to be laid out."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return self.encoding.nbytes(self.shape)


@dataclass(frozen=True)
class GgufLayout:
    """Files with their headers, and the place of every tensor."""

    files: tuple[tuple[FileRef, bytes], ...]
    """The first one holds the metadata; it is the one that programs open."""
    placed: Mapping[str, PlacedTensor]


def lay_out(
    tensors: Sequence[NewTensor], metadata: Mapping[str, Value], output: Path, *, split_max_size: int | None
) -> GgufLayout:
    """Lay out `tensors`, in this order, in one file or in several.

    Args:
        tensors: what to place.
        metadata: goes into the first file.
        output: path of the file; shards get the names that llama.cpp gives them.
        split_max_size: bytes of tensor data per shard; a single larger tensor gets a shard of its own.
    """
    shards = _split(tensors, split_max_size)
    files: list[tuple[FileRef, bytes]] = []
    placed: dict[str, PlacedTensor] = {}
    for index, shard in enumerate(shards):
        infos, end = [], 0
        for tensor in shard:
            infos.append(TensorInfo(tensor.name, tensor.shape, tensor.encoding, end))
            end = aligned(end + tensor.nbytes)
        keys = dict(metadata) if index == 0 else {}
        header = serialise_header(keys | _split_metadata(index, len(shards), len(tensors)), infos)
        path = output if len(shards) == 1 else split_path(output, index, len(shards))
        file = FileRef(path.absolute(), len(header) + end)
        files.append((file, header))
        for info in infos:
            absolute = TensorInfo(info.name, info.shape, info.encoding, len(header) + info.offset)
            placed[info.name] = PlacedTensor(file, absolute)
    return GgufLayout(tuple(files), placed)


def _split(tensors: Sequence[NewTensor], split_max_size: int | None) -> list[list[NewTensor]]:
    """Begin a new shard where the next tensor would pass the limit, as `GGUFWriter.add_tensor_info` does."""
    shards: list[list[NewTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if split_max_size is not None and shards[-1] and size + tensor.nbytes > split_max_size:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _split_metadata(index: int, count: int, tensors: int) -> dict[str, Value]:
    if count == 1:
        return {}
    return {
        "split.no": Value(ValueType.UINT16, index),
        "split.count": Value(ValueType.UINT16, count),
        "split.tensors.count": Value(ValueType.INT32, tensors),
    }


def file_type(dense: Encoding, experts: Encoding) -> int:
    """Return `general.file_type` as llama.cpp's converter chooses it, by the embedding and the experts."""
    if experts.name == "mxfp4":
        return _FILE_TYPES["q8_0"] if dense.name == "q8_0" else _FILE_TYPE_MXFP4_MOE
    return _FILE_TYPES[experts.name]
