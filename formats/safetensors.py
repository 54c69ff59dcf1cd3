"""The safetensors container: an 8-byte length, a JSON header, and tensor data.

Source: the format section of the safetensors README and `safetensors/src/tensor.rs`, whose checks are made
here too. Differences that make this parser stricter than the library: duplicate keys are refused. One that
makes it as lenient: white space around the header.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_convert.assets import read_json_object, unique_keys
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.storage import FileRef, is_there

LARGEST_HEADER = 100_000_000
"""Bytes; the bound of the reference implementation."""
LARGEST_RANK = 8
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(\.|$)", re.IGNORECASE)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header names it; `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: FileRef
    offset: int
    nbytes: int


def read_header(file: FileRef, *, largest: int = LARGEST_HEADER) -> dict[str, StoredTensor]:
    """Return the tensors of one safetensors file by name; its header has no more than `largest` bytes.

    Raises:
        InputError: the file breaks a rule of the format.
    """
    if file.size < 8:
        raise InputError(
            "not a safetensors file", file=file.path, found=f"{file.size} bytes", expected="at least 8"
        )
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if not 2 <= length <= min(largest, file.size - 8):
        raise InputError(
            "not a safetensors file, or truncated in its header",
            file=file.path,
            found=f"header length {length} in a file of {file.size} bytes",
            hint=_what_it_is(file),
        )
    header = _parse_header(file, file.read(8, length))
    _check_metadata(file, header.pop("__metadata__", None))
    data_start = 8 + length
    tensors = {name: _stored_tensor(file, name, entry, data_start) for name, entry in header.items()}
    _check_layout(file, tensors.values(), data_start)
    return tensors


def _parse_header(file: FileRef, text: bytes) -> dict[str, Any]:
    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is no number")

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"safetensors header is not valid JSON: {error}", file=file.path) from None
    if not isinstance(header, dict):
        raise InputError("safetensors header is not a JSON object", file=file.path, found=type(header).__name__)
    return header


def _check_metadata(file: FileRef, metadata: Any) -> None:
    texts = metadata is None or (
        isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    )
    if not texts:
        raise InputError("safetensors metadata are not texts by name", file=file.path)


def _stored_tensor(file: FileRef, name: str, entry: Any, data_start: int) -> StoredTensor:
    def error(what: str, **facts: object) -> InputError:
        return InputError(what, file=file.path, tensor=name, **facts)  # type: ignore[arg-type]

    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise error("safetensors entry lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise error("unknown safetensors dtype", found=repr(dtype), expected="one of " + ", ".join(DTYPE_BYTES))
    if not _are_counts(shape) or len(shape) > LARGEST_RANK:
        raise error("safetensors shape is not a list of at most 8 non-negative integers", found=repr(shape))
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise error("safetensors data_offsets are not two ascending integers", found=repr(offsets))
    start, stop = offsets
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if stop - start != nbytes:
        raise error("data_offsets do not fit shape and dtype", found=f"{stop - start} bytes", expected=nbytes)
    if data_start + stop > file.size:
        raise error(
            "file is truncated",
            found=f"{file.size} bytes",
            expected=f"at least {data_start + stop}",
            hint="download the file again",
        )
    return StoredTensor(name, dtype, tuple(shape), file, data_start + start, nbytes)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 64 for item in value)


def _check_layout(file: FileRef, tensors: Any, data_start: int) -> None:
    """Refuse overlapping tensors, holes, and data after the last tensor, as the reference implementation does."""
    position = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != position:
            what = "tensor data overlap" if tensor.offset < position else "tensor data leave a hole"
            raise InputError(
                what, file=file.path, tensor=tensor.name, found=f"offset {tensor.offset}", expected=position
            )
        position += tensor.nbytes
    if position != file.size:
        raise InputError(
            "data after the last tensor", file=file.path, found=f"{file.size} bytes", expected=position
        )


def _what_it_is(file: FileRef) -> str | None:
    start = file.read(0, min(file.size, 64))
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if start.startswith(b"GGUF"):
        return "this is a GGUF file"
    if start.lstrip()[:1] == b"<":
        return "this looks like a web page; download the file again"
    return None


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """Return all tensors of a checkpoint folder: those that its index names, or those of its single file.

    Files that the index does not name are not looked at, so copies in sub-folders do no harm.

    Raises:
        InputError: a shard is missing or damaged, or index and shards disagree.
        UnsupportedError: the folder holds pickled weights.
    """
    index_path = folder / INDEX_NAME
    if index_path.exists():
        weight_map = _read_weight_map(index_path)
        return _read_shards(index_path, weight_map)
    single = folder / SINGLE_NAME
    if single.exists():
        return read_header(FileRef.at(single))
    shards = sorted(folder.glob("*.safetensors"))
    if len(shards) == 1:
        return read_header(FileRef.at(shards[0]))
    if shards:
        raise InputError("several shards but no index", file=index_path, found=f"{len(shards)} *.safetensors files")
    pickles = [path for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern)]
    if pickles:
        raise UnsupportedError(
            "pickled weights are not read, because unpickling can run code",
            file=pickles[0],
            hint="save the model as safetensors first",
        )
    raise InputError("no safetensors file in this folder", file=folder)


def _read_weight_map(index_path: Path) -> dict[str, str]:
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("index has no weight_map", file=index_path)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not is_plain_file_name(shard):
            raise InputError(
                "index names a shard outside its folder",
                file=index_path,
                tensor=name,
                found=repr(shard),
                expected="a plain file name",
            )
    return weight_map


def is_plain_file_name(name: str) -> bool:
    """Return whether `name` can only mean a file directly in a folder, on any operating system."""
    return (
        bool(name)
        and not name.endswith((".", " "))
        and not any(c in '/\\:*?"<>|' or not c.isprintable() for c in name)
        and _WINDOWS_DEVICE.match(name) is None
    )


def _read_shards(index_path: Path, weight_map: dict[str, str]) -> dict[str, StoredTensor]:
    folder = index_path.parent
    shards: dict[str, dict[str, StoredTensor]] = {}
    for shard in sorted(set(weight_map.values())):
        path = folder / shard
        if not is_there(path):
            missing = sum(1 for value in weight_map.values() if value == shard)
            raise InputError(
                "shard is missing",
                file=path,
                hint=f"{INDEX_NAME} places {missing} tensors there; download it",
            )
        shards[shard] = read_header(FileRef.at(path))
    tensors: dict[str, StoredTensor] = {}
    for shard, contents in shards.items():
        for name, tensor in contents.items():
            place = weight_map.get(name)
            if place is None:
                raise InputError("tensor is not in the index", file=folder / shard, tensor=name)
            if place != shard:
                raise InputError(
                    "tensor lies in another shard than the index says",
                    file=folder / shard,
                    tensor=name,
                    expected=place,
                )
            tensors[name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors:
            raise InputError("tensor that the index names is missing", file=folder / shard, tensor=name)
    return tensors
