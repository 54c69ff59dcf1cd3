"""`doctor`, and what is suggested when a name is wrong."""

import json
import os
import sys
from importlib import metadata
from pathlib import Path

import psutil

from gptoss_convert.verify.runners import RUNTIMES
from tests.cli.command import environment, run_here, run_process


def test_what_is_installed_is_named_with_its_version() -> None:
    found = json.loads(run_here("doctor", "--json").stdout)
    states = {item["name"]: item for item in found["runtimes"]}
    assert set(states) == set(RUNTIMES)
    assert states["onnxruntime"]["versions"]["onnxruntime"] == metadata.version("onnxruntime")
    assert "CPUExecutionProvider" in states["onnxruntime"]["providers"]
    assert states["transformers"]["versions"].keys() == {"accelerate", "torch", "transformers"}
    assert all(item["install"] is None and item["problem"] is None for item in found["runtimes"])
    assert found["extras"]["verify"]
    assert 0 < found["memory_available"] <= found["memory"] <= psutil.virtual_memory().total


def test_the_table_has_everything(tmp_path: Path) -> None:
    printed = run_here("doctor", tmp_path)
    assert printed.exit_code == 0
    text = " ".join(printed.stdout.split())
    for expected in (*RUNTIMES, "python", "memory", "free disk", "CPUExecutionProvider", "extra verify installed"):
        assert expected in text


def test_what_is_missing_comes_with_the_command_that_installs_it(tmp_path: Path) -> None:
    call = "from gptoss_convert.cli import run; sys.exit(run(['doctor', '--json']))"
    code = f"import sys; sys.modules['torch'] = None; {call}"
    found = json.loads(run_process(program=(sys.executable, "-P", "-c", code)).stdout)
    (reference,) = (item for item in found["runtimes"] if item["name"] == "reference")
    assert reference["install"] == "pip install torch"
    assert reference["versions"] == {}


def test_a_runtime_that_does_not_start_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('two kinds of onnxruntime are installed')")
    outcome = run_process("doctor", "--json", env=environment({"PYTHONPATH": os.fspath(tmp_path)}))
    (state,) = (item for item in json.loads(outcome.stdout)["runtimes"] if item["name"] == "onnxruntime")
    assert "two kinds of onnxruntime" in state["problem"]


def test_a_command_that_does_not_exist_is_answered_with_one_that_does() -> None:
    outcome = run_process("to-ggfu")
    assert outcome.exit_code == 2
    assert "No such command 'to-ggfu'. Did you mean 'to-gguf'?" in outcome.stderr
    assert "Did you mean" not in run_process("nonsense").stderr
