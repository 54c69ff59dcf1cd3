"""The recipe for ONNX: what the plan says, what is in the folder, and the way back."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gptoss_convert.canonical_hash import hash_checkpoint
from gptoss_convert.checkpoint import Role, inventory
from gptoss_convert.converters import to_onnx
from gptoss_convert.converters.execute import Report, Resources, execute
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.to_mxfp4 import Mxfp4Options, plan_mxfp4
from gptoss_convert.converters.to_onnx import GRAPHS, GraphTarget, OnnxOptions, plan_onnx
from gptoss_convert.encodings import ENCODINGS, LossClass
from gptoss_convert.errors import InputError, OptionError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.kernel_check import read_kernel_table
from gptoss_convert.options import GRAPH_ACTIVATIONS, GRAPH_EXPERTS, GRAPH_TARGETS
from gptoss_convert.verify.structure import compare_structure
from gptoss_convert.verify.weights import compare_weights
from tests.support import onnx_graphs
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.conversions import TINY, make_checkpoint, to_gguf
from tests.unit.formats.onnx.folders import use_test_graphs

SHAPE = Shape(layers=2, experts=3, experts_per_token=2)
SOURCES = ("mxfp4", "bf16", "openai", "model.gguf")


@pytest.fixture(autouse=True)
def _test_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_graphs(monkeypatch.setattr)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in every form; `edges` is one with blocks of every scale."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "mxfp4", SHAPE, edge_blocks=False, shards=3, placement="shuffled")
    make_checkpoint(folder / "bf16", SHAPE, edge_blocks=False, experts="bf16")
    write_original(folder / "openai", SHAPE, edge_blocks=False)
    to_gguf(folder / "mxfp4", folder / "model.gguf")
    make_checkpoint(folder / "edges", SHAPE)
    return folder


def convert(source: Path, output: Path, **options: Any) -> tuple[Plan, Report]:
    plan = plan_onnx(open_checkpoint(source), output, OnnxOptions(**({"target": "cpu"} | options)))
    return plan, execute(plan.with_manifest())


def values(path: Path) -> dict[str, np.ndarray]:
    return {
        name: tensor.encoding.decode(tensor.read(0, tensor.rows))
        for name, tensor in open_checkpoint(path).tensors.items()
    }


def digest(path: Path) -> str:
    return hash_checkpoint(open_checkpoint(path), jobs=1).model


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


# --- there and back


@pytest.mark.parametrize("limit", [None, 100_000])
@pytest.mark.parametrize("source", ["mxfp4", "edges", "openai", "model.gguf"])
def test_mxfp4_and_f32_keep_every_value(source: str, limit: int | None, models: Path, tmp_path: Path) -> None:
    plan, report = convert(
        models / source, tmp_path / "x", experts="mxfp4", activations="f32", max_shard_size=limit
    )
    assert plan.loss is report.loss is LossClass.VALUE_EXACT
    assert digest(tmp_path / "x") == digest(models / source)
    assert report.hash is not None
    assert report.hash.model == digest(tmp_path / "x")


@pytest.mark.parametrize("source", ["mxfp4", "edges", "openai", "model.gguf"])
def test_way_back_writes_the_files_of_a_direct_conversion(source: str, models: Path, tmp_path: Path) -> None:
    convert(models / source, tmp_path / "x", experts="mxfp4", activations="f32")
    execute(plan_mxfp4(open_checkpoint(tmp_path / "x"), tmp_path / "back"))
    execute(plan_mxfp4(open_checkpoint(models / source), tmp_path / "direct"))
    assert files(tmp_path / "back") == files(tmp_path / "direct")


@pytest.mark.parametrize("source", ["mxfp4", "edges", "openai", "model.gguf"])
def test_way_back_from_another_layout_is_the_same(
    source: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = GraphTarget(
        builder=f"{onnx_graphs.__name__}:build_in_row_pairs", experts=("mxfp4",), activations=("f32",)
    )
    monkeypatch.setattr(to_onnx, "GRAPHS", dict.fromkeys(GRAPHS, pairs))
    convert(models / source, tmp_path / "x", target="cuda")
    assert digest(tmp_path / "x") == digest(models / source)
    execute(plan_mxfp4(open_checkpoint(tmp_path / "x"), tmp_path / "back"))
    execute(plan_mxfp4(open_checkpoint(models / source), tmp_path / "direct"))
    assert files(tmp_path / "back") == files(tmp_path / "direct")


@pytest.mark.parametrize("source", SOURCES)
def test_int8_keeps_every_value_but_the_sign_of_zero(source: str, models: Path, tmp_path: Path) -> None:
    plan, report = convert(models / source, tmp_path / "x", experts="int8", activations="f32")
    assert plan.loss is (LossClass.LOSSY if source == "bf16" else LossClass.VALUE_EXACT)
    assert report.loss is LossClass.VALUE_EXACT
    original, found = values(models / source), values(tmp_path / "x")
    for name, numbers in original.items():
        np.testing.assert_array_equal(found[name], numbers, err_msg=name)
    assert report.hash is not None
    assert report.hash.model == digest(tmp_path / "x") != digest(models / source)
    lost = sum(np.count_nonzero(np.signbit(array) & (array == 0)) for array in original.values())
    told = sum(item.findings.signs_of_zero for item in report.tensors)
    assert lost > 1000
    assert told == (0 if source == "bf16" else lost)


def test_int8_keeps_values_of_every_scale(models: Path, tmp_path: Path) -> None:
    _, report = convert(models / "edges", tmp_path / "x", experts="int8", activations="f32")
    assert report.loss is LossClass.VALUE_EXACT
    original, found = values(models / "edges"), values(tmp_path / "x")
    for name, numbers in original.items():
        np.testing.assert_array_equal(found[name], numbers, err_msg=name)


def test_int4_is_lossy_and_says_how_much(models: Path, tmp_path: Path) -> None:
    plan, report = convert(models / "mxfp4", tmp_path / "x", experts="int4", activations="f32")
    assert plan.loss is report.loss is LossClass.LOSSY
    rounded = {item.transfer.source.name for item in report.tensors if item.loss is LossClass.LOSSY}
    experts = {
        name
        for name, spec in inventory(open_checkpoint(models / "mxfp4").config).items()
        if spec.role is Role.EXPERTS
    }
    assert rounded == experts
    for item in report.tensors:
        if item.findings.changed:
            assert 0.05 < item.findings.relative_error < 0.12
    with pytest.raises(UnsupportedError, match=r"int4-block.*--allow-lossy-source"):
        plan_mxfp4(open_checkpoint(tmp_path / "x"), tmp_path / "back")


@pytest.mark.parametrize("experts", ["mxfp4", "int8", "int4", "f16"])
def test_artifact_passes_the_comparison_with_its_source(experts: str, models: Path, tmp_path: Path) -> None:
    convert(models / "mxfp4", tmp_path / "x", experts=experts, activations="f16")
    source, artifact = open_checkpoint(models / "mxfp4"), open_checkpoint(tmp_path / "x")
    assert compare_structure(source, artifact).failed == ()
    found = list(compare_weights(source, artifact, jobs=1))
    assert all(item.passed for item in found)
    signs = sum(item.signs_of_zero for item in found)
    assert (signs > 1000) == (experts in ("int8", "int4"))


# --- float16


def with_numbers(folder: Path, *bits: int) -> Path:
    """A model whose final norm begins with these bfloat16 numbers."""
    make_checkpoint(folder, SHAPE, edge_blocks=False)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    offset = start + json.loads(content[8:start])["model.norm.weight"]["data_offsets"][0]
    content[offset : offset + 2 * len(bits)] = np.array(bits, "<u2").tobytes()
    path.write_bytes(content)
    return folder


def test_f16_tells_what_left_its_range_and_what_changed(tmp_path: Path) -> None:
    subnormal, rounded, vanishing, exact = 0x3800, 0x3481, 0x2000, 0x3F81
    source = with_numbers(tmp_path / "model", subnormal, rounded, vanishing, exact)
    plan, report = convert(source, tmp_path / "x", experts="mxfp4", activations="f16")
    assert plan.loss is report.loss is LossClass.LOSSY
    (changed,) = [item for item in report.tensors if item.findings.changed]
    assert changed.transfer.source.name == "model.norm.weight"
    assert changed.findings.deviation.different == 2
    figures = changed.findings.as_dict()["half_precision"]
    assert figures == {"values": SHAPE.hidden, "subnormal": 2, "vanished": 1}


def test_number_beyond_f16_is_an_error_and_no_infinity(tmp_path: Path) -> None:
    source = with_numbers(tmp_path / "model", 0x4780)
    with pytest.raises(InputError, match=r"65536 exceeds.*model\.norm\.weight"):
        convert(source, tmp_path / "x", experts="mxfp4", activations="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# --- folder


def test_folder_holds_model_data_and_what_travels(models: Path, tmp_path: Path) -> None:
    plan, _ = convert(models / "mxfp4", tmp_path / "x", experts="mxfp4", activations="f16")
    assert {path.name for path in (tmp_path / "x").iterdir()} == {
        "model.onnx", "model.onnx.data", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "manifest.json",
        "genai_config.json", "README.md",
    }  # fmt: skip
    assert plan.output == tmp_path / "x"
    assert plan.format == "onnx"
    config = json.loads((tmp_path / "x/config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "gpt_oss"
    assert not config.keys() & {"quantization_config", "torch_dtype"}


def test_source_that_does_not_say_how_answers_end_gives_no_settings(models: Path, tmp_path: Path) -> None:
    plan, _ = convert(models / "openai", tmp_path / "x", experts="mxfp4", activations="f16")
    assert {path.name for path in (tmp_path / "x").iterdir()} == {
        "model.onnx", "model.onnx.data", "config.json", "manifest.json",
    }  # fmt: skip
    assert any("no genai_config.json" in note for note in plan.notes)


def test_entries_are_what_the_files_hold(models: Path, tmp_path: Path) -> None:
    plan, _ = convert(models / "mxfp4", tmp_path / "x", experts="int8", activations="f16", max_shard_size=100_000)
    for file in plan.files:
        assert file.path.stat().st_size == file.nbytes
    entries = [entry for file in plan.files for entry in file.entries]
    assert {entry.source for entry in entries} == set(inventory(open_checkpoint(tmp_path / "x").config))
    assert {entry.encoding.name for entry in entries} == {"int8-block", "f16"}


def test_bytes_depend_on_the_model_alone(models: Path, tmp_path: Path) -> None:
    """Not on the form of the source, the number of jobs, the memory, or the run."""
    results = []
    for index, source in enumerate(["mxfp4", "mxfp4", "openai"]):
        plan = plan_onnx(
            open_checkpoint(models / source),
            tmp_path / str(index),
            OnnxOptions(target="cpu", experts="int8", activations="f16"),
        )
        execute(plan, resources=Resources(jobs=1 + index, memory=(1 + index) << 20))
        results.append({name: data for name, data in files(plan.output).items() if name.startswith("model.onnx")})
    assert results[0] == results[1] == results[2]


def test_plans_are_values(models: Path, tmp_path: Path) -> None:
    options = OnnxOptions(target="cpu")
    plans = [plan_onnx(open_checkpoint(models / "mxfp4"), tmp_path / "x", options) for _ in range(2)]
    assert plans[0] == plans[1]


# --- targets and refusals


def test_names_that_the_command_line_repeats_are_those_of_the_code() -> None:
    assert tuple(to_onnx.GRAPHS) == GRAPH_TARGETS
    targets = GRAPHS.values()
    assert {name for target in targets for name in target.experts} == set(GRAPH_EXPERTS)
    assert {name for target in targets for name in target.activations} == set(GRAPH_ACTIVATIONS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "abacus"}, "unknown target.*abacus.*directml, webgpu, cpu, cuda"),
        ({"target": "cpu", "experts": "int4"}, "target cpu does not take these experts.*int4.*mxfp4"),
        ({"target": "cpu", "activations": "f16"}, "target cpu does not take these activations.*f16.*f32"),
    ],
)
def test_what_a_target_does_not_take_is_refused(
    options: dict[str, str], words: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = GraphTarget(builder=onnx_graphs.BUILDER, experts=("mxfp4",), activations=("f32",))
    monkeypatch.setattr(to_onnx, "GRAPHS", dict.fromkeys(GRAPHS, only))
    with pytest.raises(OptionError, match=words):
        plan_onnx(open_checkpoint(models / "mxfp4"), tmp_path / "x", OnnxOptions(**options))


def test_node_that_the_provider_does_not_run_stops_the_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = replace(read_kernel_table("directml"), kernels=[])
    monkeypatch.setattr(to_onnx, "read_kernel_table", lambda target: nothing)
    with pytest.raises(UnsupportedError, match=r"DmlExecutionProvider of .* does not run node"):
        plan_onnx(open_checkpoint(TINY), tmp_path / "x", OnnxOptions(target="directml"))


def test_missing_library_is_named(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"onnx is not installed; pip install 'gptoss-convert\[onnx\]'"):
        plan_onnx(open_checkpoint(models / "mxfp4"), tmp_path / "x", OnnxOptions(target="cpu"))


def test_reading_needs_no_library(models: Path, tmp_path: Path) -> None:
    convert(models / "mxfp4", tmp_path / "x", experts="mxfp4")
    script = (
        "import sys; sys.modules['onnx'] = None\n"
        "from gptoss_convert.formats import open_checkpoint\n"
        "open_checkpoint(sys.argv[1]).require_sound()"
    )
    subprocess.run([sys.executable, "-P", "-c", script, tmp_path / "x"], check=True)


def test_unsound_checkpoint_is_refused(models: Path, tmp_path: Path) -> None:
    convert(models / "mxfp4", tmp_path / "x", experts="mxfp4")
    (tmp_path / "x/model.onnx.data").write_bytes(b"")
    with pytest.raises(InputError, match="truncated"):
        plan_mxfp4(open_checkpoint(tmp_path / "x"), tmp_path / "back", Mxfp4Options())


def test_encodings_of_graphs_are_encodings() -> None:
    assert set(onnx_graphs.ENCODING_OF_EXPERTS.values()) <= set(ENCODINGS)


@pytest.mark.parametrize(("experts", "activations"), [("mxfp4", "f16"), ("int8", "f32"), ("int4", "f16")])
def test_memory_is_bounded_whatever_the_size_of_the_model(experts: str, activations: str, tmp_path: Path) -> None:
    shape = Shape(layers=1, hidden=1024, intermediate=2048, experts=8, vocab=16384)
    source = open_checkpoint(write_huggingface(tmp_path / "m", shape, edge_blocks=False))
    options = OnnxOptions(target="cpu", experts=experts, activations=activations)
    resources = Resources(jobs=1, memory=4 << 20)
    plan = plan_onnx(source, tmp_path / "x", options)
    tracemalloc.start()
    execute(plan, resources=resources)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = max(transfer.target.nbytes for transfer in plan.transfers)
    assert peak < 2 * resources.memory < largest
