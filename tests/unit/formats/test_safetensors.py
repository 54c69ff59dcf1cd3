"""The safetensors container: agreement with the library, and every handcrafted fault."""

import contextlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.errors import GptossConvertError, InputError, UnsupportedError
from gptoss_convert.formats.safetensors import StoredTensor, is_plain_file_name, read_folder, read_header
from gptoss_convert.formats.storage import FileRef
from tests.support.checkpoints import Shape, write_huggingface, write_safetensors

INDEX = "model.safetensors.index.json"


def parse(data: bytes, folder: Path) -> dict[str, StoredTensor]:
    path = folder / "file.safetensors"
    path.write_bytes(data)
    return read_header(FileRef.at(path))


def file_of(header: bytes | str | object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header; `length` lies about its size."""
    text = (
        header
        if isinstance(header, bytes)
        else (header if isinstance(header, str) else json.dumps(header)).encode()
    )
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# --- agreement with the library


def test_sound_file_is_read_as_the_library_does(tmp_path: Path) -> None:
    path = write_huggingface(tmp_path, Shape()) / "model.safetensors"
    file = FileRef.at(path)
    tensors = read_header(file)
    expected = dict(safetensors.deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert (tensor.dtype, list(tensor.shape)) == (expected[name]["dtype"], expected[name]["shape"])
        assert file.read(tensor.offset, tensor.nbytes) == bytes(expected[name]["data"])


def test_file_of_the_library_is_read(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = safetensors.numpy.save({"a": values}, metadata={"format": "pt"})
    tensor = parse(data, tmp_path)["a"]
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("F32", (2, 3), 24)
    assert data[tensor.offset :] == values.tobytes()


SOUND: dict[str, bytes] = {
    "no tensors": file_of({}),
    "empty tensor": file_of({"a": entry(shape=[0], offsets=[0, 0])}),
    "scalar": file_of({"a": entry(shape=[], offsets=[0, 1])}, b"x"),
    "metadata": file_of({"__metadata__": {"format": "pt"}, "a": entry()}, b"1234"),
    "spaces after the header": file_of(json.dumps({"a": entry()}) + "   ", b"1234"),
    "spaces before the header": file_of("  " + json.dumps({"a": entry()}), b"1234"),
    "entries out of order": file_of({"b": entry(offsets=[4, 8]), "a": entry()}, b"12345678"),
    "empty tensor between two": file_of(
        {"a": entry(), "b": entry(offsets=[4, 8]), "z": entry(shape=[0], offsets=[4, 4])}, b"12345678"
    ),
}


@pytest.mark.parametrize("case", SOUND)
def test_unusual_but_sound_file_is_read_as_the_library_does(tmp_path: Path, case: str) -> None:
    expected = dict(safetensors.deserialize(SOUND[case]))  # type: ignore[no-untyped-call]
    found = parse(SOUND[case], tmp_path)
    assert {name: list(tensor.shape) for name, tensor in found.items()} == {
        name: tensor["shape"] for name, tensor in expected.items()
    }


@given(data=st.data())
def test_damaged_header_is_refused_if_the_library_refuses_it(tmp_path: Path, data: st.DataObject) -> None:
    text = bytearray(json.dumps({"a": entry("BF16", [2, 3], [0, 12]), "bc": entry("F32", [1], [12, 16])}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place] = data.draw(st.sampled_from(b'0123456789-.,:{}[]"aeFU \\\xff'))
    content = file_of(bytes(text), bytes(16))
    try:
        found = parse(content, tmp_path)
    except InputError:
        return
    expected = dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
    assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in found.items()} == {
        name: (tensor["dtype"], tensor["shape"]) for name, tensor in expected.items()
    }


SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "size"), SIZES.items())
def test_sizes_of_dtypes_are_those_of_the_library(tmp_path: Path, dtype: str, size: int) -> None:
    data = file_of({"a": entry(dtype, [3], [0, 3 * size])}, bytes(3 * size))
    assert dict(safetensors.deserialize(data))["a"]["dtype"] == dtype  # type: ignore[no-untyped-call]
    assert parse(data, tmp_path)["a"].nbytes == 3 * size


# --- handcrafted faults

DATA = b"1234"
FAULTS: dict[str, bytes] = {
    "empty file": b"",
    "one byte": b"1",
    "seven bytes": b"1234567",
    "header length 0": file_of(b"", length=0),
    "header length 1": file_of(b"{}", length=1),
    "header longer than the file": file_of(b"{}", length=3),
    "header of 100 MB and a byte": file_of(b"{}", length=100_000_001),
    "header length 2**63": file_of(b"{}", length=1 << 63),
    "header length 2**64 - 1": file_of(b"{}", length=(1 << 64) - 1),
    "gzip": b"\x1f\x8b\x08\0" + bytes(100),
    # the text of the header
    "header that is not UTF-8": file_of(b'{"\xff": 1}'),
    "header that is not JSON": file_of(b"hello"),
    "header cut": file_of(b'{"a": {"dtype"'),
    "header that is a list": file_of([]),
    "header that is a number": file_of("  1"),
    "deeply nested lists": file_of(b"[" * 100_000),
    "deeply nested objects": file_of(b'{"a":' * 100_000),
    "name that occurs twice": file_of(f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}', DATA),
    "key of an entry that occurs twice": file_of(
        '{"a": {"dtype": "U8", "dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}', DATA
    ),
    "two documents": file_of(json.dumps({"a": entry()}) + "{}", DATA),
    "NUL after the header": file_of(json.dumps({"a": entry()}) + "\0", DATA),
    "number that is not a number": file_of('{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 4]}}', DATA),
    # entries
    "entry that is a list": file_of({"a": [1]}, DATA),
    "entry that is null": file_of({"a": None}, DATA),
    "entry without dtype": file_of({"a": {"shape": [4], "data_offsets": [0, 4]}}, DATA),
    "entry without shape": file_of({"a": {"dtype": "U8", "data_offsets": [0, 4]}}, DATA),
    "entry without offsets": file_of({"a": {"dtype": "U8", "shape": [4]}}, DATA),
    "unknown dtype": file_of({"a": entry("U7")}, DATA),
    "dtype in lower case": file_of({"a": entry("u8")}, DATA),
    "dtype that is a number": file_of({"a": entry(8)}, DATA),
    "dtype that is a list": file_of({"a": entry(["U8"])}, DATA),
    # shapes
    "negative dimension": file_of({"a": entry(shape=[-4])}, DATA),
    "two negative dimensions": file_of({"a": entry(shape=[-2, -2])}, DATA),
    "dimension that is a float": file_of({"a": entry(shape=[4.0])}, DATA),
    "dimension that is true": file_of({"a": entry(shape=[True, 4])}, DATA),
    "dimension that is a text": file_of({"a": entry(shape=["4"])}, DATA),
    "shape that is a number": file_of({"a": entry(shape=4)}, DATA),
    "rank 9": file_of({"a": entry(shape=[1] * 8 + [4])}, DATA),
    "product that overflows": file_of({"a": entry(shape=[1 << 32, 1 << 32])}, DATA),
    "product that overflows to 4": file_of({"a": entry(shape=[(1 << 63) + 2, 2])}, DATA),
    "shape larger than the offsets": file_of({"a": entry(shape=[5])}, DATA),
    "dtype larger than the offsets": file_of({"a": entry("U16")}, DATA),
    # offsets
    "negative offset": file_of({"a": entry(offsets=[-4, 0])}, DATA),
    "offsets reversed": file_of({"a": entry(offsets=[4, 0])}, DATA),
    "offset that is a float": file_of({"a": entry(offsets=[0.0, 4.0])}, DATA),
    "offset that is true": file_of({"a": entry(shape=[1], offsets=[False, True])}, DATA),
    "one offset": file_of({"a": entry(offsets=[4])}, DATA),
    "three offsets": file_of({"a": entry(offsets=[0, 2, 4])}, DATA),
    "offset beyond 2**64": file_of({"a": entry(shape=[(1 << 64) + 4], offsets=[0, (1 << 64) + 4])}, DATA),
    "tensor beyond the file": file_of({"a": entry(shape=[5], offsets=[0, 5])}, DATA),
    "tensors that overlap": file_of({"a": entry(), "b": entry(offsets=[2, 6])}, b"123456"),
    "tensors at one place": file_of({"a": entry(), "b": entry()}, DATA),
    "hole at the start": file_of({"a": entry(offsets=[1, 5])}, b"12345"),
    "hole between tensors": file_of({"a": entry(), "b": entry(offsets=[5, 9])}, b"123456789"),
    "data after the last tensor": file_of({"a": entry()}, b"12345"),
    "data without tensors": file_of({}, b"x"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_handcrafted_fault_is_refused(fault: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        parse(FAULTS[fault], tmp_path)
    assert caught.value.file == str(tmp_path / "file.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if "nested" not in fault])
def test_refusal_allocates_little(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(FAULTS[fault])
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_header(FileRef.at(path))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("shape", "stop"), [("1" + "0" * 4000 + ",1" + "0" * 4000, "0"), ("9" * 4300, "9" * 4300)])
def test_number_of_thousands_of_digits_is_refused(tmp_path: Path, shape: str, stop: str) -> None:
    header = f'{{"a": {{"dtype": "U8", "shape": [{shape}], "data_offsets": [0, {stop}]}}}}'
    with pytest.raises(InputError):
        parse(file_of(header), tmp_path)


def test_message_stays_short_whatever_was_found(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        parse(file_of({"a": entry(shape=[1] * 100_000)}, DATA), tmp_path)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("metadata", [5, [], {"a": 1}, {"a": None}])
def test_metadata_that_are_no_texts_are_refused(tmp_path: Path, metadata: object) -> None:
    with pytest.raises(InputError):
        parse(file_of({"__metadata__": metadata, "a": entry()}, DATA), tmp_path)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64, "git lfs pull"),
        (b"<!DOCTYPE html>\n<html></html>", "web page"),
        (b"GGUF" + bytes(100), "GGUF file"),
    ],
)
def test_what_people_download_instead_is_named(tmp_path: Path, content: bytes, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        parse(content, tmp_path)


def test_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = file_of({"a": entry(), "b": entry(offsets=[4, 8])}, b"12345678")
    assert len(parse(data, tmp_path)) == 2
    for length in range(len(data)):
        with pytest.raises(InputError):
            parse(data[:length], tmp_path)


@given(st.binary(max_size=300))
def test_random_bytes_give_an_error_of_ours_or_tensors(tmp_path: Path, data: bytes) -> None:
    with contextlib.suppress(GptossConvertError):
        parse(data, tmp_path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    st.sampled_from(["dtype", "shape", "data_offsets"]),
)
def test_any_json_in_an_entry_gives_an_error_of_ours_or_tensors(tmp_path: Path, value: Any, field: str) -> None:
    with contextlib.suppress(GptossConvertError):
        parse(file_of({"a": entry() | {field: value}}, DATA), tmp_path)


# --- folders


def write_shard(path: Path, *names: str) -> None:
    write_safetensors(path, [(name, "U8", (4,), DATA) for name in names])


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def write_sharded(folder: Path) -> None:
    write_shard(folder / "one.safetensors", "a", "b")
    write_shard(folder / "two.safetensors", "c")
    write_index(folder, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})


def test_index_leads_to_its_shards(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    assert {name: tensor.file.path.name for name, tensor in read_folder(tmp_path).items()} == {
        "a": "one.safetensors",
        "b": "one.safetensors",
        "c": "two.safetensors",
    }


def test_files_that_the_index_does_not_name_are_not_read(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "original").mkdir()
    write_shard(tmp_path / "original/model.safetensors", "a")
    assert set(read_folder(tmp_path)) == {"a", "b", "c"}


def test_single_file_needs_no_index(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", "a")
    assert set(read_folder(tmp_path)) == {"a"}


def test_single_file_may_have_any_name(tmp_path: Path) -> None:
    write_shard(tmp_path / "weights.safetensors", "a")
    assert set(read_folder(tmp_path)) == {"a"}


def test_model_safetensors_goes_before_other_files(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", "a")
    write_shard(tmp_path / "adapter.safetensors", "b")
    assert set(read_folder(tmp_path)) == {"a"}


def test_several_files_without_index_are_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(InputError, match="several shards but no index"):
        read_folder(tmp_path)


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no safetensors file"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickled_weights_are_not_supported(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnsupportedError, match="pickled"):
        read_folder(tmp_path)


def test_missing_shard_is_named_with_its_number_of_tensors(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "one.safetensors").unlink()
    with pytest.raises(InputError, match=r"shard is missing .*one\.safetensors.*2 tensors"):
        read_folder(tmp_path)


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "two.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"two\.safetensors"):
        read_folder(tmp_path)


def test_tensor_that_the_index_does_not_name_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    write_shard(tmp_path / "two.safetensors", "c", "d")
    with pytest.raises(InputError, match=r"tensor is not in the index .*tensor d"):
        read_folder(tmp_path)


def test_tensor_that_its_shard_lacks_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    write_shard(tmp_path / "one.safetensors", "a")
    with pytest.raises(InputError, match=r"missing .*tensor b"):
        read_folder(tmp_path)


def test_tensor_in_another_shard_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    write_shard(tmp_path / "two.safetensors", "c", "a")
    with pytest.raises(InputError, match=r"tensor lies in another shard .*tensor a.*expected one\.safetensors"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "null", "[" * 10**5]
)
def test_index_that_is_no_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=INDEX):
        read_folder(tmp_path)


OUTSIDE = [
    "../x",
    "..",
    ".",
    "",
    "/etc/passwd",
    "sub/x.safetensors",
    "C:\\x",
    "C:x",
    "\\\\server\\share",
    "https://example.org/x",
    "a\0b",
    "a\nb",
    "x\x1b[31m",
    "a*",
    "\u202egnp.exe",
    # what Windows takes for something else
    "NUL",
    "con",
    "COM1.safetensors",
    "x.safetensors.",
    "x.safetensors ",
]


@pytest.mark.parametrize("name", [*OUTSIDE, None, 5, ["x"]])
def test_shard_outside_the_folder_is_refused(tmp_path: Path, name: Any) -> None:
    write_index(tmp_path, {"a": name})
    with pytest.raises(InputError, match="index names a shard outside its folder") as caught:
        read_folder(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["model-00000-of-00002.safetensors", "model--00001-of-00007.safetensors", "ä 1", "console", ".a"]
)
def test_plain_file_name(name: str) -> None:
    assert is_plain_file_name(name)


def test_shard_with_an_impossible_name_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "n" * 300})
    with pytest.raises(InputError):
        read_folder(tmp_path)


def test_index_of_many_entries_is_refused_quickly(tmp_path: Path) -> None:
    write_index(tmp_path, {f"tensor {index}": f"{index}.safetensors" for index in range(100_000)})
    with pytest.raises(InputError, match="shard is missing"):
        read_folder(tmp_path)
