"""`gptoss-convert demo`."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Outcome, run_here
from tests.cli.schemas import COMPARISON, INSPECTION, PLAN, schema

NAME_ONLY = {"details": {}, "description": {"name": "Tiny Gpt Oss"}}
"""Facts that differ from format to format, left out."""


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """The whole story, models run included."""
    return run_here("demo", "--json")


@pytest.fixture(scope="module")
def document(outcome: Outcome) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    assert (outcome.exit_code, outcome.stderr) == (0, "")
    return json.loads(outcome.stdout, parse_constant=refuse)


@pytest.fixture
def _without_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no runtime for GGUF files were installed."""
    for name in ("llama_cpp", "xllamacpp"):
        monkeypatch.setitem(sys.modules, name, None)


def test_every_check_passes(document: Any) -> None:
    (artifact,) = document["verification"]["artifacts"]
    assert artifact["structure"]["passed"] is artifact["weights"]["passed"] is True
    assert [(result["runtime"], result["verdict"]["outcome"]) for result in artifact["logits"]] == [
        ("llama.cpp", "pass")
    ]
    assert document["verification"]["outcome"] == "pass"


def test_experts_keep_every_bit(document: Any) -> None:
    (artifact,) = document["verification"]["artifacts"]
    experts = [item for item in artifact["weights"]["tensors"] if item["reference"] == "mxfp4"]
    assert len(experts) == 8
    assert {(item["artifact"], item["found"], item["different"]) for item in experts} == {
        ("mxfp4", "byte-exact", 0)
    }


def test_json_has_the_documented_keys(document: Any) -> None:
    assert document.keys() == {"source", "artifact", "plan", "verification"}
    assert schema(document["source"] | NAME_ONLY) == INSPECTION
    assert schema(document["artifact"] | NAME_ONLY) == INSPECTION
    assert schema(document["plan"]) == PLAN
    (artifact,) = document["verification"]["artifacts"]
    assert schema(artifact["weights"]["tensors"][0] | {"signal_to_noise": None}) == COMPARISON


@pytest.mark.usefixtures("_without_runtimes")
def test_tells_the_story_without_runtimes_and_says_what_is_missing() -> None:
    outcome = run_here("demo")
    assert outcome.exit_code == 0
    assert (
        "  weights    pass: all 71 tensors are value-exact\n  PASS: all 71 tensors are value-exact; "
        in outcome.stdout
    )
    assert outcome.stderr == "no model was run; that takes: pip install 'gptoss-convert[verify]'\n"


@pytest.mark.usefixtures("_without_runtimes")
def test_keeps_the_artifact_if_asked(tmp_path: Path) -> None:
    assert run_here("demo", "-q", "-o", tmp_path / "new" / "folder") == Outcome(0, "", "")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["tiny-gpt-oss.gguf"]


def test_replaces_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "tiny-gpt-oss.gguf").write_bytes(b"mine")
    outcome = run_here("demo", "-o", tmp_path)
    assert outcome.exit_code == 5
    assert "output exists" in outcome.stderr
    assert (tmp_path / "tiny-gpt-oss.gguf").read_bytes() == b"mine"


@pytest.mark.parametrize("folder", ["file", "file/folder"])
def test_output_that_is_no_folder(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    outcome = run_here("demo", "-o", tmp_path / folder)
    assert outcome.exit_code == 5
    assert len(outcome.stderr.splitlines()) == 1
