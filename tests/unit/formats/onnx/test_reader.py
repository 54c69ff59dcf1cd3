"""ONNX folders read back, and folders that strangers changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from gptoss_convert.canonical_hash import hash_checkpoint
from gptoss_convert.checkpoint import inventory
from gptoss_convert.errors import GptossConvertError, InputError, UnsupportedError
from gptoss_convert.formats import format_named, open_checkpoint, open_tokenizer
from gptoss_convert.inspection import inspect_checkpoint
from tests.unit.formats.onnx.folders import EXPERTS, NORM, changed, entry, initialiser, load, metadata

Change = Callable[[ModelProto], object]
CODES, SCALES = f"{EXPERTS}.codes", f"{EXPERTS}.scales"


def test_folder_is_the_model_that_it_was_made_of(folder: Path, model: Path) -> None:
    found, source = open_checkpoint(folder), open_checkpoint(model)
    found.require_sound()
    assert (found.format, found.path) == ("onnx", folder)
    assert found.config == source.config
    assert list(found.tensors) == list(inventory(source.config))
    assert hash_checkpoint(found, jobs=1) == hash_checkpoint(source, jobs=1)
    assert found.tokenizer is not None
    assert source.tokenizer is not None
    assert found.tokenizer.vocabulary() == source.tokenizer.vocabulary()
    assert inspect_checkpoint(found).problems == ()
    assert open_tokenizer(folder).vocabulary() == source.tokenizer.vocabulary()


def test_file_stands_for_its_folder(folder: Path) -> None:
    found = open_checkpoint(folder / "model.onnx")
    assert found.path == folder / "model.onnx"
    assert found.tensors == open_checkpoint(folder).tensors
    assert found.tokenizer is not None


def test_file_may_have_another_name(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "decoder.onnx")
    open_checkpoint(folder / "decoder.onnx").require_sound()


def test_folder_of_weights_with_an_onnx_file_beside_them_stays_what_it_is(folder: Path, model: Path) -> None:
    shutil.copytree(model, folder, dirs_exist_ok=True)
    assert open_checkpoint(folder).format == "huggingface"


def test_files_that_only_have_the_name_are_not_recognised(tmp_path: Path) -> None:
    recognises = format_named("onnx").recognises
    (tmp_path / "x.onnx").write_bytes(b"GGUF")
    (tmp_path / "y").write_bytes(b"\x08\x0a")
    assert not recognises(tmp_path / "x.onnx")
    assert not recognises(tmp_path / "y")
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "missing.onnx")


def test_models_of_other_tools_are_refused_with_a_reason(tmp_path: Path) -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(
        UnsupportedError, match=r"only ONNX models that this program wrote.*model\.onnx.*convert from"
    ):
        open_checkpoint(tmp_path)


# --- metadata


def with_metadata(change: Callable[[dict], object]) -> Change:
    def apply(model: ModelProto) -> None:
        document = json.loads(metadata(model).value)
        change(document)
        metadata(model).value = json.dumps(document)

    return apply


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda model: setattr(metadata(model), "value", "{"), InputError, "damaged metadata"),
        (lambda model: setattr(metadata(model), "value", "[" * 100_000), InputError, "damaged metadata"),
        (lambda model: setattr(metadata(model), "value", '{"layout_version": 1}'), InputError, "config"),
        (with_metadata(lambda d: d.update(layout_version=2)), UnsupportedError, "layout_version 2"),
        (with_metadata(lambda d: d.update(more=1)), InputError, "more"),
        (with_metadata(lambda d: d["config"].update(hidden_size=0)), InputError, "hidden_size"),
        (with_metadata(lambda d: d["config"].update(hidden_size=1 << 40)), InputError, "hidden_size"),
        (with_metadata(lambda d: d["config"].update(num_hidden_layers=5000)), InputError, "num_hidden_layers"),
        (with_metadata(lambda d: d["config"].update(layer_types=["round"])), InputError, "round"),
        (with_metadata(lambda d: d["config"].update(layer_types=[])), InputError, "contradicts itself"),
        (with_metadata(lambda d: d["config"]["rope"].update(theta=-1)), InputError, "theta"),
        (with_metadata(lambda d: d.update(weights=[])), InputError, "weights"),
    ],
)
def test_damaged_metadata_are_refused(change: Change, kind: type, words: str, folder: Path) -> None:
    with pytest.raises(kind, match=words) as caught:
        open_checkpoint(changed(folder, change))
    assert "model.onnx" in str(caught.value)


# --- weights


def located(name: str, key: str, value: str) -> Change:
    return lambda model: setattr(entry(model, name, key), "value", value)


def without(name: str, key: str) -> Change:
    return lambda model: initialiser(model, name).external_data.remove(entry(model, name, key))


def twice(model: ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(initialiser(model, NORM))


def inline(model: ModelProto) -> None:
    tensor = initialiser(model, NORM)
    del tensor.external_data[:]
    tensor.data_location = TensorProto.DEFAULT
    tensor.raw_data = bytes(4 * 64)


def typed(name: str, data_type: int) -> Change:
    return lambda model: setattr(initialiser(model, name), "data_type", data_type)


def shaped(name: str, *dims: int) -> Change:
    def apply(model: ModelProto) -> None:
        del initialiser(model, name).dims[:]
        initialiser(model, name).dims.extend(dims)

    return apply


def weight(name: str, **fields: object) -> Change:
    return with_metadata(lambda document: document["weights"][name].update(fields))


def moved_onto_another(model: ModelProto) -> None:
    first = int(entry(model, CODES, "offset").value)
    entry(model, SCALES, "offset").value = str(first + 1)


ONE_PROBLEM = {
    "absolute location": (located(NORM, "location", "/etc/passwd"), [NORM, "outside the folder", "/etc/passwd"]),
    "location above": (located(NORM, "location", "../model.onnx.data"), [NORM, "outside the folder"]),
    "location below": (located(NORM, "location", "sub/model.onnx.data"), [NORM, "outside the folder"]),
    "location with backslash": (located(NORM, "location", "..\\model.onnx.data"), [NORM, "outside the folder"]),
    "location on a drive": (located(NORM, "location", "C:model.onnx.data"), [NORM, "outside the folder"]),
    "empty location": (located(NORM, "location", ""), [NORM, "outside the folder"]),
    "the folder itself": (located(NORM, "location", "."), [NORM, "outside the folder"]),
    "a device of Windows": (located(NORM, "location", "NUL"), [NORM, "outside the folder"]),
    "location with a zero byte": (located(NORM, "location", "a\0b"), [NORM, "outside the folder"]),
    "missing file": (located(NORM, "location", "other.data"), [NORM, "other.data", "missing"]),
    "name of a folder": (located(NORM, "location", "inner"), ["inner", "not a regular file"]),
    "name of a pipe": (located(NORM, "location", "pipe"), ["pipe", "not a regular file"]),
    "no location": (without(NORM, "location"), [NORM, "lack location"]),
    "no offset": (without(NORM, "offset"), [NORM, "lack offset"]),
    "no length": (without(NORM, "length"), [NORM, "lack length"]),
    "negative offset": (located(NORM, "offset", "-1"), [NORM, "offset", "no number"]),
    "offset in other digits": (located(NORM, "offset", "٣"), [NORM, "offset", "no number"]),
    "offset of many digits": (located(NORM, "offset", "9" * 5000), [NORM, "offset", "no number"]),
    "offset beyond the file": (located(NORM, "offset", "999999999999"), [NORM, "model.onnx.data", "truncated"]),
    "length is no number": (located(NORM, "length", "all"), [NORM, "length", "no number"]),
    "length too small": (located(NORM, "length", "255"), [NORM, "found 255, expected 256"]),
    "length too large": (located(NORM, "length", "257"), [NORM, "found 257, expected 256"]),
    "numbers in the graph": (inline, [NORM, "in the graph itself"]),
    "another type": (typed(NORM, TensorProto.FLOAT16), [NORM, "data type 10"]),
    "unknown type": (typed(NORM, 99), [NORM, "data type 99"]),
    "text": (typed(NORM, TensorProto.STRING), [NORM, "data type 8"]),
    "codes with a sign": (typed(CODES, TensorProto.INT8), [CODES, "data type 3"]),
    "fewer elements": (shaped(NORM, 63), [NORM, "does not fit the configuration", "252 bytes"]),
    "more elements": (shaped(NORM, 1 << 40, 1 << 40), [NORM, "does not fit the configuration"]),
    "no dimensions": (shaped(NORM), [NORM, "does not fit the configuration"]),
    "overlapping": (moved_onto_another, ["down_proj", "overlap"]),
    "unknown encoding": (weight(NORM, encoding="q4_0"), [NORM, "'q4_0'"]),
    "encoding without a place": (weight(NORM, encoding="q8_0"), [NORM, "'q8_0'"]),
    "other encoding": (weight(NORM, encoding="f16"), [NORM, "data type 1", "expected 10"]),
    "unknown layout": (weight(NORM, layout="columns"), ["model.onnx", "columns"]),
    "layout of matrices": (weight(NORM, layout="row-pairs"), [NORM, "cannot lie so", "row-pairs of f32"]),
    "too many parts": (weight(NORM, initialisers=[NORM, NORM]), [NORM, "wrong number of initialisers"]),
    "no part": (weight(NORM, initialisers=[]), [NORM, "wrong number of initialisers"]),
    "part that is not there": (weight(NORM, initialisers=["nothing"]), [NORM, "missing from the graph", "nothing"]),
    "forgotten tensor": (with_metadata(lambda d: d["weights"].pop(NORM)), [NORM, "tensor is missing"]),
    "unknown tensor": (
        with_metadata(lambda d: d["weights"].update({"more": {"encoding": "f32", "initialisers": [NORM]}})),
        ["more", "unknown tensor"],
    ),
}  # fmt: skip


def problems(folder: Path) -> list[str]:
    try:
        return [str(problem) for problem in open_checkpoint(folder).problems]
    except GptossConvertError as error:
        return [str(error)]


@pytest.mark.parametrize("name", ONE_PROBLEM)
def test_hostile_weights_are_named(name: str, folder: Path) -> None:
    change, words = ONE_PROBLEM[name]
    (folder / "inner").mkdir()
    if name == "name of a pipe":
        import os

        os.mkfifo(folder / "pipe")
    found = problems(changed(folder, change))
    assert any(all(word in line for word in words) for line in found), found
    assert all("\n" not in line for line in found)


def test_initialiser_of_two_tensors_is_a_problem_of_both(folder: Path) -> None:
    other = "model.layers.0.input_layernorm.weight"
    found = problems(changed(folder, weight(other, initialisers=[NORM])))
    assert len([line for line in found if "belongs to two tensors" in line]) == 2


def test_initialiser_that_occurs_twice_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=f"occurs twice.*{NORM}"):
        open_checkpoint(changed(folder, twice))


def test_every_problem_is_collected(folder: Path) -> None:
    def change(model: ModelProto) -> None:
        for name in (NORM, CODES, "lm_head.weight"):
            entry(model, name, "length").value = "7"

    assert len([line for line in problems(changed(folder, change)) if "length of external data" in line]) == 3


def test_truncated_data_are_named(folder: Path) -> None:
    path = folder / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-1])
    (problem, *others) = [line for line in problems(folder) if "data is truncated" in line]
    assert "lm_head.weight" in problem
    assert others == []


def test_scale_that_is_no_number_is_found_when_it_is_read(folder: Path) -> None:
    place = int(entry(load(folder), SCALES, "offset").value)
    content = bytearray((folder / "model.onnx.data").read_bytes())
    content[place] = 255
    (folder / "model.onnx.data").write_bytes(content)
    tensor = open_checkpoint(folder).tensors[EXPERTS]
    with pytest.raises(InputError, match=rf"255.*model\.onnx\.data.*{EXPERTS}"):
        tensor.read(0, 1)
