"""Runs a runtime on a model in a process of its own: its crash is a result, and its memory is its own."""

from __future__ import annotations

import enum
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from gptoss_convert.errors import printable
from gptoss_convert.verify.recording import FACTS, Recording
from gptoss_convert.verify.runners import Runtime
from gptoss_convert.verify.runners.child import REQUEST, RESULT, Failure, Request, Result
from gptoss_convert.verify.runners.memory import PeakMemory
from gptoss_convert.verify.runners.protocol import Settings

LOG = "log.txt"
LOG_TAIL_BYTES = 8000
LONGEST_LOG_LINE = 300
"""Characters of a log line in a reason."""

_CHILD = "gptoss_convert.verify.runners.child"
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "TQDM_DISABLE": "1"}
"""Nothing is fetched; logs hold no progress bars."""


class Status(enum.StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    MISSING = "missing"
    """The runtime is not installed, or cannot be loaded."""
    TOO_LARGE = "too large"
    """The model needs more memory than is available, or what it says more room on the disk."""
    REFUSED = "refused"
    """The runtime or this project said why it does not run the model."""
    CRASHED = "crashed"
    KILLED = "killed"
    """From outside, as the system does when memory runs out."""
    TIMED_OUT = "timed out"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of running a model."""

    runtime: str
    artifact: Path
    settings: Settings
    folder: Path
    """With the log, and the recording if the run was completed."""
    status: Status
    reason: str | None = None
    """Why it was not completed: one line."""
    log_tail: str = ""
    """End of what the runtime printed."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the programs that compute, by name, as far as they became known."""
    provider: str | None = None
    """Execution provider that computed; None for runtimes that have none, or if it was not loaded."""
    load_seconds: float | None = None
    run_seconds: float | None = None
    prefill_positions: int | None = None
    """Positions that were computed together with others; None if it was not completed."""
    decode_positions: int | None = None
    """Positions that were computed one by one, on the KV cache of those before."""
    memory: PeakMemory | None = None
    """Peak of the process; None if it did not live to tell."""

    def recording(self) -> Recording:
        """Open the recording.

        Raises:
            InputError: it is damaged, or there is none.
        """
        return Recording(self.folder)


def run_in_child(
    runtime: Runtime,
    artifact: Path,
    prompts: Sequence[Sequence[int]],
    folder: Path,
    settings: Settings,
    timeout: float | None = None,
) -> Run:
    """Run `artifact` on `prompts` in a child process, which never outlives this call or this process.

    Args:
        runtime: what runs it.
        artifact: the model.
        prompts: token ids; none of the prompts is empty.
        folder: where the recording and the log go; created if missing, and what an earlier run left is replaced.
        settings: how to run.
        timeout: seconds after which the child is ended; None for no limit.

    Raises:
        ValueError: a prompt is empty.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt without token ids cannot be run")
    outline = Run(runtime=runtime.name, artifact=artifact, settings=settings, folder=folder, status=Status.MISSING)
    if not runtime.is_installed:
        reason = f"{runtime.name} is not installed; install it with: {runtime.install}"
        return replace(outline, reason=reason)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RESULT, FACTS):
        (folder / name).unlink(missing_ok=True)
    request = Request(
        module=runtime.module,
        artifact=str(artifact.absolute()),
        prompts=[[int(token) for token in prompt] for prompt in prompts],
        settings=settings,
    )
    (folder / REQUEST).write_bytes(msgspec.json.encode(request))
    code = end_of_child(_CHILD, folder, timeout)
    outline = replace(outline, log_tail=log_tail(folder / LOG))
    if not (folder / RESULT).is_file():
        if code is None:
            return replace(outline, status=Status.TIMED_OUT, reason=f"not finished after {timeout:g} seconds")
        status = Status.KILLED if code == -getattr(signal, "SIGKILL", 0) else Status.CRASHED
        return replace(outline, status=status, reason=reason_of_end(code, outline.log_tail))
    result = msgspec.json.decode((folder / RESULT).read_bytes(), type=Result)
    return replace(
        outline,
        status=_status(result),
        reason=result.error,
        versions=result.versions,
        provider=result.provider,
        load_seconds=result.load_seconds,
        run_seconds=result.run_seconds,
        prefill_positions=result.prefill_positions,
        decode_positions=result.decode_positions,
        memory=result.memory,
    )


def end_of_child(
    module: str, folder: Path, timeout: float | None, environment: Mapping[str, str] | None = None
) -> int | None:
    """Run a module with `folder` as its argument to its end and return its exit code; None if it took too long.

    What it prints goes to `LOG` in the folder. Its standard input is a pipe that ends when this process does.
    """
    command = [sys.executable, "-P", "-m", module, str(folder.absolute())]
    variables = os.environ | _ENVIRONMENT | dict(environment or {})
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=variables)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:  # also on Ctrl-C
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


_STATUSES = {
    Failure.REFUSED: Status.REFUSED,
    Failure.TOO_LARGE: Status.TOO_LARGE,
    Failure.MISSING: Status.MISSING,
}


def _status(result: Result) -> Status:
    if result.error is None:
        return Status.COMPLETED
    return _STATUSES[result.failure]


def reason_of_end(code: int, log_tail: str) -> str:
    """Return how a process without a result ended, and the last that it said."""
    lines = [line.strip() for line in log_tail.splitlines() if line.strip()]
    last = printable(lines[-1])[:LONGEST_LOG_LINE] if lines else None
    return _ending(code) + (f"; last line of its log: {last}" if last else "; it left no log")


def _ending(code: int) -> str:
    if code == -getattr(signal, "SIGKILL", 0):
        return "ended by signal SIGKILL, as the system does when memory runs out"
    if code < 0:
        known = {number.value: number.name for number in signal.Signals}
        return f"ended by signal {known.get(-code, -code)}"
    # Windows ends a process that breaks the rules with a status of ntstatus.h.
    return f"ended with exit code {code if code < 0xC0000000 else f'0x{code:08X}'}"


def log_tail(path: Path) -> str:
    """Return the end of a log."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - LOG_TAIL_BYTES, 0))
        return stream.read().decode(errors="replace")
