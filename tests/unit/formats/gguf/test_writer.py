"""GGUF files before they are written, in one file and in shards."""

from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.checkpoint import inventory
from gptoss_convert.encodings import ENCODINGS
from gptoss_convert.formats.gguf.container import aligned, encoding_of_type, read_header, string
from gptoss_convert.formats.gguf.reader import read, split_path
from gptoss_convert.formats.gguf.tensors import PlacedTensor, canonical_tensor
from gptoss_convert.formats.gguf.writer import GgufLayout, NewTensor, file_type, lay_out
from gptoss_convert.formats.storage import FileRef
from tests.unit.formats.gguf import models
from tests.unit.formats.moves import Memory

METADATA = {"general.architecture": string("gpt-oss")}


def write_empty(layout: GgufLayout) -> list[Path]:
    """Write headers and zeros."""
    for file, header in layout.files:
        file.path.write_bytes(header.ljust(file.size, b"\0"))
    return [file.path for file, _ in layout.files]


@st.composite
def new_tensors(draw: st.DrawFn) -> list[NewTensor]:
    shapes = st.tuples(st.integers(1, 3), st.integers(1, 3).map(lambda blocks: 32 * blocks))
    stored = [codec for name, codec in ENCODINGS.items() if hasattr(gguf.GGMLQuantizationType, name.upper())]
    kinds = draw(st.lists(st.tuples(shapes, st.sampled_from(stored)), min_size=1, max_size=12))
    return [NewTensor(f"t{index}", shape, encoding) for index, (shape, encoding) in enumerate(kinds)]


LIMITS = st.none() | st.integers(1, 1000)


@given(new_tensors(), LIMITS)
def test_what_is_laid_out_is_what_is_read(tmp_path: Path, tensors: list[NewTensor], limit: int | None) -> None:
    layout = lay_out(tensors, METADATA, tmp_path / "m.gguf", split_max_size=limit)
    write_empty(layout)
    found = {
        name: PlacedTensor(file, info)
        for file, _ in layout.files
        for name, info in read_header(FileRef.at(file.path)).tensors.items()
    }
    assert found == layout.placed
    assert list(layout.placed) == [tensor.name for tensor in tensors]
    for tensor in tensors:
        info = layout.placed[tensor.name].info
        assert (info.shape, info.encoding, info.nbytes) == (tensor.shape, tensor.encoding, tensor.nbytes)


@given(new_tensors(), st.integers(1, 1000))
def test_shards_are_those_of_gguf_py(tmp_path: Path, tensors: list[NewTensor], limit: int) -> None:
    writer = gguf.GGUFWriter(None, "gpt-oss", split_max_size=limit)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.encoding.name.upper()]
        stored = gguf.quant_shape_to_byte_shape(tensor.shape, kind)
        writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), tensor.nbytes, raw_dtype=kind)
    layout = lay_out(tensors, METADATA, tmp_path / "m.gguf", split_max_size=limit)
    shards = [[name for name, placed in layout.placed.items() if placed.file == file] for file, _ in layout.files]
    assert shards == [list(shard) for shard in writer.tensors]
    for file, _ in layout.files:
        sizes = [tensor.nbytes for tensor in tensors if layout.placed[tensor.name].file == file]
        assert len(sizes) == 1 or sum(sizes) <= limit


@given(new_tensors(), LIMITS)
def test_data_are_packed_aligned_to_the_end_of_the_file(
    tmp_path: Path, tensors: list[NewTensor], limit: int | None
) -> None:
    layout = lay_out(tensors, METADATA, tmp_path / "m.gguf", split_max_size=limit)
    for file, header in layout.files:
        infos = [placed.info for placed in layout.placed.values() if placed.file == file]
        assert infos[0].offset == len(header)
        for one, other in pairwise(infos):
            assert other.offset == aligned(one.offset + one.nbytes)
        assert file.size == aligned(infos[-1].offset + infos[-1].nbytes)


def test_one_file_has_no_keys_of_shards(tmp_path: Path) -> None:
    layout = lay_out([NewTensor("a", (32,), ENCODINGS["f32"])], METADATA, tmp_path / "m.gguf", split_max_size=None)
    ((file, _),) = layout.files
    write_empty(layout)
    assert file.path == tmp_path / "m.gguf"
    assert file.modified_ns is None
    assert read_header(FileRef.at(file.path)).metadata == METADATA


