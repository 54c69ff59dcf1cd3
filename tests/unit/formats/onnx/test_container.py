"""The ONNX container, beside the library's own parser."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from gptoss_convert.errors import InputError
from gptoss_convert.formats.onnx import container
from gptoss_convert.formats.onnx.container import Place, read_model
from gptoss_convert.formats.storage import FileRef

NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
PAIRS = st.dictionaries(NAMES, NAMES, max_size=4)


def tensor(name: str, dims: tuple[int, ...], external: dict[str, str] | None) -> TensorProto:
    made = TensorProto(name=name, data_type=2, dims=dims, doc_string="a tensor")
    if external is None:
        made.raw_data = b"\x00\xff"
    else:
        made.data_location = TensorProto.EXTERNAL
        for key, value in external.items():
            made.external_data.add(key=key, value=value)
    return made


@st.composite
def models(draw: st.DrawFn) -> ModelProto:
    names = draw(st.lists(NAMES, unique=True, max_size=5))
    dims = st.lists(st.integers(1, 1 << 40), max_size=4).map(tuple)
    tensors = [tensor(name, draw(dims), draw(st.none() | PAIRS)) for name in names]
    node = helper.make_node("Constant", [], ["x"], value=tensor("inner", (3,), None))
    graph = helper.make_graph([node] * draw(st.integers(0, 3)), "g", [], [], initializer=tensors)
    model = helper.make_model(graph, producer_name=draw(NAMES))
    for key, value in draw(PAIRS).items():
        model.metadata_props.add(key=key, value=value)
    return model


def read_bytes(data: bytes, folder: Path) -> container.OnnxModel:
    path = folder / "x.onnx"
    path.write_bytes(data)
    return read_model(FileRef.at(path))


@given(models())
def test_model_says_what_the_library_says(tmp_path_factory: pytest.TempPathFactory, model: ModelProto) -> None:
    found = read_bytes(model.SerializeToString(), tmp_path_factory.mktemp("x"))
    assert found.metadata == {item.key: item.value for item in model.metadata_props}
    expected = {
        item.name: (
            item.data_type,
            tuple(item.dims),
            {pair.key: pair.value for pair in item.external_data} if item.data_location else None,
        )
        for item in model.graph.initializer
    }
    assert {
        name: (item.data_type, item.dims, item.external) for name, item in found.initialisers.items()
    } == expected


@given(models(), st.data())
def test_damaged_bytes_are_a_model_or_an_error_of_one_line(
    tmp_path_factory: pytest.TempPathFactory, model: ModelProto, data: st.DataObject
) -> None:
    content = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for damaged in (bytes(content), bytes(content[:cut])):
        try:
            read_bytes(damaged, tmp_path_factory.mktemp("x"))
        except InputError as error:
            assert "x.onnx" in str(error)  # noqa: PT017 - that there is none is right too


def field(number: int, kind: int, content: bytes) -> bytes:
    return bytes([number << 3 | kind]) + content


def message(number: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    assert len(content) < 128
    return field(number, 2, bytes([len(content)]) + content)


NAME = message(8, b"w")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no graph"),
        (message(7) + message(7), "a second graph"),
        (field(7, 0, b"\x01"), "a number in place of bytes"),
        (message(7, b"\x0a\x7f"), "ends behind its message"),
        (field(7, 2, b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), "ends behind its message"),
        (field(1, 0, b"\x80" * 11), "a number without end"),
        (field(1, 0, b"\x80"), "a number without end"),
        (field(1, 3, b""), "wire type 3"),
        (field(1, 5, b"\x00\x00"), "ends behind its message"),
        (b"\x02\x00", "ends behind its message"),
        (message(14, message(1, b"\xff"), message(2, b"x")), "not UTF-8"),
        (message(14, message(1, b"a")) + message(14, message(1, b"a")), "'a' twice"),
        (message(7, message(5, NAME, NAME)), "a field of an initialiser twice"),
        (message(7, message(5, NAME, message(2, b"x"))), "bytes in place of a number"),
        (message(7, message(5, NAME), message(5, NAME)), "occurs twice"),
        (message(7, message(5, NAME, field(1, 0, b"\x00"))), "out of range"),
        (message(7, message(5, NAME, field(1, 0, b"\xff" * 9 + b"\x01"))), "out of range"),
        (message(7, message(5, NAME, message(1, b"\x01" * 100))), "out of range"),
    ],
)
def test_broken_rules_are_refused(content: bytes, what: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=what):
        read_bytes(content, tmp_path)


def test_packed_dimensions_are_read(tmp_path: Path) -> None:
    found = read_bytes(message(7, message(5, NAME, message(1, b"\x03\x80\x01"))), tmp_path)
    assert found.initialisers["w"].dims == (3, 128)


def test_files_of_endless_fields_end_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MOST_FIELDS", 1000)
    with pytest.raises(InputError, match="more than 1000 fields"):
        read_bytes(message(7) + b"\x08\x00" * 1000, tmp_path)


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    with path.open("wb") as file:
        file.truncate(container.LARGEST_MODEL + 1)
    with pytest.raises(InputError, match="too large"):
        read_model(FileRef.at(path))


def test_place_is_that_of_the_declaration(tmp_path: Path) -> None:
    external = {"location": "d", "offset": "64", "length": "3"}
    graph = helper.make_graph([], "g", [], [], initializer=[tensor("w", (3,), external)])
    found = read_bytes(helper.make_model(graph).SerializeToString(), tmp_path).initialisers["w"]
    assert found.place(FileRef(tmp_path, 0)) == Place("d", 64, 3)
    assert found.nbytes == 3
