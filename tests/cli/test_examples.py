"""Programs and notebooks in `examples/`, run on the built-in model."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

import gptoss_convert as gc
from gptoss_convert.formats.safetensors import read_folder
from tests.cli.command import Outcome, run_process
from tests.support.conversions import TINY
from tests.support.notebooks import EXAMPLES, run_notebook

PROGRAMS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SHORTER = {"MAX_TOKENS = 64": "MAX_TOKENS = 8", "threads=1": "threads=1, runtimes=('reference',)"}


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the built-in model."""
    shutil.copytree(TINY, tmp_path / "model")
    return tmp_path


def run(program: str, *arguments: str, folder: Path) -> Outcome:
    return run_process(*arguments, program=(sys.executable, "-P", str(EXAMPLES / program)), cwd=folder)


def tune(folder: Path) -> None:
    """Add to some of the experts of a model in BF16 what four bits can hold, one step of the grid."""
    stored = read_folder(folder)["model.layers.1.mlp.experts.down_proj"]
    numbers = np.fromfile(stored.file.path, np.uint16, 4096, offset=stored.offset)
    with stored.file.path.open("r+b") as file:
        file.seek(stored.offset)
        file.write((numbers ^ 0x8000).tobytes())  # the other sign


def test_there_is_an_example_of_each_kind() -> None:
    assert [path.name for path in PROGRAMS] == [
        "bf16_fine_tune_back.py",
        "convert_and_verify.py",
        "inspect_many.py",
    ]
    assert [path.name for path in NOTEBOOKS] == ["parity_report.ipynb"]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_programs_are_read_at_a_glance(program: Path) -> None:
    assert len(program.read_text(encoding="utf-8").splitlines()) < 50


def test_convert_and_verify(desk: Path) -> None:
    exact = run("convert_and_verify.py", "model", "exact.gguf", folder=desk)
    assert (exact.exit_code, exact.stderr) == (0, "")
    assert "value-exact" in exact.stdout
    assert "rounded" not in exact.stdout
    lossy = run("convert_and_verify.py", "model", "lossy.gguf", "--dense", "q8_0", folder=desk)
    assert lossy.exit_code == 0
    assert "rounded to q8_0: lm_head.weight" in lossy.stdout
    again = run("convert_and_verify.py", "model", "exact.gguf", folder=desk)
    assert again.exit_code == 5
    assert again.stderr.startswith("error: output exists")


def test_inspect_many(desk: Path) -> None:
    gc.convert(desk / "model", desk / "exact.gguf", "gguf")
    gc.convert(desk / "model", desk / "lossy.gguf", gc.GgufOptions(dense="q8_0"))
    outcome = run("inspect_many.py", "model", "exact.gguf", "lossy.gguf", "none", folder=desk)
    heading, first, exact, lossy, reason, missing = outcome.stdout.splitlines()
    assert heading.split() == ["hash", "format", "checkpoint"]
    assert first.split()[0] == exact.split()[0] == gc.hash_checkpoint(gc.open(TINY), jobs=1).model[:16]
    assert lossy.split()[0] != exact.split()[0]
    assert "relative error" in reason
    assert "nothing is there" in missing
    assert outcome.exit_code == 1


def test_bf16_fine_tune_back(desk: Path) -> None:
    gc.convert(desk / "model", desk / "tuned", "bf16")
    tune(desk / "tuned")
    outcome = run("bf16_fine_tune_back.py", "tuned", "model", "back", folder=desk)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    (row,) = re.findall(r"^model\.\S+.*$", outcome.stdout, re.MULTILINE)
    assert row.split()[0] == "model.layers.1.mlp.experts.down_proj"
    assert row.split()[-1] == "100.0%"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run_and_show_what_they_showed(notebook: Path, tmp_path: Path) -> None:
    """In the reference only, and on shorter prompts than those of the stored pictures, which take a minute."""
    stored = nbformat.read(notebook, as_version=4)
    again = run_notebook(notebook, tmp_path, SHORTER)
    assert shown(again) == shown(stored)
    assert shown(stored).count("image/png") == 3


def shown(notebook: Any) -> list[str]:
    """Return the kinds of outputs, in order."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [kind for output in outputs for kind in output.get("data", {output.get("name"): ""})]
