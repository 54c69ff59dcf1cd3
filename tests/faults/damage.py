"""Ways to damage a model. Each function here returns a function that damages the model at a path."""

import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf

from tests.support.checkpoints import Entry, write_safetensors

Damage = Callable[[Path], None]
Header = dict[str, Any]

ABSENT = object()
"""Value of a key that is to be removed."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def intact(source: Path) -> None:
    """Do no damage: what is wrong lies elsewhere."""


def both(*damages: Damage) -> Damage:
    """Damage a model in several ways."""

    def damage(source: Path) -> None:
        for each in damages:
            each(source)

    return damage


def write(name: str, content: bytes | str) -> Damage:
    """Write a file of the folder, in place of the one of that name if there is one."""
    data = content.encode() if isinstance(content, str) else content

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return damage


def remove(*names: str) -> Damage:
    """Remove files of the folder."""

    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def rename(name: str, new_name: str) -> Damage:
    """Give a file of the folder another name."""

    def damage(folder: Path) -> None:
        (folder / name).rename(folder / new_name)

    return damage


def folder_in_place_of(name: str) -> Damage:
    """Replace a file by an empty folder."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return damage


def fifo_in_place_of(name: str) -> Damage:
    """Replace a file by a named pipe, which nobody writes to."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def only(files: Mapping[str, str]) -> Damage:
    """Replace the whole folder by `files`: contents by name."""

    def damage(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")

    return damage


def fields(name: str, **changes: Any) -> Damage:
    """Change keys of a JSON file; `ABSENT` removes one, and a mapping changes keys below one."""

    def damage(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8"))
        _update(content, changes)
        path.write_text(json.dumps(content), encoding="utf-8")

    return damage


def _update(content: Any, changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if value is ABSENT:
            del content[key]
        elif isinstance(value, Mapping) and isinstance(content.get(key), dict):
            _update(content[key], value)
        else:
            content[key] = value


def config(**changes: Any) -> Damage:
    """Change keys of config.json."""
    return fields("config.json", **changes)


def tokenizer(**changes: Any) -> Damage:
    """Change keys of tokenizer.json."""
    return fields("tokenizer.json", **changes)


def placed(tensor: str, shard: str) -> Damage:
    """Let the index place a tensor in another shard."""
    return fields(INDEX, weight_map={tensor: shard})


def not_indexed(tensor: str) -> Damage:
    """Remove a tensor from the index."""
    return fields(INDEX, weight_map={tensor: ABSENT})


def without(*names: str) -> Damage:
    """Remove tensors from the single safetensors file."""
    return _tensors(lambda entries: [entry for entry in entries if entry.name not in names])


def with_tensor(name: str, dtype: str, *shape: int) -> Damage:
    """Store a tensor of zeros in the single safetensors file, in place of the one of that name if there is one."""

    data = bytes(math.prod(shape) * {"BF16": 2}.get(dtype, 1))

    def change(entries: list[Entry]) -> list[Entry]:
        return [*(entry for entry in entries if entry.name != name), Entry(name, dtype, shape, data)]

    return _tensors(change)


def number(tensor: str, index: int, data: bytes) -> Damage:
    """Overwrite number `index` of a tensor in the single safetensors file; numbers are as long as `data`."""

    def damage(folder: Path) -> None:
        header, start = read_header(folder / WEIGHTS)
        with (folder / WEIGHTS).open("r+b") as file:
            file.seek(start + header[tensor]["data_offsets"][0] + index * len(data))
            file.write(data)

    return damage


def renamed(change: Callable[[str], str]) -> Damage:
    """Rename the tensors of the single safetensors file."""
    return _tensors(lambda entries: [entry._replace(name=change(entry.name)) for entry in entries])


def reordered(key: Callable[[str], str]) -> Damage:
    """Store the tensors of the single safetensors file in the order of `key`."""
    return _tensors(lambda entries: sorted(entries, key=lambda entry: key(entry.name)))


def with_bytes(tensor: str, data: bytes) -> Damage:
    """Overwrite the first bytes of a tensor in the single safetensors file."""
    return number(tensor, 0, data)


def _tensors(change: Callable[[list[Entry]], list[Entry]]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / WEIGHTS
        header, start = read_header(path)
        data = path.read_bytes()[start:]
        entries = [
            Entry(name, entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
            for name, entry in header.items()
        ]
        write_safetensors(path, change(entries))

    return damage


def header(change: Callable[[Header], Any]) -> Damage:
    """Change the header of the single safetensors file as a JSON value; the data stay."""

    def damage(folder: Path) -> None:
        content, _ = read_header(folder / WEIGHTS)
        header_text(json.dumps(change(content)))(folder)

    return damage


def entry(tensor: str, **changes: Any) -> Damage:
    """Change the header's entry of one tensor."""

    def change(content: Header) -> Header:
        _update(content[tensor], changes)
        return content

    return header(change)


def header_text(text: str | bytes) -> Damage:
    """Replace the text of the header; its length is right and the data stay."""
    data = text if isinstance(text, bytes) else text.encode()

    def damage(folder: Path) -> None:
        path = folder / WEIGHTS
        _, start = read_header(path)
        path.write_bytes(struct.pack("<Q", len(data)) + data + path.read_bytes()[start:])

    return damage


def header_length(length: int) -> Damage:
    """Let the single safetensors file state another length of its header."""
    return overwritten(0, struct.pack("<Q", length), WEIGHTS)


def overwritten(offset: int, data: bytes, name: str | None = None) -> Damage:
    """Overwrite bytes of the source, or of a file in it."""

    def damage(source: Path) -> None:
        with (source if name is None else source / name).open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return damage


def cut(size: int, name: str | None = None) -> Damage:
    """Cut the source, or a file in it, to `size` bytes, or by as many if `size` is negative."""

    def damage(source: Path) -> None:
        path = source if name is None else source / name
        os.truncate(path, size if size >= 0 else path.stat().st_size + size)

    return damage


def appended(data: bytes, name: str | None = None) -> Damage:
    """Append bytes to the source, or to a file in it."""

    def damage(source: Path) -> None:
        with (source if name is None else source / name).open("ab") as file:
            file.write(data)

    return damage


def substituted(old: bytes, new: bytes) -> Damage:
    """Replace bytes of a GGUF file by as many others, where they occur first."""

    def damage(source: Path) -> None:
        content = source.read_bytes()
        assert old in content
        assert len(old) == len(new)
        source.write_bytes(content.replace(old, new, 1))

    return damage


def first_byte(tensor: str, value: int) -> Damage:
    """Overwrite the first byte of a tensor in a GGUF file."""

    def damage(source: Path) -> None:
        (place,) = (entry.data_offset for entry in gguf.GGUFReader(source).tensors if entry.name == tensor)
        overwritten(place, bytes([value]))(source)

    return damage


def next_part(source: Path) -> Path:
    """Return the second file of a split GGUF."""
    return source.with_name(source.name.replace("-00001-", "-00002-"))


def read_header(path: Path) -> tuple[Header, int]:
    """Return the header of a safetensors file, and where its data begin."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), 8 + length
