"""Runs the command line, in this process or in one of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from gptoss_convert.cli import run

PROGRAM = (sys.executable, "-P", "-m", "gptoss_convert")
"""Without `-P` the current folder, which might be the repository, would go before the installed packages."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    exit_code: int
    stdout: str
    stderr: str


def run_here(*arguments: str | Path) -> Outcome:
    """Run a command in this process, which saves the start of another one."""
    with redirect_stdout(StringIO()) as stdout, redirect_stderr(StringIO()) as stderr:
        exit_code = run([str(argument) for argument in arguments])
    return Outcome(exit_code, stdout.getvalue(), stderr.getvalue())


def run_process(*arguments: str | Path, program: tuple[str, ...] = PROGRAM, **options: Any) -> Outcome:
    """Run a command in a process of its own; `options` are those of `subprocess.run`."""
    defaults: dict[str, Any] = {"env": environment(), "stdin": subprocess.DEVNULL, "timeout": 60}
    command = [*program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", **(defaults | options))
    return Outcome(done.returncode, done.stdout, done.stderr)


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without the variables that change what a command prints."""
    hidden = {"CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "PYTHONPATH", "PYTHONIOENCODING"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and not name.startswith("GPTOSS_CONVERT_")
    }
    return kept | dict(changes or {})
