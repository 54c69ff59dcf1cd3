"""Execution of a plan: read, convert and write piece by piece, several at a time, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import NamedTuple

from gptoss_convert.converters.checksums import Recorder
from gptoss_convert.converters.executors import ClusterExecutor, require_files
from gptoss_convert.converters.fingerprints import require_unchanged
from gptoss_convert.converters.journal import Journal, Key, Record
from gptoss_convert.converters.manifest import HashedFile, Manifest, hash_file
from gptoss_convert.converters.output import Outputs, identities, new_outputs
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.recheck import holds
from gptoss_convert.converters.recheck import recheck as recheck_written
from gptoss_convert.converters.report import Found, Report, TensorReport
from gptoss_convert.converters.session import Session, session
from gptoss_convert.converters.tasks import LEAST_MEMORY_PER_JOB, Resources, Task, TaskResult, run_task, tasks
from gptoss_convert.description import model_name
from gptoss_convert.errors import BudgetError, InputError, OutputError
from gptoss_convert.formats.storage import FileCopier, FileRef

__all__ = ["Progress", "Report", "Resources", "TensorReport", "execute", "ignore_progress"]

Progress = Callable[[str, int], None]
"""Called in the main thread with a tensor's name and the number of bytes just written of it."""


def ignore_progress(tensor: str, nbytes: int) -> None:
    """Do nothing."""


def execute(
    plan: Plan,
    *,
    resources: Resources | None = None,
    replace: bool = False,
    resume: bool = False,
    recheck: bool = True,
    progress: Progress = ignore_progress,
    executor: Executor | None = None,
) -> Report:
    """Write the files of `plan`. The bytes depend on the plan alone, not on jobs, memory or timing.

    A run that is stopped leaves what it has finished beside the output; docs/reliability.md says what is promised.

    Args:
        plan: what to write.
        resources: how many pieces at once, and memory for them.
        replace: whether existing outputs may be replaced.
        resume: whether to go on where an earlier run of this plan was stopped, if one was.
        recheck: whether all bytes are read again and compared before files get their final names.
        progress: is told what has been written.
        executor: runs the tasks; a thread pool of `resources.jobs` threads by default. On a cluster every
            thread has the memory of one job.

    Raises:
        BudgetError: the memory is too little to work with.
        InputError: the source is unreadable, changes, or holds numbers that the target encoding cannot hold.
        OutputError: the output exists, is written by another process, or cannot be written.
    """
    resources = resources or Resources()
    if isinstance(executor, ClusterExecutor):
        require_files(plan)
        resources = executor.resources(resources)
    if resources.memory_per_job < LEAST_MEMORY_PER_JOB:
        raise BudgetError(
            f"too little memory for {resources.jobs} jobs",
            found=f"{resources.memory} bytes",
            expected=f"at least {resources.jobs * LEAST_MEMORY_PER_JOB}",
        )
    with session(plan, resources.memory_per_job, replace=replace, resume=resume) as held:
        resources = _cut_as_before(resources, held)
        with new_outputs(
            held.partial, plan.files, resume=held.resumes, keep=held.keeps, token=held.token
        ) as outputs:
            run = _Run(plan, resources, outputs, held.journal)
            if executor is not None:
                return _carried_out(run, executor, held, progress, recheck=recheck)
            with ThreadPoolExecutor(resources.jobs) as pool:
                return _carried_out(run, pool, held, progress, recheck=recheck)


