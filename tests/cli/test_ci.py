"""What CI systems run: the steps of the action, the workflow, annotations."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.annotations import github_annotation
from tests.cli.command import environment, run_here
from tests.support.conversions import TINY

ROOT = Path(__file__).resolve().parents[2]
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
BROKEN = '[[artifacts]]\nto = "gguf"\noutput = "no.gguf"\noptions.dense = "nonsense"\n'
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
WORKFLOW = yaml.safe_load((ROOT / "examples" / "workflows" / "release.yml").read_text(encoding="utf-8"))


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A checkout with a recipe, and `gptoss-convert` on the path."""
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "release.toml").write_text(RECIPE)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gptoss-convert"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m gptoss_convert "$@"\n')
    program.chmod(0o755)
    return tmp_path


def run_step(step: dict[str, Any], job: Path, inputs: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a step of the action as the runner does, with `inputs` in place of their defaults."""
    values = {name: str(item.get("default", "")) for name, item in ACTION["inputs"].items()} | inputs
    variables = {"PATH": f"{job / 'bin'}:{os.environ['PATH']}"}
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        variables[name] = str(job / name)
    for name, value in step.get("env", {}).items():
        variables[name] = re.sub(
            r"\$\{\{ (?:inputs\.(\w+)|github\.\w+) }}", lambda found: values.get(found[1], "x"), value
        )
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(command, cwd=job, env=environment(variables), capture_output=True, text=True)


def step_named(name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [item for item in ACTION["runs"]["steps"] if item.get("name") == name]
    (step,) = found
    return step


def test_the_action_builds(job: Path) -> None:
    done = run_step(step_named("Build"), job, {"recipe": "release.toml", "arguments": "--jobs=1\n--bom"})
    assert done.returncode == 0, done.stderr
    assert (job / "GITHUB_OUTPUT").read_text() == "manifest=dist/manifest.json\n"
    assert {path.name for path in (job / "dist").iterdir()} >= {
        "model.gguf", "bf16", "manifest.json", "provenance.json", "bom.json", "report"
    }  # fmt: skip


def test_the_action_adds_the_report_to_the_summary_of_the_job(job: Path) -> None:
    (job / "release.toml").write_text(RECIPE + BROKEN)
    run_step(step_named("Build"), job, {"recipe": "release.toml"})
    assert run_step(step_named("Summary"), job, {}).returncode == 0
    summary = (job / "GITHUB_STEP_SUMMARY").read_text()
    assert "| `" + str(job / "dist" / "model.gguf") + "` | gguf | **PASS** |" in summary
    assert "no.gguf" in summary
    assert "**FAIL**" in summary


def test_the_action_makes_the_artifacts_of_its_job_only(job: Path) -> None:
    done = run_step(step_named("Build"), job, {"recipe": "release.toml", "only": "bf16"})
    assert done.returncode == 0, done.stderr
    assert not (job / "dist" / "model.gguf").exists()


def test_the_action_fails_with_an_annotation(job: Path) -> None:
    (job / "release.toml").write_text(RECIPE + BROKEN)
    done = run_step(step_named("Build"), job, {"recipe": "release.toml"})
    assert done.returncode == 2
    assert "::error file=release.toml,title=no.gguf could not be made::" in done.stderr
    assert (job / "dist" / "model.gguf").exists()


def test_expressions_of_the_action_name_inputs_that_exist() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"inputs\.(\w+)", text))
    assert used == set(ACTION["inputs"])
    # An expression within a script would let an input run commands.
    assert not [step for step in ACTION["runs"]["steps"] if "${{" in step.get("run", "")]


def test_the_action_installs_extras_that_exist() -> None:
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in ACTION["inputs"]["extras"]["default"].split(","):
        assert re.search(rf"^{extra} = \[", metadata, re.MULTILINE)


def test_the_workflow_uses_the_action_as_it_is(job: Path) -> None:
    (use,) = (step for step in WORKFLOW["jobs"]["build"]["steps"] if "gptoss-convert@" in step.get("uses", ""))
    assert set(use["with"]) <= set(ACTION["inputs"])
    (plan,) = (step for step in WORKFLOW["jobs"]["plan"]["steps"] if step.get("id") == "matrix")
    variables = {"PATH": f"{job / 'bin'}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(job / "GITHUB_OUTPUT")}
    subprocess.run(["bash", "-e", "-c", plan["run"]], cwd=job, env=environment(variables), check=True)
    (line,) = (job / "GITHUB_OUTPUT").read_text().splitlines()
    jobs = yaml.safe_load(line.removeprefix("matrix="))["include"]
    assert [item["name"] for item in jobs] == ["model.gguf", "bf16"]


@given(st.text(), st.text(), st.text(min_size=1))
def test_an_annotation_is_one_line_whatever_the_text(message: str, title: str, file: str) -> None:
    line = github_annotation("error", message, title=title, file=file)
    assert not {"\n", "\r"} & set(line)
    properties, separator, data = line.removeprefix("::error ").partition("::")
    assert separator
    unescaped = [
        re.sub("%(25|0D|0A|3A|2C)", lambda found: chr(int(found[1], 16)), text)
        for text in (*(item.partition("=")[2] for item in properties.split(",")), data)
    ]
    assert unescaped == [file, title, message]


def test_annotations_are_printed_when_asked_for(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(job)
    (job / "release.toml").write_text(RECIPE + BROKEN)
    assert "::error" not in run_here("build", "release.toml").stderr
    assert run_here("build", "release.toml", "--annotate", "github").stderr.count("::error ") == 1


@pytest.mark.parametrize("name", ["convert", "verify"])
def test_images_do_not_run_as_root_and_install_extras_that_exist(name: str) -> None:
    lines = (ROOT / "docker" / f"{name}.Dockerfile").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER converter"]
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (extras,) = re.findall(r"gptoss-convert\[([\w,]+)\]", "\n".join(lines))
    assert all(re.search(rf"^{extra} = \[", metadata, re.MULTILINE) for extra in extras.split(","))
