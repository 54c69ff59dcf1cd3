"""A report as files of a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_convert.converters.destination import check_files
from gptoss_convert.converters.output import new_files
from gptoss_convert.converters.plan import PlannedFile
from gptoss_convert.errors import OutputError
from gptoss_convert.report import NAMES, render_report
from gptoss_convert.report.html import require_libraries


@dataclass(frozen=True, kw_only=True)
class ReportFolder:
    """Where a report goes; checked before the work that it tells of is begun."""

    folder: Path
    replace: bool = False
    """Whether files of an older report may be replaced."""
    inputs: tuple[Path, ...] = ()
    """Files and folders that were read: none of them gets a report written over it or into it."""

    def check(self) -> None:
        """Refuse a folder that a report cannot be written to.

        Raises:
            OutputError: a report is there already, it is one of the inputs, it is no folder, or has none to lie in.
            UnsupportedError: a library that the report needs is not installed.
        """
        require_libraries()
        try:
            place = self.folder.resolve()
            is_input = any(path.resolve() == place for path in self.inputs)
            exists, is_folder = self.folder.exists(), self.folder.is_dir()
            has_parent = self.folder.parent.is_dir()
        except (OSError, RuntimeError, ValueError) as error:
            raise OutputError(f"cannot write: {error}", file=self.folder) from error
        if exists and not is_folder:
            raise OutputError("report needs a folder", file=self.folder, hint="choose another name")
        if is_input:
            raise OutputError(
                "report would go into a model", file=self.folder, hint="give the name of another folder"
            )
        if not exists and not has_parent:
            raise OutputError("output folder does not exist", file=self.folder.parent, hint="create it first")
        if exists:
            check_files(self._paths, self.inputs, 0, replace=self.replace)

    def write(self, document: Mapping[str, Any]) -> tuple[Path, ...]:
        """Write all files, or none of them; return their paths.

        Raises:
            InputError: it is no document of a verification.
            OutputError: a file cannot be written.
            UnsupportedError: a library that the report needs is not installed.
        """
        contents = render_report(document)
        self.check()
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write: {error.strerror or error}", file=self.folder) from error
        try:
            planned = [
                PlannedFile(path, len(data), data)
                for path, data in zip(self._paths, contents.values(), strict=True)
            ]
            with new_files(planned):
                pass
        except BaseException:
            with contextlib.suppress(OSError):  # which says that there is something in it
                self.folder.rmdir()
            raise
        return tuple(self._paths)

    @property
    def _paths(self) -> Sequence[Path]:
        return [self.folder / name for name in NAMES]
