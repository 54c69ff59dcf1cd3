"""What commands that write reports do with the folder for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def check_report(folder: Path, inputs: Sequence[Path], *, replace: bool) -> None:
    """Refuse a folder for the report that cannot be written to, before hours are spent on what it tells."""
    from gptoss_convert.report.writing import ReportFolder

    ReportFolder(folder=folder, replace=replace, inputs=tuple(inputs)).check()


def write_report(folder: Path, document: Mapping[str, Any], inputs: Sequence[Path], *, replace: bool) -> None:
    """Write all files of a report."""
    from gptoss_convert.report.writing import ReportFolder

    ReportFolder(folder=folder, replace=replace, inputs=tuple(inputs)).write(document)
