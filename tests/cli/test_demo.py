"""`gptoss-convert demo`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import run_here
from tests.cli.schemas import COMPARISON, INSPECTION, PLAN, schema

NAME_ONLY = {"details": {}, "description": {"name": "Tiny Gpt Oss"}}
"""Facts that differ from format to format, left out."""


@pytest.fixture(scope="module")
def document() -> Any:
    outcome = run_here("demo", "--json")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    return json.loads(outcome.stdout)


def test_every_comparison_passes(document: Any) -> None:
    assert document["comparisons"]
    assert [item for item in document["comparisons"] if item["passed"] is not True] == []


def test_experts_keep_every_bit(document: Any) -> None:
    experts = [item for item in document["comparisons"] if item["reference"] == "mxfp4"]
    assert len(experts) == 8
    assert {(item["artifact"], item["found"], item["different"]) for item in experts} == {
        ("mxfp4", "byte-exact", 0)
    }


def test_json_has_the_documented_keys(document: Any) -> None:
    assert schema(document["source"] | NAME_ONLY) == INSPECTION
    assert schema(document["artifact"] | NAME_ONLY) == INSPECTION
    assert schema(document["plan"]) == PLAN
    assert schema(document["comparisons"][0] | {"signal_to_noise": None}) == COMPARISON


def test_json_is_json() -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    json.loads(run_here("demo", "--json").stdout, parse_constant=refuse)


def test_tells_the_story() -> None:
    outcome = run_here("demo")
    assert outcome.exit_code == 0
    assert "Weights against the source" in outcome.stdout
    assert "FAILED" not in outcome.stdout


def test_keeps_the_artifact_if_asked(tmp_path: Path) -> None:
    assert run_here("demo", "-q", "-o", tmp_path / "new" / "folder").exit_code == 0
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
