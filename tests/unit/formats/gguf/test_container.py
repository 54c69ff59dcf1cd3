"""The GGUF container: agreement with gguf-py, and every handcrafted fault."""

import contextlib
import math
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_convert.encodings import ENCODINGS, Encoding
from gptoss_convert.errors import GptossConvertError, InputError, UnsupportedError
from gptoss_convert.formats.gguf.container import (
    CodeOrder,
    Header,
    StringArray,
    TensorInfo,
    Value,
    ValueType,
    aligned,
    encoding_of_type,
    float32,
    read_header,
    serialise_header,
    string,
    strings,
    type_number,
    uint32,
)
from gptoss_convert.formats.storage import FileRef
from tests.unit.formats.gguf import raw

GOLDEN = Path(__file__).resolve().parents[3] / "data/golden/gguf-py.gguf"

NUMBERS = {
    ValueType.UINT8: "u1",
    ValueType.INT8: "i1",
    ValueType.UINT16: "u2",
    ValueType.INT16: "i2",
    ValueType.UINT32: "u4",
    ValueType.INT32: "i4",
    ValueType.UINT64: "u8",
    ValueType.INT64: "i8",
    ValueType.FLOAT32: "f4",
    ValueType.FLOAT64: "f8",
    ValueType.BOOL: "?",
}
"""Types of numbers and flags, and their numpy types."""


def parse(data: bytes, folder: Path) -> Header:
    path = folder / "file.gguf"
    path.write_bytes(data)
    return read_header(FileRef.at(path))


def plain(value: Value) -> Any:
    """The value as Python objects, so that it can be compared."""
    if isinstance(value.value, StringArray):
        return list(value.value)
    return value.value.tolist() if isinstance(value.value, np.ndarray) else value.value


def scalars() -> st.SearchStrategy[Value]:
    numbers = [
        st.builds(
            Value, st.just(kind), hnp.from_dtype(np.dtype(dtype), allow_nan=False).map(lambda item: item.item())
        )
        for kind, dtype in NUMBERS.items()
    ]
    return st.one_of(*numbers, st.builds(string, st.text()))


def arrays() -> st.SearchStrategy[Value]:
    numbers = [
        st.builds(Value, st.just(kind), hnp.arrays(dtype, st.integers(0, 5), elements={"allow_nan": False}))
        for kind, dtype in NUMBERS.items()
    ]
    return st.one_of(*numbers, st.lists(st.text(), max_size=5).map(strings))


def metadata() -> st.SearchStrategy[dict[str, Value]]:
    keys = st.text(min_size=1, max_size=20).filter(lambda key: key != "general.alignment")
    return st.dictionaries(keys, scalars() | arrays(), max_size=6)


def placed(shapes: Sequence[tuple[str, tuple[int, ...], Encoding]]) -> tuple[list[TensorInfo], int]:
    """Tensors one after the other, and the size of the data section."""
    infos, end = [], 0
    for name, shape, encoding in shapes:
        infos.append(TensorInfo(name, shape, encoding, end))
        end = aligned(end + infos[-1].nbytes)
    return infos, end


STORED = {
    name: encoding for name, encoding in ENCODINGS.items() if hasattr(gguf.GGMLQuantizationType, name.upper())
}
"""Encodings that ggml has, too."""
EVERY_ENCODING = placed([(f"{name}.weight", (3, 2, 64), encoding) for name, encoding in STORED.items()])

# --- what is written is what is read


@given(metadata())
def test_metadata_return_from_a_file(tmp_path: Path, metadata: dict[str, Value]) -> None:
    header = parse(serialise_header(metadata, []), tmp_path)
    assert list(header.metadata) == list(metadata)
    for key, value in metadata.items():
        assert header.metadata[key].type is value.type
        assert header.metadata[key].is_array is value.is_array
        assert plain(header.metadata[key]) == plain(value)


