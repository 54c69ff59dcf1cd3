"""Runs are made once, and only where their recordings fit."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from gptoss_convert.errors import BudgetError
from gptoss_convert.verify.decode import Decoding
from gptoss_convert.verify.runners import Runtime
from gptoss_convert.verify.runners.launch import Status
from gptoss_convert.verify.runs import Runs
from tests.support import runners
from tests.support.recordings import prompt_set

SCRIPTED = Runtime(name="scripted", module="scripted_plain", formats=(), needs=(), install="")
PROMPTS = prompt_set([[1, 2, 3], [0, 1]])


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(autouse=True)
def _scripted_runner_on_the_path_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(runners.__file__).parent), prepend=os.pathsep)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def runs(tmp_path: Path, said: list[str]) -> Runs:
    return Runs(prompts=PROMPTS, vocab_size=4, folder=tmp_path, threads=1, say=said.append)


def test_same_run_is_made_once(runs: Runs, said: list[str]) -> None:
    first = runs.of(SCRIPTED, Path("model"))
    assert (first.status, first.reason) == (Status.COMPLETED, None)
    assert first.recording().prompt_lengths == (3, 2)
    assert runs.of(SCRIPTED, Path("model")) is first
    assert runs.of(SCRIPTED, Path("model").absolute()) is first
    assert said == ["running model in scripted: 5 positions"]


def test_other_ways_to_run_are_other_runs(runs: Runs, said: list[str]) -> None:
    missing = replace(SCRIPTED, needs=(("no_such_module",),), install="pip install it")
    made = [
        runs.of(missing, Path("model")),
        runs.of(missing, Path("other")),
        runs.of(missing, Path("model"), dtype="bfloat16"),
        runs.of(missing, Path("model"), imitates="llama.cpp"),
        runs.of(replace(missing, name="another"), Path("model")),
    ]
    assert len({id(run) for run in made}) == len(runs.made) == 5
    assert {run.status for run in made} == {Status.MISSING}
    assert said == [
        "running model in scripted: 5 positions",
        "running other in scripted: 5 positions",
        "running model in scripted in bfloat16: 5 positions",
        "running model in scripted as llama.cpp computes: 5 positions",
        "running model in another: 5 positions",
    ]


def test_runs_leave_their_recordings_apart(runs: Runs) -> None:
    made = [runs.of(SCRIPTED, Path(name)) for name in ("model", "other")]
    assert made[0].folder != made[1].folder
    assert all(run.recording().positions == 5 for run in made)


@pytest.mark.parametrize(("free", "fits"), [(80, True), (79, False)])
def test_recordings_have_to_fit_on_the_disk(
    runs: Runs, free: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 positions over a vocabulary of 4, in 4 bytes each."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000, 1000 - free, free))
    if fits:
        assert runs.of(SCRIPTED, Path("model")).status is Status.COMPLETED
        return
    with pytest.raises(
        BudgetError, match=r"do not fit on the disk .*found 79 bytes free, expected 80 bytes.*--work"
    ):
        runs.of(SCRIPTED, Path("model"))
    assert not runs.made


def test_decoding_is_a_run_of_its_own(runs: Runs, said: list[str]) -> None:
    decoding = Decoding(prompts=prompt_set([[0, 1]]), indices=(1,), prefixes=(1,))
    assert runs.of(SCRIPTED, Path("model")) is not (run := runs.decoded(SCRIPTED, Path("model"), decoding))
    assert runs.decoded(SCRIPTED, Path("model"), decoding) is run
    assert (run.settings.prefixes, run.recording().prompt_lengths) == ((1,), (2,))
    assert said[1] == "running model in scripted token by token: 1 positions"
    runs.forget(Path("model"))
    assert runs.made == {}
