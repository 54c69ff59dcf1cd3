"""Builds: many artifacts of one source, made when they have to be, judged, and listed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import gptoss_convert as gc
from gptoss_convert.converters import execute
from gptoss_convert.converters.execute import Progress
from gptoss_convert.converters.tasks import Resources, Task
from gptoss_convert.errors import InputError
from gptoss_convert.recipes.artifacts import BuildResult
from gptoss_convert.recipes.build import build
from gptoss_convert.recipes.check import FileState, check_manifest
from gptoss_convert.recipes.matrix import build_matrix
from gptoss_convert.recipes.recipe import read_recipe
from gptoss_convert.report import render_report
from tests.support.conversions import TINY

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "verification.schema.json").read_text(encoding="utf-8"))
RECIPE = """
version = 1
source.path = "model"

[[artifacts]]
to = "gguf"
output = "model.gguf"

[[artifacts]]
to = "mxfp4"
output = "original"
options = {layout = "openai"}
"""
BROKEN = """
[[artifacts]]
to = "gguf"
output = "impossible.gguf"
options = {dense = "nonsense"}
"""


class Bench:
    """A recipe, its source, and a folder to build in."""

    def __init__(self, folder: Path) -> None:
        self.source = shutil.copytree(TINY, folder / "model")
        self.recipe = folder / "recipe.toml"
        self.recipe.write_text(RECIPE)
        self.output = folder / "dist"

    def build(self, **options: Any) -> BuildResult:
        return build(read_recipe(self.recipe), self.output, **options)

    def statuses(self) -> list[str]:
        return [item.status for item in self.build().artifacts]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One that was built and is only looked at."""
    bench = Bench(tmp_path_factory.mktemp("finished"))
    bench.build()
    return bench


def test_artifacts_are_those_of_single_conversions(finished: Bench, tmp_path: Path) -> None:
    written = gc.convert(finished.source, tmp_path / "model.gguf", gc.GgufOptions()).output
    assert (finished.output / "model.gguf").read_bytes() == written.read_bytes()


def test_the_manifest_says_what_was_made_of_what(finished: Bench) -> None:
    manifest = json.loads((finished.output / "manifest.json").read_text())
    hashes = {item["canonical_hash"] for item in manifest["artifacts"]}
    assert hashes == {gc.hash_checkpoint(gc.open(TINY), jobs=1).model}
    assert [item["loss"] for item in manifest["artifacts"]] == ["value-exact", "byte-exact"]
    assert [item["verification"]["verdict"]["outcome"] for item in manifest["artifacts"]] == ["pass", "pass"]
    assert manifest["artifacts"][1]["options"].items() >= {"layout": "openai", "rule": "mse"}.items()
    assert manifest["libraries"].keys() >= {"numpy", "gguf", "click"}
    assert str(finished.output) not in json.dumps(manifest)


def test_the_manifest_is_the_same_for_the_same_input(finished: Bench, bench: Bench) -> None:
    shutil.copystat(finished.source, bench.source)
    bench.build()
    assert (bench.output / "manifest.json").read_bytes() == (finished.output / "manifest.json").read_bytes()


