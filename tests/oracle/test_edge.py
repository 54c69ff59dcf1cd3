"""What a machine at the edge does: a pack instead of the model, real runtimes, and no torch at all."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import environment, run_here, run_process
from tests.support.conversions import TINY, to_gguf
from tests.support.edge import FORBIDDEN, block
from tests.support.planted_faults import DOWN, FAULTS, GATE_UP, NORM

MAX_TOKENS = 40
"""Of each of the eight quick prompts: what the built-in policy asks for at least, and some more."""


@dataclass(frozen=True)
class Edge:
    """A machine with runtimes, a pack and artifacts."""

    folder: Path

    def run(self, *arguments: str | Path, timeout: float = 300) -> Any:
        """What the command ends with, in a process that cannot import what is forbidden, nor can its children."""
        variables = environment({"PYTHONPATH": str(self.folder / "path")})
        return run_process(*arguments, cwd=self.folder, env=variables, timeout=timeout)

    def verify(self, *arguments: str | Path, exit_code: int = 0) -> list[Any]:
        outcome = self.run("verify", "--against", "model.pack", *arguments, "--threads", "1", "--json")
        artifacts: list[Any] = json.loads(outcome.stdout or "{}").get("artifacts", [])
        assert outcome.exit_code == exit_code, (outcome.stderr, [item["verdict"] for item in artifacts])
        return artifacts


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Edge:
    """The artifacts are made of a copy of the model that is gone before anything is verified."""
    folder = tmp_path_factory.mktemp("edge")
    model = tmp_path_factory.mktemp("workshop") / "model"
    shutil.copytree(TINY, model)
    quick = ("--max-tokens", str(MAX_TOKENS), "--threads", "1")
    assert run_here("record", model, "-o", folder / "model.pack", "-q", *quick).exit_code == 0
    to_gguf(model, folder / "exact.gguf")
    to_gguf(model, folder / "q8.gguf", dense="q8_0")
    for name, options in (("exact-onnx", ()), ("int4-onnx", ("--experts", "int4"))):
        outcome = run_here("to-onnx", model, "-o", folder / name, "--target", "cpu", "-q", *options)
        assert outcome.exit_code == 0, outcome.stderr
    shutil.rmtree(model)
    block(folder / "path")
    return Edge(folder)


def faulty(edge: Edge, artifact: str, fault: str, folder: Path) -> Path:
    source, target = edge.folder / artifact, folder / artifact
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    FAULTS[fault].plant(target)
    return target


def blamed(artifact: Any) -> tuple[str, str | None]:
    return artifact["verdict"]["outcome"], artifact["verdict"]["cause"]


def parts(artifact: Any) -> list[list[str]]:
    return [[item["part"] for item in result["comparisons"]] for result in artifact["logits"]]


@pytest.mark.parametrize("module", FORBIDDEN)
def test_forbidden_modules_are_really_out_of_reach(module: str, edge: Edge) -> None:
    """Although they are installed here."""
    variables = environment({"PYTHONPATH": str(edge.folder / "path")})
    outcome = run_process("-P", "-c", f"import {module}", program=(sys.executable,), env=variables)
    assert f"No module named '{module}'" in outcome.stderr


def test_sound_gguf_files_pass_in_llama_cpp(edge: Edge) -> None:
    exact, lossy = edge.verify("exact.gguf", "q8.gguf")
    assert blamed(exact) == blamed(lossy) == ("pass", None)
    assert parts(exact) == [["total", "departures", "runtime"]]
    assert parts(lossy) == [["total", "departures", "artifact"]]
    assert [run["runtime"] for run in exact["logits"][0]["runs"]] == ["llama.cpp", "reference", "reference"]
    assert exact["structure"]["passed"]
    assert "all 71 tensors are value-exact" in exact["weights"]["reason"]


def test_sound_onnx_folders_pass_in_both_runtimes(edge: Edge) -> None:
    """Exact experts in 8 bits, which have no minus zero, are proved to be equal all the same."""
    exact, lossy = edge.verify("exact-onnx", "int4-onnx", "--allow-inconclusive")
    assert blamed(exact) == ("pass", None)
    assert lossy["verdict"]["outcome"] != "fail"  # with so few positions, 4 bits may be too close to their limits
    assert lossy["weights"]["passed"]
    assert [result["runtime"] for result in exact["logits"]] == ["onnxruntime", "onnxruntime-genai"]
    assert parts(exact) == [["total", "runtime", "decode", "cache"]] * 2
    assert parts(lossy) == [["total", "artifact", "decode", "cache"]] * 2
    for result in exact["logits"]:
        assert result["comparisons"][0]["summary"]["divergence"]["mean"]["mean"] < 1e-9


@pytest.mark.parametrize("artifact", ["exact.gguf", "exact-onnx"])
@pytest.mark.parametrize(
    ("fault", "tensor"), [("norm zeroed", NORM), ("swapped experts", DOWN), ("gate and up exchanged", GATE_UP)]
)
def test_planted_fault_is_found_by_weights(
    artifact: str, fault: str, tensor: str, edge: Edge, tmp_path: Path
) -> None:
    (found,) = edge.verify(faulty(edge, artifact, fault, tmp_path), exit_code=1)
    assert blamed(found) == ("fail", "file")
    assert f"tensor {tensor} has another canonical hash" in found["verdict"]["reason"]
    assert found["logits"] == []


def test_single_nibble_is_found_by_weights(edge: Edge, tmp_path: Path) -> None:
    """Far below what any runtime's arithmetic does."""
    (found,) = edge.verify(faulty(edge, "exact.gguf", "flipped nibble", tmp_path), "--weights", exit_code=1)
    assert f"tensor {GATE_UP} has another canonical hash" in found["verdict"]["reason"]


@pytest.mark.parametrize(
    ("artifact", "fault"),
    [("exact.gguf", "norm zeroed"), ("exact-onnx", "norm zeroed"), ("exact-onnx", "swapped experts")],
)
def test_planted_fault_is_found_by_distributions_alone(
    artifact: str, fault: str, edge: Edge, tmp_path: Path
) -> None:
    """What remains if nobody compares weights; file and runtime cannot be told apart then."""
    (found,) = edge.verify(faulty(edge, artifact, fault, tmp_path), "--logits", exit_code=1)
    assert blamed(found) == ("fail", None)
    assert "by the file or by" in found["verdict"]["reason"]
    assert found["weights"] is None


def test_other_settings_and_tokens_are_found(edge: Edge, tmp_path: Path) -> None:
    for fault in ("window off by one", "tokens exchanged"):
        (found,) = edge.verify(faulty(edge, "exact.gguf", fault, tmp_path), "--weights", exit_code=1)
        assert FAULTS[fault].named in found["verdict"]["reason"]
