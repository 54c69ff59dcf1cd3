"""Safetensors files as they are planned: agreement with the library, with its sharding, and with our reader."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from huggingface_hub import split_state_dict_into_shards_factory
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats import safetensors_writer
from gptoss_convert.formats.safetensors import DTYPE_BYTES, read_folder, read_header
from gptoss_convert.formats.safetensors_writer import NewArray, SafetensorsLayout, index_json, lay_out
from gptoss_convert.formats.storage import FileRef
from tests.support.layouts import REAL_20B, huggingface_tensors

FOLDER = Path("/model")
GPT_OSS = Path(__file__).resolve().parents[2] / "data/gpt-oss"
LIBRARY_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "F64": "float64", "I64": "int64", "U64": "uint64",
}  # fmt: skip

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
arrays = st.lists(
    st.builds(
        NewArray, names, st.sampled_from(list(DTYPE_BYTES)), st.lists(st.integers(0, 5), max_size=4).map(tuple)
    ),
    max_size=12,
    unique_by=lambda array: array.name,
)


def header_of_the_library(tensors: list[NewArray], metadata: Mapping[str, str] | None) -> bytes:
    """All bytes before the data in the file that the reference implementation writes."""
    buffer = np.zeros(max((tensor.nbytes for tensor in tensors), default=0) + 1, np.uint8)
    specs = {
        tensor.name: safetensors.TensorSpec(
            dtype=LIBRARY_DTYPES[tensor.dtype],
            shape=tensor.shape,
            data_ptr=buffer.ctypes.data,
            data_len=tensor.nbytes,
        )
        for tensor in tensors
    }
    data: bytes = safetensors.serialize(specs, metadata=None if metadata is None else dict(metadata))
    return data[: len(data) - sum(tensor.nbytes for tensor in tensors)]


def write_numbered(layout: SafetensorsLayout) -> dict[str, bytes]:
    """Write the files, every tensor with other bytes, and return these."""
    numbers = np.random.default_rng(0)
    contents = {name: numbers.bytes(tensor.nbytes) for name, tensor in layout.placed.items()}
    for file, header in layout.files:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with file.path.open("wb") as stream:
            stream.write(header)
            stream.truncate(file.size)
            for name, tensor in layout.placed.items():
                if tensor.file == file:
                    stream.seek(tensor.offset)
                    stream.write(contents[name])
    return contents


def index_of(layout: SafetensorsLayout, **options: Any) -> dict[str, Any]:
    index: dict[str, Any] = json.loads(index_json(layout, **options))
    return index


def without_time(file: FileRef) -> tuple[Path, int]:
    return file.path, file.size


@given(arrays, st.none() | st.dictionaries(names, names, min_size=1, max_size=1))
def test_header_is_that_of_the_library(tensors: list[NewArray], metadata: Mapping[str, str] | None) -> None:
    ((_, header),) = lay_out(tensors, FOLDER, metadata=metadata).files
    assert header == header_of_the_library(tensors, metadata)


def test_no_metadata_leave_no_trace() -> None:
    tensors = [NewArray("a", "U8", (1,))]
    assert lay_out(tensors, FOLDER, metadata={}) == lay_out(tensors, FOLDER)


@given(arrays, st.none() | st.integers(0, 200))
def test_files_hold_every_tensor_where_the_layout_says(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[NewArray], limit: int | None
) -> None:
    layout = lay_out(tensors, tmp_path_factory.mktemp("model"), max_shard_size=limit)
    contents = write_numbered(layout)
    assert list(contents) == [tensor.name for tensor in tensors]
    seen: dict[str, bytes] = {}
    for file, _ in layout.files:
        assert file.path.stat().st_size == file.size
        for name, tensor in read_header(FileRef.at(file.path)).items():
            planned = layout.placed[name]
            assert (planned.dtype, planned.shape, planned.offset, planned.nbytes) == (
                tensor.dtype,
                tensor.shape,
                tensor.offset,
                tensor.nbytes,
            )
            assert without_time(planned.file) == without_time(tensor.file)
            assert tensor.offset % DTYPE_BYTES[tensor.dtype] == 0
        for name, found in safetensors.deserialize(file.path.read_bytes()):  # type: ignore[no-untyped-call]
            assert name not in seen
            seen[name] = bytes(found["data"])
    assert seen == contents


@given(arrays.filter(bool), st.integers(0, 200))
def test_shards_are_those_of_transformers(tensors: list[NewArray], limit: int) -> None:
    split = split_state_dict_into_shards_factory(
        {tensor.name: tensor for tensor in tensors},
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    layout = lay_out(tensors, FOLDER, max_shard_size=limit)
    assert [file.path.name for file, _ in layout.files] == list(split.filename_to_tensors)
    placed = {name: tensor.file.path.name for name, tensor in layout.placed.items()}
    assert placed == split.tensor_to_filename
    assert layout.data_nbytes == split.metadata["total_size"]


def test_limit_counts_tensor_data_and_is_passed_by_larger_tensors_alone() -> None:
    sizes = {"a": 60, "b": 40, "c": 1, "large": 101, "d": 99, "e": 1}
    tensors = [NewArray(name, "U8", (size,)) for name, size in sizes.items()]
    placed = lay_out(tensors, FOLDER, max_shard_size=100).placed
    shards: dict[str, list[str]] = {}
    for name, tensor in placed.items():
        shards.setdefault(tensor.file.path.name, []).append(name)
    assert shards == {
        "model-00001-of-00004.safetensors": ["a", "b"],
        "model-00002-of-00004.safetensors": ["large"],
        "model-00003-of-00004.safetensors": ["c", "d"],
        "model-00004-of-00004.safetensors": ["e"],
    }


def test_no_tensors_make_one_file() -> None:
    layout = lay_out([], FOLDER, max_shard_size=1)
    assert [(file.path, header) for file, header in layout.files] == [
        (FOLDER / "model.safetensors", b"\x08" + bytes(7) + b"{}      ")
    ]
    assert layout.placed == {}


def test_order_in_a_file_does_not_depend_on_the_order_given() -> None:
    tensors = [NewArray("b", "U8", (3,)), NewArray("a", "U8", (3,)), NewArray("z", "BF16", (1,))]
    layout = lay_out(tensors, FOLDER)
    assert layout.files == lay_out(tensors[::-1], FOLDER).files
    assert sorted(layout.placed, key=lambda name: layout.placed[name].offset) == ["z", "a", "b"]


def test_metadata_are_sorted_and_in_every_file(tmp_path: Path) -> None:
    tensors = [NewArray(name, "U8", (1,)) for name in "ab"]
    layout = lay_out(tensors, tmp_path, max_shard_size=1, metadata={"format": "pt", "author": "\u00e9"})
    write_numbered(layout)
    for file, header in layout.files:
        assert b'{"__metadata__":{"author":"\xc3\xa9","format":"pt"},' in header
        with safetensors.safe_open(file.path, "numpy") as opened:
            assert opened.metadata() == {"format": "pt", "author": "\u00e9"}


def test_shards_can_be_named_otherwise(tmp_path: Path) -> None:
    tensors = [NewArray(name, "U8", (1,)) for name in "abc"]
    layout = lay_out(
        tensors,
        tmp_path,
        max_shard_size=2,
        shard_name=lambda index, count: f"model-{index:05d}-of-{count - 1:05d}.safetensors",
    )
    assert [file.path.name for file, _ in layout.files] == [
        "model-00000-of-00001.safetensors",
        "model-00001-of-00001.safetensors",
    ]


@pytest.mark.parametrize("names", [["a", "a"], ["a", "__metadata__"]])
def test_names_that_no_header_can_hold_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="names"):
        lay_out([NewArray(name, "U8", (1,)) for name in names], FOLDER)


def test_header_that_no_reader_would_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [NewArray("a", "U8", (1,))]
    ((_, header),) = lay_out(tensors, FOLDER).files
    monkeypatch.setattr(safetensors_writer, "LARGEST_HEADER", len(header) - 8)
    lay_out(tensors, FOLDER)
    monkeypatch.setattr(safetensors_writer, "LARGEST_HEADER", len(header) - 9)
    with pytest.raises(UnsupportedError, match="header would be too large"):
        lay_out(tensors, FOLDER)


# --- published files


def test_sizes_are_those_of_the_published_20b_files() -> None:
    """Sizes as the repository lists them; its shards are counted from 0, and its limit is 4.8 GB."""
    tensors = [NewArray(tensor.name, tensor.dtype, tensor.shape) for tensor in huggingface_tensors(REAL_20B)]
    layout = lay_out(
        tensors,
        FOLDER,
        max_shard_size=4_800_000_000,
        shard_name=lambda index, count: f"model-{index:05d}-of-{count - 1:05d}.safetensors",
    )
    assert [file.size for file, _ in layout.files] == [4_792_272_488, 4_798_702_184, 4_170_342_232]
    published = json.loads((GPT_OSS / "20b/model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index_of(layout) == published


# --- index


def test_index_is_what_transformers_writes() -> None:
    tensors = [NewArray("b", "BF16", (5, 2)), NewArray("a", "U8", (7,))]
    layout = lay_out(tensors, FOLDER, max_shard_size=20)
    expected = {
        "metadata": {"total_parameters": 17, "total_size": 27},
        "weight_map": {
            "a": "model-00002-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors",
        },
    }
    assert index_json(layout, total_parameters=17).decode() == json.dumps(expected, indent=2) + "\n"
    del expected["metadata"]["total_parameters"]
    assert index_json(layout).decode() == json.dumps(expected, indent=2) + "\n"


@given(arrays.filter(bool), st.integers(0, 50))
def test_index_leads_the_reader_to_every_tensor(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[NewArray], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("model")
    layout = lay_out(tensors, folder, max_shard_size=limit)
    write_numbered(layout)
    (folder / "model.safetensors.index.json").write_bytes(index_json(layout))
    found = {name: (tensor.file.path, tensor.offset, tensor.nbytes) for name, tensor in read_folder(folder).items()}
    assert found == {
        name: (tensor.file.path, tensor.offset, tensor.nbytes) for name, tensor in layout.placed.items()
    }
