"""A runner that behaves as the name of the artifact says."""

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gptoss_convert.errors import InputError
from gptoss_convert.verify.runners.protocol import Scores, Settings

COLUMNS = 4
ALLOCATED = 300 << 20
"""Bytes that `allocate` takes for a quarter of a second."""
NEEDED = 1 << 50
"""Bytes that `large` says it needs."""


class Session:
    def __init__(self, artifact: Path) -> None:
        self._artifact = artifact

    def run(self, prompts: Sequence[Sequence[int]]) -> Iterator[Scores]:
        print("a line of the log", file=sys.stderr, flush=True)
        for prompt, ids in enumerate(prompts):
            if prompt == 1:
                self._act()
            logprobs = np.log(np.full((len(ids), COLUMNS), 1 / COLUMNS, np.float32))
            yield Scores(prompt=prompt, start=0, logprobs=logprobs)

    def _act(self) -> None:
        match self._artifact.name:
            case "abort":
                os.kill(os.getpid(), signal.SIGABRT)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "leave":
                os._exit(3)
            case "raise":
                raise RuntimeError("this runtime is broken")
            case "refuse":
                raise InputError("this runtime does not like it", file=self._artifact)
            case "fill":
                raise OSError(errno.ENOSPC, "No space left on device")
            case "misread":
                raise OSError(errno.EIO, "Input/output error")
            case "exhaust":
                raise MemoryError
            case "miss":
                raise ImportError("a library of the runtime is of another version")
            case "allocate":
                block = np.ones(ALLOCATED, np.uint8)
                time.sleep(0.25)
                del block
            case "wait":
                self._write_pid()
                time.sleep(600)
            case "freeze":
                self._write_pid()
                os.kill(os.getpid(), signal.SIGSTOP)

    def _write_pid(self) -> None:
        self._artifact.with_name("pid").write_text(str(os.getpid()))


class PlainRunner:
    """Does not know how much memory it needs."""

    def versions(self) -> Mapping[str, str]:
        return {"scripted": "1.0"}

    @contextmanager
    def open(self, artifact: Path, settings: Settings) -> Iterator[Session]:
        yield Session(artifact)
        if artifact.name == "stumble":
            os.kill(os.getpid(), signal.SIGSEGV)


class Runner(PlainRunner):
    def memory_needed(self, artifact: Path, settings: Settings) -> int:
        return NEEDED if artifact.name == "large" else 0


RUNNER = Runner()