def test_tensors_return_from_a_file(tmp_path: Path) -> None:
    infos, size = EVERY_ENCODING
    text = serialise_header({}, infos)
    header = parse(text + bytes(size), tmp_path)
    assert list(header.tensors) == [info.name for info in infos]
    for info in infos:
        read = header.tensors[info.name]
        assert (read.shape, read.encoding, read.nbytes) == (info.shape, info.encoding, info.nbytes)
        assert read.offset == len(text) + info.offset


def test_header_ends_aligned() -> None:
    for length in range(1, 34):
        assert len(serialise_header({"k" * length: uint32(1)}, [])) % 32 == 0


@pytest.mark.parametrize(("position", "expected"), [(0, 0), (1, 32), (31, 32), (32, 32), (33, 64)])
def test_aligned_is_the_next_multiple(position: int, expected: int) -> None:
    assert aligned(position) == expected


def test_another_alignment_moves_the_data(tmp_path: Path) -> None:
    keys = [raw.key("general.alignment", raw.UINT32, raw.u32(64))]
    data = raw.gguf(keys, [raw.tensor("a", [8], offset=64)], bytes(96), alignment=64)
    assert parse(data, tmp_path).tensors["a"].offset == len(data) - 32


@given(st.lists(st.text()))
def test_string_arrays_hold_their_strings(items: list[str]) -> None:
    array = StringArray.of(items)
    assert len(array) == len(items)
    assert list(array) == items


def test_long_strings_are_stored_whole() -> None:
    items = ["x" * 65_535, "y" * 65_536, "z" * 70_000]
    assert list(StringArray.of(items)) == items


def test_strings_of_an_array_need_not_be_utf8(tmp_path: Path) -> None:
    keys = [raw.array("k", raw.STRING, 2, raw.text(b"\xff\xfe") + raw.text("ok"))]
    assert plain(parse(raw.gguf(keys), tmp_path).metadata["k"]) == ["\ufffd\ufffd", "ok"]


def test_string_arrays_longer_than_the_window_are_read_whole(tmp_path: Path) -> None:
    items = [f"{index:09d}" for index in range(200_000)]
    header = parse(serialise_header({"a": strings(items), "b": string("end")}, []), tmp_path)
    assert plain(header.metadata["a"]) == items
    assert plain(header.metadata["b"]) == "end"


def test_empty_file_of_no_keys_and_no_tensors_is_sound(tmp_path: Path) -> None:
    assert parse(raw.gguf(), tmp_path) == Header({}, {})


# --- agreement with gguf-py


@given(metadata())
def test_gguf_py_reads_the_metadata_that_are_written(tmp_path: Path, metadata: dict[str, Value]) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(serialise_header(metadata, []))
    fields = gguf.GGUFReader(path).fields
    for key, value in metadata.items():
        kinds = [int(kind) for kind in fields[key].types]
        if not value.is_array:
            assert kinds == [value.type]
        elif len(plain(value)):
            assert kinds == [ValueType.ARRAY, value.type]
        assert fields[key].contents() == plain(value)


def test_gguf_py_reads_the_tensors_that_are_written(tmp_path: Path) -> None:
    infos, size = EVERY_ENCODING
    text = serialise_header({"general.name": string("x")}, infos)
    path = tmp_path / "file.gguf"
    path.write_bytes(text + bytes(size))
    for tensor, info in zip(gguf.GGUFReader(path).tensors, infos, strict=True):
        assert tensor.name == info.name
        assert tuple(reversed(tensor.shape.tolist())) == info.shape
        assert tensor.tensor_type.name.lower() == info.encoding.name
        assert tensor.data_offset == len(text) + info.offset
        assert tensor.n_bytes == info.nbytes


