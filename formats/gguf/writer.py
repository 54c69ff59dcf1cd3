"""GGUF files before they are written: which tensor lies where in which file, and the headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gptoss_convert.encodings import Encoding
from gptoss_convert.formats.gguf.container import TensorInfo, Value, ValueType, aligned, serialise_header
from gptoss_convert.formats.gguf.reader import split_path
from gptoss_convert.formats.gguf.tensors import PlacedTensor
from gptoss_convert.formats.storage import FileRef

# `llama_ftype` in llama.h
_FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k": 12,
    "q4_k": 15,
    "q5_k": 17,
    "q6_k": 18,
    "iq2_xxs": 19,
    "iq2_xs": 20,
    "iq3_xxs": 23,
    "iq1_s": 24,
    "iq4_nl": 25,
    "iq3_s": 26,
    "iq2_s": 28,
    "iq4_xs": 30,
    "iq1_m": 31,
    "bf16": 32,
    "tq1_0": 36,
    "tq2_0": 37,
}
_FILE_TYPE_MXFP4_MOE = 38
_FILE_TYPE_UNSTATED = 1024


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
            placed[info.name] = PlacedTensor(file, replace(info, offset=len(header) + info.offset))
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
    return _FILE_TYPES.get(experts.name, _FILE_TYPE_UNSTATED)
