"""`gptoss-convert bundle`: what it writes, and what it refuses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Outcome, run_here
from tests.support.conversions import TINY, to_gguf

HOSTILE = "a`b](javascript:x) \x1b[31m<script>"
"""Name of the folder that was recorded."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, artifacts and a pack."""
    folder = tmp_path_factory.mktemp("shop")
    shutil.copytree(TINY, folder / "model")
    to_gguf(TINY, folder / "tiny.gguf")
    assert run_here("to-gguf", TINY, "-o", folder / "split.gguf", "--split-max-size", "3MB", "-q").exit_code == 0
    for target in ("cpu", "directml", "cuda", "webgpu"):
        assert run_here("to-onnx", TINY, "-o", folder / target, "--target", target, "-q").exit_code == 0
    hostile = shutil.copytree(TINY, folder / HOSTILE)
    recorded = run_here("record", hostile, "-o", folder / "tiny.pack", "--max-tokens", "12", "-q")
    assert recorded.exit_code == 0, recorded.stderr
    return folder


@pytest.fixture
def at_work(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder from which the shop's things are reached by links."""
    for path in shop.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bundle(artifact: str, *arguments: str, device: str = "laptop-16gb", pack: str = "tiny.pack") -> Outcome:
    return run_here("bundle", artifact, "--device", device, "--pack", pack, "-o", "out", *arguments)


def manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def test_a_bundle_holds_everything_and_says_what_is_next(at_work: Path) -> None:
    outcome = bundle("tiny.gguf")
    assert outcome.exit_code == 0, outcome.stderr
    assert {path.name for path in (at_work / "out").iterdir()} == {
        "tiny.gguf", "reference.pack", "README.md", "requirements.txt", "Modelfile", "start.sh", "start.cmd",
        "verify.sh", "verify.cmd", "manifest.json",
    }  # fmt: skip
    assert (at_work / "out" / "tiny.gguf").read_bytes() == (at_work / "tiny.gguf").read_bytes()
    assert not (at_work / "out" / "tiny.gguf").is_symlink()
    assert "llama.cpp on laptop-16gb, context 8,192: FITS" in outcome.stdout
    assert "next: copy it to the device" in outcome.stderr
    assert run_here("check", "out", "-q").exit_code == 0
    assert (at_work / "out" / "Modelfile").read_text() == "FROM ./tiny.gguf\nPARAMETER num_ctx 8192\n"


def test_a_dry_run_lists_the_same_files_and_writes_none(at_work: Path) -> None:
    planned = json.loads(bundle("cpu", "--dry-run", "--json").stdout)
    assert not (at_work / "out").exists()
    assert bundle("cpu", "-q").exit_code == 0
    there = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
    assert there == set(planned["files"])


def test_the_manifest_names_every_file_and_no_place_or_time(at_work: Path) -> None:
    assert bundle("tiny.gguf", "-q").exit_code == 0
    first = (at_work / "out" / "manifest.json").read_bytes()
    shutil.rmtree("out")
    (at_work / "elsewhere").mkdir()
    shutil.copy("tiny.gguf", "elsewhere")
    assert bundle("elsewhere/tiny.gguf", "-q").exit_code == 0
    assert (at_work / "out" / "manifest.json").read_bytes() == first
    assert {file["name"] for file in manifest(at_work / "out")["files"]} | {"manifest.json"} == {
        path.name for path in (at_work / "out").iterdir()
    }


def test_shards_travel_together_and_ollama_is_not_offered(at_work: Path) -> None:
    shards = sorted(path.name for path in at_work.glob("split-*.gguf"))
    assert bundle(shards[0], "-q").exit_code == 0
    assert {*shards} < {path.name for path in (at_work / "out").iterdir()}
    assert not (at_work / "out" / "Modelfile").exists()
    assert "There is no Modelfile" in (at_work / "out" / "README.md").read_text()
    assert f"--model {shards[0]} " in (at_work / "out" / "start.sh").read_text()


@pytest.mark.parametrize(("target", "provider", "package"), [
    ("cuda", "cuda", "onnxruntime-genai-cuda"), ("directml", "dml", "onnxruntime-directml"),
    ("webgpu", "webgpu", "onnxruntime-webgpu"),
])  # fmt: skip
def test_graphs_for_a_gpu_have_its_runtime(target: str, provider: str, package: str, at_work: Path) -> None:
    outcome = bundle(target, "-q", device="gpu-8gb")
    assert outcome.exit_code == 0, outcome.stderr
    assert f" {target} " in (at_work / "out" / "verify.sh").read_text()
    assert f"--provider {provider} " in (at_work / "out" / "verify.sh").read_text()
    assert f"\n{package}==" in (at_work / "out" / "requirements.txt").read_text()
    compile((at_work / "out" / "start.py").read_text(), "start.py", "exec")
    wrong = run_here("bundle", target, "--device", "laptop-16gb", "--pack", "tiny.pack", "-o", "other")
    assert wrong.exit_code == 2
    assert "a device whose cpu computes" in wrong.stderr


def test_a_device_that_is_too_small_is_refused(at_work: Path) -> None:
    outcome = bundle("tiny.gguf", device="20MB")
    assert outcome.exit_code == 6
    assert "too large for 20MB" in outcome.stderr
    assert not (at_work / "out").exists()
    assert bundle("tiny.gguf", "--allow-over-budget", "-q", device="20MB").exit_code == 0
    assert "too small for it" in (at_work / "out" / "README.md").read_text()


def test_the_context_is_the_largest_that_fits(at_work: Path) -> None:
    device = "67MB"
    assert bundle("tiny.gguf", "-q", device=device).exit_code == 0
    said = manifest(at_work / "out")
    assert 256 <= said["context"] == said["footprint"]["largest_context"] < 8192
    shutil.rmtree("out")
    assert bundle("tiny.gguf", "--context", "8192", device=device).exit_code == 6


def test_a_pack_of_another_model_is_refused(at_work: Path) -> None:
    other = shutil.copytree(TINY, at_work / "other")
    config = json.loads((other / "config.json").read_text())
    config["rms_norm_eps"] = 1e-3
    (other / "config.json").write_text(json.dumps(config))
    assert run_here("to-gguf", other, "-o", "other.gguf", "-q").exit_code == 0
    outcome = bundle("other.gguf")
    assert outcome.exit_code == 1
    assert "the pack is of another model: config.rms_norm_eps is 0.001" in outcome.stderr


def test_names_that_a_shell_would_read_are_refused(at_work: Path) -> None:
    for name in ("it's $(reboot).gguf", "a b.gguf", "%PATH%.gguf", "-v.gguf", "naïve.gguf"):
        shutil.copy("tiny.gguf", name)
        outcome = bundle(f"./{name}")
        assert (outcome.exit_code, "is not plain" in outcome.stderr) == (2, True)
    assert not (at_work / "out").exists()


def test_names_that_strangers_chose_are_no_markup(at_work: Path) -> None:
    assert bundle("tiny.gguf", "-q").exit_code == 0
    readme = (at_work / "out" / "README.md").read_text()
    assert r"``a`b](javascript:x) \x1b[31m<script>``" in readme
    assert "\x1b" not in readme
    assert (
        json.loads((at_work / "out" / "manifest.json").read_text(encoding="ascii"))["reference"]["name"] == HOSTILE
    )


def test_unknown_files_are_left_out_and_named(at_work: Path) -> None:
    shutil.copytree("cpu", "graph")
    (at_work / "graph" / "secrets.txt").write_text("no")
    outcome = bundle("graph")
    assert "left out, for no model needs them: secrets.txt" in outcome.stdout
    assert not (at_work / "out" / "graph" / "secrets.txt").exists()


@pytest.mark.parametrize(("arguments", "exit_code", "words"), [
    (("model", "--pack", "tiny.pack"), 4, "expected a GGUF file or an ONNX folder"),
    (("tiny.gguf",), 2, "name one of --pack and --reference"),
    (("tiny.gguf", "--pack", "tiny.pack", "--reference", "model"), 2, "name one of --pack and --reference"),
    (("tiny.gguf", "--pack", "tiny.pack", "--prompts", "quick"), 2, "are for --reference"),
    (("tiny.gguf", "--reference", "model", "--dry-run"), 2, "--dry-run needs --pack"),
    (("tiny.gguf", "--pack", "tiny.gguf"), 3, "tiny.gguf"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused(
    arguments: tuple[str, ...], exit_code: int, words: str, at_work: Path
) -> None:
    outcome = run_here("bundle", *arguments, "--device", "laptop-16gb", "-o", "out")
    assert outcome.exit_code == exit_code
    assert words in outcome.stderr
    assert not (at_work / "out").exists()


def test_nothing_is_replaced(at_work: Path) -> None:
    (at_work / "out").mkdir()
    assert bundle("tiny.gguf", "-q").exit_code == 0  # an empty folder is as good as none
    before = {path: path.stat().st_mtime_ns for path in (at_work / "out").iterdir()}
    outcome = bundle("tiny.gguf")
    assert (outcome.exit_code, "output exists" in outcome.stderr) == (5, True)
    assert {path: path.stat().st_mtime_ns for path in (at_work / "out").iterdir()} == before
    assert not re.search("partial|older", " ".join(path.name for path in at_work.iterdir()))
