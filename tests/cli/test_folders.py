"""`to-bf16` and `to-mxfp4` as people and programs use them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from gptoss_convert.converters import to_mxfp4
from gptoss_convert.encodings.mxfp4_quantiser import ScaleRule
from gptoss_convert.options import FOLDER_ENCODINGS, LAYOUTS, SCALE_RULES
from tests.cli.command import Outcome, run_here
from tests.cli.samples import SHAPE, Kind, Samples
from tests.cli.schemas import PLAN, QUANTISATION, REPORT, SURVIVAL, schema
from tests.support.adapters import LAYER, pair, write_adapter

KINDS: list[Kind] = ["huggingface", "sharded", "bf16", "original", "gguf", "split"]
GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"


def converted(command: str, source: Path, output: Path, *options: str | Path) -> Any:
    """Convert and return the JSON document."""
    outcome = run_here(command, source, "-o", output, "--json", *options)
    assert outcome.exit_code == 0, outcome.stderr
    return json.loads(outcome.stdout)


def model_hash(path: Path) -> str:
    digest: str = json.loads(run_here("inspect", path, "--hash", "--json").stdout)["hash"]["model"]
    return digest


def tuned(samples: Samples, folder: Path, relative_change: float) -> Path:
    """A copy of the BF16 model with noise of a size relative to that of its experts in layer 0."""
    source = samples.copy("bf16", folder)
    path = source / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    start, stop = json.loads(content[8 : 8 + length])[GATE_UP]["data_offsets"]
    bits = np.frombuffer(content[8 + length + start : 8 + length + stop], np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    usual = np.abs(values) < 100  # a few blocks are of extreme size
    noise = np.random.default_rng(0).standard_normal(values.size).astype(np.float32)
    noise *= relative_change * values[usual].std()
    changed = np.where(usual, values + noise, values).view(np.uint32)
    data = (changed >> 16).astype(np.uint16).tobytes()
    path.write_bytes(content[: 8 + length + start] + data + content[8 + length + stop :])
    return source


def test_names_that_the_command_line_repeats_are_those_of_the_code() -> None:
    assert tuple(map(str, ScaleRule)) == SCALE_RULES
    assert LAYOUTS == to_mxfp4.LAYOUTS
    assert set(FOLDER_ENCODINGS) == {"bf16", "f16", "f32"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("command", "options"), [("to-bf16", []), ("to-mxfp4", []), ("to-mxfp4", ["--layout", "openai"])]
)
def test_every_source_keeps_every_value(
    kind: Kind, command: str, options: list[str], samples: Samples, tmp_path: Path
) -> None:
    document = converted(command, samples.path(kind), tmp_path / "x", *options)
    assert document["report"]["loss"] in ("byte-exact", "value-exact")
    assert model_hash(tmp_path / "x") == model_hash(samples.path("huggingface"))


def test_folders_of_one_model_are_the_same_whatever_it_came_from(samples: Samples, tmp_path: Path) -> None:
    folders = []
    for kind in ("huggingface", "sharded", "original"):
        converted("to-mxfp4", samples.path(kind), tmp_path / kind)
        folders.append((tmp_path / kind / "model.safetensors").read_bytes())
    assert folders[0] == folders[1] == folders[2]


@pytest.mark.parametrize("command", ["to-bf16", "to-mxfp4"])
def test_json_of_a_run_is_that_of_its_dry_run_with_report_and_time(
    command: str, samples: Samples, tmp_path: Path
) -> None:
    source = samples.path("huggingface")
    plan = converted(command, source, tmp_path / "x", "--dry-run")
    assert list(tmp_path.iterdir()) == []
    document = converted(command, source, tmp_path / "x")
    assert schema(document.pop("report")) == REPORT
    assert document.pop("seconds") >= 0
    assert document == plan
    assert schema(plan) | {"files_made_at_the_end": [], "notes": ["str"]} == PLAN
    made = {Path(file["path"]).name for file in plan["files"]}
    written = {path.name for path in (tmp_path / "x").iterdir()}
    assert made <= written <= made | {"mxfp4-scales.zip"}


def test_shards_keep_to_the_limit(samples: Samples, tmp_path: Path) -> None:
    plan = converted("to-bf16", samples.path("huggingface"), tmp_path / "x", "--max-shard-size", "100KB")
    sizes: dict[int, list[int]] = {}
    for tensor in plan["tensors"]:
        sizes.setdefault(tensor["file"], []).append(tensor["nbytes"])
    assert len(sizes) > 2
    assert all(sum(shard) <= 100_000 or len(shard) == 1 for shard in sizes.values())


def test_report_says_what_quantising_lost_and_what_is_left_of_a_fine_tune(samples: Samples, tmp_path: Path) -> None:
    source, base = tuned(samples, tmp_path, 0.3), samples.path("huggingface")
    report = converted("to-mxfp4", source, tmp_path / "x", "--scales-from", base)["report"]
    assert report["loss"] == "lossy"
    found = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert schema(found[GATE_UP]["quantisation"]) == QUANTISATION
    assert schema(found[GATE_UP]["survival"]) == SURVIVAL
    assert [name for name, tensor in found.items() if tensor["loss"] == "lossy"] == [GATE_UP]
    assert 0 < found[GATE_UP]["survival"]["share_moved"] < 1


@pytest.mark.parametrize(("change", "lost"), [(0.01, True), (1.0, False)])
def test_a_fine_tune_that_was_rounded_away_is_warned_of(
    change: float, lost: bool, samples: Samples, tmp_path: Path
) -> None:
    source = tuned(samples, tmp_path, change)
    outcome = run_here("to-mxfp4", source, "-o", tmp_path / "x", "--scales-from", samples.path("huggingface"))
    assert outcome.exit_code == 0
    assert "fine-tune: 1 of 4 expert tensors differ from the base" in outcome.stdout
    assert ("warning: the fine-tune of 1 expert tensor(s) was rounded away" in outcome.stdout) is lost


def test_a_report_announces_the_error_of_every_rule(samples: Samples, tmp_path: Path) -> None:
    source = tuned(samples, tmp_path, 0.3)
    figures = {}
    for rule in SCALE_RULES:
        report = converted("to-mxfp4", source, tmp_path / rule, "--rule", rule)["report"]
        figures[rule] = {tensor["name"]: tensor["quantisation"] for tensor in report["tensors"]}[GATE_UP]
    announced = figures["mse"]["relative_error_by_rule"]
    assert announced == pytest.approx({rule: figures[rule]["relative_error"] for rule in SCALE_RULES})
    assert min(announced.values()) == announced["mse"] < max(announced.values())
    assert figures["mse"]["compared_blocks"] == figures["mse"]["blocks"]


def test_a_report_of_another_rule_announces_errors_of_a_sample_and_says_so(
    samples: Samples, tmp_path: Path
) -> None:
    source = tuned(samples, tmp_path, 0.3)
    outcome = run_here("to-mxfp4", source, "-o", tmp_path / "x", "--rule", "floor")
    assert "by rule in a sample of blocks" in " ".join(outcome.stdout.split())
    report = converted("to-mxfp4", source, tmp_path / "y", "--rule", "floor")["report"]
    figures = {tensor["name"]: tensor["quantisation"] for tensor in report["tensors"]}[GATE_UP]
    assert 0 < figures["compared_blocks"] < figures["blocks"]
    assert figures["relative_error_by_rule"]["mse"] < figures["relative_error_by_rule"]["floor"]
    outcome = run_here("to-mxfp4", source, "-o", tmp_path / "z")
    assert "by rule in a sample" not in " ".join(outcome.stdout.split())


def test_dense_tensors_as_in_the_source(samples: Samples, tmp_path: Path) -> None:
    converted("to-mxfp4", samples.path("gguf"), tmp_path / "x", "--dense", "source")
    with safe_open(tmp_path / "x" / "model.safetensors", "np") as file:
        assert file.get_slice("model.norm.weight").get_dtype() == "F32"


@pytest.mark.parametrize("command", ["to-bf16", "to-mxfp4"])
def test_an_adapter_is_merged_on_the_way(command: str, samples: Samples, tmp_path: Path) -> None:
    source = samples.path("huggingface")
    rows, columns = SHAPE.heads * SHAPE.head_dim, SHAPE.hidden
    adapter = write_adapter(tmp_path / "tuned", pair(f"{LAYER}.self_attn.q_proj", (2, columns), (rows, 2)))
    document = converted(command, source, tmp_path / "x", "--adapter", adapter)
    assert document["notes"][0].startswith("adapter tuned")
    changed = [tensor["name"] for tensor in document["report"]["tensors"] if tensor["source_encoding"] == "f32"]
    assert len(changed) == 1
    assert changed[0].endswith("self_attn.q_proj.weight")
    assert model_hash(tmp_path / "x") != model_hash(source)


@pytest.mark.parametrize("command", ["to-bf16", "to-mxfp4"])
def test_an_existing_folder_is_replaced_with_force_only(command: str, samples: Samples, tmp_path: Path) -> None:
    source, output = samples.path("huggingface"), tmp_path / "x"
    assert run_here(command, source, "-o", output, "-q") == Outcome(0, "", "")
    refused = run_here(command, source, "-o", output)
    assert (refused.exit_code, "output exists" in refused.stderr) == (5, True)
    assert run_here(command, source, "-o", output, "-q", "--force") == Outcome(0, "", "")
    (output / "notes.txt").write_text("mine")
    kept = run_here(command, source, "-o", output, "--force")
    assert (kept.exit_code, "notes.txt" in kept.stderr) == (5, True)
    assert (output / "notes.txt").read_text() == "mine"
