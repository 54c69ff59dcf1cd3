"""Style and types, checked by the tools whose settings are in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def check(*command: str | Path, **variables: str) -> None:
    """Run a tool in the repository; what it prints is shown if it finds something."""
    environment = os.environ | variables
    done = subprocess.run(
        [sys.executable, "-P", "-m", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_style() -> None:
    check("ruff", "check", "--no-cache", ".")


def test_format() -> None:
    check("ruff", "format", "--no-cache", "--check", ".")


@pytest.fixture(scope="module")
def by_its_name(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the package is found under its name; the repository may be called anything."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "gptoss_convert").symlink_to(ROOT, target_is_directory=True)
    return folder


def test_types(by_its_name: Path) -> None:
    check("mypy", "-p", "gptoss_convert", "--exclude", "/(tests|benchmarks)/", MYPYPATH=str(by_its_name))


def test_types_of_what_tests_are_built_on(by_its_name: Path) -> None:
    packages = ("tests.support", "tests.peers", "tests.cli", "tests.faults")
    check("mypy", *(option for package in packages for option in ("-p", package)), MYPYPATH=str(by_its_name))


def test_types_of_examples(by_its_name: Path) -> None:
    check("mypy", *sorted((ROOT / "examples").glob("*.py")), MYPYPATH=str(by_its_name))
