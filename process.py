"""How the command behaves as a process: exit codes, signals, standard output."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

CHECK_FAILED = 1
OUTPUT_FAILED = 5
OVER_BUDGET = 6
INTERNAL_ERROR = 70
INTERRUPTED = 130
PROGRAM = "gptoss-convert"


class Arguments(tuple[str, ...]):
    """The command line as it was given, without the program's name."""

    def command(self, *more: str) -> str:
        """Return a command for the user's shell that has `more` arguments, unless it has them already."""
        words = [PROGRAM, *self, *(word for word in more if word not in self)]
        return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def run_command(command: click.Command, arguments: Sequence[str]) -> int:
    """Run a command line with `arguments` and return its exit code."""
    try:
        with _stopping_on_signals():
            _prepare_standard_output()
            return _run(command, arguments)
    except KeyboardInterrupt:  # before the command began, after it ended, or once more while it was stopped
        return _interrupted()
    except (OSError, OutputStreamError) as error:
        return _give_up_standard_output(error.__cause__ or error)


def _run(command: click.Command, arguments: Sequence[str]) -> int:
    try:
        command.main(args=list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=Arguments(arguments))
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _interrupted()
    except (click.exceptions.Exit, SystemExit) as leave:
        code = leave.exit_code if isinstance(leave, click.exceptions.Exit) else leave.code
        return code if isinstance(code, int) else INTERNAL_ERROR
    return 0


class OutputStreamError(Exception):
    """Standard output cannot be written; not an `OSError`, which click would take for its own."""


def _prepare_standard_output() -> None:
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - takes the place of the closed stream
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console may not know every character


def _give_up_standard_output(error: BaseException) -> int:
    """Return the exit code for a standard output that failed, and keep the interpreter from failing at it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # whoever read it has seen enough
        return 0
    print(f"error: cannot write to standard output: {error}", file=sys.stderr)
    return OUTPUT_FAILED


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return INTERRUPTED


@contextmanager
def _stopping_on_signals() -> Iterator[None]:
    """Let a polite end of the process remove unfinished files, as Ctrl-C does, until the command has ended."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGHUP"):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    before[number] = signal.getsignal(number) or signal.SIG_DFL
                    signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