def _cut_as_before(resources: Resources, held: Session) -> Resources:
    """Return resources that cut a plan into the same tasks as those of the run that is gone on with."""
    cut = held.heading.memory_per_job
    jobs = min(resources.jobs, resources.memory // cut)
    if not jobs:
        raise BudgetError(
            "too little memory to go on with the unfinished output",
            found=f"{resources.memory} bytes",
            expected=f"at least {cut}",
            hint="allow as much, or leave out --resume to begin anew",
        )
    return changed(resources, jobs=jobs, memory=jobs * cut)


@dataclass(frozen=True)
class _Run:
    """What the steps of a run share."""

    plan: Plan
    resources: Resources
    outputs: Outputs
    journal: Journal

    def tasks(self) -> Iterator[tuple[Key, Task]]:
        """Yield all tasks, and what identifies each in the journal."""
        # By identity: two halves of a tensor that are copied one by one have the same name.
        numbers = {id(transfer): number for number, transfer in enumerate(self.plan.transfers)}
        for task in tasks(self.plan, self.resources):
            yield Key(numbers[id(task.transfer)], task.start, task.stop), task


def _carried_out(run: _Run, executor: Executor, held: Session, progress: Progress, *, recheck: bool) -> Report:
    """Do all there is to do before files get their final names."""
    report = _convert(run, executor, progress)
    if run.plan.manifest is not None:
        _write_manifest(run.plan, run.plan.manifest, report, run.outputs, executor)
    with ThreadPoolExecutor(1) as waiting:  # for the disk, while processors have something to do
        synced = waiting.submit(run.outputs.sync)
        if recheck:
            recheck_written(run.plan, run.tasks(), run.outputs, run.journal, executor, run.resources.jobs)
        synced.result()
    require_unchanged(held.heading.sources)
    run.journal.mark_publishing(identities(held.partial, run.outputs))
    return report


def _convert(run: _Run, executor: Executor, progress: Progress) -> Report:
    """Run all tasks with a short queue ahead of the workers, and put together what they found out, in order."""
    for file in run.plan.files:
        if file.copied is not None:
            _copy(file.copied, file.path, run.outputs)
    pending: deque[tuple[Key, Task, Future[_Done]]] = deque()
    found = Found(run.plan, run.outputs)
    hashing = run.plan.manifest is not None
    do: Callable[..., _Done] = _do_elsewhere if isinstance(executor, ClusterExecutor) else _do

    def finish_oldest() -> None:
        key, task, future = pending[0]
        done = future.result()
        pending.popleft()
        if done.unwritten is not None:
            run.journal.add(key, done.unwritten)
        found.add(task, done.result)
        progress(task.transfer.source.name, done.result.nbytes)

    try:
        for key, task in run.tasks():
            known = run.journal.find(key)
            pending.append((key, task, executor.submit(do, key, task, run.outputs, run.journal, hashing, known)))
            if len(pending) > 2 * run.resources.jobs:
                finish_oldest()
        while pending:
            finish_oldest()
    finally:
        wait([future for *_, future in pending if not future.cancel()])  # none may write to files that are closed
        found.close()
    return found.report()


class _Done(NamedTuple):
    """What became of a task."""

    result: TaskResult
    unwritten: Record | None = None
    """The line that is still to be written to the journal, if it is."""


def _do(key: Key, task: Task, outputs: Outputs, journal: Journal, hashing: bool, known: Record | None) -> _Done:
    """Do a task and put it in the journal, unless it is there and what it says is true."""
    if known is not None and _is_true(task, known, outputs):
        return _Done(known.result)
    recorder = Recorder(outputs)
    result = run_task(task, recorder, hashing)
    journal.add(key, Record(result, recorder.runs))
    return _Done(result)


def _do_elsewhere(
    key: Key, task: Task, outputs: Outputs, journal: Journal, hashing: bool, known: Record | None
) -> _Done:
    """Do a task on another machine, unless what is known of it is true.

    What it wrote is on disk when it ends, since no other machine can see to that. The journal is left to the one
    that asked: on network file systems, lines that two machines append at the same time may overwrite each other.
    """
    if known is not None and _is_true(task, known, outputs):
        return _Done(known.result)
    recorder = Recorder(outputs)
    result = run_task(task, recorder, hashing)
    outputs.settle()
    return _Done(result, Record(result, recorder.runs))


def _is_true(task: Task, known: Record, outputs: Outputs) -> bool:
    try:
        return holds(task, known.runs, outputs)
    except OutputError:  # what cannot be read is written anew
        return False


def _write_manifest(plan: Plan, path: Path, report: Report, outputs: Outputs, executor: Executor) -> None:
    """Hash all files and write the manifest, all of them under their temporary names."""
    paths = [file.path for file in plan.files]
    if plan.scale_sidecar is not None and report.named_scales:
        paths.append(plan.scale_sidecar)
    hashed = list(executor.map(hash_file, map(outputs.temporary, paths)))
    assert report.hash is not None
    manifest = Manifest(
        source=model_name(plan.source),
        source_format=plan.source_format,
        format=plan.format,
        loss=str(report.loss),
        files=tuple(HashedFile(file.name, *facts) for file, facts in zip(paths, hashed, strict=True)),
        hash=report.hash,
        tensors=tuple(tensor.as_dict() for tensor in report.tensors),
    )
    outputs.create(path, manifest.serialise())


def _copy(source: FileRef, path: Path, writer: FileCopier) -> None:
    if FileRef.at(source.path) != source:
        raise InputError("file changed while it was in use", file=source.path)
    writer.copy(path, 0, source, 0, source.size)
