"""`--verify`: a conversion that compares what it wrote with what it read."""

import json
from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.converters import execute as execution
from gptoss_convert.converters.plan import Plan
from tests.cli.command import Outcome, run_here
from tests.cli.foreign import with_encodings
from tests.cli.samples import SHAPE, Kind, Samples
from tests.support.adapters import LAYER, pair, write_adapter
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.planted_faults import FAULTS
from tests.support.tokenizers import write_small_tokenizer

COMMANDS = ["to-gguf", "to-bf16", "to-mxfp4"]
KINDS: list[Kind] = ["huggingface", "sharded", "bf16", "original", "gguf", "split"]


def converted(command: str, source: Path, output: Path, *options: str | Path) -> Outcome:
    return run_here(command, source, "-o", output, "--verify", *options)


def verification(outcome: Outcome) -> Any:
    return json.loads(outcome.stdout)["verification"]


def output_of(command: str, folder: Path) -> Path:
    return folder / ("x.gguf" if command == "to-gguf" else "x")


@pytest.fixture
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Plants the fault of this name into what a conversion wrote, before it is compared."""
    name: str = request.param
    execute = execution.execute

    def faulty(plan: Plan, **options: Any) -> Any:
        report = execute(plan, **options)
        FAULTS[name].plant(plan.output)
        return report

    monkeypatch.setattr(execution, "execute", faulty)
    return name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_written_passes(command: str, kind: Kind, samples: Samples, tmp_path: Path) -> None:
    outcome = converted(command, samples.path(kind), output_of(command, tmp_path))
    assert (outcome.exit_code, "  structure  pass: " in outcome.stdout) == (0, True)
    assert "  weights    pass: all 37 tensors are " in outcome.stdout
    assert outcome.stdout.splitlines()[-1].startswith("  PASS: ")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("to-gguf", ["--dense", "q8_0", "--experts", "bf16"]),
        ("to-gguf", ["--split-max-size", "50KB", "--name", "Mine", "--license", "mit", "--manifest"]),
        ("to-mxfp4", ["--layout", "openai", "--manifest"]),
        ("to-bf16", ["--max-shard-size", "100KB", "--manifest", "--jobs", "2"]),
    ],
)
def test_options_change_nothing_that_is_compared(
    command: str, options: list[str], samples: Samples, tmp_path: Path
) -> None:
    outcome = converted(command, samples.path("huggingface"), output_of(command, tmp_path), "--json", *options)
    assert outcome.exit_code == 0
    assert verification(outcome)["verdict"]["outcome"] == "pass"


def test_json_holds_the_result_of_verify(samples: Samples, tmp_path: Path) -> None:
    source, output = samples.path("huggingface"), tmp_path / "x.gguf"
    found = verification(converted("to-gguf", source, output, "--json"))
    (expected,) = json.loads(run_here("verify", source, output, "--weights", "--json").stdout)["artifacts"]
    assert found == expected
    assert found["structure"]["passed"] is found["weights"]["passed"] is True


@pytest.mark.parametrize("rule", ["mse", "even", "floor", "rceil", "ceil"])
def test_quantised_experts_pass(rule: str, samples: Samples, tmp_path: Path) -> None:
    shape = Shape(layers=2, hidden=64, intermediate=96)
    write_small_tokenizer(tmp_path / "tuned")
    write_huggingface(tmp_path / "tuned", shape, experts="bf16", fill="gauss")
    outcome = converted("to-mxfp4", tmp_path / "tuned", tmp_path / "x", "--rule", rule, "--json")
    assert (outcome.exit_code, verification(outcome)["profile"]) == (0, "lossy-4bit"), outcome.stdout[-500:]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_merged_model_is_compared_with_the_merged_source(command: str, samples: Samples, tmp_path: Path) -> None:
    rows, columns = SHAPE.heads * SHAPE.head_dim, SHAPE.hidden
    adapter = write_adapter(tmp_path / "tuned", pair(f"{LAYER}.self_attn.q_proj", (2, columns), (rows, 2)))
    source, output = samples.path("huggingface"), output_of(command, tmp_path)
    assert converted(command, source, output, "--adapter", adapter, "-q") == Outcome(0, "", "")
    assert run_here("verify", source, output, "--weights", "-q").exit_code == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tokenizer_that_was_named_is_the_one_to_compare_with(
    command: str, samples: Samples, tmp_path: Path
) -> None:
    write_small_tokenizer(tmp_path / "other", tokens=470)
    source, output = samples.path("huggingface"), output_of(command, tmp_path)
    assert converted(command, source, output, "--tokenizer", tmp_path / "other", "-q") == Outcome(0, "", "")
    outcome = run_here("verify", source, output, "--weights")
    assert (outcome.exit_code, "tokenizer.tokens" in outcome.stdout) == (1, True)


def test_numbers_that_were_rounded_before_pass(samples: Samples, tmp_path: Path) -> None:
    source = with_encodings(samples.path("gguf"), tmp_path / "rounded.gguf", {"output.weight": "Q4_0"})
    options = ["--dense", "f32", "--allow-lossy-source", "-q"]
    assert converted("to-gguf", source, tmp_path / "x.gguf", *options) == Outcome(0, "", "")


NAMED = {
    "flipped nibble": "tensor model.layers.0.mlp.experts.gate_up_proj is lossy where ",
    "window off by one": "config.sliding_window is 127, not 128",
    "sinks missing": "tensor model.layers.1.self_attn.sinks): expected [4]",
    "cut file": "artifact is ",
}
"""What is said of a fault."""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", NAMED, indirect=True)
def test_a_fault_is_found_and_the_output_stays(fault: str, command: str, samples: Samples, tmp_path: Path) -> None:
    output = output_of(command, tmp_path)
    outcome = converted(command, samples.path("huggingface"), output)
    assert outcome.exit_code == 1
    verdict = outcome.stdout.splitlines()[-1]
    assert verdict.startswith("  FAIL (file): ")
    assert NAMED[fault] in verdict
    assert f"verification failed; what was written is still there: {output}\n" in outcome.stderr
    assert output.exists()


@pytest.mark.parametrize("fault", ["flipped nibble"], indirect=True)
def test_a_fault_is_told_to_programs(fault: str, samples: Samples, tmp_path: Path) -> None:
    outcome = converted("to-gguf", samples.path("huggingface"), tmp_path / "x.gguf", "--json")
    assert outcome.exit_code == 1
    found = verification(outcome)
    assert (found["verdict"]["outcome"], found["verdict"]["cause"]) == ("fail", "file")
    assert found["weights"]["worst_tensor"] == FAULTS[fault].named


@pytest.mark.parametrize("fault", ["flipped nibble"], indirect=True)
@pytest.mark.usefixtures("fault")
def test_nothing_is_compared_unless_asked(samples: Samples, tmp_path: Path) -> None:
    outcome = run_here("to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf", "--json")
    assert (outcome.exit_code, "verification" in json.loads(outcome.stdout)) == (0, False)


def test_a_dry_run_compares_nothing_and_says_that_a_run_would(samples: Samples, tmp_path: Path) -> None:
    source, output = samples.path("huggingface"), tmp_path / "x.gguf"
    outcome = converted("to-gguf", source, output, "--dry-run")
    assert (outcome.exit_code, outcome.stderr) == (0, "note: the output would then be compared with the source\n")
    plain = run_here("to-gguf", source, "-o", output, "--dry-run", "--json")
    assert converted("to-gguf", source, output, "--dry-run", "--json") == plain
    assert not output.exists()


def test_the_second_pass_has_a_progress_of_its_own(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("gptoss_convert.console.SECONDS_BETWEEN_LINES", 0.0)
    source = samples.path("huggingface")
    outcome = converted("to-gguf", source, tmp_path / "x.gguf")
    written, compared = outcome.stderr.split("done in ")
    assert "100 %  " in written
    assert "100 %  " in compared
    assert "%" not in converted("to-gguf", source, tmp_path / "y.gguf", "--no-progress").stderr