def test_first_shard_has_the_metadata_and_every_shard_its_number(tmp_path: Path) -> None:
    tensors = [NewTensor(name, (32,), ENCODINGS["f32"]) for name in "abc"]
    paths = write_empty(lay_out(tensors, METADATA, tmp_path / "m.gguf", split_max_size=128))
    assert paths == [split_path(tmp_path / "m.gguf", index, 3) for index in range(3)]
    for index, path in enumerate(paths):
        fields = gguf.GGUFReader(path).fields
        split = {key: (field.types, field.contents()) for key, field in fields.items() if key.startswith("split.")}
        assert split == {
            "split.no": ([gguf.GGUFValueType.UINT16], index),
            "split.count": ([gguf.GGUFValueType.UINT16], 3),
            "split.tensors.count": ([gguf.GGUFValueType.INT32], 3),
        }
        assert ("general.architecture" in fields) is (index == 0)


def test_output_is_named_absolutely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layout = lay_out([NewTensor("a", (32,), ENCODINGS["f32"])], {}, Path("m.gguf"), split_max_size=None)
    assert layout.files[0][0].path == tmp_path / "m.gguf"


@pytest.mark.parametrize("limit", [None, 5000])
@pytest.mark.parametrize("encoding", ["f32", "q8_0", "mxfp4"])
def test_canonical_tensors_are_written_as_they_were_read(tmp_path: Path, encoding: str, limit: int | None) -> None:
    values = models.random_values()
    encodings = {name: encoding for name, array in values.items() if array.ndim > 1 and name.endswith("weight")}
    source = read(models.write(tmp_path / "source.gguf", values, encodings=encodings))
    header = read_header(FileRef.at(source.path))
    tensors = [NewTensor(info.name, info.shape, info.encoding) for info in header.tensors.values()]
    layout = lay_out(tensors, header.metadata, tmp_path / "copy.gguf", split_max_size=limit)
    memory = Memory({file.path: bytearray(text.ljust(file.size, b"\0")) for file, text in layout.files})
    for name, tensor in source.tensors.items():
        target = canonical_tensor(name, layout.placed)
        assert (target.shape, target.encoding) == (tensor.shape, tensor.encoding)
        for start in range(0, tensor.rows, 5):
            stop = min(start + 5, tensor.rows)
            target.storage.write(memory, start, tensor.read(start, stop))
    for path, content in memory.files.items():
        path.write_bytes(content)
    copy = read(layout.files[0][0].path)
    copy.require_sound()
    assert copy.config == source.config
    assert list(copy.tensors) == list(inventory(copy.config))
    for name, tensor in source.tensors.items():
        found, expected = copy.tensors[name].read(0, tensor.rows), tensor.read(0, tensor.rows)
        assert [part.tobytes() for part in found] == [part.tobytes() for part in expected], name


@pytest.mark.parametrize(
    ("dense", "experts", "expected"),
    [
        ("bf16", "mxfp4", "MOSTLY_MXFP4_MOE"),
        ("f32", "mxfp4", "MOSTLY_MXFP4_MOE"),
        ("q8_0", "mxfp4", "MOSTLY_Q8_0"),
        ("f32", "f32", "ALL_F32"),
        ("f32", "f16", "MOSTLY_F16"),
        ("bf16", "bf16", "MOSTLY_BF16"),
        ("bf16", "q8_0", "MOSTLY_Q8_0"),
    ],
)
def test_file_type_is_that_of_llama_cpp(dense: str, experts: str, expected: str) -> None:
    assert file_type(ENCODINGS[dense], ENCODINGS[experts]) == gguf.LlamaFileType[expected]


FOREIGN = [kind for kind in gguf.GGMLQuantizationType if kind.name.lower() not in ENCODINGS]
UNSTATED = 1024
"""`LLAMA_FTYPE_GUESSED` in llama.h."""


@pytest.mark.parametrize("kind", FOREIGN)
def test_file_type_of_foreign_experts_is_that_of_llama_cpp_or_unstated(kind: gguf.GGMLQuantizationType) -> None:
    names = (f"MOSTLY_{kind.name}", f"MOSTLY_{kind.name}_M")
    known = [int(gguf.LlamaFileType[name]) for name in names if name in gguf.LlamaFileType.__members__]
    encoding = encoding_of_type(kind.value)
    assert encoding is not None
    assert file_type(ENCODINGS["q8_0"], encoding) in (*known, UNSTATED)
    if kind.name in ("Q4_0", "Q5_1", "Q2_K", "Q4_K", "Q6_K", "IQ4_XS", "TQ1_0"):
        assert file_type(ENCODINGS["q8_0"], encoding) in known


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_types_are_laid_out_as_they_are_read(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    encoding = encoding_of_type(kind.value)
    assert encoding is not None
    tensors = [NewTensor("a", (3, 256), encoding), NewTensor("b", (2,), ENCODINGS["f32"])]
    layout = lay_out(tensors, METADATA, tmp_path / "m.gguf", split_max_size=None)
    (path,) = write_empty(layout)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert found["a"].tensor_type == kind
    assert int(found["a"].n_bytes) == encoding.nbytes((3, 256)) == layout.placed["a"].info.nbytes
    assert int(found["b"].data_offset) == layout.placed["b"].info.offset
