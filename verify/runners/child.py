"""The process in which a runtime runs: `python -m gptoss_convert.verify.runners.child FOLDER`.

It reads `request.json` in the folder, records there what the runtime computes, and says in `result.json` how it
went. Its standard input is a pipe that its parent never writes to: when that ends, the parent is gone, and so is
this process.
"""

from __future__ import annotations

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

from gptoss_convert.errors import BudgetError, GptossConvertError
from gptoss_convert.verify.recording import RecordingWriter
from gptoss_convert.verify.runners.memory import PeakMemory, PeakMeter, available_memory
from gptoss_convert.verify.runners.protocol import KnowsItsMemory, KnowsItsProvider, Runner, Settings

REQUEST = "request.json"
RESULT = "result.json"


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
    memory: PeakMemory | None = None
    error: str | None = None
    """Why there is no recording: one line."""
    is_too_large: bool = False
    """Whether that is for lack of memory."""


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
            result.is_too_large = isinstance(error, BudgetError)
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
        result.run_seconds = time.perf_counter() - begin


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
