"""ONNX folders before they are written: which initialiser lies where in which file of external data.

Source: docs/ExternalData.md of ONNX. Tables of the graph come first, then weights in canonical order, and no byte
of a model depends on anything but the graph and the sizes asked for. Large arrays begin at multiples of 64 KiB,
where Windows can map them into memory; small ones are aligned to cache lines. Bytes between them are zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_convert import __version__
from gptoss_convert.checkpoint import ModelConfig, Tensor, inventory
from gptoss_convert.encodings import Array
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.onnx.container import LARGEST_MODEL
from gptoss_convert.formats.onnx.data_types import FLOAT, FLOAT16, data_types_of, row_items, stored_nbytes
from gptoss_convert.formats.onnx.metadata import METADATA_KEY, serialise
from gptoss_convert.formats.onnx.reader import MODEL_NAME
from gptoss_convert.formats.onnx.storages import has_layout, storage_of
from gptoss_convert.formats.onnx.weights import Graph, Initialiser, Weight
from gptoss_convert.formats.storage import FileRef
from gptoss_convert.formats.weight_folder import WeightFolder

if TYPE_CHECKING:
    from onnx import ModelProto

PRODUCER = "gptoss-convert"
DATA_NAME = f"{MODEL_NAME}.data"
LARGE = 1 << 20
"""Bytes from which an array counts as large."""
LARGE_ALIGNMENT = 64 << 10
"""The allocation granularity of Windows."""
SMALL_ALIGNMENT = 64
_DATA_TYPES = {"f4": FLOAT, "f2": FLOAT16}
"""Types of tables, by kind and size of the numbers."""


@dataclass(frozen=True)
class PlacedInitialiser:
    """An initialiser with its place."""

    name: str
    shape: tuple[int, ...]
    file: FileRef
    offset: int
    nbytes: int


def data_file_name(index: int, count: int) -> str:
    """Return the name of a file of external data from its index, counted from 0, and the number of files."""
    return DATA_NAME if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.onnx.data"


def lay_out_graph(graph: Graph, config: ModelConfig, folder: Path, *, max_shard_size: int | None) -> WeightFolder:
    """Lay out the weights of a graph, and finish its ONNX file.

    Args:
        graph: the graph; it is left as it is.
        config: the model's shape, which is put into the metadata.
        folder: where the files will be.
        max_shard_size: bytes of a file of external data; a single larger initialiser gets a file of its own. None
            puts all of them into one file.

    Raises:
        UnsupportedError: the graph without its weights is too large.
        ValueError: the graph does not fit the model, or its weights do not fit their declarations.
    """
    weights = {name: graph.weights[name] for name in inventory(config)}
    for name, spec in inventory(config).items():
        _require_fit(weights[name], spec.shape)
    tables = [_table(name, array) for name, array in graph.tables.items()]
    stored = [item for weight in weights.values() for item in weight.initialisers]
    placed = _place([*tables, *stored], folder, max_shard_size)
    path = folder / MODEL_NAME
    model = _finished(graph.model, placed, serialise(config, weights)).SerializeToString(deterministic=True)
    if len(model) > LARGEST_MODEL:
        raise UnsupportedError(
            "ONNX graph would be too large",
            file=path,
            found=f"{len(model)} bytes",
            expected=f"at most {LARGEST_MODEL}",
        )
    data = dict.fromkeys((item.file for item in placed.values()), b"")
    for name, array in graph.tables.items():
        place = placed[name]
        data[place.file] = data[place.file].ljust(place.offset, b"\0") + _little_endian(array)
    return WeightFolder(
        files=((FileRef(path, len(model)), model), *data.items()),
        tensors={name: _tensor(weights[name], spec.shape, placed) for name, spec in inventory(config).items()},
        parts={name: tuple(placed[item.name] for item in weight.initialisers) for name, weight in weights.items()},
        texts={},
    )


def _table(name: str, array: Array) -> Initialiser:
    return Initialiser(name=name, data_type=_DATA_TYPES[array.dtype.str[1:]], dims=array.shape, nbytes=array.nbytes)


def _little_endian(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _require_fit(weight: Weight, shape: tuple[int, ...]) -> None:
    """Refuse a weight whose initialisers are not the parts of a tensor of `shape`."""
    if not has_layout(weight.layout, weight.encoding, shape):
        raise ValueError(f"{weight.tensor}: {weight.encoding.name} {list(shape)} cannot lie in {weight.layout}")
    for item, part in zip(weight.initialisers, weight.encoding.parts, strict=True):
        if item.data_type not in data_types_of(weight.encoding, part):
            raise ValueError(f"{item.name}: data type {item.data_type} for {part.name} of {weight.encoding.name}")
        row_nbytes = row_items(part, weight.encoding, shape[-1]) * part.dtype.itemsize
        needed = math.prod(shape[:-1]) * row_nbytes
        if not item.nbytes == stored_nbytes(item.data_type, item.dims) == needed:
            raise ValueError(f"{item.name}: {item.nbytes} bytes, dims {item.dims}, where {needed} are needed")


def _place(items: Sequence[Initialiser], folder: Path, limit: int | None) -> dict[str, PlacedInitialiser]:
    """Return the place of every initialiser by its name, in order."""
    names = [item.name for item in items]
    if len(set(names)) < len(names):
        raise ValueError("an initialiser belongs to two weights")
    shards: list[list[tuple[Initialiser, int]]] = [[]]
    end = 0
    for item in items:
        start = _aligned(end, item.nbytes)
        if limit is not None and shards[-1] and start + item.nbytes > limit:
            shards.append([])
            start = 0
        shards[-1].append((item, start))
        end = start + item.nbytes
    placed: dict[str, PlacedInitialiser] = {}
    for index, shard in enumerate(shards):
        last, offset = shard[-1]
        file = FileRef(folder / data_file_name(index, len(shards)), offset + last.nbytes)
        for item, offset in shard:
            placed[item.name] = PlacedInitialiser(item.name, item.dims, file, offset, item.nbytes)
    return placed


def _aligned(position: int, nbytes: int) -> int:
    """Return where an array of `nbytes` begins that comes after `position`."""
    alignment = LARGE_ALIGNMENT if nbytes >= LARGE else SMALL_ALIGNMENT
    return -(-position // alignment) * alignment


def _tensor(weight: Weight, shape: tuple[int, ...], placed: Mapping[str, PlacedInitialiser]) -> Tensor:
    """Return the canonical tensor that lies in the initialisers of `weight`."""
    places = [(placed[item.name].file, placed[item.name].offset) for item in weight.initialisers]
    return Tensor(weight.tensor, shape, weight.encoding, storage_of(weight.layout, weight.encoding, shape, places))


def _finished(model: ModelProto, placed: Mapping[str, PlacedInitialiser], metadata: str) -> ModelProto:
    """Return a copy of `model` that says where its weights lie, what they are, and who wrote it."""
    from onnx import ModelProto, TensorProto

    finished = ModelProto()
    finished.CopyFrom(model)
    finished.producer_name, finished.producer_version = PRODUCER, __version__
    declared = set()
    for tensor in finished.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        if tensor.name not in placed or tensor.name in declared:
            raise ValueError(f"{tensor.name}: an external initialiser of no weight, or declared twice")
        declared.add(tensor.name)
        place = placed[tensor.name]
        if tuple(tensor.dims) != place.shape:
            raise ValueError(f"{tensor.name}: declared as {list(tensor.dims)}, wanted as {list(place.shape)}")
        del tensor.external_data[:]
        for key, value in (
            ("location", place.file.path.name),
            ("offset", str(place.offset)),
            ("length", str(place.nbytes)),
        ):
            tensor.external_data.add(key=key, value=value)
    if missing := placed.keys() - declared:
        raise ValueError(f"{min(missing)}: a weight that the graph does not declare as an external initialiser")
    if any(entry.key == METADATA_KEY for entry in finished.metadata_props):
        raise ValueError(f"the graph has metadata {METADATA_KEY} already")
    finished.metadata_props.add(key=METADATA_KEY, value=metadata)
    return finished
