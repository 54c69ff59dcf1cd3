"""Every item of the list of bad inputs: refused in one line, or converted exactly; within bounds either way."""

import os
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
