"""ONNX folders that this project wrote, read back as checkpoints.

A folder holds `model.onnx`, files with external data beside it, and what travels with the weights. The metadata of
the model say which initialisers make which canonical tensor; numbers are read from the external data, and the graph
is never run. Models of other tools compute with rearranged and requantised numbers, and are not read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gptoss_convert.assets import CONFIG, Assets, require_inside
from gptoss_convert.checkpoint import (
    Checkpoint,
    ModelConfig,
    Tensor,
    TensorSpec,
    assemble_checkpoint,
    collect_tensors,
    inventory,
    parameter_count,
)
from gptoss_convert.encodings import ENCODINGS, Encoding, Part
from gptoss_convert.errors import GptossConvertError, InputError, UnsupportedError
from gptoss_convert.formats.model_card import describer
from gptoss_convert.formats.onnx.container import DeclaredArray, OnnxModel, read_model
from gptoss_convert.formats.onnx.data_types import ENCODING_NAMES, data_types_of, row_items
from gptoss_convert.formats.onnx.metadata import METADATA_KEY, StoredWeight, parse
from gptoss_convert.formats.onnx.storages import has_layout, storage_of
from gptoss_convert.formats.safetensors import is_plain_file_name
from gptoss_convert.formats.storage import FileRef, is_there
from gptoss_convert.formats.tokenizer_json import find_tokenizer

NAME = "onnx"
TITLE = "ONNX"
MODEL_NAME = "model.onnx"
SUFFIX = ".onnx"

_FIRST_BYTE = b"\x08"
"""The tag of `ModelProto.ir_version`, with which every writer begins."""


def recognises(path: Path) -> bool:
    """Return whether `path` is an ONNX file, or a folder with one and without safetensors files."""
    if path.is_dir():
        return (path / MODEL_NAME).is_file() and not any(path.glob("*.safetensors"))
    if path.suffix.lower() != SUFFIX or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == _FIRST_BYTE


def read(path: Path) -> Checkpoint:
    """Open a folder, or the ONNX file in it, without reading tensor data.

    Raises:
        InputError: the ONNX file or its metadata are damaged.
        UnsupportedError: the model was written by another tool.
    """
    file = FileRef.at(path / MODEL_NAME if path.is_dir() else path)
    model = read_model(file)
    if METADATA_KEY not in model.metadata:
        raise UnsupportedError(
            "only ONNX models that this program wrote can be read",
            file=file.path,
            found=f"no metadata {METADATA_KEY}",
            hint="convert from the checkpoint that it was made of",
        )
    config, weights = parse(model.metadata[METADATA_KEY], file.path)
    assets = Assets(file.path.parent)
    raw = assets.read_json_object(CONFIG) or {}
    reader = _Reader(file, model, config, weights)
    collected = collect_tensors(weights.items(), lambda item: [reader.tensor(*item)])
    collected = replace(collected, problems=(*collected.problems, *_overlaps(reader.placed)))
    return assemble_checkpoint(
        path,
        NAME,
        config,
        collected,
        tensor_place=file.path,
        assets=assets,
        tokenizer=find_tokenizer(assets, raw),
        describe=describer(assets, raw, parameter_count(config)),
    )


class _Reader:
    """Makes canonical tensors of the initialisers of one model."""

    def __init__(
        self, file: FileRef, model: OnnxModel, config: ModelConfig, weights: Mapping[str, StoredWeight]
    ) -> None:
        self._file = file
        self._model = model
        self._inventory = inventory(config)
        self._uses = Counter(name for weight in weights.values() for name in weight.initialisers)
        self._data: dict[str, FileRef] = {}
        self.placed: list[tuple[Path, int, int, str]] = []
        """File, start and stop of every array, and its tensor."""

    def tensor(self, name: str, weight: StoredWeight) -> Tensor:
        """Return the canonical tensor `name`.

        Raises:
            InputError: its initialisers do not fit it, or its data are not where they should be.
        """
        spec = self._inventory.get(name)
        if spec is None:
            raise InputError("unknown tensor", file=self._file.path, tensor=name)
        encoding = self._encoding(name, weight, spec)
        places = tuple(
            self._place(initialiser, name, spec, encoding, part)
            for initialiser, part in zip(weight.initialisers, encoding.parts, strict=True)
        )
        return Tensor(name, spec.shape, encoding, storage_of(weight.layout, encoding, spec.shape, places))

    def _encoding(self, name: str, weight: StoredWeight, spec: TensorSpec) -> Encoding:
        if weight.encoding not in ENCODING_NAMES:
            raise InputError(
                "tensor has an encoding that an ONNX model cannot hold",
                file=self._file.path,
                tensor=name,
                found=repr(weight.encoding),
                expected="one of " + ", ".join(ENCODING_NAMES),
            )
        encoding = ENCODINGS[weight.encoding]
        if not encoding.fits(spec.shape[-1]):
            raise InputError(
                f"rows are not whole blocks of {encoding.name}",
                file=self._file.path,
                tensor=name,
                found=f"{spec.shape[-1]} elements",
                expected=f"a multiple of {encoding.block}",
            )
        if len(weight.initialisers) != len(encoding.parts):
            raise InputError(
                "tensor has the wrong number of initialisers",
                file=self._file.path,
                tensor=name,
                found=len(weight.initialisers),
                expected=f"{len(encoding.parts)} for {encoding.name}",
            )
        if not has_layout(weight.layout, encoding, spec.shape):
            raise InputError(
                "tensor cannot lie so",
                file=self._file.path,
                tensor=name,
                found=f"{weight.layout} of {encoding.name} {list(spec.shape)}",
            )
        return encoding

    def _place(
        self, initialiser: str, tensor: str, spec: TensorSpec, encoding: Encoding, part: Part
    ) -> tuple[FileRef, int]:
        """Return where a part lies, checked against what tensor and file say."""
        declared = self._model.initialisers.get(initialiser)
        if declared is None:
            raise InputError(
                "initialiser is missing from the graph", file=self._file.path, tensor=tensor, expected=initialiser
            )
        if self._uses[initialiser] > 1:
            raise InputError("initialiser belongs to two tensors", file=self._file.path, tensor=initialiser)
        types = data_types_of(encoding, part)
        if declared.data_type not in types:
            raise InputError(
                "initialiser has another type than its encoding",
                file=self._file.path,
                tensor=initialiser,
                found=f"data type {declared.data_type}",
                expected=" or ".join(map(str, types)) + f" for {part.name} of {encoding.name}",
            )
        nbytes = math.prod(spec.shape[:-1]) * row_items(part, encoding, spec.shape[-1]) * part.dtype.itemsize
        if declared.nbytes != nbytes:
            raise InputError(
                "initialiser does not fit the configuration",
                file=self._file.path,
                tensor=initialiser,
                found=f"{list(declared.dims)}, {declared.nbytes} bytes",
                expected=f"{nbytes} bytes for {list(spec.shape)} in {encoding.name}",
            )
        file, offset = self._data_file(declared), self._offset(declared, nbytes)
        self.placed.append((file.path, offset, offset + nbytes, tensor))
        return file, offset

    def _data_file(self, declared: DeclaredArray) -> FileRef:
        location = declared.place(self._file).location
        if location not in self._data:
            if not is_plain_file_name(location):
                raise InputError(
                    "external data lie outside the folder",
                    file=self._file.path,
                    tensor=declared.name,
                    found=repr(location),
                    expected="a plain file name",
                )
            path = self._file.path.parent / location
            if not is_there(path):
                raise InputError("file with external data is missing", file=path, tensor=declared.name)
            self._data[location] = _own_file(path)
        return self._data[location]

    def _offset(self, declared: DeclaredArray, nbytes: int) -> int:
        place, file = declared.place(self._file), self._data_file(declared)
        if place.length != nbytes:
            raise InputError(
                "length of external data does not fit the initialiser",
                file=self._file.path,
                tensor=declared.name,
                found=place.length,
                expected=nbytes,
            )
        if place.offset + nbytes > file.size:
            raise InputError(
                "file with external data is truncated",
                file=file.path,
                tensor=declared.name,
                found=f"{file.size} bytes",
                expected=f"at least {place.offset + nbytes}",
                hint="write or download the file again",
            )
        return place.offset


def _own_file(path: Path) -> FileRef:
    """Look at a file with external data.

    Any bytes can be external data, so that a file elsewhere on the machine could be made numbers of a model:
    neither kind of link is followed.

    Raises:
        InputError: it is a link, or no regular file.
    """
    require_inside(path)
    file = FileRef.at(path)
    if path.stat().st_nlink > 1:
        raise InputError(
            "file with external data is a hard link",
            file=path,
            found=f"{path.stat().st_nlink} names",
            expected=1,
            hint="put a copy of the file in its place",
        )
    return file


def _overlaps(placed: Sequence[tuple[Path, int, int, str]]) -> Iterator[GptossConvertError]:
    """Yield an error for each array that begins before the one before it in its file ends."""
    file, end = Path(), 0
    for path, start, stop, name in sorted(placed):
        if path == file and start < end:
            yield InputError(
                "external data overlap", file=path, tensor=name, found=f"offset {start}", expected=f"at least {end}"
            )
        file, end = path, max(stop, end if path == file else 0)
