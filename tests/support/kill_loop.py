"""Conversions that are killed at random moments and resumed, until they are done; then their bytes are compared."""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_convert.cli import run
from gptoss_convert.converters import execute, tasks
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.tokenizers import write_small_tokenizer

SHAPE = Shape(layers=2, hidden=128, intermediate=160, experts=4, experts_per_token=2)
JOBS = 2
LIMITS = ("--jobs", str(JOBS), "--max-memory", "512KiB")
"""Pieces that are as small as they can be."""
SECONDS_PER_TASK = 0.0005
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
INTERRUPTED = 130
FROM_THE_START = 0.3
"""Share of signals that may come before the first task, or while a resumed run looks at what is there."""
OLD = b"an older model"
HALF_WAY = "some written"

CONVERSIONS: dict[str, tuple[str, ...]] = {
    "to-gguf": ("mxfp4", "to-gguf", "out.gguf"),
    "to-gguf --dense q8_0": ("mxfp4", "to-gguf", "out.gguf", "--dense", "q8_0"),
    "to-gguf --split-max-size": ("mxfp4", "to-gguf", "out.gguf", "--split-max-size", "200k"),
    "to-gguf --manifest": ("bf16", "to-gguf", "out.gguf", "--manifest"),
    "to-bf16 --manifest": ("mxfp4", "to-bf16", "out", "--manifest"),
    "to-mxfp4 --manifest": ("bf16", "to-mxfp4", "out", "--manifest", "--rule", "floor"),
    "to-mxfp4 --layout openai": ("mxfp4", "to-mxfp4", "out", "--layout", "openai"),
}
"""Source, command, name of the output, and options."""


@dataclass
class Outcome:
    """What many rounds came to."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    """By signal; of processes that were still running."""
    moments: Counter[str] = field(default_factory=Counter)
    """What was there after a kill."""
    most_redone: int = 0
    """Tasks that a killed process had written and the next one did again."""
    faults: list[str] = field(default_factory=list)
    """What must not happen."""

    def lines(self) -> list[str]:
        """Return the figures as lines of text."""
        counts = ", ".join(f"{number} {name}" for name, number in sorted(self.kills.items()))
        moments = ", ".join(f"{number} {name}" for name, number in sorted(self.moments.items()))
        return [
            f"{self.rounds} rounds, kills: {counts}",
            f"killed with {moments}",
            f"finished tasks that were done again: at most {self.most_redone}, with {JOBS} jobs",
            f"faults: {len(self.faults)}",
            *self.faults,
        ]


class KillLoop:
    """Small models in a folder, and what an undisturbed run makes of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._log = folder / "log"
        for kind in ("mxfp4", "bf16"):
            write_small_tokenizer(folder / kind)
            write_huggingface(folder / kind, SHAPE, experts=kind)
        # All modules are imported before this process is copied.
        for name in CONVERSIONS:
            with _emptied(folder / "imported"):
                assert run(self._arguments(name, folder / "imported")) == 0
        self._expected: dict[str, dict[str, bytes]] = {}
        self._seconds: dict[str, float] = {}

    def run(self, rounds: int, *, kills: int = 0) -> Outcome:
        """Do `rounds` rounds, each with one of the conversions, and more until so many were killed half way.

        How many signals meet a process in the middle of its work depends on what else the machine does.
        """
        outcome = Outcome()
        names = list(CONVERSIONS)
        while outcome.rounds < rounds or outcome.moments[HALF_WAY] < kills:
            self._round(names[outcome.rounds % len(names)], outcome)
        return outcome

    def _round(self, name: str, outcome: Outcome) -> None:
        expected = self._undisturbed(name)
        folder = self._folder / "round"
        with _emptied(folder):
            arguments = self._arguments(name, folder)
            if self._random.random() < 0.5 and not (folder / "out").is_dir():
                (folder / "out.gguf").write_bytes(OLD)
            outcome.rounds += 1
            for attempt in range(6):
                delay = None if attempt == 5 else self._random.uniform(0, self._seconds[name])
                how = self._random.choice(SIGNALS)
                words = arguments if attempt == 0 else [*arguments, "--resume"]
                at_once = self._random.random() < FROM_THE_START
                done = _killed(words, delay, how, self._log, at_once=at_once)
                if done.code == 0:
                    break
                if done.code not in (-how, INTERRUPTED):  # -SIGTERM: it had not even begun to heed signals
                    outcome.faults.append(
                        f"{name}: exit code {done.code}: {self._log.with_suffix('.err').read_text()}"
                    )
                    return
                outcome.kills[how.name] += 1
                self._look(name, folder, expected, outcome, done)
            found = _contents(folder)
            for path in found.keys() | expected.keys():
                if found.get(path) != expected.get(path) and not (found.get(path) == OLD and path not in expected):
                    outcome.faults.append(f"{name}: {path} differs or is left over")

    def _look(self, name: str, folder: Path, expected: dict[str, bytes], outcome: Outcome, done: "_Done") -> None:
        """Look at what a kill has left."""
        names = os.listdir(folder)  # noqa: PTH208
        journals = [entry for entry in names if entry.endswith(".partial.journal")]
        partial = [entry for entry in names if entry.endswith(".partial")]
        lines = (folder / journals[0]).read_bytes().splitlines() if journals else []
        recorded = sum(b'"rows"' in line for line in lines)
        outcome.most_redone = max(outcome.most_redone, done.tasks + self._before - recorded if journals else 0)
        self._before = recorded
        moment = "nothing written" if not partial else HALF_WAY if recorded else "nothing finished"
        if any(b'"publishing"' in line for line in lines):
            moment = "all written"
        outcome.moments[moment] += 1
        for path, content in _contents(folder).items():
            finished = path in expected or path == "out.gguf"
            if finished and content not in (expected.get(path), OLD):
                outcome.faults.append(f"{name}: {path} was there and not complete")

    _before = 0

    def _undisturbed(self, name: str) -> dict[str, bytes]:
        if name not in self._expected:
            folder = self._folder / "undisturbed"
            with _emptied(folder):
                done = _killed(self._arguments(name, folder), None, signal.SIGKILL, self._log)
                self._seconds[name] = done.seconds
                assert done.code == 0
                self._expected[name] = _contents(folder)
        self._before = 0
        return self._expected[name]

    def _arguments(self, name: str, folder: Path) -> list[str]:
        source, command, output, *options = CONVERSIONS[name]
        return [
            command, str(self._folder / source), "-o", str(folder / output), "-q", "--force", *LIMITS, *options
        ]  # fmt: skip


