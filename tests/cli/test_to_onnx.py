"""`to-onnx` as people and programs use it, with the graphs that it makes."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gptoss_convert.formats import open_checkpoint
from tests.cli.command import Outcome, run_here
from tests.cli.samples import Kind, Samples
from tests.cli.schemas import PLAN, schema
from tests.faults.checks import assert_one_line, contents
from tests.support.checkpoints import Shape
from tests.support.conversions import TINY, make_checkpoint

KINDS: list[Kind] = ["huggingface", "sharded", "original", "gguf"]
EXACT = ["--target", "directml", "--activations", "f32"]
INPUT, UNSUPPORTED, OUTPUT = 3, 4, 5


def converted(source: Path, output: Path, *options: str | Path) -> Any:
    """Convert and return the JSON document."""
    outcome = run_here("to-onnx", source, "-o", output, "--json", *options)
    assert outcome.exit_code == 0, outcome.stderr
    return json.loads(outcome.stdout)


def model_hash(path: Path) -> str:
    digest: str = json.loads(run_here("inspect", path, "--hash", "--json").stdout)["hash"]["model"]
    return digest


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_keeps_every_value(kind: Kind, samples: Samples, tmp_path: Path) -> None:
    document = converted(samples.path(kind), tmp_path / "x", *EXACT)
    assert document["report"]["loss"] == "value-exact"
    assert model_hash(tmp_path / "x") == model_hash(samples.path("huggingface"))
    onnx.checker.check_model(tmp_path / "x/model.onnx", full_check=True)


def test_what_was_written_is_a_source_of_every_command(samples: Samples, tmp_path: Path) -> None:
    converted(samples.path("huggingface"), tmp_path / "x", *EXACT)
    for command, output in (("to-mxfp4", "hf"), ("to-bf16", "bf16")):
        assert run_here(command, tmp_path / "x", "-o", tmp_path / output, "-q") == Outcome(0, "", "")
    assert run_here("to-gguf", tmp_path / "x", "-o", tmp_path / "x.gguf", "-q") == Outcome(0, "", "")
    expected = model_hash(samples.path("huggingface"))
    assert {model_hash(tmp_path / name) for name in ("hf", "bf16", "x.gguf")} == {expected}
    outcome = run_here("verify", samples.path("huggingface"), tmp_path / "x", "--weights")
    assert outcome.exit_code == 0, outcome.stdout


def test_embedding_for_processors_keeps_its_bytes_if_it_is_bfloat16(samples: Samples, tmp_path: Path) -> None:
    converted(samples.path("huggingface"), tmp_path / "wide", *EXACT)
    for source, encoding in ((samples.path("huggingface"), "bf16"), (tmp_path / "wide", "f32")):
        document = converted(source, tmp_path / encoding, "--target", "cpu")
        [entry] = [item for item in document["tensors"] if item["name"] == "model.embed_tokens.weight"]
        assert (entry["encoding"], entry["loss"]) == (encoding, "byte-exact")
        assert document["report"]["loss"] == "value-exact"


def test_runtime_is_told_the_chunk_and_the_window(tmp_path: Path) -> None:
    converted(TINY, tmp_path / "x", "--target", "cpu", "--prefill-chunk", "48", "--windowed-cache")
    config = json.loads((tmp_path / "x/genai_config.json").read_text(encoding="utf-8"))
    assert config["search"]["chunk_size"] == 48
    assert config["model"]["decoder"]["sliding_window"] == {
        "window_size": 128, "slide_key_value_cache": False, "slide_inputs": False, "layers": [0, 2]
    }  # fmt: skip
    converted(TINY, tmp_path / "y", "--target", "directml", "--prefill-chunk", "48")
    assert "ids[start : start + 48]" in (tmp_path / "y/README.md").read_text(encoding="utf-8")


def test_json_of_a_run_is_that_of_its_dry_run_with_report_and_time(samples: Samples, tmp_path: Path) -> None:
    source = samples.path("huggingface")
    plan = converted(source, tmp_path / "x", *EXACT, "--dry-run", "--max-shard-size", "200KB")
    assert list(tmp_path.iterdir()) == []
    document = converted(source, tmp_path / "x", *EXACT, "--max-shard-size", "200KB")
    del document["report"], document["seconds"]
    assert document == plan
    assert schema(plan) | {"files_made_at_the_end": []} == PLAN
    assert {Path(file["path"]).name for file in plan["files"]} == {path.name for path in (tmp_path / "x").iterdir()}
    assert sum(path.name.endswith(".onnx.data") for path in (tmp_path / "x").iterdir()) > 2


def test_report_tells_zeros_that_lost_their_sign(samples: Samples, tmp_path: Path) -> None:
    outcome = run_here("to-onnx", samples.path("huggingface"), "-o", tmp_path / "x", *EXACT, "--experts", "int8")
    assert outcome.exit_code == 0, outcome.stderr
    assert "zeros that lost their minus sign" in outcome.stdout


def test_report_tells_numbers_below_the_range_of_f16(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", Shape(), edge_blocks=False)
    path = source / "model.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    offset = start + json.loads(content[8:start])["model.norm.weight"]["data_offsets"][0]
    content[offset : offset + 4] = np.array([0x3800, 0x2000], "<u2").tobytes()
    path.write_bytes(content)
    outcome = run_here("to-onnx", source, "-o", tmp_path / "x", "--target", "directml")
    assert outcome.exit_code == 0, outcome.stderr
    assert "below the normal range of f16" in outcome.stdout
    assert "became subnormal" in outcome.stdout


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--target", "tpu"],
        ["--target", "directml", "--experts", "q8_0"],
        ["--target", "cuda", "--activations", "f32"],
        ["--target", "directml", "--windowed-cache"],
        ["--target", "cpu", "--prefill-chunk", "0"],
    ],
)
def test_choices_that_there_are_not_are_wrong_usage(options: list[str], samples: Samples, tmp_path: Path) -> None:
    outcome = run_here("to-onnx", samples.path("huggingface"), "-o", tmp_path / "x", *options)
    assert outcome.exit_code == 2
    assert list(tmp_path.iterdir()) == []


# --- what must not happen


def test_folder_is_replaced_with_force_only_and_by_a_whole_one(samples: Samples, tmp_path: Path) -> None:
    source, output = samples.path("huggingface"), tmp_path / "x"
    converted(source, output, *EXACT, "--max-shard-size", "200KB")
    before = contents(output)
    refused = run_here("to-onnx", source, "-o", output, *EXACT)
    assert_one_line(refused, OUTPUT, ["output exists", "--force"], tmp_path)
    assert contents(output) == before
    converted(source, output, *EXACT, "--force")
    assert not list(output.glob("model-*.onnx.data"))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    (output / "thesis.tex").write_bytes(b"years of work")
    kept = run_here("to-onnx", source, "-o", output, *EXACT, "--force")
    assert_one_line(kept, OUTPUT, ["something else than a checkpoint", "thesis.tex"], tmp_path)


def test_source_is_never_replaced(samples: Samples, tmp_path: Path) -> None:
    converted(samples.path("huggingface"), tmp_path / "x", *EXACT)
    before = contents(tmp_path / "x")
    for source in (tmp_path / "x", tmp_path / "x/model.onnx"):
        outcome = run_here("to-onnx", source, "-o", tmp_path / "x", *EXACT, "--force")
        assert_one_line(outcome, OUTPUT, ["output folder holds the source"], tmp_path)
    assert contents(tmp_path / "x") == before


@pytest.mark.parametrize("step", ["open", "pwrite", "fsync"])
def test_failing_write_leaves_nothing(
    step: str, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = samples.path("huggingface")
    original: Callable[..., Any] = getattr(os, step)

    def failing(*arguments: Any, **named: Any) -> Any:
        writes = step != "open" or bool(arguments[1] & os.O_CREAT)
        if writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, failing)
        outcome = run_here("to-onnx", source, "-o", tmp_path / "x", *EXACT, "-q")
    assert outcome.exit_code == OUTPUT
    assert "No space left" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_damaged_scale_is_refused_while_it_is_converted(samples: Samples, tmp_path: Path) -> None:
    source = tmp_path / "x"
    converted(samples.path("huggingface"), source, *EXACT)
    name = "model.layers.1.mlp.experts.down_proj"
    _, scales = open_checkpoint(source).tensors[name].storage.parts  # type: ignore[attr-defined]
    content = bytearray((source / "model.onnx.data").read_bytes())
    content[scales.offset + 5] = 255
    (source / "model.onnx.data").write_bytes(content)
    outcome = run_here("to-mxfp4", source, "-o", tmp_path / "out", "-q")
    assert_one_line(outcome, INPUT, ["model.onnx.data", name, "255"], tmp_path)
    assert not (tmp_path / "out").exists()


def test_foreign_model_is_refused_in_one_line(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "foreign.onnx")
    outcome = run_here("inspect", tmp_path / "foreign.onnx")
    assert_one_line(outcome, UNSUPPORTED, ["foreign.onnx", "only ONNX models that this program wrote"], tmp_path)


@pytest.mark.parametrize("experts", ["mxfp4", "int8"])
def test_expert_beyond_float16_is_refused_where_the_graph_computes_in_it(experts: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", Shape(), edge_blocks=False)
    name = "model.layers.1.mlp.experts.down_proj"
    codes, scales = open_checkpoint(source).tensors[name].storage.parts  # type: ignore[attr-defined]
    content = bytearray(codes.file.path.read_bytes())
    content[scales.offset + 7], content[codes.offset + 7 * 16] = 150, 0x77
    codes.file.path.write_bytes(content)
    options = ["--target", "directml", "--experts", experts, "-q"]
    outcome = run_here("to-onnx", source, "-o", tmp_path / "x", *options)
    words = [name, "beyond the range of f16", "found 5", "expected", "use --activations f32"]
    assert_one_line(outcome, UNSUPPORTED, words, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    outcome = run_here("to-onnx", source, "-o", tmp_path / "x", *options, "--activations", "f32")
    assert outcome.exit_code == 0, outcome.stderr


def test_report_tells_numbers_of_experts_that_float16_rounds(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", Shape(), edge_blocks=False)
    codes, scales = open_checkpoint(source).tensors["model.layers.1.mlp.experts.down_proj"].storage.parts  # type: ignore[attr-defined]
    content = bytearray(codes.file.path.read_bytes())
    content[scales.offset + 7] = 103
    content[codes.offset + 7 * 16 : codes.offset + 8 * 16] = bytes([0x11] * 16)
    codes.file.path.write_bytes(content)
    outcome = run_here("to-onnx", source, "-o", tmp_path / "x", "--target", "directml")
    assert outcome.exit_code == 0, outcome.stderr
    assert "numbers of experts that f16 activations round: 32" in outcome.stdout
