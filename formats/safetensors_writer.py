"""Safetensors files before they are written: which tensor lies where in which file, headers and index.

Headers are those of the reference implementation to the byte (`safetensors/src/tensor.rs`, `prepare`): tensors
lie one after the other, wide dtypes first and then by name, so that every one is aligned to its numbers without
gaps; the JSON is compact and padded with spaces, so that data begin at a multiple of 8 bytes. A file that the
library wrote can therefore be written again with the same hash.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.safetensors import DTYPE_BYTES, LARGEST_HEADER, SINGLE_NAME, StoredTensor
from gptoss_convert.formats.storage import FileRef

_ALIGNMENT = 8
_METADATA = "__metadata__"
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPE_BYTES)}
"""`DTYPE_BYTES` names the dtypes in the order of the reference implementation's `Dtype`, narrow ones first."""

ShardName: TypeAlias = Callable[[int, int], str]
"""Returns the name of a shard from its index, counted from 0, and the number of shards, at least 2."""


def transformers_shard_name(index: int, count: int) -> str:
    """Return the name that transformers gives to a shard: `model-00001-of-00003.safetensors`."""
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


@dataclass(frozen=True)
class NewArray:
    """A tensor of a file that is yet to be laid out; `dtype` is one of `DTYPE_BYTES`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class SafetensorsLayout:
    """Files with their headers, and the place of every tensor."""

    files: tuple[tuple[FileRef, bytes], ...]
    """Each with all bytes before its first tensor, whose number is the offset of that tensor."""
    placed: Mapping[str, StoredTensor]
    """By name, in the order in which the tensors were given."""

    @property
    def data_nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.placed.values())


def lay_out(
    tensors: Sequence[NewArray],
    folder: Path,
    *,
    max_shard_size: int | None = None,
    shard_name: ShardName = transformers_shard_name,
    metadata: Mapping[str, str] | None = None,
) -> SafetensorsLayout:
    """Lay out `tensors` in one file `model.safetensors`, or in several.

    Args:
        tensors: what to place. Their order decides which shard they get, not where in it they lie.
        folder: where the files will be.
        max_shard_size: bytes of tensor data per file, in which a new shard begins as in
            `huggingface_hub.split_state_dict_into_shards_factory`; a single larger tensor gets a shard of its own.
        shard_name: names the files if there are several.
        metadata: `__metadata__` of every file, left out if there are none. The reference implementation writes
            its keys in any order; here they are sorted.

    Raises:
        UnsupportedError: a header would be larger than readers accept.
        ValueError: a name occurs twice or is reserved.
    """
    names = {tensor.name for tensor in tensors}
    if len(names) < len(tensors) or _METADATA in names:
        raise ValueError(f"tensor names must differ from each other and from {_METADATA}")
    shards = _split(tensors, max_shard_size)
    files: list[tuple[FileRef, bytes]] = []
    placed: dict[str, StoredTensor] = {}
    for index, shard in enumerate(shards):
        name = SINGLE_NAME if len(shards) == 1 else shard_name(index, len(shards))
        ordered = sorted(shard, key=lambda tensor: (-_RANKS[tensor.dtype], tensor.name))
        path = folder.absolute() / name
        header = _serialise_header(ordered, metadata, path)
        file = FileRef(path, len(header) + sum(tensor.nbytes for tensor in ordered))
        files.append((file, header))
        offset = len(header)
        for tensor in ordered:
            placed[tensor.name] = StoredTensor(tensor.name, tensor.dtype, tensor.shape, file, offset, tensor.nbytes)
            offset += tensor.nbytes
    return SafetensorsLayout(tuple(files), {tensor.name: placed[tensor.name] for tensor in tensors})


def _split(tensors: Sequence[NewArray], limit: int | None) -> list[list[NewArray]]:
    """Divide `tensors`; one above the limit gets a shard at once, and does not end the one that is being filled."""
    if limit is None:
        return [list(tensors)]
    shards: list[list[NewArray]] = []
    current: list[NewArray] = []
    size = 0
    for tensor in tensors:
        if tensor.nbytes > limit:
            shards.append([tensor])
            continue
        if size + tensor.nbytes > limit:
            shards.append(current)
            current, size = [], 0
        current.append(tensor)
        size += tensor.nbytes
    return [*shards, current] if current or not shards else shards


def _serialise_header(tensors: Sequence[NewArray], metadata: Mapping[str, str] | None, path: Path) -> bytes:
    """Return all bytes before the data of `tensors`, which lie in this order."""
    entries: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > LARGEST_HEADER:
        raise UnsupportedError(
            "safetensors header would be too large",
            file=path,
            found=f"{len(text)} bytes",
            expected=f"at most {LARGEST_HEADER}",
            hint="write more and smaller shards",
        )
    return len(text).to_bytes(8, "little") + text


def index_json(layout: SafetensorsLayout, *, total_parameters: int | None = None) -> bytes:
    """Return the contents of `model.safetensors.index.json`, as transformers writes it.

    Args:
        layout: files and tensors.
        total_parameters: number of parameters of the model, which transformers 5 states; None leaves it out.
    """
    totals: dict[str, int] = {} if total_parameters is None else {"total_parameters": total_parameters}
    index = {
        "metadata": {**totals, "total_size": layout.data_nbytes},
        "weight_map": {name: tensor.file.path.name for name, tensor in layout.placed.items()},
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
