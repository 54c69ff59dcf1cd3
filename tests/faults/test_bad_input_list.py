"""Every item of the list of bad inputs: refused in one line, or converted exactly; within bounds either way."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.cli.command import run_here
from tests.cli.samples import Samples
from tests.faults.bad_input_list import IN_OTHER_TABLES, ITEMS, Item
from tests.faults.checks import assert_one_line
from tests.faults.test_bad_inputs import ROWS
from tests.support.bounds import bounded

pytestmark = pytest.mark.filterwarnings("error")

REFUSED = [pytest.param(item, id=f"{item.group}: {item.name}") for item in ITEMS if item.exit_code]
LEGAL = [pytest.param(item, id=f"{item.group}: {item.name}") for item in ITEMS if not item.exit_code]
BUDGET = 64 << 20
"""Bytes of memory for data in flight; a run takes as much again beside it."""


@pytest.mark.parametrize("item", REFUSED)
def test_is_refused_in_one_line(item: Item, samples: Samples, tmp_path: Path) -> None:
    source = samples.copy(item.model, tmp_path)
    item.damage(source)
    before = names(tmp_path)
    (tmp_path / "output").mkdir()
    nbytes = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    run_here("inspect", samples.path("huggingface"))  # imports are nobody's memory

    with bounded(min(nbytes, 32 << 20), seconds=3):
        outcome = run_here("to-gguf", source, "-o", tmp_path / "output" / "x.gguf", *item.options)

    assert_one_line(outcome, item.exit_code, item.words, tmp_path)
    assert names(tmp_path) == before
    assert not any((tmp_path / "output").iterdir())


def names(folder: Path) -> dict[Path, int]:
    """Size of every file below a folder, that of the output aside."""
    return {path: path.lstat().st_size for path in folder.rglob("*") if path.name != "output"}


@pytest.mark.parametrize("item", LEGAL)
def test_is_converted_exactly(item: Item, samples: Samples, tmp_path: Path) -> None:
    source = samples.copy(item.model, tmp_path)
    item.damage(source)
    options = ["--experts", "mxfp4", *item.options]
    outcome = run_here("to-gguf", source, "-o", tmp_path / "x.gguf", "--verify", "-q", *options)
    assert (outcome.exit_code, outcome.stderr) == (0, "")


def test_list_is_complete() -> None:
    known = {row.id for row in ROWS}
    listed = [name for rows in IN_OTHER_TABLES.values() for name in rows]
    assert [name for name in listed if name not in known] == []
    twice = Counter([*listed, *(f"{item.group}: {item.name}" for item in ITEMS)])
    assert [name for name, count in twice.items() if count > 1] == []
    assert {item.group for item in ITEMS} == set(range(1, 13))


def test_file_that_may_not_be_read_is_refused(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions stop nobody who is root, so the system's answer is given in its place."""
    source = samples.copy("huggingface", tmp_path)
    really_open = os.open

    def denied(path: str | Path, *arguments: int, **options: int) -> int:
        if Path(path).name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, *arguments, **options)

    monkeypatch.setattr(os, "open", denied)
    outcome = run_here("to-gguf", source, "-o", tmp_path / "x.gguf")
    assert_one_line(outcome, 3, ["model.safetensors", "Permission denied"], tmp_path)


# --- group 13: outputs and surroundings, of which `test_outputs`, `test_writes` and `test_streams` have more

SURROUNDINGS = [
    pytest.param("to-gguf", "nowhere/x.gguf", 5, ["nowhere", "does not exist"], id="13: missing parent"),
    pytest.param("to-gguf", "x" * 300, 5, ["name too long"], id="13: name too long"),
    pytest.param("to-bf16", "x" * 300, 5, ["name too long"], id="13: name of a folder too long"),
    pytest.param("to-gguf", "/sys/kernel/x.gguf", 5, ["/sys/kernel"], id="13: read-only folder"),
    pytest.param("to-bf16", "/sys/kernel/x", 5, ["/sys/kernel"], id="13: folder in a read-only folder"),
    pytest.param("to-gguf", "model/model.safetensors", 5, ["model.safetensors"], id="13: output is an input"),
    pytest.param("to-bf16", "model", 5, ["model"], id="13: output is the source"),
    pytest.param("to-gguf", "model", 5, ["output is a folder"], id="13: output is a folder"),
    pytest.param("to-gguf", "model/config.json/x.gguf", 5, ["config.json"], id="13: output in a file"),
]


@pytest.mark.parametrize(("command", "output", "exit_code", "words"), SURROUNDINGS)
def test_output_is_refused_in_one_line(
    command: str,
    output: str,
    exit_code: int,
    words: list[str],
    samples: Samples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = samples.copy("huggingface", tmp_path)
    before = names(tmp_path)
    monkeypatch.chdir(tmp_path)
    outcome = run_here(command, source, "-o", output, "--force")
    assert_one_line(outcome, exit_code, words, tmp_path)
    assert names(tmp_path) == before


def test_missing_package_is_named(samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that the target alone needs."""
    for module in [name for name in sys.modules if name.partition(".")[0] == "onnx"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "onnx", None)
    for module in [name for name in sys.modules if name.startswith("gptoss_convert.formats.onnx.graph")]:
        monkeypatch.delitem(sys.modules, module)
    outcome = run_here("to-onnx", samples.path("huggingface"), "-o", tmp_path / "out", "--target", "cpu")
    assert_one_line(outcome, 4, ["onnx", "pip install"], tmp_path)
    assert not (tmp_path / "out").exists()
