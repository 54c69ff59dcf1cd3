"""A GGUF file, or the first shard of a split model, as a canonical checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from gptoss_convert.assets import Assets
from gptoss_convert.checkpoint import Checkpoint, assemble_checkpoint
from gptoss_convert.errors import InputError
from gptoss_convert.formats.gguf.configuration import parse_configuration
from gptoss_convert.formats.gguf.container import Header, Value, read_header
from gptoss_convert.formats.gguf.description import parse_description
from gptoss_convert.formats.gguf.dialects import LLAMA_CPP, Dialect, dialect_of
from gptoss_convert.formats.gguf.tensors import Placed, PlacedTensor, canonical_tensors
from gptoss_convert.formats.gguf.vocabulary import GgufTokenizer
from gptoss_convert.formats.storage import FileRef

NAME = "gguf"
TITLE = "GGUF"

FILE_TYPE = "general.file_type"
LARGEST_SPLIT_COUNT = 10_000
_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def _itself(path: Path) -> Path:
    return path


def read(path: Path, *, place: Callable[[Path], Path] = _itself) -> Checkpoint:
    """Open the GGUF file at `path`, with its other shards if it is the first of several.

    Args:
        path: the file, under the name that it has for others.
        place: tells where the file of a name lies, if it has another name for now.

    Raises:
        InputError: a header is damaged, a shard is missing or of another model, or it is not the first shard.
        UnsupportedError: the file holds another kind of model.
    """
    file = FileRef.at(place(path))
    header = read_header(file)
    placed = {name: PlacedTensor(file, info) for name, info in header.tensors.items()}
    count = _shard_count(path, header.metadata)
    for index in range(1, count):
        shard = FileRef.at(place(split_path(_whole(path), index, count)))
        shard_header = read_header(shard)
        _require_shard(shard.path, shard_header.metadata, index, count)
        for name, info in shard_header.tensors.items():
            if name in placed:
                raise InputError("tensor occurs in two shards", file=shard.path, tensor=name)
            placed[name] = PlacedTensor(shard, info)
    _require_all_tensors(path, header.metadata, len(placed))
    dialect = dialect_of(header.metadata, path)
    config = parse_configuration(header.metadata, _vocab_size(header, placed), path)
    return assemble_checkpoint(
        path,
        NAME,
        config,
        canonical_tensors(placed, config, dialect),
        tensor_place=path,
        assets=Assets(None),
        tokenizer=GgufTokenizer(path, header.metadata) if "tokenizer.ggml.tokens" in header.metadata else None,
        describe=partial(parse_description, header.metadata),
        details=_details(header.metadata, dialect),
    )


def _details(metadata: Mapping[str, Value], dialect: Dialect) -> dict[str, str]:
    """Return the facts that only GGUF has: file type, quantisation version, shards, and another architecture."""
    keys = [FILE_TYPE, "general.quantization_version", "split.count"]
    if dialect.own_file_types:
        keys.remove(FILE_TYPE)
    if dialect != LLAMA_CPP:
        keys.append("general.architecture")
    return {key: str(value.value) for key, value in metadata.items() if key in keys and not value.is_array}


def _shard_count(path: Path, metadata: Mapping[str, Value]) -> int:
    """Return the number of shards of the model whose first one is at `path`; 1 for a file that is whole."""
    count = _integer(metadata, "split.count", path, default=1)
    if count == 1:
        return 1
    if not 1 <= count <= LARGEST_SPLIT_COUNT:
        raise InputError("impossible split.count", file=path, found=count)
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise InputError(
            "shard of a split model has another name than llama.cpp gives it",
            file=path,
            expected=f"NAME-00001-of-{count:05d}.gguf",
        )
    if _integer(metadata, "split.no", path, default=-1) != 0:
        first = split_path(_whole(path), 0, count)
        raise InputError("not the first shard of a split model", file=path, hint=f"name {first.name} instead")
    return count


def _whole(path: Path) -> Path:
    """Return the path of the whole model that `path` is a shard of."""
    match = _SPLIT_NAME.fullmatch(path.name)
    return path if match is None else path.with_name(match["stem"] + ".gguf")


def _require_shard(path: Path, metadata: Mapping[str, Value], index: int, count: int) -> None:
    """Raise `InputError` if the file at `path` does not say that it is shard `index` of `count`."""
    for key, expected in (("split.no", index), ("split.count", count)):
        found = _integer(metadata, key, path, default=-1)
        if found != expected:
            raise InputError(
                f"shard is not of this model: {key}",
                file=path,
                found="no such key" if key not in metadata else found,
                expected=expected,
            )


def _require_all_tensors(path: Path, metadata: Mapping[str, Value], found: int) -> None:
    """Raise `InputError` if the first shard counts other tensors than all shards hold together."""
    expected = _integer(metadata, "split.tensors.count", path, default=found)
    if found != expected:
        raise InputError(
            "shards do not hold the tensors that split.tensors.count counts",
            file=path,
            found=found,
            expected=expected,
        )


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