def test_what_is_up_to_date_is_not_made_again(bench: Bench) -> None:
    assert bench.statuses() == ["built", "built"]
    manifest = (bench.output / "manifest.json").read_bytes()
    assert bench.statuses() == ["up to date", "up to date"]
    assert (bench.output / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize("file", ["model.safetensors.index.json", "tokenizer.json", "config.json"])
def test_a_changed_source_is_converted_again(file: str, bench: Bench) -> None:
    bench.build()
    os.utime(bench.source / file)
    assert bench.statuses() == ["built", "built"]


def test_a_changed_option_makes_that_artifact_again(bench: Bench) -> None:
    bench.build()
    bench.recipe.write_text(RECIPE.replace('layout = "openai"', 'layout = "openai", rule = "floor"'))
    assert bench.statuses() == ["up to date", "built"]


def test_a_damaged_artifact_is_made_again(bench: Bench) -> None:
    bench.build()
    with (bench.output / "model.gguf").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    assert bench.statuses() == ["built", "up to date"]
    assert check_manifest(bench.output).passed


def test_an_artifact_with_another_time_is_up_to_date_if_its_bytes_are(bench: Bench) -> None:
    bench.build()
    os.utime(bench.output / "model.gguf")
    assert bench.statuses() == ["up to date", "up to date"]


def test_a_failed_artifact_does_not_stop_the_others(bench: Bench) -> None:
    bench.recipe.write_text(RECIPE + BROKEN)
    result = bench.build()
    assert [item.status for item in result.artifacts] == ["built", "built", "not made"]
    assert result.exit_code == result.artifacts[-1].exit_code != 0
    manifest = json.loads(result.manifest.read_text())
    assert "error" in manifest["artifacts"][2]
    assert check_manifest(result.manifest).not_made == ("impossible.gguf",)


def test_a_file_of_somebody_else_is_not_replaced(bench: Bench) -> None:
    bench.output.mkdir()
    (bench.output / "model.gguf").write_text("mine")
    result = bench.build()
    assert "output exists" in str(result.artifacts[0].error)
    assert (bench.output / "model.gguf").read_text() == "mine"
    assert [item.status for item in bench.build(replace_others=True).artifacts] == ["built", "up to date"]


def test_a_build_that_was_interrupted_can_be_repeated(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gptoss_convert.recipes.judging.verify_artifacts", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench.build()
    assert (bench.output / "model.gguf").exists()
    assert bench.statuses() == ["built", "built"]


def test_an_artifact_that_was_interrupted_is_gone_on_with(
    bench: Bench, finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_task, finished_tasks = execute.run_task, []

    def counted(task: Task, *arguments: Any) -> Any:
        if len(finished_tasks) == stop:
            raise KeyboardInterrupt
        result = run_task(task, *arguments)
        finished_tasks.append(task)
        return result

    one_by_one = Resources(jobs=1)
    with monkeypatch.context() as patch:
        patch.setattr(execute, "run_task", counted)
        stop = 20  # in the middle of the first artifact
        with pytest.raises(KeyboardInterrupt):
            bench.build(resources=one_by_one)
        assert not (bench.output / "model.gguf").exists()
        stop = -1
        assert [item.status for item in bench.build(resources=one_by_one).artifacts] == ["built", "built"]
        resumed = len(finished_tasks)
        shutil.rmtree(bench.output)
        bench.build(resources=one_by_one)
    assert resumed == len(finished_tasks) - resumed
    assert (bench.output / "model.gguf").read_bytes() == (finished.output / "model.gguf").read_bytes()


def test_progress_is_told_for_each_artifact_by_itself(bench: Bench) -> None:
    told: list[list[int]] = []

    @contextmanager
    def counting(nbytes: int) -> Iterator[Progress]:
        told.append([])
        yield lambda tensor, written: told[-1].append(written)
        assert sum(told[-1]) == nbytes

    bench.build(progress=counting)
    assert len(told) == 2


def test_damaged_state_is_named(bench: Bench) -> None:
    bench.output.mkdir()
    (bench.output / "build-state.json").write_text("{}")
    with pytest.raises(InputError, match=r"build-state\.json.*delete it"):
        bench.build()


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("verification",), {}),
        (("verification", "verdict", "outcome"), "splendid"),
        (("files",), [{"name": 5}]),
        (("options",), None),
        (("output",), ["model.gguf"]),
    ],
)
def test_state_with_other_facts_than_a_build_writes_is_named(
    keys: tuple[str, ...], value: object, bench: Bench
) -> None:
    bench.build()
    path = bench.output / "build-state.json"
    state = json.loads(path.read_text())
    *outer, last = keys
    place = state["artifacts"]["model.gguf"]["facts"]
    for key in outer:
        place = place[key]
    place[last] = value
    path.write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"not the state of a build.*build-state\.json.*delete it"):
        bench.build()


