"""Proof, before an output gets its final name, that what was meant is what can be read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import numpy as np

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.checksums import Run, are_written, is_copied, is_copy
from gptoss_convert.converters.journal import Journal, Key
from gptoss_convert.converters.output import Outputs
from gptoss_convert.converters.plan import Plan, PlannedFile
from gptoss_convert.converters.tasks import Task
from gptoss_convert.errors import GptossConvertError, OutputError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.gguf import reader as gguf
from gptoss_convert.formats.scale_sidecar import read_sidecar
from gptoss_convert.parallel import in_order

_HINT = "disk or memory may be faulty; --resume writes what differs anew"


def holds(task: Task, runs: tuple[Run, ...], outputs: Outputs) -> bool:
    """Return whether the rows of a task can be read as they were written, or copied.

    Raises:
        InputError: the source cannot be read.
        OutputError: what was written cannot be read.
    """
    if task.same_bytes is not None:
        return is_copied(task.same_bytes, task.start, task.stop, outputs.read_into)
    return are_written(runs, outputs.read_into)


def recheck(
    plan: Plan, tasks: Iterable[tuple[Key, Task]], outputs: Outputs, journal: Journal, executor: Executor, jobs: int
) -> None:
    """Open what was written with the reader that checks it, and hold its bytes against what was meant.

    Rows that were converted are read once and held against the checksums of the journal. Rows and files that were
    copied are read together with their source. Nothing is decoded.

    Raises:
        InputError: the source cannot be read.
        OutputError: something differs; it says which tensor.
    """
    _reopen(plan, outputs)
    for file in plan.files:
        if not _is_right(file, outputs):
            raise _differs(file.path)
    journal.read_again()
    pieces = ((task, _runs(journal, key)) for key, task in tasks)
    for (task, _), right in in_order(executor, jobs, partial(_check, outputs), pieces):
        if not right:
            raise _differs(task.transfer.target.file, task.transfer.target.name)


def _check(outputs: Outputs, piece: tuple[Task, tuple[Run, ...]]) -> bool:
    return holds(*piece, outputs)


def _runs(journal: Journal, key: Key) -> tuple[Run, ...]:
    record = journal.find(key)
    assert record is not None  # every task that ended well has a line
    return record.runs


def _is_right(file: PlannedFile, outputs: Outputs) -> bool:
    """Return whether a file begins as it should, or is the copy that it should be."""
    if file.copied is not None:
        return is_copy(file.copied, 0, file.path, 0, file.nbytes, outputs.read_into)
    found = np.empty(len(file.header), np.uint8)
    outputs.read_into(file.path, found, 0)
    return found.tobytes() == file.header


def _reopen(plan: Plan, outputs: Outputs) -> None:
    """Read all headers under their partial names, and compare the tensors with the plan."""
    try:
        found = _opened(plan, outputs)
        found.require_sound()
        if plan.scale_sidecar is not None and outputs.temporary(plan.scale_sidecar).exists():
            shapes = {transfer.source.name: transfer.source.shape for transfer in plan.transfers}
            read_sidecar(outputs.temporary(plan.scale_sidecar), shapes)
    except GptossConvertError as error:
        raise OutputError(f"what was written cannot be read: {error}", file=plan.output, hint=_HINT) from error
    numbers: dict[str, int] = {}  # halves of a tensor are two transfers
    for transfer in plan.transfers:
        name = transfer.target.name
        numbers[name] = numbers.get(name, 0) + math.prod(transfer.target.shape)
    for transfer in plan.transfers:
        name = transfer.target.name
        tensor = found.tensors.get(name)
        if tensor is None or math.prod(tensor.shape) != numbers[name]:
            raise _differs(transfer.target.file, name)


def _opened(plan: Plan, outputs: Outputs) -> Checkpoint:
    if plan.folder is not None:
        return open_checkpoint(outputs.temporary(plan.files[0].path).parent)
    known = {file.path for file in plan.files}

    def place(path: Path) -> Path:
        return outputs.temporary(path) if path in known else path

    return gguf.read(plan.files[0].path, place=place)


def _differs(path: Path, tensor: str | None = None) -> OutputError:
    return OutputError("what was written reads back differently", file=path, tensor=tensor, hint=_HINT)
