"""A run's hold on its output: the lock, the journal, and what becomes of them when the run ends."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gptoss_convert.converters.destination import check_destination
from gptoss_convert.converters.fingerprints import fingerprints
from gptoss_convert.converters.journal import Heading, Journal, Summary, summarise
from gptoss_convert.converters.lock import locked
from gptoss_convert.converters.output import take_back, undo_publishing
from gptoss_convert.converters.partial import Partial
from gptoss_convert.converters.plan import Plan
from gptoss_convert.errors import GptossConvertError, InputError, OutputError, was_interrupted


@dataclass(frozen=True)
class Session:
    """A run that holds the lock of its output."""

    partial: Partial
    heading: Heading
    journal: Journal
    resumes: bool
    """Whether it goes on where another run was stopped."""

    @property
    def token(self) -> str:
        """Part of the name of older files that are set aside: a run that goes on finds them again."""
        return _token(self.heading)

    def keeps(self, error: BaseException) -> bool:
        """Return whether what was written stays after `error`: another run could go on, and has something to save.

        It stays when the run was stopped, the disk failed or filled up, or a file could not be read for now. A
        source that is damaged or changed will not do better the next time.
        """
        passing = (KeyboardInterrupt, SystemExit, OutputError, MemoryError, BrokenExecutor)
        unreadable = isinstance(error, InputError) and isinstance(error.__cause__, OSError)
        return (isinstance(error, passing) or unreadable) and self.journal.has_records


@contextmanager
def session(plan: Plan, memory_per_job: int, *, replace: bool, resume: bool) -> Iterator[Session]:
    """Hold the output of `plan`; an unfinished one that is there is gone on with or removed.

    Args:
        plan: what is to be written.
        memory_per_job: by which a plan is cut into tasks, unless they were cut already.
        replace: whether an existing output may be replaced.
        resume: whether to go on where an earlier run of the same plan was stopped, if one was.

    Raises:
        InputError: a source file cannot be read.
        OutputError: the output must not be written, another process is writing it, or what is unfinished is of
            another conversion.
    """
    partial = Partial.of(plan)
    # Of a run that was stopped between two renames, some files are there: they are taken back first.
    check_destination(plan, replace=replace or partial.journal.exists(), reclaimed=partial.allocated())
    _require_apart(plan, partial)
    with locked(partial.lock, plan.output):
        summary = summarise(partial.journal)
        _require_ours(partial, summary)
        sources = fingerprints(plan.inputs)
        if resume and summary is not None:
            memory_per_job = summary.heading.memory_per_job
        heading = Heading.of(plan, sources, memory_per_job)
        if resume and summary is not None:
            summary.heading.require_same(heading, plan.output)
            if summary.publishing is not None:
                take_back(partial, summary.publishing)
            check_destination(plan, replace=replace, reclaimed=partial.allocated())
            journal = Journal.continued(partial.journal, plan)
        else:
            if summary is not None and summary.publishing is not None:
                undo_publishing(partial, summary.publishing, _token(summary.heading))
            check_destination(plan, replace=replace, reclaimed=partial.allocated())
            partial.remove()
            journal = Journal.begun(partial.journal, heading, plan)
        held = Session(partial, heading, journal, resume and summary is not None)
        kept = False
        try:
            yield held
        except GptossConvertError as error:
            kept = held.keeps(error)
            if kept:
                raise error.with_hint(
                    "what is written stays; --resume goes on with it, and build does so by itself"
                ) from error
            raise
        except BaseException as error:
            interrupted = was_interrupted(error)
            kept = held.keeps(KeyboardInterrupt() if interrupted else error)
            if interrupted and not isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise
        finally:
            journal.close()
            if not kept:
                partial.remove()


@dataclass(frozen=True)
class Unfinished:
    """An output that a run left unfinished, and that another one could go on with."""

    share: float
    """Of the tensors' bytes that are written, from 0 to 1."""


def find_unfinished(plan: Plan) -> Unfinished | None:
    """Return what an earlier run left of an output at this place, of whatever conversion; None if nothing."""
    summary = summarise(Partial.of(plan).journal)
    return None if summary is None else Unfinished(min(summary.nbytes / max(plan.data_nbytes, 1), 1.0))


def can_be_resumed(plan: Plan, memory: int) -> bool:
    """Return whether a run of this very conversion left its output unfinished, and `memory` bytes suffice."""
    summary = summarise(Partial.of(plan).journal)
    if summary is None or summary.heading.memory_per_job > memory:
        return False
    now = Heading.of(plan, fingerprints(plan.inputs), summary.heading.memory_per_job)
    return summary.heading.departure(now) is None


def _token(heading: Heading) -> str:
    facts = json.dumps(msgspec.to_builtins(heading), sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def _require_apart(plan: Plan, partial: Partial) -> None:
    """Refuse a source that has one of the names that the run will use."""
    ours = {path.resolve() for path in (*partial.places.values(), partial.journal, partial.lock)}
    if partial.folder is not None:
        ours.add(partial.folder.resolve())
    for path in plan.inputs:
        if path.resolve() in ours:
            raise OutputError(
                "source has the name that the unfinished output gets", file=path, hint="choose another output"
            )


def _require_ours(partial: Partial, summary: Summary | None) -> None:
    """Refuse to remove what no run of ours has left, and to go through a link that took the place of it."""
    for path in (partial.journal, *([] if partial.folder is None else [partial.folder])):
        if path.is_symlink():
            raise OutputError(
                "a link has the name of the unfinished output", file=path, hint="remove it or choose another output"
            )
    in_the_way: Path | None = next(partial.existing(), None)
    if in_the_way is not None and summary is None:
        raise OutputError(
            "something that no journal tells about has the name of the unfinished output",
            file=in_the_way,
            hint="remove it or choose another output",
        )
