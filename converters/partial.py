"""Where the files of a plan lie until they are complete: names that the next run finds again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss_convert.converters.plan import Plan

_LONGEST_STEM = 180
"""Bytes of a name that the names made from it keep, so that their suffixes fit too; most systems allow 255."""


@dataclass(frozen=True)
class Partial:
    """The names beside an output that belong to the run that makes it."""

    output: Path
    folder: Path | None
    """The folder that gets its final name as a whole; None for files that stand by themselves."""
    places: Mapping[Path, Path]
    """Where the file of every final path lies; what programs open comes first, what is made at the end last."""

    @classmethod
    def of(cls, plan: Plan) -> Partial:
        """Return the names for a plan."""
        paths = [*(file.path for file in plan.files), *plan.paths_made_at_the_end]
        return cls.of_files(paths) if plan.folder is None else cls.of_folder(plan.folder, paths)

    @classmethod
    def of_files(cls, paths: Sequence[Path], suffix: str = "partial") -> Partial:
        """Return the names for files that stand by themselves."""
        return cls(paths[0], None, {path: beside(path, suffix) for path in paths})

    @classmethod
    def of_folder(cls, folder: Path, paths: Sequence[Path], suffix: str = "partial") -> Partial:
        """Return the names for a folder and all files in it, or in folders directly in it."""
        partial = beside(folder, suffix)
        return cls(folder, partial, {path: partial / path.relative_to(folder) for path in paths})

    @property
    def journal(self) -> Path:
        """The journal of finished pieces; there is no partial output without one."""
        return beside(self.output, "partial.journal")

    @property
    def lock(self) -> Path:
        """The file whose lock the run holds."""
        return beside(self.output, "partial.lock")

    def existing(self) -> Iterator[Path]:
        """Yield what is there of the partial output, the folder itself included."""
        roots = self.places.values() if self.folder is None else (self.folder,)
        yield from (path for path in roots if os.path.lexists(path))

    def allocated(self) -> int:
        """Return the bytes that the partial output takes on the disk."""
        total = 0
        for place in self.places.values():
            with contextlib.suppress(OSError):
                status = place.stat()
                total += getattr(status, "st_blocks", 0) * 512 or status.st_size
        return total

    def remove_files(self) -> None:
        """Remove the partial output, as far as the system lets us."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            for place in self.places.values():
                with contextlib.suppress(OSError):
                    place.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the partial output, and its journal if nothing is left of it."""
        self.remove_files()
        if not any(self.existing()):
            with contextlib.suppress(OSError):
                self.journal.unlink(missing_ok=True)


def beside(path: Path, suffix: str) -> Path:
    """Return `path` with a suffix; a name that would become too long is cut and told apart by a hash."""
    stem = path.name
    if len(os.fsencode(stem)) > _LONGEST_STEM:
        told_apart = hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]
        while len(os.fsencode(stem)) > _LONGEST_STEM - 9:
            stem = stem[:-1]
        stem = f"{stem}-{told_apart}"
    return path.with_name(f"{stem}.{suffix}")
