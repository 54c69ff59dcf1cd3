"""Tasks: a plan cut into pieces of bounded memory, and how one of them is done."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.canonical_hash import SEGMENT_ROWS, rows_per_matrix, segment_digests
from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.plan import Plan, Transfer
from gptoss_convert.converters.recoding import NOTHING_FOUND, Findings
from gptoss_convert.encodings import Chunk
from gptoss_convert.encodings.mxfp4_format import NOT_NAMED
from gptoss_convert.encodings.transpose import transpose_into
from gptoss_convert.errors import BudgetError
from gptoss_convert.formats.storage import FileCopier, SameBytes

STEP_BYTES = 2 << 20
"""Working memory per step; larger steps fall out of the cache without saving system calls."""
COPY_BYTES = 16 << 20
"""Bytes of a task that copies, for which it needs no memory."""
DEFAULT_MEMORY = 192 << 20
LEAST_MEMORY_PER_JOB = 256 << 10


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a run may use."""

    jobs: int = min(os.cpu_count() or 1, 4)
    """Pieces that are worked on at the same time; by default as many as cores, up to 4."""
    memory: int = DEFAULT_MEMORY
    """Bytes for data in flight. The program itself and the tokenizer come on top."""

    @property
    def memory_per_job(self) -> int:
        """Bytes for one piece."""
        return self.memory // self.jobs


@dataclass(frozen=True)
class Task:
    """Rows `start` to `stop` of a tensor, which are read at once and converted `step` rows at a time, or copied.

    Tasks are independent of each other and can be sent to another process.
    """

    transfer: Transfer
    start: int
    stop: int
    step: int
    same_bytes: SameBytes | None = None
    """Where the rows lie, if they are to be copied; None if they are converted."""

    @property
    def nbytes(self) -> int:
        """Bytes that it writes."""
        return (self.stop - self.start) * self.transfer.target.encoding.row_nbytes(self.transfer.target.columns)


@dataclass(frozen=True)
class TaskResult:
    """What a task did and found out."""

    nbytes: int
    """Bytes written."""
    findings: Findings = NOTHING_FOUND
    named_scales: NDArray[np.uint8] | None = None
    """As in `Recoded`, for all rows of the task."""
    segment_digests: bytes = b""
    """Of the values that were written, for the canonical hash; empty if none is wanted."""


def tasks(plan: Plan, resources: Resources) -> Iterator[Task]:
    """Yield tasks that together do all of `plan`, each within the memory of one job where a segment is.

    Rows are copied from file to file where source and target are the same bytes, unless values have to be hashed.
    Copies and conversions come each in the order of the plan, and evenly mixed: while one thread computes another
    one moves data, and they wait less for each other to write to the same file.
    """
    copies: list[tuple[Transfer, SameBytes]] = []
    conversions: list[Transfer] = []
    for transfer in plan.transfers:
        same_bytes = None if plan.manifest is not None else transfer.same_bytes
        if same_bytes is None:
            conversions.append(transfer)
        else:
            copies.append((transfer, same_bytes))
    kinds = (
        _with_share_before(
            (task for transfer in conversions for task in _conversion_tasks(transfer, resources)),
            sum(transfer.target.nbytes for transfer in conversions),
        ),
        _with_share_before(
            (task for transfer, same_bytes in copies for task in _copy_tasks(transfer, same_bytes)),
            sum(transfer.target.nbytes for transfer, _ in copies),
        ),
    )
    return (task for _, task in heapq.merge(*kinds, key=itemgetter(0)))


def _with_share_before(of_one_kind: Iterable[Task], total: int) -> Iterator[tuple[float, Task]]:
    """Yield each task with the share of the `total` bytes that those before it write."""
    done = 0
    for task in of_one_kind:
        yield done / total, task
        done += task.nbytes


