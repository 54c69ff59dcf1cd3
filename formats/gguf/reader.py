"""A GGUF file, or the first shard of a split model, as a canonical checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from gptoss_convert.assets import Assets
from gptoss_convert.checkpoint import Checkpoint, assemble_checkpoint
from gptoss_convert.errors import InputError
from gptoss_convert.formats.gguf.configuration import parse_configuration
from gptoss_convert.formats.gguf.container import Header, Value, read_header
from gptoss_convert.formats.gguf.description import parse_description
from gptoss_convert.formats.gguf.tensors import Placed, PlacedTensor, canonical_tensors
from gptoss_convert.formats.gguf.vocabulary import GgufTokenizer
from gptoss_convert.formats.storage import FileRef

NAME = "gguf"
TITLE = "GGUF"

LARGEST_SPLIT_COUNT = 10_000
_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def read(path: Path) -> Checkpoint:
    """Open the GGUF file at `path`, with its other shards if it is the first of several.

    Raises:
        InputError: a header is damaged, a shard is missing, or it is not the first shard.
        UnsupportedError: the file holds another kind of model.
    """
    file = FileRef.at(path)
    header = read_header(file)
    placed = {name: PlacedTensor(file, info) for name, info in header.tensors.items()}
    for shard_path in _further_shards(path, header.metadata):
        shard = FileRef.at(shard_path)
        for name, info in read_header(shard).tensors.items():
            if name in placed:
                raise InputError("tensor occurs in two shards", file=shard_path, tensor=name)
            placed[name] = PlacedTensor(shard, info)
    return assemble_checkpoint(
        path,
        NAME,
        parse_configuration(header.metadata, _vocab_size(header, placed), path),
        canonical_tensors(placed),
        tensor_place=path,
        assets=Assets(None),
        tokenizer=GgufTokenizer(path, header.metadata) if "tokenizer.ggml.tokens" in header.metadata else None,
        describe=partial(parse_description, header.metadata),
        details=_details(header.metadata),
    )


def _details(metadata: Mapping[str, Value]) -> dict[str, str]:
    """Return the facts that only GGUF has: file type, quantisation version, shards."""
    return {
        key: str(value.value)
        for key, value in metadata.items()
        if key in ("general.file_type", "general.quantization_version", "split.count") and not value.is_array
    }


def _further_shards(path: Path, metadata: Mapping[str, Value]) -> list[Path]:
    """Return the paths of shards 2 and on of a split model; empty for a file that is whole."""
    count = _integer(metadata, "split.count", path, default=1)
    if count == 1:
        return []
    if not 1 <= count <= LARGEST_SPLIT_COUNT:
        raise InputError("impossible split.count", file=path, found=count)
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise InputError(
            "shard of a split model has another name than llama.cpp gives it",
            file=path,
            expected=f"NAME-00001-of-{count:05d}.gguf",
        )
    whole = path.with_name(match["stem"] + ".gguf")
    if _integer(metadata, "split.no", path, default=-1) != 0:
        first = split_path(whole, 0, count)
        raise InputError("not the first shard of a split model", file=path, hint=f"name {first.name} instead")
    return [split_path(whole, index, count) for index in range(1, count)]


def _integer(metadata: Mapping[str, Value], key: str, path: Path, *, default: int) -> int:
    value = default if key not in metadata else metadata[key].value
    if type(value) is not int:
        raise InputError(f"metadata value is no number: {key}", file=path)
    return value


def split_path(path: Path, index: int, count: int) -> Path:
    """Return the path of shard `index` (from 0) of `count` shards of `path`, as llama.cpp names it."""
    return path.with_name(f"{path.stem}-{index + 1:05d}-of-{count:05d}.gguf")


def _vocab_size(header: Header, placed: Placed) -> int:
    if "token_embd.weight" in placed:
        return placed["token_embd.weight"].info.shape[0]
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return len(tokens.value) if tokens is not None and tokens.is_array else 1
