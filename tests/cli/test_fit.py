"""`footprint --fit`: the most exact form that fits a device, and the command that makes it."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.footprint.subject import in_form, open_source, open_subject
from tests.cli.command import run_here
from tests.support.conversions import TINY, to_gguf
from tests.support.footprint_tables import CONFIGURATIONS

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "fit.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with nothing but the configuration of gpt-oss-20b."""
    folder = tmp_path / "gpt-oss-20b"
    folder.mkdir()
    shutil.copy(CONFIGURATIONS["20b"], folder)
    return folder


def proposal(*arguments: str | Path, exit_code: int = 0) -> Any:
    """What `--json` prints, held against the schema."""
    outcome = run_here("footprint", *arguments, "--json")
    assert outcome.exit_code == exit_code, outcome.stderr
    found = json.loads(outcome.stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    return found


def test_the_exact_form_is_proposed_where_it_fits(bare: Path) -> None:
    found = proposal(bare, "--fit", "laptop-16gb")
    assert [item["form"] for item in found["candidates"]] == ["gguf", "onnx-cpu", "gguf-q8_0"]
    assert [item["loss"] for item in found["candidates"]] == ["value-exact", "value-exact", "lossy"]
    assert found["proposal"]["form"] == "gguf"
    assert found["proposal"]["context"] == 8192
    assert found["proposal"]["command"].endswith("-o gpt-oss-20b.gguf")


def test_a_longer_context_takes_a_smaller_form(bare: Path) -> None:
    found = proposal(bare, "--fit", "laptop-16gb", "--context", "65536")
    assert found["proposal"]["form"] == "gguf-q8_0"
    assert found["proposal"]["command"].endswith("-o gpt-oss-20b-q8_0.gguf --dense q8_0")


def test_graphs_are_asked_about_the_memory_that_they_are_made_for(bare: Path) -> None:
    forms = {item["form"]: item["runtime"] for item in proposal(bare, "--fit", "gpu-16gb")["candidates"]}
    assert list(forms) == ["gguf", "onnx-cuda", "onnx-directml", "onnx-webgpu", "gguf-q8_0"]  # f16 before q8_0
    assert forms["onnx-cuda"] == "onnxruntime-genai"


def test_figures_are_those_of_the_command_for_one_form(bare: Path) -> None:
    (verdict,) = json.loads(
        run_here("footprint", bare, "--as", "gguf-q8_0", "--budget", "laptop-16gb", "--json").stdout
    )["verdicts"]
    found = {item["form"]: item for item in proposal(bare, "--fit", "laptop-16gb")["candidates"]}["gguf-q8_0"]
    assert (found["needed"], found["largest_context"]) == (verdict["needed"], verdict["largest_context"])


def test_a_context_that_was_not_asked_for_may_be_shorter(bare: Path) -> None:
    found = proposal(bare, "--fit", "12GB")
    assert found["proposal"]["form"] == "gguf-q8_0"
    assert found["proposal"]["context"] < 8192
    assert found["proposal"]["context"] == found["candidates"][-1]["largest_context"]
    proposal(bare, "--fit", "12GB", "--context", str(found["proposal"]["context"]))
    assert proposal(bare, "--fit", "12GB", "--context", "8192", exit_code=6)["proposal"] is None


def test_people_are_told_what_to_do(bare: Path) -> None:
    outcome = run_here("footprint", bare, "--fit", "laptop-16gb")
    assert f"  gptoss-convert to-gguf {bare} -o gpt-oss-20b.gguf" in outcome.stdout.splitlines()
    nothing = run_here("footprint", bare, "--fit", "laptop-16gb", "--context", "131072")
    assert nothing.exit_code == 6
    assert "nothing fits with this context; gguf-q8_0 has room for " in nothing.stdout
    nothing = run_here("footprint", bare, "--fit", "4GB")
    assert "nothing fits, with any context" in nothing.stdout


def test_the_manual_shows_what_is_printed(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bare.parent)
    manual = (ROOT / "docs" / "footprint.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^\$ gptoss-convert (footprint .*--fit .*)$", manual, re.MULTILINE)
    shown = [line.rstrip() for line in run_here(*command.split()).stdout.splitlines()]
    assert "\n".join(["```", *shown, "```"]) in manual


@pytest.mark.parametrize("device", ["64GB", "gpu-24gb"])
def test_proposed_commands_make_what_was_predicted(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a source in BF16, whose experts the forms have in another encoding."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "it's bf16"
    assert run_here("to-bf16", TINY, "-o", source, "-q").exit_code == 0
    for item in proposal(source, "--fit", device)["candidates"]:
        program, *arguments = shlex.split(item["command"])
        assert program == "gptoss-convert"
        outcome = run_here(*arguments, "-q")
        assert outcome.exit_code == 0, outcome.stderr
        made = open_subject(tmp_path / arguments[arguments.index("-o") + 1])
        assert made.weights == in_form(open_source(source), item["form"]).weights


def test_what_is_lost_in_small_tensors_counts_too(tmp_path: Path) -> None:
    """A graph for CUDA rounds routers and norms and no matrix of a source in f16, and has room for more context."""
    source = to_gguf(TINY, tmp_path / "half.gguf", dense="f16")
    found = proposal(source, "--fit", "600MB", "--device", "gpu")["candidates"]
    assert [(item["form"], item["loss"]) for item in found[:3]] == [
        ("onnx-directml", "byte-exact"), ("onnx-webgpu", "byte-exact"), ("onnx-cuda", "lossy"),
    ]  # fmt: skip
    assert found[2]["least_signal_to_noise"] is None
    assert found[2]["largest_context"] > found[0]["largest_context"]


def test_a_source_that_lost_something_is_refused(tmp_path: Path) -> None:
    rounded = to_gguf(TINY, tmp_path / "q8.gguf", dense="q8_0")
    outcome = run_here("footprint", rounded, "--fit", "64GB")
    assert outcome.exit_code == 4
    assert "found q8_0" in outcome.stderr
    assert open_checkpoint(rounded).format == "gguf"


@pytest.mark.parametrize("option", [("--as", "gguf"), ("--budget", "4GB"), ("--measure",), ("--batch", "4")])
def test_options_that_do_not_go_with_it_are_refused(option: tuple[str, ...], bare: Path) -> None:
    outcome = run_here("footprint", bare, "--fit", "laptop-16gb", *option)
    assert outcome.exit_code == 2
    assert f"{option[0]} and --fit exclude each other" in outcome.stderr
