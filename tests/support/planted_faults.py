"""Faults that a conversion could make, planted into artifacts that this project wrote: GGUF files, and folders.

Every fault but the cut file leaves a file that can be read. Numbers are changed through the storage of the
canonical tensor, so that the same fault can be planted whatever the layout.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.encodings import Array, Chunk
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.gguf.names import gguf_names
from tests.support.checkpoints import Entry, write_safetensors

Tier = Literal["structure", "weights"]

GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"
DOWN = "model.layers.1.mlp.experts.down_proj"
SINKS = "model.layers.1.self_attn.sinks"
NORM = "model.layers.1.post_attention_layernorm.weight"
EXPERT = 2
ROW, BLOCK = 5, 1
"""Where a single block is changed: row of `EXPERT`, and block in it."""


@dataclass(frozen=True)
class PlantedFault:
    """A fault, and who should notice it."""

    plant: Callable[[Path], None]
    """Damages the artifact at a path: a GGUF file, or a folder with one file of tensors."""
    tier: Tier
    named: str
    """The tensor that the weights tier names, or the check of the structure tier that fails."""


class _InPlace:
    """A writer that overwrites bytes of existing files."""

    def write(self, path: Path, data: bytes | Array, offset: int) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data if isinstance(data, bytes) else data.tobytes())


def rewrite(path: Path, name: str, change: Callable[[Tensor, Chunk], None]) -> None:
    """Change all rows of tensor `name` of an artifact in place."""
    tensor = open_checkpoint(path).tensors[name]
    chunk = tuple(part.copy() for part in tensor.read(0, tensor.rows))
    change(tensor, chunk)
    tensor.storage.write(_InPlace(), 0, chunk)


def _rewritten(name: str, change: Callable[[Tensor, Chunk], None]) -> Callable[[Path], None]:
    """Return a fault that changes all rows of tensor `name` in place."""
    return lambda path: rewrite(path, name, change)


def _swap_experts(tensor: Tensor, chunk: Chunk) -> None:
    rows = tensor.shape[1]
    for part in chunk:
        part[:rows], part[rows : 2 * rows] = part[rows : 2 * rows].copy(), part[:rows].copy()


def _exchange_gate_and_up(tensor: Tensor, chunk: Chunk) -> None:
    for part in chunk:
        part[0::2], part[1::2] = part[1::2].copy(), part[0::2].copy()


def _flip_a_nibble(tensor: Tensor, chunk: Chunk) -> None:
    """Turn the sign of the first number of a block that is not zero: the highest bit of its code."""
    row = EXPERT * tensor.shape[1] + ROW
    if tensor.encoding.name == "mxfp4":
        codes = chunk[0][row, BLOCK * 16 : (BLOCK + 1) * 16]
        index = int(np.flatnonzero(codes & 0x07)[0])
        codes[index] ^= 0x08
    else:
        values = chunk[0][row, BLOCK * 32 : (BLOCK + 1) * 32]
        index = int(np.flatnonzero(values[0::2] & 0x7FFF)[0])
        values[2 * index] ^= 0x8000


def _move_a_scale(tensor: Tensor, chunk: Chunk) -> None:
    """Double a block: its scale, or the exponent of each of its numbers."""
    row = EXPERT * tensor.shape[1] + ROW
    if tensor.encoding.name == "mxfp4":
        chunk[1][row, BLOCK] += 1
    else:
        values = chunk[0][row, BLOCK * 32 : (BLOCK + 1) * 32]
        values[(values & 0x7FFF) != 0] += 0x80


def _zero(tensor: Tensor, chunk: Chunk) -> None:
    for part in chunk:
        part[:] = 0


def _drop(name: str) -> Callable[[Path], None]:
    """Return a fault that leaves a tensor out."""

    def plant(path: Path) -> None:
        if path.is_dir():
            _drop_from_safetensors(path / "model.safetensors", name)
        else:
            (stored,) = gguf_names(name)
            _drop_from_gguf(path, stored)

    return plant


def _drop_from_safetensors(path: Path, name: str) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    assert name in header
    data = content[8 + length :]
    entries = [
        Entry(key, entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for key, entry in header.items()
        if key != name
    ]
    write_safetensors(path, entries, metadata=metadata)


def _drop_from_gguf(path: Path, name: str) -> None:
    """Take the tensor's entry out of the directory; its data stay, as a gap that nobody names."""
    reader = gguf.GGUFReader(path)
    (field,) = (tensor.field for tensor in reader.tensors if tensor.name == name)
    start, end = field.offset, field.offset + sum(part.nbytes for part in field.parts)
    last = reader.tensors[-1].field
    header_end = last.offset + sum(part.nbytes for part in last.parts)
    content, data_start, alignment = path.read_bytes(), reader.data_offset, reader.alignment
    header = bytearray(content[:start] + content[end:header_end])
    count = int.from_bytes(header[8:16], "little")
    header[8:16] = (count - 1).to_bytes(8, "little")
    path.write_bytes(header + bytes(-len(header) % alignment) + content[data_start:])


