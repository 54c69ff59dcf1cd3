"""Execution of a plan: read, convert and write piece by piece, several at a time, in bounded memory."""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.canonical_hash import (
    SEGMENT_ROWS,
    CheckpointHash,
    model_digest,
    rows_per_matrix,
    segment_digests,
    tensor_digest,
)
from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.manifest import HashedFile, Manifest, hash_file
from gptoss_convert.converters.output import Outputs, check_destination, new_outputs
from gptoss_convert.converters.plan import Plan, Transfer
from gptoss_convert.converters.recoding import NOTHING_FOUND, Findings, NamingRecoding
from gptoss_convert.encodings import Chunk, LossClass
from gptoss_convert.encodings.mxfp4_format import BLOCK, NOT_NAMED
from gptoss_convert.encodings.transpose import transpose_into
from gptoss_convert.errors import BudgetError, InputError
from gptoss_convert.formats.scale_sidecar import ScaleSidecarWriter
from gptoss_convert.formats.storage import FileCopier, FileRef, SameBytes

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
    """Pieces that are worked on at the same time."""
    memory: int = DEFAULT_MEMORY
    """Bytes for data in flight. The program itself and the tokenizer come on top."""

    @property
    def memory_per_job(self) -> int:
        """Bytes for one piece."""
        return self.memory // self.jobs


Progress = Callable[[str, int], None]
"""Called in the main thread with a tensor's name and the number of bytes just written of it."""


def ignore_progress(tensor: str, nbytes: int) -> None:
    """Do nothing."""


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


@dataclass(frozen=True)
class TensorReport:
    """What a conversion did to a tensor."""

    transfer: Transfer
    findings: Findings
    canonical_hash: str | None = None
    """Of the values that were written; None if none was wanted."""

    @property
    def loss(self) -> LossClass:
        """What happened: rounding that changed no value was exact."""
        if self.transfer.loss is LossClass.LOSSY and not self.findings.changed:
            return LossClass.VALUE_EXACT
        return self.transfer.loss

    def as_dict(self) -> dict[str, Any]:
        """Return what is known as JSON-ready data."""
        return {
            "name": self.transfer.source.name,
            "source_encoding": self.transfer.source.encoding.name,
            "encoding": self.transfer.target.encoding.name,
            "loss": str(self.loss),
            **self.findings.as_dict(),
        }


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    tensors: tuple[TensorReport, ...]
    """In canonical order."""
    named_scales: int = 0
    """MXFP4 blocks whose scale is named beside the weights, since their values do not tell it."""

    @property
    def loss(self) -> LossClass:
        """The worst that happened to any tensor."""
        return LossClass.worst(tensor.loss for tensor in self.tensors)

    @property
    def hash(self) -> CheckpointHash | None:
        """Canonical hash of what was written; None if none was wanted."""
        digests = {item.transfer.target.name: item.canonical_hash for item in self.tensors}
        known = {name: digest for name, digest in digests.items() if digest is not None}
        return CheckpointHash(model_digest(known), known) if known else None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {
            "loss": str(self.loss),
            "named_scales": self.named_scales,
            "canonical_hash": None if self.hash is None else self.hash.model,
            "tensors": [tensor.as_dict() for tensor in self.tensors],
        }


