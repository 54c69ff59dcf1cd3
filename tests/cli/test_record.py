"""`gptoss-convert record`, and `verify --against` what it wrote."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.cli.command import Outcome, run_here, run_process
from tests.faults.checks import assert_one_line
from tests.support.checkpoints import Shape
from tests.support.conversions import make_checkpoint, to_gguf
from tests.support.packs import IDS
from tests.support.planted_faults import FAULTS, NORM

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "verification.schema.json").read_text(encoding="utf-8"))
OPTIONS = ("--prompts", "prompts.jsonl", "--threads", "1")
POLICY = "version = 1\n[evidence]\npositions = 40\nprompts = 3\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `source`, `model.pack`, `model.gguf`, `q8.gguf`, `faulty.gguf`, prompts and a policy lie."""
    folder = tmp_path_factory.mktemp("record")
    source = make_checkpoint(folder / "source", Shape(), fill="gauss", edge_blocks=False)
    lines = [json.dumps({"ids": ids, "name": f"prompt {number}"}) for number, ids in enumerate(IDS)]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "policy.toml").write_text(POLICY, encoding="utf-8")
    sound = to_gguf(source, folder / "model.gguf")
    to_gguf(source, folder / "q8.gguf", dense="q8_0")
    FAULTS["norm zeroed"].plant(Path(shutil.copyfile(sound, folder / "faulty.gguf")))
    outcome = run_process(
        "record", "source", "-o", "model.pack", "--top-k", "100", *OPTIONS, cwd=folder, timeout=120
    )
    assert outcome.exit_code == 0, outcome.stderr
    (folder / "told.txt").write_text(outcome.stdout, encoding="utf-8")
    (folder / "said.txt").write_text(outcome.stderr, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def against(*arguments: str | Path) -> Outcome:
    return run_here("verify", "--against", "model.pack", *arguments)


def joined(text: str) -> str:
    """Undo the folding of long lines."""
    return " ".join(text.split())


# --- record


def test_tells_what_is_recorded_and_how_large_it_is(folder: Path) -> None:
    text = joined((folder / "told.txt").read_text(encoding="utf-8"))
    size = (folder / "model.pack").stat().st_size
    for words in (
        "reference source (huggingface)",
        "prompts prompts.jsonl: 3 prompts, 60 positions",
        "runs as published, as llama.cpp computes",
        "of each position the 100 likeliest tokens, and their rest",
        "pack model.pack: about ",
        "noise reference in bfloat16: mean KL ",
        "of the probability is in the tokens that were kept",
        f"wrote model.pack: {size} bytes",
    ):
        assert words in text


def test_warns_if_too_little_of_the_probability_is_kept(folder: Path) -> None:
    """A random model has flat distributions, of which 100 tokens of 512 are not enough."""
    text = joined((folder / "told.txt").read_text(encoding="utf-8"))
    assert "note: verify asks for a coverage of 99% and proves nothing with less" in text


def test_says_what_it_is_doing(folder: Path) -> None:
    said = (folder / "said.txt").read_text(encoding="utf-8")
    for words in ("running source in reference: 60 positions", "as llama.cpp computes", "writing model.pack"):
        assert words in said


def test_dry_run_tells_the_size_and_writes_nothing(folder: Path) -> None:
    before = sorted(folder.iterdir())
    outcome = run_here("record", "source", "-o", "new.pack", "--top-k", "100", "--dry-run", "--json", *OPTIONS)
    assert outcome.exit_code == 0
    found = json.loads(outcome.stdout)
    assert (found["columns"], found["whole"]) == (100, False)
    assert abs(found["nbytes"] - (folder / "model.pack").stat().st_size) < 20_000
    assert [run["imitates"] for run in found["runs"]] == [None, "llama.cpp"]
    assert sorted(folder.iterdir()) == before


def test_document_has_all_of_it(folder: Path) -> None:
    outcome = run_here("record", "source", "-o", "other.pack", "--json", "--max-tokens", "10", *OPTIONS)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    found = json.loads(outcome.stdout)
    assert found["nbytes"] == (folder / "other.pack").stat().st_size
    assert (found["whole"], found["columns"], found["coverage"]) == (True, 512, pytest.approx(1))
    assert found["prompts"]["positions"] == 30
    assert [(run["imitates"], run["dtype"]) for run in found["runs"]] == [
        (None, "float32"),
        ("llama.cpp", "float32"),
        (None, "bfloat16"),
    ]
    (folder / "other.pack").unlink()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["source", "-o", "model.pack"], 5, "output exists (model.pack); use --force to replace it"),
        (["model.gguf", "-o", "model.gguf", "--force"], 5, "output is one of the source files"),
        (["source", "-o", "nowhere/model.pack"], 5, "output folder does not exist"),
        (["source", "-o", "source", "--force"], 5, "output is a folder"),
        (["nothing", "-o", "x.pack"], 3, "nothing is there"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_run(
    arguments: list[str], exit_code: int, words: str, folder: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert_one_line(run_here("record", *arguments, "-q", *OPTIONS), exit_code, [words], folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_prompts_that_are_too_short_are_refused(folder: Path) -> None:
    outcome = run_here("record", "source", "-o", "short.pack", "--max-tokens", "3", "-q", *OPTIONS)
    assert_one_line(outcome, 3, ["prompts are too short"], folder)
    assert not (folder / "short.pack").exists()


def test_force_replaces(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.pack"
    target.write_bytes(b"older")
    outcome = run_here("record", "source", "-o", target, "--force", "-q", *OPTIONS)
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (0, "", "")
    assert target.stat().st_size > 100_000
    assert os.listdir(tmp_path) == ["model.pack"]  # noqa: PTH208 - names are what counts


# --- verify --against


def document(*arguments: str | Path, exit_code: int) -> Any:
    outcome = against(*arguments, "--json")
    assert outcome.exit_code == exit_code, outcome.stderr
    found = json.loads(outcome.stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    return found


def test_weights_alone() -> None:
    outcome = against("model.gguf", "--weights")
    assert outcome.exit_code == 0
    text = joined(outcome.stdout)
    assert "reference model.pack (huggingface) recorded of source, canonical hash " in text
    assert "PASS: all 37 tensors are value-exact; 31 facts agree; 4 could not be compared" in text


def test_the_model_itself_passes_too() -> None:
    assert against("source", "--weights", "-q").exit_code == 0


def test_faulty_and_lossy_artifacts() -> None:
    found = document("faulty.gguf", "q8.gguf", "--weights", exit_code=1)
    assert found["reference"]["path"] == "model.pack"
    assert (found["reference"]["pack"]["source"], found["reference"]["pack"]["columns"]) == ("source", 100)
    faulty, lossy = found["artifacts"]
    assert faulty["verdict"]["cause"] == "file"
    assert faulty["weights"]["worst_tensor"] == NORM
    assert lossy["verdict"]["outcome"] == "pass"
    assert {item["basis"] for item in lossy["weights"]["tensors"]} == {"hash", "sample"}


def test_distributions_of_the_reference_runner_if_it_is_named() -> None:
    """Where torch is there, it tells the file from the runtime as always."""
    found = document("faulty.gguf", "--logits", "--runtime", "reference", "--policy", "policy.toml", exit_code=1)
    (artifact,) = found["artifacts"]
    assert [item["part"] for item in artifact["logits"][0]["comparisons"]] == ["total", "file"]
    assert artifact["verdict"]["outcome"] in ("fail", "inconclusive")
    assert found["prompts"]["positions"] == 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument 'ARTIFACT...'"),
        (["model.gguf", "--prompts", "quick"], "--prompts needs the reference itself"),
        (["model.gguf", "--max-tokens", "7"], "--max-tokens needs the reference itself"),
        (["model.gguf", "--bisect"], "--bisect needs the reference itself"),
        (["model.gguf", "--runtime", "transformers"], "none of the runtimes"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], words: str) -> None:
    outcome = against(*arguments)
    assert outcome.exit_code == 2
    assert words in outcome.stderr
    assert outcome.stdout == ""


def test_without_a_pack_there_is_a_reference() -> None:
    outcome = run_here("verify")
    assert outcome.exit_code == 2
    assert "Missing argument 'REFERENCE'" in outcome.stderr