def _setting(key: str, change: Callable[[Any], Any], in_gguf: str) -> Callable[[Path], None]:
    """Return a fault that changes a number of the configuration; `key` is a path in config.json, with dots."""

    def plant(path: Path) -> None:
        if path.is_dir():
            _change_json(path / "config.json", key.split("."), change)
            return
        reader = gguf.GGUFReader(path, "r+")
        field = reader.get_field(in_gguf)
        assert field is not None
        value = field.parts[field.data[0]]
        value[0] = change(value[0])

    return plant


def _change_json(path: Path, keys: list[str], change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    *outer, last = keys
    place = content
    for key in outer:
        place = place[key]
    place[last] = change(place[last])
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


EXCHANGED = (64, 65)
"""Ids of the two tokens that are exchanged: a and b, texts of one byte."""


def _exchange_tokens(path: Path) -> None:
    if path.is_dir():

        def change(vocab: dict[str, int]) -> dict[str, int]:
            other = dict(zip(EXCHANGED, reversed(EXCHANGED), strict=True))
            return {token: other.get(index, index) for token, index in vocab.items()}

        _change_json(path / "tokenizer.json", ["model", "vocab"], change)
        return
    reader = gguf.GGUFReader(path, "r+")
    field = reader.get_field("tokenizer.ggml.tokens")
    assert field is not None
    first, second = (field.parts[field.data[index]] for index in EXCHANGED)
    assert len(first) == len(second)
    first[:], second[:] = second.copy(), first.copy()


def _cut(path: Path) -> None:
    file = path / "model.safetensors" if path.is_dir() else path
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 100)


FAULTS: Mapping[str, PlantedFault] = {
    "swapped experts": PlantedFault(_rewritten(DOWN, _swap_experts), "weights", DOWN),
    "gate and up exchanged": PlantedFault(_rewritten(GATE_UP, _exchange_gate_and_up), "weights", GATE_UP),
    "flipped nibble": PlantedFault(_rewritten(GATE_UP, _flip_a_nibble), "weights", GATE_UP),
    "scale off by one": PlantedFault(_rewritten(DOWN, _move_a_scale), "weights", DOWN),
    "sinks missing": PlantedFault(_drop(SINKS), "structure", f"tensor.{SINKS}"),
    "sinks zeroed": PlantedFault(_rewritten(SINKS, _zero), "weights", SINKS),
    "norm zeroed": PlantedFault(_rewritten(NORM, _zero), "weights", NORM),
    "window off by one": PlantedFault(
        _setting("sliding_window", lambda value: value - 1, "gpt-oss.attention.sliding_window"),
        "structure",
        "config.sliding_window",
    ),
    "rope factor": PlantedFault(
        _setting("rope_scaling.factor", lambda value: value / 2, "gpt-oss.rope.scaling.factor"),
        "structure",
        "config.rope.factor",
    ),
    "tokens exchanged": PlantedFault(_exchange_tokens, "structure", "tokenizer.tokens"),
    "cut file": PlantedFault(_cut, "structure", "artifact"),
}
"""Faults by name."""
