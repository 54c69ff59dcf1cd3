"""The last lines of a conversion, and completion in a shell: what people at a terminal get."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import Outcome, environment, run_here
from tests.cli.samples import Samples
from tests.peers.llama_cpp_source import option_names


def steps(outcome: Outcome) -> dict[str, str]:
    """The lines that say what is next, by their first word."""
    assert outcome.exit_code == 0, outcome.stderr
    pairs = (line.split(": ", 1) for line in outcome.stderr.splitlines() if line.startswith(("next: ", "run: ")))
    return {word: text.strip() for word, text in pairs}


@pytest.mark.parametrize(("command", "name"), [
    (("to-gguf",), "it's.gguf"), (("to-bf16",), "bf16"), (("to-mxfp4", "--layout", "openai"), "original"),
    (("to-onnx", "--target", "cpu"), "graph"),
])  # fmt: skip
def test_the_verify_command_passes(command: tuple[str, ...], name: str, samples: Samples, tmp_path: Path) -> None:
    said = steps(run_here(command[0], samples.path("huggingface"), "-o", tmp_path / name, *command[1:]))
    program, *arguments = shlex.split(said["next"].partition(", or ")[0])
    assert program == "gptoss-convert"
    assert arguments[-1] == "--weights"
    assert run_here(*arguments, "-q").exit_code == 0


def test_every_artifact_has_its_program(samples: Samples, tmp_path: Path) -> None:
    source = samples.path("huggingface")
    gguf = steps(run_here("to-gguf", source, "-o", tmp_path / "a b.gguf"))["run"]
    program, *arguments = shlex.split(gguf)
    assert program == "llama-server"
    assert arguments[1] == str(tmp_path / "a b.gguf")
    assert {item for item in arguments if item.startswith("--")} <= option_names()
    assert steps(run_here("to-bf16", source, "-o", tmp_path / "bf16"))["run"].startswith("transformers serve ")
    graph = steps(run_here("to-onnx", source, "-o", tmp_path / "graph", "--target", "cpu"))["run"]
    assert "start" in Path(shlex.split(graph)[-1]).read_text()
    assert "run" not in steps(run_here("to-mxfp4", source, "-o", tmp_path / "original", "--layout", "openai"))


def test_weights_that_were_compared_are_not_compared_again(samples: Samples, tmp_path: Path) -> None:
    said = steps(run_here("to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf", "--verify"))
    assert said["next"].endswith("x.gguf")


def test_what_is_another_model_by_now_is_not_compared(samples: Samples, tmp_path: Path) -> None:
    source = samples.path("huggingface")
    said = steps(run_here("to-gguf", source, "-o", tmp_path / "x.gguf", "--tokenizer", source))
    assert set(said) == {"run"}


@pytest.mark.parametrize("option", ["--quiet", "--json", "--dry-run"])
def test_programs_are_not_told(option: str, samples: Samples, tmp_path: Path) -> None:
    outcome = run_here("to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf", option)
    assert "next: " not in outcome.stderr + outcome.stdout


@pytest.mark.parametrize(("typed", "expected"), [
    (("foot",), "footprint"), (("bundle", "--de"), "--device"), (("to-gguf", "--dense", "q"), "q8_0"),
])  # fmt: skip
def test_bash_completes(typed: tuple[str, ...], expected: str) -> None:
    """As docs/command-line.md says: the script is sourced, and its function asked as bash would."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = shlex.join(("gptoss-convert", *typed))
    asked = (
        'eval "$(_GPTOSS_CONVERT_COMPLETE=bash_source gptoss-convert)"; '
        f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; "
        '_gptoss_convert_completion gptoss-convert; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", asked], env=environment({"PATH": programs}), capture_output=True, text=True, timeout=60
    )
    assert expected in done.stdout.splitlines(), done.stderr
