"""Where an output may go: what could destroy data or cannot succeed is refused before anything is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from gptoss_convert.assets import KNOWN
from gptoss_convert.converters.plan import Plan
from gptoss_convert.errors import OutputError, as_output_error

_WEIGHTS = (".safetensors", ".onnx.data")
"""How the names of files with weights end."""
_USUAL_BLOCK = 4096
"""Bytes that file systems reserve at a time, where the system does not say."""


def check_destination(plan: Plan, *, replace: bool, reclaimed: int = 0) -> None:
    """Refuse, before anything is written, what could destroy data or cannot succeed.

    Args:
        plan: what is to be written.
        replace: whether an existing output may be replaced.
        reclaimed: bytes on the disk that an unfinished output has, which is gone on with or removed.

    Raises:
        OutputError: an output is an input, exists without `replace`, has no folder, or does not fit on the disk.
    """
    if plan.folder is None:
        paths = [*(file.path for file in plan.files), *plan.paths_made_at_the_end]
        _check_files(paths, plan.inputs, replace=replace)
    else:
        with as_output_error(plan.folder):
            _check_folder(plan.folder, {_identity(path) for path in plan.inputs}, replace=replace)
    _require_space(plan.output.parent, [file.nbytes for file in plan.files], reclaimed)


def check_files(paths: Sequence[Path], inputs: Sequence[Path], nbytes: int, *, replace: bool) -> None:
    """Refuse what `check_destination` does, for new files in one folder.

    Args:
        paths: the new files.
        inputs: files that must not be replaced.
        nbytes: of all new files.
        replace: whether existing files may be replaced.

    Raises:
        OutputError: as `check_destination`.
    """
    _check_files(paths, inputs, replace=replace)
    _require_space(paths[0].parent, [nbytes], 0)


def _check_files(paths: Sequence[Path], inputs: Sequence[Path], *, replace: bool) -> None:
    identities = {_identity(path) for path in inputs}
    for path in paths:
        with as_output_error(path):
            _check_file(path, identities, replace=replace)


def _require_space(folder: Path, sizes: Sequence[int], reclaimed: int) -> None:
    """Refuse files that do not fit on the disk, in whole blocks of its file system."""
    block = os.statvfs(folder).f_frsize if hasattr(os, "statvfs") else _USUAL_BLOCK
    needed = sum(-(-size // block) * block for size in sizes)
    free = shutil.disk_usage(folder).free + reclaimed
    if needed > free:
        raise OutputError(
            "not enough space on the disk",
            file=folder,
            found=f"{free} bytes free",
            expected=f"{needed} bytes",
            hint="free some, or choose another disk",
        )


def _check_file(path: Path, inputs: Collection[Path], *, replace: bool) -> None:
    _require_folder(path.parent)
    if os.path.isdir(path):  # noqa: PTH112 - pathlib raises for some names
        raise OutputError("output is a folder", file=path, hint="give the name of a file in it")
    if _identity(path) in inputs:
        raise OutputError("output is one of the source files", file=path, hint="choose another name")
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
        raise OutputError("output is a device or a pipe", file=path, hint="give the name of a file")
    if _exists(path) and not replace:
        raise OutputError("output exists", file=path, hint="use --force to replace it")


def _check_folder(folder: Path, inputs: Collection[Path], *, replace: bool) -> None:
    _require_folder(folder.parent)
    place = _identity(folder)
    if place == Path.cwd():
        raise OutputError("output is the current folder", file=folder, hint="give the name of a new one")
    if any(path.is_relative_to(place) for path in inputs):
        raise OutputError("output folder holds the source", file=folder, hint="choose another name")
    if not _exists(folder):
        return
    if not os.path.isdir(folder):  # noqa: PTH112
        raise OutputError("output is not a folder", file=folder, hint="choose another name")
    if any(folder.iterdir()):
        if not replace:
            raise OutputError("output exists", file=folder, hint="use --force to replace it")
        require_replaceable(folder)


def require_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but the files of a checkpoint.

    Raises:
        OutputError: it does.
    """
    for path in sorted(folder.iterdir()):
        if not path.is_file() or not (path.name in KNOWN or path.name.endswith(_WEIGHTS)):
            raise OutputError(
                "output folder holds something else than a checkpoint",
                file=folder,
                found=path.name,
                hint="choose another name, or remove the folder yourself",
            )


def _require_folder(folder: Path) -> None:
    if not os.path.isdir(folder):  # noqa: PTH112 - pathlib raises for some names
        raise OutputError("output folder does not exist", file=folder, hint="create it first")


def _exists(path: Path) -> bool:
    """Return whether something has the name `path`, be it a broken link; a name that cannot be is an `OSError`."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _identity(path: Path) -> Path:
    """Return `path` with all links followed; a link that leads in a circle is its own end."""
    try:
        return path.resolve()
    except RuntimeError:
        return path.absolute()
