"""Output files that appear under their final names only when they are complete and on disk."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_convert.converters.plan import Plan, PlannedFile
from gptoss_convert.encodings import Array
from gptoss_convert.errors import OutputError

_NO_ALLOCATION = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
"""Errors of file systems that cannot reserve space."""
_LONGEST_STEM = 200
"""Characters of a name that its temporary name keeps, so that the suffix fits too."""


class Outputs:
    """Writes to the files of a plan while they still have temporary names.

    Any number of threads may write at once. Sent to another process, it opens the files there for itself.
    """

    def __init__(self, temporary: Mapping[Path, Path]) -> None:
        """Take the temporary path of every final path; the files exist and have their final size."""
        self._temporary = dict(temporary)
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Outputs, (self._temporary,)

    def __del__(self) -> None:
        with contextlib.suppress(OutputError):  # each task brings a copy of its own to another process
            self.close()

    def write(self, path: Path, data: bytes | Array, offset: int) -> None:
        """Write contiguous `data` at `offset` of the file whose final name is `path`.

        Raises:
            OutputError: the system refused, for example because the disk is full.
        """
        view = memoryview(data) if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data
        with _reported(path):
            descriptor = self._descriptor(path)
            done = 0
            while done < len(view):
                done += self._write_some(descriptor, view[done:], offset + done)
            _start_writeback(descriptor, offset, len(view))

    def sync(self) -> None:
        """Wait until the data of all files are on disk."""
        for path in self._temporary:
            with _reported(path):
                os.fsync(self._descriptor(path))

    def close(self) -> None:
        """Close the files, all of them even if one fails; they keep their temporary names."""
        with self._lock, contextlib.ExitStack() as closing:
            while self._descriptors:
                path, descriptor = self._descriptors.popitem()
                closing.enter_context(_reported(path))
                closing.callback(os.close, descriptor)

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(self._temporary[path], os.O_RDWR | getattr(os, "O_BINARY", 0))
            return self._descriptors[path]

    def _write_some(self, descriptor: int, view: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(descriptor, view, offset)
        with self._lock:  # Windows has no positional write in the standard library
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, view)


def _start_writeback(descriptor: int, offset: int, count: int) -> None:
    """Let the system begin to store what was just written, so that the final sync has little left to do.

    On Linux this advice starts writeback of dirty pages, and drops only pages that are stored already.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # it is advice
            os.posix_fadvise(descriptor, offset, count, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def new_files(planned: Sequence[PlannedFile]) -> Iterator[Outputs]:
    """Create the files of a plan and give them their final names when the block ends without an exception.

    The first file gets its name last. Whatever ends the block early, nothing has appeared under a final name and
    nothing is left over.

    Raises:
        OutputError: a file cannot be created, written or renamed.
    """
    temporary = {
        file.path: file.path.with_name(f"{file.path.name[:_LONGEST_STEM]}.partial-{secrets.token_hex(4)}")
        for file in planned
    }
    outputs = Outputs(temporary)
    try:
        for file in planned:
            _create(file, temporary[file.path])
            outputs.write(file.path, file.header, 0)
        yield outputs
        outputs.sync()
        outputs.close()
        _publish(temporary)
        for folder in {path.parent for path in temporary}:
            _sync_folder(folder)
    finally:
        with contextlib.suppress(OutputError):  # the first error counts
            outputs.close()
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _publish(temporary: Mapping[Path, Path]) -> None:
    """Rename all files, the first one last. If one of several fails, every name is again what it was."""
    older: dict[Path, Path] = {}
    published: list[Path] = []
    try:
        for path in reversed(list(temporary)):
            with _reported(path):
                if len(temporary) > 1 and os.path.lexists(path):
                    older[path] = path.with_name(f"{path.name[:_LONGEST_STEM]}.older-{secrets.token_hex(4)}")
                    path.replace(older[path])
                temporary[path].replace(path)
                published.append(path)
    except BaseException:
        if len(published) < len(temporary):
            for path in published:
                with contextlib.suppress(OSError):
                    path.unlink()
            for path, aside in older.items():
                with contextlib.suppress(OSError):
                    aside.replace(path)
        raise
    for aside in older.values():
        with contextlib.suppress(OSError):
            aside.unlink()


def _create(file: PlannedFile, temporary: Path) -> None:
    """Create a file of its final size and, where the system can, reserve its space: a full disk shows now."""
    with _reported(file.path):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o666)
        try:
            _allocate(descriptor, file.nbytes)
        finally:
            os.close(descriptor)


def _allocate(descriptor: int, nbytes: int) -> None:
    if hasattr(os, "posix_fallocate") and nbytes:
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
            return
        except OSError as error:
            if error.errno not in _NO_ALLOCATION:
                raise
    os.ftruncate(descriptor, nbytes)


def check_destination(plan: Plan, *, replace: bool) -> None:
    """Refuse, before anything is written, what could destroy data or cannot succeed.

    Args:
        plan: what is to be written.
        replace: whether existing files may be replaced.

    Raises:
        OutputError: a file is an input, exists without `replace`, has no folder, or does not fit on the disk.
    """
    inputs = {_identity(path) for path in plan.inputs}
    for file in plan.files:
        with _reported(file.path):
            folder = file.path.parent
            if not os.path.isdir(folder):  # noqa: PTH112 - pathlib raises for some names
                raise OutputError("output folder does not exist", file=folder, hint="create it first")
            if os.path.isdir(file.path):  # noqa: PTH112
                raise OutputError("output is a folder", file=file.path, hint="give the name of a file in it")
            if _identity(file.path) in inputs:
                raise OutputError("output is one of the source files", file=file.path, hint="choose another name")
            if os.path.exists(file.path) and not os.path.isfile(file.path):  # noqa: PTH110, PTH113
                raise OutputError("output is a device or a pipe", file=file.path, hint="give the name of a file")
            if _exists(file.path) and not replace:
                raise OutputError("output exists", file=file.path, hint="use --force to replace it")
    folder = plan.output.parent
    free = shutil.disk_usage(folder).free
    if plan.nbytes > free:
        raise OutputError(
            "not enough space on the disk", file=folder, found=f"{free} bytes free", expected=f"{plan.nbytes} bytes"
        )


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


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the system offers that; the files themselves are on disk already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn an `OSError` into an `OutputError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror or error}", file=path) from error