def test_folder_in_the_place_of_a_file_is_not_up_to_date(bench: Bench) -> None:
    bench.build()
    path = bench.output / "build-state.json"
    state = json.loads(path.read_text())
    made = bench.output / "model.gguf"
    made.unlink()
    made.mkdir()
    for file in state["artifacts"]["model.gguf"]["files"]:
        if file["name"] == "model.gguf":
            file["nbytes"] = made.stat().st_size
    path.write_text(json.dumps(state))
    (first, second) = bench.build().artifacts
    assert "output is a folder" in str(first.error)
    assert second.status == "up to date"


def test_a_check_finds_what_is_missing_or_other(bench: Bench) -> None:
    manifest = bench.build().manifest
    assert check_manifest(manifest).passed
    (bench.output / "original" / "model.safetensors").unlink()
    with (bench.output / "model.gguf").open("r+b") as file:
        file.write(b"X")
    (bench.output / "original" / "config.json").write_text("{}")
    check = check_manifest(manifest, jobs=2)
    assert not check.passed
    assert {file.name: file.state for file in check.files if file.state is not FileState.SAME} == {
        "model.gguf": FileState.OTHER_CONTENTS,
        "original/model.safetensors": FileState.MISSING,
        "original/config.json": FileState.OTHER_SIZE,
    }


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b/c", "a\\b", "", "..", "link"])
def test_a_check_reads_nothing_outside_of_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "dist"
    folder.mkdir()
    (tmp_path / "secret").write_text("")
    (folder / "link").symlink_to(tmp_path / "secret")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    document = {
        "kind": "build", "manifest_version": 1, "tool": {"name": "gptoss-convert"},
        "artifacts": [{"name": "a", "files": [{"name": name, "nbytes": 0, "sha256": empty}]}],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(document))
    assert [file.state for file in check_manifest(folder).files] == [FileState.OUTSIDE]


def test_the_manifest_of_a_single_conversion_can_be_checked(tmp_path: Path) -> None:
    gc.convert(TINY, tmp_path / "model.gguf", "gguf", manifest=True)
    assert check_manifest(tmp_path / "model.gguf.manifest.json").passed


def test_a_report_tells_of_all_artifacts_whenever_they_were_made(bench: Bench) -> None:
    bench.recipe.write_text(RECIPE + BROKEN)
    made, again = bench.build(), bench.build()
    for result in (made, again):
        jsonschema.validate(result.document, SCHEMA)
        assert set(render_report(result.document)) == {"report.json", "report.md", "report.xml", "report.html"}
    verdicts = [(Path(item["path"]).name, item["verdict"]["outcome"]) for item in again.document["artifacts"]]
    assert verdicts == [("model.gguf", "pass"), ("original", "pass"), ("impossible.gguf", "fail")]
    different = {"conditions"}
    assert {k: v for k, v in made.document.items() if k not in different} == {
        k: v for k, v in again.document.items() if k not in different
    }


def test_devices_are_judged_by_the_footprint_of_each_artifact(bench: Bench) -> None:
    bench.recipe.write_text('footprint = {devices = ["laptop-16gb", "10MB"], context = 512}\n' + RECIPE)
    manifest = json.loads(bench.build().manifest.read_text())
    fits = [(item["device"], item["verdict"], item["context"]) for item in manifest["artifacts"][0]["footprint"]]
    assert [(device, context) for device, _, context in fits] == [("laptop-16gb", 512), ("10MB", 512)]
    assert fits[0][1] != fits[1][1]
    assert manifest["artifacts"][1]["footprint"] == []  # nothing but OpenAI's own code loads this layout


def test_the_matrix_has_a_job_per_artifact(finished: Bench) -> None:
    jobs = build_matrix(read_recipe(finished.recipe))["include"]
    assert [(job["name"], job["to"], job["output"]) for job in jobs] == [
        ("model.gguf", "gguf", "model.gguf"),
        ("original", "mxfp4", "original"),
    ]
    source = sum(file.stat().st_size for file in finished.source.glob("*.safetensors"))
    for job in jobs:
        path = finished.output / job["output"]
        written = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())
        assert job["disk"] == pytest.approx(source + written, rel=0.02)
