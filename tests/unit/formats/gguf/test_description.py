"""The description of a model as GGUF metadata."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_convert.checkpoint import ModelConfig, parameter_count
from gptoss_convert.description import Description, Reference
from gptoss_convert.formats.gguf.container import (
    StringArray,
    Value,
    ValueType,
    read_header,
    serialise_header,
    string,
    strings,
    uint32,
)
from gptoss_convert.formats.gguf.description import (
    LARGEST_REFERENCE_COUNT,
    description_metadata,
    parse_description,
    size_label,
)
from gptoss_convert.formats.huggingface import parse_config
from gptoss_convert.formats.storage import FileRef

PUBLISHED = Path(__file__).resolve().parents[3] / "data/gpt-oss"


def published(size: str) -> ModelConfig:
    path = PUBLISHED / size / "config.json"
    return parse_config(json.loads(path.read_text(encoding="utf-8")), path)


CONFIG = published("20b")


def plain(metadata: dict[str, Value]) -> dict[str, Any]:
    return {
        key: list(value.value) if isinstance(value.value, StringArray) else value.value
        for key, value in metadata.items()
    }


SAID = st.none() | st.text(min_size=1, max_size=10)
REFERENCES = st.lists(st.builds(Reference, **{item.name: SAID for item in fields(Reference)}), max_size=3)
LISTS = st.lists(st.text(max_size=5), max_size=3)
WHOLE = {name: st.integers(-(1 << 31), (1 << 31) - 1) for name in ("top_k", "penalty_last_n", "mirostat")}
REAL = {
    name: hnp.from_dtype(np.dtype(np.float32), allow_nan=False).map(float)
    for name in (
        *("top_p", "min_p", "xtc_probability", "xtc_threshold"),
        *("temp", "penalty_repeat", "mirostat_tau", "mirostat_eta"),
    )
}


def descriptions() -> st.SearchStrategy[Description]:
    """Descriptions of any contents; a size label is always stated."""
    special: dict[str, st.SearchStrategy[Any]] = {
        "size_label": st.text(min_size=1, max_size=10),
        "base_models": REFERENCES.map(tuple),
        "datasets": REFERENCES.map(tuple),
        "tags": LISTS.map(tuple),
        "languages": LISTS.map(tuple),
        "sampling": st.fixed_dictionaries({}, optional=WHOLE | REAL | {"sequence": st.text("ab", min_size=1)}),
    }
    return st.builds(Description, **{item.name: special.get(item.name, SAID) for item in fields(Description)})


@given(descriptions())
def test_any_description_returns_from_a_file(tmp_path: Path, said: Description) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(serialise_header(description_metadata(said, CONFIG), []))
    assert parse_description(read_header(FileRef.at(path)).metadata) == said


@given(descriptions())
def test_keys_and_values_are_those_of_gguf_py_in_its_order(said: Description) -> None:
    said = replace(said, name=said.name or "name", source_revision=None)
    known = gguf.Metadata(**{f"sampling_{name}": value for name, value in said.sampling.items()})
    for item in fields(Description):
        value = getattr(said, item.name)
        if isinstance(value, tuple) and value and isinstance(value[0], Reference):
            value = [{name: text for name, text in vars(entry).items() if text is not None} for entry in value]
        if item.name not in ("sampling", "source_revision") and value not in (None, ()):
            setattr(known, item.name, list(value) if isinstance(value, tuple) else value)
    writer = gguf.GGUFWriter(path=None, arch="gpt-oss")
    writer.add_type(gguf.GGUFType.MODEL)
    known.set_gguf_meta_model(writer)
    ours = description_metadata(said, CONFIG)
    expected = writer.kv_data[0]
    assert list(ours) == list(expected)
    assert plain(ours) == {key: value.value for key, value in expected.items()}
    for key, value in ours.items():
        assert (ValueType.ARRAY if value.is_array else value.type) == expected[key].type


def test_what_is_stated_goes_before_what_is_known() -> None:
    known = Description(name="Card", author="A", tags=("a", "b"), sampling={"top_k": 1})
    stated = Description(name="Stated", license="mit", base_models=(Reference(name="B"),))
    assert known.updated(stated) == replace(stated, author="A", tags=("a", "b"), sampling={"top_k": 1})
    assert known.updated(Description()) == known
    assert Description().updated(known) == known


def test_revision_has_a_key_of_this_tool() -> None:
    metadata = description_metadata(Description(source_revision="0123abc"), CONFIG)
    assert metadata["gptoss_convert.source.revision"] == string("0123abc")


def test_nothing_said_is_little_metadata() -> None:
    assert plain(description_metadata(Description(), CONFIG)) == {
        "general.architecture": "gpt-oss",
        "general.type": "model",
        "general.size_label": "32x2.4B",
    }


def test_bytes_of_a_file_name_that_are_no_characters_are_replaced() -> None:
    metadata = description_metadata(Description(name="a\udcff"), CONFIG)
    serialise_header(metadata, [])
    assert metadata["general.name"] == string("a?")


@pytest.mark.parametrize(
    ("size", "total", "label"), [("20b", 20_914_757_184, "32x2.4B"), ("120b", 116_829_156_672, "128x3.1B")]
)
def test_size_label_is_experts_times_parameters_with_one_of_them(size: str, total: int, label: str) -> None:
    config = published(size)
    matrices = config.num_hidden_layers * 3 * config.hidden_size * config.intermediate_size
    shared = total - config.num_local_experts * matrices
    assert parameter_count(config) == total
    assert size_label(config) == gguf.size_label(total, shared, matrices, config.num_local_experts) == label


# --- metadata of strangers


@pytest.mark.parametrize("value", [uint32(1), strings(["a"]), string(""), Value(ValueType.BOOL, True)])
def test_name_that_is_no_text_is_not_said(value: Value) -> None:
    assert parse_description({"general.name": value}) == Description()


@pytest.mark.parametrize("value", [string("2"), Value(ValueType.FLOAT32, 2.0), strings(["2"])])
def test_references_without_a_number_of_them_are_not_said(value: Value) -> None:
    metadata = {"general.base_model.count": value, "general.base_model.0.name": string("a")}
    assert parse_description(metadata).base_models == ()


def test_huge_number_of_references_is_bounded() -> None:
    metadata = {"general.base_model.count": uint32((1 << 32) - 1), "general.base_model.0.name": string("a")}
    found = parse_description(metadata).base_models
    assert found[0] == Reference(name="a")
    assert len(found) <= LARGEST_REFERENCE_COUNT


@pytest.mark.parametrize("value", [string("a"), uint32(1), Value(ValueType.UINT8, np.array([1], np.uint8))])
def test_tags_that_are_no_texts_are_not_said(value: Value) -> None:
    assert parse_description({"general.tags": value}).tags == ()


@pytest.mark.parametrize(
    "value",
    [
        string("hot"),
        strings(["hot"]),
        Value(ValueType.BOOL, True),
        Value(ValueType.UINT64, 1 << 63),
        Value(ValueType.FLOAT32, np.array([1.0], np.float32)),
    ],
)
@pytest.mark.parametrize("name", ["temp", "top_k"])
def test_sampling_setting_of_another_kind_is_not_said(name: str, value: Value) -> None:
    said = parse_description({f"general.sampling.{name}": value})
    assert said.sampling == {}
