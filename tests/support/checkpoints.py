"""Writes random gpt-oss checkpoints of any shape in their true layouts, streaming.

The numbers depend on shape, seed and filling alone: both layouts, any sharding and the BF16 experts hold the
same model.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from tests.support.layouts import (
    BYTES_PER_ELEMENT,
    REAL_20B,
    Shape,
    Tensor,
    generation_config,
    huggingface_config,
    huggingface_tensors,
    original_config,
    original_dtype,
    original_tensors,
)
from tests.support.weights import Fill, Filling, chunks

__all__ = ["REAL_20B", "Entry", "Shape", "write_huggingface", "write_original", "write_safetensors"]

Placement = Literal["published", "shuffled"]

_SPECIAL_TOKENS = {"<|startoftext|>": 0, "<|endoftext|>": 1, "<|return|>": 4, "<|call|>": 14}
"""The special tokens that configurations name, counted from the first special id."""


class Entry(NamedTuple):
    """One tensor of a safetensors file; chunks of data are written as they come."""

    name: str
    dtype: str
    shape: Sequence[int]
    data: bytes | Iterable[bytes | memoryview]


def write_huggingface(
    folder: str | PathLike[str],
    shape: Shape,
    *,
    seed: int = 0,
    shards: int = 1,
    placement: Placement = "published",
    experts: Literal["mxfp4", "bf16"] = "mxfp4",
    edge_blocks: bool = True,
    fill: Fill = "table",
    special_ids: Mapping[str, int] | None = None,
    config_overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Write weights, config.json and generation_config.json in the Hugging Face layout.

    Args:
        folder: Created if missing.
        shape: Hyper-parameters of the model.
        seed: Chooses the numbers, and the places if they are shuffled.
        shards: Number of files; with 1 there is no index.
        placement: "published" fills the files one after the other, in the published order, and keeps blocks
            and scales together; "shuffled" spreads tensors at random over the files and inside them.
        experts: "mxfp4" as published; "bf16" as transformers writes them: dequantised, [E, in, out].
        edge_blocks: Start every expert with extreme blocks. A model with them overflows when it is run.
        fill: "gauss" quantises normal numbers, "table" is faster.
        special_ids: Ids of the special tokens by content. Default: the published ones if the vocabulary has
            its published size, else those of `tokenizers.write_small_tokenizer` or the last ones that fit.
        config_overrides: Keys to replace in config.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = special_ids or _default_special_ids(shape.vocab)
    filling = Filling(seed=seed, fill=fill, edge_blocks=edge_blocks)
    tensors = huggingface_tensors(shape, experts=experts)
    data = {tensor.name: chunks(tensor, filling) for tensor in tensors}
    files = [f"model-{i:05d}-of-{shards - 1:05d}.safetensors" for i in range(shards)]
    _write_weights(folder, tensors, data, files=files, placement=placement, seed=seed)

    config = huggingface_config(shape, special_ids=ids, quantized=experts == "mxfp4")
    _write_json(folder / "config.json", config | dict(config_overrides or {}))
    _write_json(folder / "generation_config.json", generation_config(special_ids=ids))
    return folder


def write_original(
    folder: str | PathLike[str],
    shape: Shape,
    *,
    seed: int = 0,
    shards: int = 1,
    placement: Placement = "published",
    edge_blocks: bool = True,
    fill: Fill = "table",
    config_overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Write weights, config.json and dtypes.json in OpenAI's layout.

    The arguments are those of `write_huggingface`. Several files are named as those of gpt-oss-120b.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    filling = Filling(seed=seed, fill=fill, edge_blocks=edge_blocks)
    layout = original_tensors(shape)
    tensors = [tensor for tensor, _ in layout]
    data = {tensor.name: chain.from_iterable(chunks(part, filling) for part in parts) for tensor, parts in layout}
    files = [f"model--{i:05d}-of-{shards:05d}.safetensors" for i in range(1, shards + 1)]
    _write_weights(folder, tensors, data, files=files, placement=placement, seed=seed)

    config = original_config(shape) | dict(config_overrides or {})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    dtypes = {tensor.name: original_dtype(tensor) for tensor in tensors}
    (folder / "dtypes.json").write_text(json.dumps(dtypes), encoding="utf-8")
    return folder


def write_safetensors(
    path: str | PathLike[str],
    entries: Iterable[Entry | tuple[str, str, Sequence[int], bytes | Iterable[bytes | memoryview]]],
    *,
    metadata: Mapping[str, str] | None = None,
    header_overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a safetensors file with its tensors in the given order.

    To make broken files: data given as `bytes` may have any dtype and length (offsets follow the data, not
    the shape), names may repeat, and `header_overrides` replaces header fields by tensor name.
    """
    path = Path(path)
    tensors = [Entry(*entry) for entry in entries]
    pairs: list[tuple[str, Any]] = [("__metadata__", dict(metadata))] if metadata is not None else []
    end = 0
    for tensor in tensors:
        start, end = end, end + _nbytes(tensor)
        fields = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        pairs.append((tensor.name, fields | dict((header_overrides or {}).get(tensor.name, {}))))
    compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
    members = ",".join(f"{compact(name)}:{compact(fields)}" for name, fields in pairs)  # names may repeat
    header = f"{{{members}}}".encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors:
            start = file.tell()
            file.writelines([tensor.data] if isinstance(tensor.data, bytes) else tensor.data)
            written = file.tell() - start
            if written != _nbytes(tensor):
                raise ValueError(f"{tensor.name}: {written} bytes of data, not {_nbytes(tensor)}")
    return path


