"""Execution of a plan: read, transform and write chunk by chunk, on several threads, in bounded memory."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.output import PartialFile, check_destination, output_files
from gptoss_convert.converters.plan import Plan, Transfer
from gptoss_convert.encodings import EncodingError, convert

LARGEST_CHUNK = 2 << 20
"""Bytes of working memory per chunk; larger chunks fall out of the cache without saving system calls."""
DEFAULT_MEMORY = 192 << 20


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a run may use."""

    jobs: int = min(os.cpu_count() or 1, 4)
    """Chunks that are worked on at the same time."""
    memory: int = DEFAULT_MEMORY
    """Bytes for chunks in flight. The program itself and the tokenizer come on top."""

    @property
    def memory_per_job(self) -> int:
        """Bytes for one chunk."""
        return self.memory // self.jobs


Progress = Callable[[str, int], None]
"""Called in the main thread with a tensor's name and the number of bytes just written of it."""


def ignore_progress(tensor: str, nbytes: int) -> None:
    """Do nothing."""


def execute(
    plan: Plan,
    *,
    resources: Resources | None = None,
    replace: bool = False,
    progress: Progress = ignore_progress,
) -> None:
    """Write the files of `plan`. The bytes depend on the plan alone, not on jobs, memory or timing.

    Args:
        plan: what to write.
        resources: how many chunks at once, and memory for them.
        replace: whether existing outputs may be replaced.
        progress: is told what has been written.

    Raises:
        InputError: the source is unreadable or holds numbers that the target encoding cannot hold.
        OutputError: the output exists, or cannot be written.
    """
    resources = resources or Resources()
    check_destination(plan.files, plan.source_files, replace=replace)
    with output_files(plan.files) as files, ThreadPoolExecutor(resources.jobs) as pool:
        for chunk, nbytes in _run_bounded(pool, resources.jobs, _chunks(plan, resources), files):
            progress(chunk.transfer.source.name, nbytes)


@dataclass(frozen=True)
class _Chunk:
    """Rows `start` to `stop` of a tensor, which are read at once and then worked on `step` rows at a time."""

    transfer: Transfer
    start: int
    stop: int
    step: int


def _chunks(plan: Plan, resources: Resources) -> Iterator[_Chunk]:
    for transfer in plan.transfers:
        step = max(min(LARGEST_CHUNK, resources.memory_per_job) // transfer.working_bytes_per_row, 1)
        most_rows = step
        if transfer.source.source.row_group > 1:  # read as much of a group as memory allows
            most_rows = max(resources.memory_per_job // transfer.reading_bytes_per_row, 1)
            most_rows = min(most_rows, transfer.source.source.row_group)
        for start, stop in transfer.source.row_ranges(most_rows):
            yield _Chunk(transfer, start, stop, step)


def _run_bounded(
    pool: Executor, jobs: int, chunks: Iterator[_Chunk], files: Sequence[PartialFile]
) -> Iterator[tuple[_Chunk, int]]:
    """Run all chunks with a short queue ahead of the workers, and yield each with the bytes it wrote."""
    pending: deque[tuple[_Chunk, Future[int]]] = deque()
    try:
        for chunk in chunks:
            pending.append((chunk, pool.submit(_transfer_chunk, chunk, files)))
            if len(pending) > 2 * jobs:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    finally:
        for _, future in pending:
            future.cancel()


def _transfer_chunk(chunk: _Chunk, files: Sequence[PartialFile]) -> int:
    source = chunk.transfer.source
    numbers = source.read(chunk.start, chunk.stop)
    written = 0
    for start in range(chunk.start, chunk.stop, chunk.step):
        step = slice(start - chunk.start, start - chunk.start + chunk.step)
        rows = tuple(part[step] for part in numbers)
        for target in chunk.transfer.targets:
            selected, first_row = target.selection.apply(rows, start)
            if not len(selected[0]):
                continue
            with _named(source):
                converted = convert(selected, source.encoding, target.tensor.encoding)
            data = target.pack(target.tensor.encoding, converted)
            files[target.tensor.file].write(data, target.tensor.offset + first_row * target.tensor.row_nbytes)
            written += data.nbytes
    return written


@contextlib.contextmanager
def _named(tensor: Tensor) -> Iterator[None]:
    try:
        yield
    except EncodingError as error:
        raise tensor.error(error) from None
