"""A GGUF file, or the first of a set of split files, as a canonical checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptoss_convert.assets import Assets
from gptoss_convert.checkpoint import Checkpoint, Source, Tensor, check_tensors, files_of, in_canonical_order
from gptoss_convert.encodings import Chunk
from gptoss_convert.errors import GptossConvertError, InputError
from gptoss_convert.formats.gguf.blocks import RecordSource
from gptoss_convert.formats.gguf.configuration import parse_configuration
from gptoss_convert.formats.gguf.container import Header, TensorInfo, Value, read_header
from gptoss_convert.formats.gguf.names import canonical_name, gguf_names
from gptoss_convert.formats.gguf.vocabulary import GgufTokenizer
from gptoss_convert.formats.storage import InputFile, StoredArray

NAME = "gguf"
TITLE = "GGUF"

LARGEST_SPLIT_COUNT = 10_000
_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class InterleavedSource:
    """A tensor whose even and odd rows (or, with `axis` 1, elements of a row) are stored as two tensors."""

    even: Source
    odd: Source
    axis: int

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of both halves."""
        return tuple(dict.fromkeys(self.even.files + self.odd.files))

    @property
    def row_group(self) -> int:
        """One row of either half, which is read in pairs when rows alternate."""
        return 2 if self.axis == 0 else 1

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop`."""
        if self.axis == 1:
            halves = self.even.read(start, stop), self.odd.read(start, stop)
            return tuple(np.stack(parts, axis=2).reshape(stop - start, -1) for parts in zip(*halves, strict=True))
        even = self.even.read((start + 1) // 2, (stop + 1) // 2)
        odd = self.odd.read(start // 2, stop // 2)
        chunk = []
        for even_part, odd_part in zip(even, odd, strict=True):
            part = np.empty((stop - start, even_part.shape[1]), even_part.dtype)
            part[start % 2 :: 2] = even_part
            part[1 - start % 2 :: 2] = odd_part
            chunk.append(part)
        return tuple(chunk)


def read(path: Path) -> Checkpoint:
    """Open the GGUF file at `path`, with the other files of its set if it is the first of a split one.

    Raises:
        InputError: a header is damaged, a part of the set is missing, or it is not the first part.
        UnsupportedError: the file holds another kind of model.
    """
    file = InputFile(path)
    header = read_header(file)
    infos = {name: (file, info) for name, info in header.tensors.items()}
    for part_path in _further_parts(path, header.metadata):
        part = InputFile(part_path)
        for name, info in read_header(part).tensors.items():
            if name in infos:
                raise InputError("tensor occurs in two parts", file=part_path, tensor=name)
            infos[name] = (part, info)
    config = parse_configuration(header.metadata, _vocab_size(header, infos), path)
    tensors, problems = _canonical_tensors(infos)
    problems += check_tensors(config, tensors, path)
    return Checkpoint(
        path=path,
        format=NAME,
        config=config,
        tensors=in_canonical_order(config, tensors),
        assets=Assets(None),
        tokenizer=GgufTokenizer(path, header.metadata) if "tokenizer.ggml.tokens" in header.metadata else None,
        files=files_of(tensors.values()),
        details=_details(header.metadata),
        problems=tuple(problems),
    )


def _details(metadata: Mapping[str, Value]) -> dict[str, str]:
    """Return the scalar `general.` and `split.` values."""
    return {
        key: str(value.value)
        for key, value in metadata.items()
        if key.startswith(("general.", "split.")) and not value.is_array
    }


def _further_parts(path: Path, metadata: Mapping[str, Value]) -> list[Path]:
    """Return the paths of parts 2 and on of a split set; empty for a file that is whole."""
    if "split.count" not in metadata:
        return []
    count, number = metadata["split.count"].value, metadata.get("split.no", metadata["split.count"]).value
    if not isinstance(count, int) or not 1 <= count <= LARGEST_SPLIT_COUNT:
        raise InputError("impossible split.count", file=path, found=count)
    if count == 1:
        return []
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise InputError(
            "part of a split set has another name than llama.cpp gives it",
            file=path,
            expected=f"NAME-00001-of-{count:05d}.gguf",
        )
    if number != 0:
        first = split_path(path.with_name(match["stem"] + ".gguf"), 0, count)
        raise InputError("not the first part of a split set", file=path, hint=f"name {first.name} instead")
    return [split_path(path.with_name(match["stem"] + ".gguf"), index, count) for index in range(1, count)]


def split_path(path: Path, index: int, count: int) -> Path:
    """Return the path of part `index` (from 0) of `count` parts of `path`, as llama.cpp names it."""
    return path.with_name(f"{path.stem}-{index + 1:05d}-of-{count:05d}.gguf")


def _vocab_size(header: Header, infos: Mapping[str, tuple[InputFile, TensorInfo]]) -> int:
    if "token_embd.weight" in infos:
        return infos["token_embd.weight"][1].shape[0]
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return len(tokens.value) if tokens is not None and tokens.is_array else 1


def _canonical_tensors(
    infos: Mapping[str, tuple[InputFile, TensorInfo]],
) -> tuple[dict[str, Tensor], list[GptossConvertError]]:
    tensors: dict[str, Tensor] = {}
    problems: list[GptossConvertError] = []
    for name, (file, info) in infos.items():
        canonical = canonical_name(name)
        if canonical is None:
            problems.append(InputError("unknown tensor", file=file.path, tensor=name))
            continue
        counterparts = [infos[other] for other in gguf_names(canonical) if other in infos]
        if len(counterparts) < len(gguf_names(canonical)):
            problems.append(InputError("tensor lacks its other half", file=file.path, tensor=name))
        elif len(counterparts) == 1:
            tensors[canonical] = _tensor(canonical, file, info)
        elif canonical not in tensors:
            even, odd = (_tensor(canonical, *counterpart) for counterpart in counterparts)
            if (even.shape, even.encoding) != (odd.shape, odd.encoding):
                problems.append(InputError("tensor does not fit its other half", file=file.path, tensor=name))
                continue
            tensors[canonical] = _interleaved(even, odd)
    return tensors, problems


def _tensor(canonical: str, file: InputFile, info: TensorInfo) -> Tensor:
    row = StoredArray(file, info.offset, np.dtype("u1"), info.encoding.row_nbytes(info.shape[-1]))
    return Tensor(canonical, info.shape, info.encoding, RecordSource(row, info.encoding))


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    """Return the tensor `[experts, 2 n, in]` of two `[experts, n, in]`, or the bias `[experts, 2 n]` of two."""
    axis = 0 if len(even.shape) == 3 else 1
    doubled = len(even.shape) - (2 if axis == 0 else 1)
    shape = tuple(2 * size if index == doubled else size for index, size in enumerate(even.shape))
    return Tensor(even.name, shape, even.encoding, InterleavedSource(even.source, odd.source, axis))