def _nbytes(entry: Entry) -> int:
    if isinstance(entry.data, bytes):
        return len(entry.data)
    return math.prod(entry.shape) * BYTES_PER_ELEMENT[entry.dtype]


def _default_special_ids(vocab: int) -> dict[str, int]:
    first = 199998 if vocab == REAL_20B.vocab else max(0, min(480, vocab - 21))
    return {token: first + offset for token, offset in _SPECIAL_TOKENS.items()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_weights(
    folder: Path,
    tensors: list[Tensor],
    data: Mapping[str, Iterator[memoryview]],
    *,
    files: Sequence[str],
    placement: Placement,
    seed: int,
) -> None:
    """Write all tensors into `files`, with an index; a single file is model.safetensors and has none."""
    if len(files) == 1:
        files = ["model.safetensors"]
    place = _published_files if placement == "published" else _shuffled_files
    weight_map: dict[str, str] = {}
    for file, content in zip(files, place(tensors, len(files), seed), strict=True):
        entries = (Entry(tensor.name, tensor.dtype, tensor.shape, data[tensor.name]) for tensor in content)
        write_safetensors(folder / file, entries)
        weight_map |= {tensor.name: file for tensor in content}
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
            "weight_map": {tensor.name: weight_map[tensor.name] for tensor in tensors},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _published_files(tensors: list[Tensor], count: int, _seed: int) -> list[list[Tensor]]:
    """Fill `count` files of about equal size in order, each in the order of safetensors' own writer."""
    groups: list[list[Tensor]] = []
    for tensor in tensors:
        if tensor.kind == "scales":
            groups[-1].append(tensor)
        else:
            groups.append([tensor])
    if not 1 <= count <= len(groups):
        raise ValueError(f"cannot fill {count} files with {len(groups)} tensors")
    share = sum(tensor.nbytes for tensor in tensors) / count
    files: list[list[Tensor]] = [[]]
    written = 0
    for i, group in enumerate(groups):
        size = sum(tensor.nbytes for tensor in group)
        full = written + size / 2 > share * len(files) and len(files) < count
        needed = len(groups) - i == count - len(files)  # one group for every file still to come
        if files[-1] and (full or needed):
            files.append([])
        files[-1] += group
        written += size
    return [sorted(file, key=lambda t: (-BYTES_PER_ELEMENT[t.dtype], t.name)) for file in files]


def _shuffled_files(tensors: list[Tensor], count: int, seed: int) -> list[list[Tensor]]:
    """Deal the tensors at random, in random order."""
    if not 1 <= count <= len(tensors):
        raise ValueError(f"cannot fill {count} files with {len(tensors)} tensors")
    order = [tensors[i] for i in np.random.default_rng(seed).permutation(len(tensors))]
    return [order[i::count] for i in range(count)]
