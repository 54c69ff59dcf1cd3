"""The process in which a runtime runs: `python -m gptoss_convert.verify.runners.child FOLDER`.

It reads `request.json` in the folder, records there what the runtime computes, and says in `result.json` how it
went. Its standard input is a pipe that its parent never writes to: when that ends, the parent is gone, and so is
this process.
"""

from __future__ import annotations

import enum
import errno
import os
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import cast

import msgspec

from gptoss_convert.errors import BudgetError, GptossConvertError, printable
from gptoss_convert.verify.recording import RecordingWriter
from gptoss_convert.verify.runners.memory import PeakMemory, PeakMeter, available_memory
from gptoss_convert.verify.runners.protocol import KnowsItsMemory, KnowsItsProvider, Runner, Settings

REQUEST = "request.json"
RESULT = "result.json"
LONGEST_ERROR = 300
"""Characters of an error that is not one of this project's."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM)


class Failure(enum.StrEnum):
    """Why a run was given up."""

    REFUSED = "refused"
    """The runtime or this project does not run the model."""
    TOO_LARGE = "too large"
    """Memory or disk do not suffice."""
    MISSING = "missing"
    """The runtime is there, and cannot be loaded."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the child is to do."""

    module: str
    """Module with `RUNNER`."""
    artifact: str
    prompts: list[list[int]]
    settings: Settings


@dataclass(kw_only=True)
class Result:
    """How it went, as far as it came."""

    versions: dict[str, str] = field(default_factory=dict)
    provider: str | None = None
    """Execution provider that computes; None for runtimes that have none."""
    load_seconds: float | None = None
    run_seconds: float | None = None
    prefill_positions: int | None = None
    """Positions that were computed together with others; None if the run was not completed."""
    decode_positions: int | None = None
    """Positions that were computed one by one, on the KV cache of those before."""
    memory: PeakMemory | None = None
    error: str | None = None
    """Why there is no recording: one line."""
    failure: Failure = Failure.REFUSED
    """What kind of reason that is."""


def main() -> None:
    """Do what the folder named on the command line asks for."""
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    folder = Path(sys.argv[1])
    request = msgspec.json.decode((folder / REQUEST).read_bytes(), type=Request)
    result = Result()
    with PeakMeter() as meter:
        try:
            _record(request, folder, result)
        except GptossConvertError as error:
            traceback.print_exc()
            result.error = str(error)
            result.failure = Failure.TOO_LARGE if isinstance(error, BudgetError) else Failure.REFUSED
        except (ImportError, MemoryError, OSError) as error:
            failure = _failure_of_machine(error)
            if failure is None:
                raise
            traceback.print_exc()
            result.error = printable(f"{type(error).__name__}: {error}")[:LONGEST_ERROR]
            result.failure = failure
        result.memory = meter.peak()
    # Its name appears when it is whole: this process may be killed at any time.
    (folder / f"{RESULT}.part").write_bytes(msgspec.json.encode(result))
    (folder / f"{RESULT}.part").replace(folder / RESULT)


def _record(request: Request, folder: Path, result: Result) -> None:
    artifact = Path(request.artifact)
    runner = cast(Runner, import_module(request.module).RUNNER)
    result.versions = dict(runner.versions())
    _require_memory(runner, artifact, request.settings)
    begin = time.perf_counter()
    with (
        runner.open(artifact, request.settings) as session,
        RecordingWriter(folder, [len(prompt) for prompt in request.prompts]) as writer,
    ):
        result.load_seconds = time.perf_counter() - begin
        if isinstance(session, KnowsItsProvider):
            result.provider = session.provider
        begin = time.perf_counter()
        for scores in session.run(request.prompts):
            writer.add(scores)
        writer.finish()
        result.prefill_positions, result.decode_positions = writer.prefilled, writer.decoded
        result.run_seconds = time.perf_counter() - begin


def _failure_of_machine(error: Exception) -> Failure | None:
    """Return the kind of an error that says nothing about the model; None if it may be the model's."""
    if isinstance(error, ImportError):
        return Failure.MISSING
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _NO_ROOM):
        return Failure.TOO_LARGE
    return None


def _require_memory(runner: Runner, artifact: Path, settings: Settings) -> None:
    if not isinstance(runner, KnowsItsMemory):
        return
    needed, available = runner.memory_needed(artifact, settings), available_memory()
    if needed > available:
        raise BudgetError(
            "too large for the memory that is available",
            file=artifact,
            found=f"{available / 1e9:.1f} GB",
            expected=f"{needed / 1e9:.1f} GB",
            hint="end other programs, choose a runtime or a type that takes less, or use a larger machine",
        )


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock this thread would hold when the interpreter ends.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
