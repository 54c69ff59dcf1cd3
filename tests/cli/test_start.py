"""Help, version and start-up: what a command shows before it does anything."""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gptoss_convert
from gptoss_convert import errors
from gptoss_convert.cli import COMMANDS, load_command
from tests.cli.command import PROGRAM, Outcome, environment, run_process

HELP = [["--help"], *([command, "--help"] for command in COMMANDS)]
HEAVY = {"numpy", "gguf", "rich", "msgspec", "torch", "transformers", "yaml"}
SECONDS_TO_HELP = 0.25
"""Of processor time; the only time that a test asserts."""


def seconds_used(arguments: list[str]) -> float:
    """Return the processor time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*PROGRAM, *arguments], env=environment(), stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_appears_at_once(arguments: list[str]) -> None:
    assert min(seconds_used(arguments) for _ in range(3)) < SECONDS_TO_HELP


@pytest.mark.parametrize("arguments", [*HELP, ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import json, sys; from gptoss_convert.cli import run; "
        f"code = run({arguments!r}); print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"
    )
    exit_code, modules = json.loads(run_process(program=(sys.executable, "-P", "-c", code)).stderr)
    assert exit_code == 0
    assert HEAVY & {name.partition(".")[0] for name in modules} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_describes_every_option(command: str) -> None:
    outcome = run_process(command, "-h")
    options = [param for param in load_command(command).params if param.param_type_name == "option"]
    assert outcome.exit_code == 0
    assert [option.opts for option in options if option.opts[-1] not in outcome.stdout] == []
    assert [option.opts for option in options if not getattr(option, "help", None)] == []


def test_help_documents_every_exit_code() -> None:
    raised = {error.exit_code for error in subclasses(errors.GptossConvertError)}
    assert documented_exit_codes() == {0, 70, 130} | raised


def documented_exit_codes() -> set[int]:
    text = run_process("--help").stdout.partition("Exit codes:")[2]
    return {int(code) for code in re.findall(r"\b(\d+) [a-z]", text)}


def test_manual_documents_the_same_exit_codes() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    in_manual = {int(code) for code in re.findall(r"^\| (\d+) \|", manual, re.MULTILINE)}
    assert in_manual == documented_exit_codes()


def subclasses(root: type[errors.GptossConvertError]) -> Iterator[type[errors.GptossConvertError]]:
    yield root
    for child in root.__subclasses__():
        yield from subclasses(child)


def test_version() -> None:
    assert run_process("--version") == Outcome(0, f"gptoss-convert, version {gptoss_convert.__version__}\n", "")


def test_public_names_are_imported_when_they_are_used() -> None:
    code = (
        "import sys, gptoss_convert as gc; before = 'numpy' in sys.modules; "
        "listed = lambda: [getattr(gc, name).__name__.removeprefix('gptoss_convert.') for name in gc.__all__]; "
        # A module that was imported meanwhile must not have taken the place of a name, unless it does the same.
        "names, again = listed(), listed(); "
        "print(before, names == again == gc.__all__, all(callable(getattr(gc, name)) for name in gc.__all__))"
    )
    assert run_process(program=(sys.executable, "-P", "-c", code)) == Outcome(0, "False True True\n", "")


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gptoss_convert.nothing  # noqa: B018
