"""`build` and `check` as people and CI jobs use them."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.command import run_here
from tests.support.conversions import TINY

RECIPE = """
version = 1
source.path = "model"
[[artifacts]]
to = "gguf"
output = "model.gguf"
[[artifacts]]
to = "bf16"
output = "bf16"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "model")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_build_and_check(recipe: Path) -> None:
    built = run_here("build", recipe)
    assert built.exit_code == 0, built.stderr
    dist = recipe.parent / "dist"
    assert "model.gguf" in built.stdout
    assert "PASS" in built.stdout
    assert f"gptoss-convert check {dist / 'manifest.json'}" in built.stdout.replace("\n", "")
    checked = run_here("check", dist)
    assert checked.exit_code == 0
    (dist / "bf16" / "config.json").write_text("{}")
    checked = run_here("check", dist / "manifest.json")
    assert checked.exit_code == 1
    assert "bf16/config.json: other size" in checked.stdout


def test_json(recipe: Path) -> None:
    built = json.loads(run_here("build", recipe, "--json", "--only", "bf16").stdout)
    (item,) = built["artifacts"]
    assert (item["name"], item["status"], item["outcome"]) == ("bf16", "built", "pass")
    checked = json.loads(run_here("check", built["manifest"], "--json").stdout)
    assert checked["passed"]


def test_the_exit_code_is_that_of_what_failed(recipe: Path) -> None:
    recipe.write_text(RECIPE + '[[artifacts]]\nto = "gguf"\noutput = "no.gguf"\noptions.dense = "nonsense"\n')
    built = run_here("build", recipe)
    assert built.exit_code == 2
    assert (recipe.parent / "dist" / "bf16").is_dir()
    assert run_here("check", recipe.parent / "dist").exit_code == 1


def test_matrix(recipe: Path) -> None:
    printed = run_here("build", recipe, "--matrix")
    assert [job["name"] for job in json.loads(printed.stdout)["include"]] == ["model.gguf", "bf16"]
    assert not (recipe.parent / "dist").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (("build", "missing.toml"), "file is missing (missing.toml)"),
    (("check", "missing"), "file is missing (missing)"),
])  # fmt: skip
def test_bad_input_gets_one_line(arguments: tuple[str, ...], message: str) -> None:
    outcome = run_here(*arguments)
    assert (outcome.exit_code, outcome.stderr) == (3, f"error: {message}\n")