@given(metadata())
def test_what_gguf_py_writes_is_read(tmp_path: Path, metadata: dict[str, Value]) -> None:
    path = tmp_path / "file.gguf"
    writer = gguf.GGUFWriter(path, "gpt-oss")
    expected = {
        key: value for key, value in metadata.items() if key != "general.architecture" and plain(value) != []
    }
    for key, value in expected.items():
        if value.is_array:
            sub_type = gguf.GGUFValueType(value.type)
            writer.add_key_value(key, plain(value), gguf.GGUFValueType.ARRAY, sub_type)
        else:
            writer.add_key_value(key, value.value, gguf.GGUFValueType(value.type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = read_header(FileRef.at(path))
    assert {key: plain(header.metadata[key]) for key in expected} == {k: plain(v) for k, v in expected.items()}
    assert {key: header.metadata[key].type for key in expected} == {k: v.type for k, v in expected.items()}


def test_golden_file_of_gguf_py_has_a_key_of_every_type() -> None:
    found = {key: (value.type, plain(value)) for key, value in read_header(FileRef.at(GOLDEN)).metadata.items()}
    assert found == {
        "general.architecture": (ValueType.STRING, "gpt-oss"),
        "scalar.uint8": (ValueType.UINT8, 255),
        "scalar.int8": (ValueType.INT8, -128),
        "scalar.uint16": (ValueType.UINT16, 65535),
        "scalar.int16": (ValueType.INT16, -32768),
        "scalar.uint32": (ValueType.UINT32, 4294967295),
        "scalar.int32": (ValueType.INT32, -2147483648),
        "scalar.uint64": (ValueType.UINT64, 18446744073709551615),
        "scalar.int64": (ValueType.INT64, -9223372036854775808),
        "scalar.float32": (ValueType.FLOAT32, float(np.float32(0.1))),
        "scalar.float64": (ValueType.FLOAT64, 0.1),
        "scalar.bool": (ValueType.BOOL, True),
        "scalar.string": (ValueType.STRING, "Grüße, 世界 🌍"),
        "array.string": (ValueType.STRING, ["", "a", "Ġdie", "🌍"]),
        "array.int32": (ValueType.INT32, [1, -2, 3]),
        "array.float32": (ValueType.FLOAT32, [0.5, -1.5]),
        "array.bool": (ValueType.BOOL, [True, False, True]),
    }


@pytest.mark.parametrize("name", list(STORED))
def test_golden_file_of_gguf_py_has_a_tensor_of_every_encoding(name: str) -> None:
    file = FileRef.at(GOLDEN)
    info = read_header(file).tensors[f"{name}.weight"]
    expected = next(tensor for tensor in gguf.GGUFReader(GOLDEN).tensors if tensor.name == info.name)
    assert info.shape == (3, 2, 64)
    assert info.encoding is ENCODINGS[name]
    assert file.read(info.offset, info.nbytes) == expected.data.tobytes()


def known_types() -> list[gguf.GGMLQuantizationType]:
    return [kind for kind in gguf.GGMLQuantizationType if kind.name.lower() not in ENCODINGS]


@pytest.mark.parametrize("kind", known_types())
def test_every_other_ggml_type_is_known_and_leads_back(kind: gguf.GGMLQuantizationType) -> None:
    encoding = encoding_of_type(kind.value)
    assert encoding is not None
    assert (encoding.block, encoding.bytes_per_block) == gguf.GGML_QUANT_SIZES[kind]
    assert type_number(encoding) == kind.value


def test_first_number_of_ollama_for_mxfp4_tells_the_order_of_its_codes(tmp_path: Path) -> None:
    tensors = [raw.tensor("a", [32], 4), raw.tensor("b", [32], raw.MXFP4, 32), raw.tensor("c", [32], raw.F32, 64)]
    parsed = parse(raw.gguf([], tensors, bytes(192)), tmp_path).tensors
    assert (parsed["a"].encoding, parsed["a"].order) == (ENCODINGS["mxfp4"], CodeOrder.CHECKPOINT)
    assert (parsed["b"].encoding, parsed["b"].order) == (ENCODINGS["mxfp4"], CodeOrder.GGML)
    assert parsed["a"].nbytes == 17


def test_own_encodings_need_no_library(tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(raw.gguf([], [raw.tensor("a", [32], 4), raw.tensor("b", [32], raw.Q8_0, 32)], bytes(96)))
    code = (
        "import sys; from pathlib import Path; from gptoss_convert.formats.gguf.container import read_header; "
        "from gptoss_convert.formats.storage import FileRef; read_header(FileRef.at(Path(sys.argv[1]))); "
        "print('gguf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", list(STORED))
def test_type_numbers_are_those_of_gguf_py(name: str) -> None:
    assert encoding_of_type(gguf.GGMLQuantizationType[name.upper()].value) is ENCODINGS[name]


# --- handcrafted faults: the list of ggml's tests/test-gguf.cpp, and more

HUGE = (1 << 64) - 1
ONE_TENSOR = [raw.tensor("a", [8])]
DATA = bytes(32)


def with_alignment(kind: int, value: bytes) -> bytes:
    return raw.gguf([raw.key("general.alignment", kind, value)], ONE_TENSOR, DATA)


def one_key(kind: int, value: bytes) -> bytes:
    return raw.gguf([raw.key("k", kind, value)])


def array_of(kind: int, count: int, items: bytes = b"") -> bytes:
    return raw.gguf([raw.array("k", kind, count, items)])


def one_tensor(extents: Sequence[int], kind: int = raw.F32, offset: int = 0, name: str | bytes = "a") -> bytes:
    return raw.gguf([], [raw.tensor(name, extents, kind, offset)], DATA)


def two_tensors(first: bytes, second: bytes, size: int = 64) -> bytes:
    return raw.gguf([], [first, second], bytes(size))


FAULTS: dict[str, bytes] = {
    "empty file": b"",
    "only a magic": b"GGUF",
    "other magic": raw.gguf(magic=b"GGML"),
    "magic in lower case": raw.gguf(magic=b"gguf"),
    # counts
    "huge number of tensors": raw.gguf(tensor_count=HUGE),
    "huge number of keys": raw.gguf(key_count=HUGE),
    "number of tensors beyond int64": raw.gguf(tensor_count=1 << 63),
    "one tensor more than there are": raw.gguf([], ONE_TENSOR, tensor_count=2),
    "more keys than there are": raw.gguf([raw.key("k", raw.UINT8, b"\1")], key_count=9),
    # keys
    "huge key length": raw.gguf([raw.text("k", length=HUGE)], key_count=1),
    "key length beyond the file": raw.gguf([raw.text("k", length=1 << 20)], key_count=1),
    "key that is not UTF-8": raw.gguf([raw.key(b"\xff", raw.UINT8, b"\1")]),
    "key that occurs twice": raw.gguf([raw.key("k", raw.UINT8, b"\1"), raw.key("k", raw.UINT8, b"\1")]),
    # values
    "unknown value type": one_key(13, raw.u64(0)),
    "huge value type": one_key((1 << 32) - 1, raw.u64(0)),
    "huge string length": one_key(raw.STRING, raw.text("x", length=HUGE)),
    "string length beyond int63": one_key(raw.STRING, raw.text("x", length=(1 << 63) + 1)),
    "string that is not UTF-8": one_key(raw.STRING, raw.text(b"\xc3\x28")),
    "unknown array type": array_of(13, 1, b"\0" * 8),
    "nested array": array_of(raw.ARRAY, 1, raw.u32(raw.UINT8) + raw.u64(1) + b"\1"),
    "array of strings longer than the file": array_of(raw.STRING, 1 << 40),
    "array of strings whose last one is cut": array_of(raw.STRING, 2, raw.text("x") + raw.text("y", length=900)),
    "array of strings with a huge one": array_of(raw.STRING, 2, raw.text("x") + raw.text("y", length=HUGE)),
    "array of 2**61 doubles": array_of(raw.FLOAT64, 1 << 61, bytes(64)),
    # alignment
    "alignment 0": with_alignment(raw.UINT32, raw.u32(0)),
    "alignment 3": with_alignment(raw.UINT32, raw.u32(3)),
    "alignment 13": with_alignment(raw.UINT32, raw.u32(13)),
    "alignment 2**31": with_alignment(raw.UINT32, raw.u32(1 << 31)),
    "alignment of another type": with_alignment(raw.UINT64, raw.u64(32)),
    "alignment that is a string": with_alignment(raw.STRING, raw.text("32")),
    "alignment that is an array": raw.gguf(
        [raw.array("general.alignment", raw.UINT32, 1, raw.u32(32))], ONE_TENSOR, DATA
    ),
    # tensor names
    "tensor name of 64 bytes": one_tensor([8], name="n" * 64),
    "huge tensor name length": raw.gguf([], [raw.text("a", length=HUGE)], tensor_count=1),
    "tensor name that is not UTF-8": one_tensor([8], name=b"\xff"),
    "tensor that occurs twice": two_tensors(raw.tensor("a", [8]), raw.tensor("a", [8], offset=32)),
    # shapes
    "no dimensions": one_tensor([]),
    "five dimensions": one_tensor([1, 1, 1, 1, 8]),
    "huge number of dimensions": raw.gguf([], [raw.text("a") + raw.u32((1 << 32) - 1)], tensor_count=1),
    "dimension of 0": one_tensor([8, 0]),
    "negative dimension": one_tensor([HUGE]),
    "dimensions whose product overflows": one_tensor([1 << 32, 1 << 32, 4]),
    "dimensions whose product overflows to 0": one_tensor([1 << 32, 1 << 32]),
    "dimensions whose bytes overflow": one_tensor([1 << 61, 2]),
    "row of a broken block": one_tensor([33], raw.MXFP4),
    # types
    "unknown ggml type": one_tensor([8], 99),
    "removed ggml type": one_tensor([32], 5),
    "broken block of Ollama's first type": one_tensor([33], 4),
    "huge ggml type": one_tensor([8], (1 << 32) - 1),
    # data
    "offset that is not aligned": one_tensor([8], offset=4),
    "offset beyond the file": one_tensor([8], offset=32),
    "offset that wraps around": one_tensor([8], offset=(1 << 64) - 32),
    "data shorter than the tensor": one_tensor([16]),
    "no data": raw.gguf([], ONE_TENSOR),
    "tensors at one place": two_tensors(raw.tensor("a", [8]), raw.tensor("b", [8])),
    "tensors that overlap": two_tensors(raw.tensor("a", [16]), raw.tensor("b", [8], offset=32)),
    "tensors that overlap, last one first": two_tensors(raw.tensor("b", [8], offset=32), raw.tensor("a", [16])),
}
UNSUPPORTED = {
    "version 0": raw.gguf(version=0),
    "version 1": raw.gguf(version=1),
    "version 2": raw.gguf(version=2),
    "version 4": raw.gguf(version=4),
    "big endian": raw.gguf(version=3 << 24),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_handcrafted_fault_is_refused(fault: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, UnsupportedError)) as caught:
        parse(FAULTS[fault], tmp_path)
    assert caught.value.file == str(tmp_path / "file.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_refusal_allocates_little(fault: str, tmp_path: Path) -> None:
    encoding_of_type(99)  # loads the table of types
    path = tmp_path / "file.gguf"
    path.write_bytes(FAULTS[fault])
    tracemalloc.start()
    try:
        with pytest.raises(GptossConvertError):
            read_header(FileRef.at(path))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [k for k in range(13) if k not in (raw.STRING, raw.ARRAY)])
@pytest.mark.parametrize("count", [33, 1 << 32, 1 << 61, 1 << 63, HUGE])
def test_array_longer_than_the_file_is_refused(kind: int, count: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="truncated"):
        parse(array_of(kind, count), tmp_path)


@pytest.mark.parametrize(("length", "refused"), [(16 << 20, False), ((16 << 20) + 1, True)])
def test_string_of_more_than_16_mib_is_refused(tmp_path: Path, length: int, refused: bool) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(raw.gguf([raw.key("k", raw.STRING, raw.text("", length=length))]))
    os.truncate(path, length + 100)
    if refused:
        with pytest.raises(InputError, match="too long"):
            read_header(FileRef.at(path))
    else:
        assert len(read_header(FileRef.at(path)).metadata["k"].value) == length


@pytest.mark.parametrize(
    "keys",
    [
        [raw.array("k", raw.UINT8, 64 << 20, b"")],
        [raw.array("k", raw.UINT64, 1 << 61, b"")],
        [raw.array("k", raw.STRING, 8 << 20, b"")],
        [raw.array("k", raw.STRING, 1, raw.text("", length=64 << 20))],
    ],
)
def test_header_of_more_than_64_mib_is_refused(tmp_path: Path, keys: list[bytes]) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(raw.gguf(keys))
    os.truncate(path, 100 << 20)
    with pytest.raises(InputError, match="header is too large"):
        read_header(FileRef.at(path))


@pytest.mark.parametrize("fault", UNSUPPORTED)
def test_other_versions_are_not_supported(fault: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="version 3, little endian"):
        parse(UNSUPPORTED[fault], tmp_path)


def test_handcrafted_file_without_fault_is_read(tmp_path: Path) -> None:
    header = parse(with_alignment(raw.UINT32, raw.u32(32)), tmp_path)
    assert header.tensors["a"].shape == (8,)


def test_tensor_name_of_63_bytes_is_read(tmp_path: Path) -> None:
    assert "n" * 63 in parse(one_tensor([8], name="n" * 63), tmp_path).tensors


def test_message_stays_short_whatever_was_found(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        parse(with_alignment(raw.STRING, raw.text("x" * 1_000_000)), tmp_path)
    assert len(str(caught.value)) < 2000


SMALL = raw.gguf(
    [
        raw.key("a", raw.UINT32, raw.u32(7)),
        raw.key("b", raw.STRING, raw.text("text")),
        raw.array("c", raw.STRING, 3, raw.text("x") + raw.text("") + raw.text("yz")),
        raw.array("d", raw.FLOAT64, 2, struct.pack("<2d", 1.5, math.pi)),
        raw.key("general.alignment", raw.UINT32, raw.u32(32)),
    ],
    [raw.tensor("t", [32, 2], raw.MXFP4), raw.tensor("u", [4, 1], raw.F32, 64)],
    bytes(80),
)


def test_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    assert len(parse(SMALL, tmp_path).tensors) == 2
    for length in range(len(SMALL)):
        with pytest.raises(InputError):
            parse(SMALL[:length], tmp_path)


def test_file_cut_anywhere_is_refused_beyond_the_window(tmp_path: Path) -> None:
    text = serialise_header({"a": strings(["x" * 100] * 30_000), "b": string("y" * 1000)}, [])
    for length in range(len(text) // 100, len(text) - 64, len(text) // 50):
        with pytest.raises(InputError):
            parse(text[:length], tmp_path)


def mutations(size: int) -> st.SearchStrategy[list[tuple[int, bytes]]]:
    """Places and the bytes that are written over them: single bytes, and integers at the edges."""
    edges = [0, 1, 31, 33, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, HUGE]
    pieces = st.binary(min_size=1, max_size=2) | st.sampled_from(edges).map(raw.u64)
    return st.lists(st.tuples(st.integers(0, size - 1), pieces), min_size=1, max_size=4)


def mutated(data: bytes, changes: list[tuple[int, bytes]], length: int) -> bytes:
    content = bytearray(data)
    for place, piece in changes:
        content[place : place + len(piece)] = piece
    return bytes(content[:length])


@given(mutations(len(SMALL)), st.integers(0, 4).map(lambda cut: len(SMALL) - cut * 13))
def test_damaged_file_gives_an_error_of_ours_or_a_header(
    tmp_path: Path, changes: list[tuple[int, bytes]], length: int
) -> None:
    data = mutated(SMALL, changes, length)
    with contextlib.suppress(GptossConvertError):
        for info in parse(data, tmp_path).tensors.values():
            assert info.offset + info.nbytes <= len(data)


@given(st.binary(max_size=200))
def test_random_bytes_give_an_error_of_ours_or_a_header(tmp_path: Path, data: bytes) -> None:
    with contextlib.suppress(GptossConvertError):
        parse(b"GGUF" + raw.u32(3) + data, tmp_path)


def test_float32_is_stored_in_single_precision(tmp_path: Path) -> None:
    header = parse(serialise_header({"x": float32(0.1)}, []), tmp_path)
    assert header.metadata["x"].value == np.float32(0.1)