def execute(
    plan: Plan,
    *,
    resources: Resources | None = None,
    replace: bool = False,
    progress: Progress = ignore_progress,
    executor: Executor | None = None,
) -> Report:
    """Write the files of `plan`. The bytes depend on the plan alone, not on jobs, memory or timing.

    Args:
        plan: what to write.
        resources: how many pieces at once, and memory for them.
        replace: whether existing outputs may be replaced.
        progress: is told what has been written.
        executor: runs the tasks; a thread pool of `resources.jobs` threads by default.

    Raises:
        BudgetError: the memory is too little to work with.
        InputError: the source is unreadable or holds numbers that the target encoding cannot hold.
        OutputError: the output exists, or cannot be written.
    """
    resources = resources or Resources()
    if resources.memory_per_job < LEAST_MEMORY_PER_JOB:
        raise BudgetError(
            f"too little memory for {resources.jobs} jobs",
            found=f"{resources.memory} bytes",
            expected=f"at least {resources.jobs * LEAST_MEMORY_PER_JOB}",
        )
    check_destination(plan, replace=replace)
    with new_outputs(plan) as outputs:
        if executor is not None:
            return _run(executor, plan, resources, outputs, progress)
        with ThreadPoolExecutor(resources.jobs) as pool:
            return _run(pool, plan, resources, outputs, progress)


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
    wanted = -(-step // group) * group
    fitting = memory // (holding + working) if transfer.in_one_step else (memory - step * working) // holding
    rows = min(wanted, max(fitting, 1))
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


def _run(executor: Executor, plan: Plan, resources: Resources, outputs: Outputs, progress: Progress) -> Report:
    """Run all tasks with a short queue ahead of the workers, and put together what they found out, in order."""
    for file in plan.files:
        if file.copied is not None:
            _copy(file.copied, file.path, outputs)
    pending: deque[tuple[Task, Future[TaskResult]]] = deque()
    found = _Found(plan, outputs)

    def finish_oldest() -> None:
        task, future = pending[0]
        result = future.result()
        pending.popleft()
        found.add(task, result)
        progress(task.transfer.source.name, result.nbytes)

    try:
        for task in tasks(plan, resources):
            pending.append((task, executor.submit(run_task, task, outputs, plan.manifest is not None)))
            if len(pending) > 2 * resources.jobs:
                finish_oldest()
        while pending:
            finish_oldest()
    finally:
        wait([future for _, future in pending if not future.cancel()])  # none may write to files that are closed
        found.close()
    report = found.report()
    if plan.manifest is not None:
        _write_manifest(plan, plan.manifest, report, outputs, executor)
    return report


def _write_manifest(plan: Plan, path: Path, report: Report, outputs: Outputs, executor: Executor) -> None:
    """Hash all files and write the manifest, all of them under their temporary names."""
    paths = [file.path for file in plan.files]
    if plan.scale_sidecar is not None and report.named_scales:
        paths.append(plan.scale_sidecar)
    hashed = list(executor.map(hash_file, map(outputs.temporary, paths)))
    assert report.hash is not None
    manifest = Manifest(
        source=plan.source.absolute().name,
        source_format=plan.source_format,
        format=plan.format,
        loss=str(report.loss),
        files=tuple(HashedFile(file.name, *facts) for file, facts in zip(paths, hashed, strict=True)),
        hash=report.hash,
        tensors=tuple(tensor.as_dict() for tensor in report.tensors),
    )
    outputs.create(path, manifest.serialise())


class _Found:
    """Puts together, in the order of the plan, what tasks found out."""

    def __init__(self, plan: Plan, outputs: Outputs) -> None:
        self._plan = plan
        # By identity: two halves of a tensor that are copied one by one have the same name.
        self._findings: dict[int, Findings] = {}
        self._digests: dict[int, list[bytes]] = {}
        path = plan.scale_sidecar
        self._sidecar = None if path is None else ScaleSidecarWriter(outputs.temporary(path))

    def add(self, task: Task, result: TaskResult) -> None:
        name, key = task.transfer.source.name, id(task.transfer)
        self._findings[key] = self._findings.get(key, NOTHING_FOUND) + result.findings
        self._digests.setdefault(key, []).append(result.segment_digests)
        if self._sidecar is not None and isinstance(task.transfer.recoding, NamingRecoding):
            named = result.named_scales
            if named is None:  # also rows without names count, for a matrix may be cut
                shape = task.stop - task.start, task.transfer.source.columns // BLOCK
                named = np.broadcast_to(np.uint8(NOT_NAMED), shape)
            rows = task.transfer.source.shape[-2]
            for matrix in range(task.start // rows, -(-task.stop // rows)):
                first = max(matrix * rows - task.start, 0)
                last = (matrix + 1) * rows - task.start
                self._sidecar.add(name, matrix, named[first:last])

    def close(self) -> None:
        if self._sidecar is not None:
            self._sidecar.close()

    def report(self) -> Report:
        return Report(
            tuple(map(self._tensor, self._plan.transfers)),
            named_scales=0 if self._sidecar is None else self._sidecar.blocks,
        )

    def _tensor(self, transfer: Transfer) -> TensorReport:
        digests = b"".join(self._digests[id(transfer)])
        digest = tensor_digest(transfer.source.shape, digests) if digests else None
        return TensorReport(transfer, self._findings[id(transfer)], digest)


def _copy(source: FileRef, path: Path, writer: FileCopier) -> None:
    if FileRef.at(source.path) != source:
        raise InputError("file changed while it was in use", file=source.path)
    writer.copy(path, 0, source, 0, source.size)