def _copy_tasks(transfer: Transfer, same_bytes: SameBytes) -> Iterator[Task]:
    rows = max(COPY_BYTES // same_bytes.source.row_nbytes, 1)
    for start in range(0, transfer.source.rows, rows):
        yield Task(transfer, start, min(start + rows, transfer.source.rows), rows, same_bytes)


def _conversion_tasks(transfer: Transfer, resources: Resources) -> Iterator[Task]:
    """Yield tasks for all rows; each is some whole matrices, or some whole segments of one matrix."""
    matrix = rows_per_matrix(transfer.source.shape)
    rows, step = _rows_of_task(transfer, matrix, resources.memory_per_job)
    whole = max(rows, matrix)
    for first in range(0, transfer.source.rows, whole):
        end = min(first + whole, transfer.source.rows)
        for start in range(first, end, rows):
            yield Task(transfer, start, min(start + rows, end), step)


def _rows_of_task(transfer: Transfer, matrix: int, memory: int) -> tuple[int, int]:
    """Return the rows of a task and those of a step, so that what both take at a time fits `memory`."""
    holding, working = transfer.holding_bytes_per_row, transfer.working_bytes_per_row
    step = _whole_segments(min(STEP_BYTES, memory) // (holding + working))
    group = transfer.row_group
    wanted = -(-max(step, transfer.rows_per_read) // group) * group
    fitting = memory // (holding + working) if transfer.in_one_step else (memory - step * working) // holding
    rows = min(wanted, max(fitting, 1))
    in_columns = transfer.source.storage.order == "F"
    if in_columns and transfer.rows_per_read > 1 and rows < transfer.source.storage.row_group:
        raise BudgetError(
            "too little memory to stream matrices that lie in columns: each is fetched as a whole",
            file=transfer.source.file,
            tensor=transfer.source.name,
            found=f"{memory} bytes for each job",
            expected=f"at least {transfer.source.storage.row_group * holding + step * working}",
            hint="allow more with --max-memory, or leave out --stream",
        )
    rows = rows - rows % matrix if rows >= matrix else min(_whole_segments(rows), matrix)
    if transfer.in_one_step or step >= rows:
        return rows, rows
    if rows > matrix:  # a step must not begin within a segment
        return (rows, step - step % matrix) if step >= matrix else (matrix, step)
    return rows, step


def _whole_segments(rows: int) -> int:
    return max(rows - rows % SEGMENT_ROWS, SEGMENT_ROWS)


def run_task(task: Task, writer: FileCopier, hashing: bool = False) -> TaskResult:
    """Do `task`, and digest the segments of what it writes if `hashing`."""
    transfer = task.transfer
    source, target = transfer.source, transfer.target
    if task.same_bytes is not None:
        task.same_bytes.copy(writer, task.start, task.stop)
        return TaskResult(task.nbytes)
    chunk = source.read(task.start, task.stop)
    gathered = _Gathered(task.stop - task.start) if transfer.gathers else None
    findings = NOTHING_FOUND
    digests = [_digests(source, task.start, chunk)] if hashing and transfer.keeps_hash else []
    named = np.full((0, 0), NOT_NAMED, np.uint8)
    for start in range(task.start, task.stop, task.step):
        rows = slice(start - task.start, min(start + task.step, task.stop) - task.start)
        recoded = transfer.recoding.recode(source, target, start, tuple(part[rows] for part in chunk))
        findings += recoded.findings
        if recoded.named_scales is not None:
            if not named.size:
                named = np.full((task.stop - task.start, recoded.named_scales.shape[1]), NOT_NAMED, np.uint8)
            named[rows] = recoded.named_scales
        if hashing and not transfer.keeps_hash:
            digests.append(_digests(target, start, recoded.chunk))
        if gathered is None:
            target.storage.write(writer, start, recoded.chunk)
        else:
            gathered.put(rows, recoded.chunk)
    if gathered is not None:
        target.storage.write(writer, task.start, gathered.chunk)
    return TaskResult(
        task.nbytes,
        findings,
        named if named.size else None,
        b"".join(digests),
    )


def _digests(tensor: Tensor, start: int, chunk: Chunk) -> bytes:
    with tensor.named_errors():
        return segment_digests(tensor.encoding, chunk, start, rows_per_matrix(tensor.shape))


class _Gathered:
    """Rows in column order, put together from steps."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.chunk: Chunk = ()

    def put(self, rows: slice, chunk: Chunk) -> None:
        """Put the rows of `chunk` in their place."""
        if rows.stop - rows.start == self._rows:
            self.chunk = chunk
            return
        self.chunk = self.chunk or tuple(np.empty((part.shape[1], self._rows), part.dtype).T for part in chunk)
        for gathered, part in zip(self.chunk, chunk, strict=True):
            transpose_into(gathered[rows].T, part)
