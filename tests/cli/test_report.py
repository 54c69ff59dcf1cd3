"""`--report` and `gptoss-convert report`: where reports go, where they do not, and what is in them."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptoss_convert.report import NAMES
from tests.cli.command import Outcome, run_here
from tests.support.checkpoints import Shape
from tests.support.conversions import make_checkpoint, to_gguf
from tests.support.documents import document


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    source = make_checkpoint(folder / "source", Shape(layers=2), fill="gauss", edge_blocks=False)
    to_gguf(source, folder / "model.gguf")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `source`, `model.gguf` and `verdict.json`."""
    (tmp_path / "source").symlink_to(models / "source")
    shutil.copyfile(models / "model.gguf", tmp_path / "model.gguf")
    (tmp_path / "verdict.json").write_text(json.dumps(document("model.gguf")), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def verify(*arguments: str | Path) -> Outcome:
    return run_here("verify", "source", "model.gguf", "--weights", *arguments)


def report(*arguments: str | Path) -> Outcome:
    return run_here("report", "verdict.json", "-o", *arguments)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_verify_writes_what_it_prints(folder: Path) -> None:
    outcome = verify("--report", "out", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert names(folder / "out") == set(NAMES)
    assert json.loads(outcome.stdout) == json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert "PASS" in (folder / "out" / "report.md").read_text(encoding="utf-8")


def test_failed_verification_is_reported_too(folder: Path) -> None:
    (folder / "model.gguf").write_bytes((folder / "model.gguf").read_bytes()[:-1000])
    assert verify("--report", "out").exit_code == 1
    assert "FAIL" in (folder / "out" / "report.md").read_text(encoding="utf-8")
    assert names(folder / "out") == set(NAMES)


def test_report_is_made_of_a_document_alone(folder: Path) -> None:
    assert verify("--report", "first").exit_code == 0
    outcome = run_here("report", folder / "first" / "report.json", "-o", "second", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert json.loads(outcome.stdout) == {"files": [str(Path("second") / name) for name in NAMES]}
    for name in NAMES:
        assert (folder / "second" / name).read_bytes() == (folder / "first" / name).read_bytes()


def test_other_files_of_the_folder_stay(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")
    assert report("out").exit_code == 0
    assert names(folder / "out") == {*NAMES, "notes.txt"}


@pytest.mark.parametrize("command", [report, lambda *words: verify("--report", *words)], ids=["report", "verify"])
def test_older_report_is_replaced_with_force_only(command: Callable[..., Outcome], folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "report.md").write_text("older")
    outcome = command("out")
    assert outcome.exit_code == 5
    assert "output exists (out/report.md); use --force to replace it" in outcome.stderr
    assert names(folder / "out") == {"report.md"}
    assert command("out", "--force").exit_code == 0
    assert names(folder / "out") == set(NAMES)
    assert (folder / "out" / "report.md").read_text(encoding="utf-8") != "older"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("verdict.json", "report needs a folder"),
        ("missing/out", "output folder does not exist"),
        ("o" * 300, "cannot write"),
        ("circle", "cannot write"),
    ],
)
def test_odd_folders_are_refused(target: str, words: str, folder: Path) -> None:
    (folder / "circle").symlink_to("circle")
    before = names(folder)
    outcome = report(target)
    assert outcome.exit_code == 5, outcome
    assert words in outcome.stderr
    assert names(folder) == before


def test_model_gets_no_report_into_it(folder: Path) -> None:
    before = names(folder / "source")
    outcome = verify("--report", folder / "source")
    assert outcome.exit_code == 5
    assert "report would go into a model" in outcome.stderr
    assert names(folder / "source") == before


def test_document_is_never_written_over(folder: Path) -> None:
    shutil.copyfile("verdict.json", "report.json")
    outcome = run_here("report", "report.json", "-o", ".", "--force")
    assert outcome.exit_code == 5
    assert "output is one of the source files" in outcome.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_devices_are_not_written_to(folder: Path) -> None:
    (folder / "out").mkdir()
    os.mkfifo(folder / "out" / "report.xml")
    outcome = report("out", "--force")
    assert outcome.exit_code == 5
    assert "output is a device or a pipe" in outcome.stderr


def test_report_that_cannot_be_made_leaves_nothing(folder: Path) -> None:
    (folder / "verdict.json").write_text('{"schema_version": 2}')
    outcome = report("out")
    assert outcome.exit_code == 3
    assert "not the document of a verification" in outcome.stderr
    assert not (folder / "out").exists()


def test_write_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    outcome = report("out")
    assert outcome.exit_code == 5
    assert "No space left on device" in outcome.stderr
    assert not (folder / "out").exists()


def test_missing_library_is_named_before_anything_is_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    outcome = verify("--report", "out")
    assert outcome.exit_code == 4
    assert "pip install 'gptoss-convert[report]'" in outcome.stderr
    assert not (folder / "out").exists()