@dataclass(frozen=True)
class _Done:
    code: int
    tasks: int
    """That it finished."""
    seconds: float
    """From the first finished task to the end."""


def _killed(
    arguments: Sequence[str], delay: float | None, how: signal.Signals, log: Path, *, at_once: bool = False
) -> _Done:
    """Run a command in a copy of this process, and send it a signal.

    Args:
        arguments: of the command.
        delay: seconds from the first finished task to the signal; None to send none.
        how: the signal.
        log: gets a byte for every finished task; standard error goes to a file beside it.
        at_once: count the seconds from the start of the process.
    """
    log.write_bytes(b"")
    # A signal that comes while the copy is made ready to run is for the command, too: it waits until then.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child == 0:
        code = 70
        try:
            _count_tasks(log)
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.dup2(os.open(log.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stderr = sys.__stderr__
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            code = run(list(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    begun = time.monotonic() if at_once else None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic()
        if begun is None and log.stat().st_size:
            begun = now
        if ended:
            break
        if delay is not None and begun is not None and now >= begun + delay:
            os.kill(child, how)
            delay = None
        time.sleep(0.0005)
    return _Done(os.waitstatus_to_exitcode(status), log.stat().st_size, now - (begun or now))


def _count_tasks(log: Path) -> None:
    """Write a byte to `log` whenever a task has written all it has to, and make tasks a little slower."""
    run_task = tasks.run_task
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)

    def counted(*arguments: Any) -> Any:
        time.sleep(SECONDS_PER_TASK)
        result = run_task(*arguments)
        os.write(descriptor, b".")
        return result

    execute.__dict__["run_task"] = counted


@contextlib.contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """Have an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield
    shutil.rmtree(folder)


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".partial" not in path.name and ".partial" not in str(path.relative_to(folder).parent)
    }
