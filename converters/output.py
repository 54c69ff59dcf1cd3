"""Output files that appear under their final names only when they are complete and on disk."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gptoss_convert.converters.plan import PlannedFile
from gptoss_convert.encodings import Array
from gptoss_convert.errors import OutputError

_CANNOT_ALLOCATE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class PartialFile:
    """A file under a temporary name in the folder of its final one."""

    def __init__(self, planned: PlannedFile) -> None:
        self.path = planned.path
        self.partial = planned.path.with_name(f"{planned.path.name}.partial-{secrets.token_hex(4)}")
        self._seek_lock = threading.Lock()
        with _reported(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self.partial, flags, 0o666)
        with _reported(self.path):
            _allocate(self._descriptor, planned.nbytes)
        self.write(planned.header, 0)

    def write(self, data: bytes | Array, offset: int) -> None:
        """Write contiguous `data` at `offset`; any number of threads may do so at once.

        Raises:
            OutputError: the system refused, for example because the disk is full.
        """
        view = memoryview(data) if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data
        with _reported(self.path):
            done = 0
            while done < len(view):
                done += self._write_some(view[done:], offset + done)
        self._start_writeback(offset, len(view))

    def _write_some(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._descriptor, view, offset)
        with self._seek_lock:  # Windows has no positional write in the standard library
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.write(self._descriptor, view)

    def _start_writeback(self, offset: int, count: int) -> None:
        """Let the system begin to store what was just written, so that the final sync has little left to do.

        On Linux this advice starts writeback of dirty pages, and drops only pages that are stored already.
        """
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # it is advice
                os.posix_fadvise(self._descriptor, offset, count, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Wait until the data are on disk."""
        with _reported(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; it keeps its temporary name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def publish(self) -> None:
        """Give the closed file its final name, in one step."""
        with _reported(self.path):
            self.partial.replace(self.path)

    def discard(self) -> None:
        """Remove the file under its temporary name, if it is still there."""
        self.close()
        with contextlib.suppress(OSError):
            self.partial.unlink(missing_ok=True)


@contextlib.contextmanager
def output_files(planned: Sequence[PlannedFile]) -> Iterator[list[PartialFile]]:
    """Create the files of a plan and publish them, in order, when the block ends without an exception.

    Whatever ends the block early, nothing has appeared under a final name and nothing is left over.

    Raises:
        OutputError: a file cannot be created, written or renamed.
    """
    files: list[PartialFile] = []
    try:
        for file in planned:
            files.append(PartialFile(file))
        yield files
        for partial in files:
            partial.sync()
            partial.close()
        for partial in files:
            partial.publish()
        for folder in {partial.path.parent for partial in files}:
            _sync_folder(folder)
    finally:
        for partial in files:
            partial.discard()


def check_destination(planned: Sequence[PlannedFile], sources: Sequence[Path], *, replace: bool) -> None:
    """Refuse, before anything is written, what could destroy data or cannot succeed.

    Args:
        planned: the files that are to be written.
        sources: files that are read; none of them may be written.
        replace: whether existing files may be replaced.

    Raises:
        OutputError: a file is a source, exists without `replace`, has no folder, or does not fit on the disk.
    """
    source_ids = {source.resolve() for source in sources}
    for file in planned:
        folder = file.path.parent
        if not folder.is_dir():
            raise OutputError("output folder does not exist", file=folder, hint="create it first")
        if file.path.is_dir():
            raise OutputError("output is a folder", file=file.path, hint="give the name of a file in it")
        if file.path.resolve() in source_ids:
            raise OutputError("output is one of the source files", file=file.path, hint="choose another name")
        if file.path.exists() and not replace:
            raise OutputError("output exists", file=file.path, hint="use --force to replace it")
    needed = sum(file.nbytes for file in planned)
    free = shutil.disk_usage(planned[0].path.parent).free
    if needed > free:
        raise OutputError(
            "not enough space on the disk",
            file=planned[0].path.parent,
            found=f"{free} bytes free",
            expected=f"{needed} bytes",
        )


def _allocate(descriptor: int, nbytes: int) -> None:
    """Set the size of the file and, where the system can, reserve its space, so that a full disk shows now."""
    if hasattr(os, "posix_fallocate") and nbytes:
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
            return
        except OSError as error:
            if error.errno in _CANNOT_ALLOCATE:
                raise
    os.ftruncate(descriptor, nbytes)


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable; systems that cannot open a folder do so by themselves."""
    if os.name == "nt":
        return
    with _reported(folder):
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
