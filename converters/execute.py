"""Execution of a plan: read, convert and write piece by piece, several at a time, in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from gptoss_convert.checkpoint import FileWriter
from gptoss_convert.converters.output import check_destination, new_files
from gptoss_convert.converters.plan import Plan, Transfer
from gptoss_convert.encodings import convert
from gptoss_convert.errors import BudgetError

STEP_BYTES = 2 << 20
"""Working memory per step; larger steps fall out of the cache without saving system calls."""
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
    """Rows `start` to `stop` of a tensor, which are read at once and then converted `step` rows at a time.

    Tasks are independent of each other and can be sent to another process.
    """

    transfer: Transfer
    start: int
    stop: int
    step: int


def execute(
    plan: Plan,
    *,
    resources: Resources | None = None,
    replace: bool = False,
    progress: Progress = ignore_progress,
    executor: Executor | None = None,
) -> None:
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
    with new_files(plan.files) as outputs:
        if executor is not None:
            _run(executor, plan, resources, outputs, progress)
        else:
            with ThreadPoolExecutor(resources.jobs) as pool:
                _run(pool, plan, resources, outputs, progress)


def tasks(plan: Plan, resources: Resources) -> Iterator[Task]:
    """Yield tasks that together do all of `plan`, each within the memory of one job where a single row is."""
    for transfer in plan.transfers:
        reading, working = transfer.reading_bytes_per_row, transfer.working_bytes_per_row
        step = max(min(STEP_BYTES, resources.memory_per_job) // working, 1)
        group = transfer.row_group
        rows = -(-step // group) * group
        most = max((resources.memory_per_job - step * (working - reading)) // reading, 1)
        if rows > most:
            rows = most - most % group if most >= group else most
        for start in range(0, transfer.source.rows, rows):
            yield Task(transfer, start, min(start + rows, transfer.source.rows), step)


def run_task(task: Task, writer: FileWriter) -> int:
    """Do `task` and return the number of bytes written."""
    source, target = task.transfer.source, task.transfer.target
    chunk = source.read(task.start, task.stop)
    for start in range(task.start, task.stop, task.step):
        rows = slice(start - task.start, start - task.start + task.step)
        with source.named_errors():
            converted = convert(tuple(part[rows] for part in chunk), source.encoding, target.encoding)
        target.storage.write(writer, start, converted)
    return (task.stop - task.start) * target.encoding.row_nbytes(target.columns)


def _run(executor: Executor, plan: Plan, resources: Resources, writer: FileWriter, progress: Progress) -> None:
    """Run all tasks with a short queue ahead of the workers."""
    pending: deque[tuple[Task, Future[int]]] = deque()

    def finish_oldest() -> None:
        task, future = pending[0]
        nbytes = future.result()
        pending.popleft()
        progress(task.transfer.source.name, nbytes)

    try:
        for task in tasks(plan, resources):
            pending.append((task, executor.submit(run_task, task, writer)))
            if len(pending) > 2 * resources.jobs:
                finish_oldest()
        while pending:
            finish_oldest()
    finally:
        wait([future for _, future in pending if not future.cancel()])  # none may write to files that are closed
