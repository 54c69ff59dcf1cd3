"""Output files that appear under their final names only when they are complete and on disk."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_convert.assets import KNOWN
from gptoss_convert.converters.plan import Plan, PlannedFile
from gptoss_convert.encodings import Array
from gptoss_convert.errors import OutputError
from gptoss_convert.formats.storage import FileRef

_NO_ALLOCATION = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
"""Errors of file systems that cannot reserve space."""
_WEIGHTS = (".safetensors", ".onnx.data")
"""How the names of files with weights end."""
_COPY_BYTES = 256 << 10
"""Bytes that are read and written at once where the system cannot copy from file to file."""
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

    def temporary(self, path: Path) -> Path:
        """Return where the file whose final name is `path` lies for now."""
        return self._temporary[path]

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

    def copy(self, path: Path, offset: int, source: FileRef, start: int, count: int) -> None:
        """Copy `count` bytes of `source` from `start` on to `offset` of the file whose final name is `path`.

        Raises:
            InputError: the source changed, or cannot be read.
            OutputError: the system refused to write.
        """
        with _reported(path):
            descriptor = self._descriptor(path)
        done = 0
        while done < count and (more := source.copy_some(start + done, count - done, descriptor, offset + done)):
            done += more
        if done:
            _start_writeback(descriptor, offset, done)
        for place in range(done, count, _COPY_BYTES):
            piece = np.empty(min(_COPY_BYTES, count - place), np.uint8)
            source.read_into(piece, start + place)
            self.write(path, piece, offset + place)

    def create(self, path: Path, content: bytes) -> None:
        """Create the file whose final name is `path`, one of those that are made at the end.

        Raises:
            OutputError: the system refused.
        """
        _create(PlannedFile(path, len(content), content), self._temporary[path])
        self.write(path, content, 0)

    def sync(self) -> None:
        """Wait until the data of all files are on disk."""
        for path, place in self._temporary.items():
            with _reported(path):
                if place.exists():
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


def new_outputs(plan: Plan) -> contextlib.AbstractContextManager[Outputs]:
    """Return a context that creates the files of `plan` and gives them their final names when it ends well."""
    if plan.folder is not None:
        return new_folder(plan.folder, plan.files, made_at_the_end=plan.paths_made_at_the_end)
    return new_files(plan.files, made_at_the_end=plan.paths_made_at_the_end)


@contextlib.contextmanager
def new_files(planned: Sequence[PlannedFile], *, made_at_the_end: Sequence[Path] = ()) -> Iterator[Outputs]:
    """Create the files of a plan and give them their final names when the block ends without an exception.

    The first file gets its name last. Whatever ends the block early, nothing has appeared under a final name and
    nothing is left over. Files that are made at the end need not come to exist.

    Raises:
        OutputError: a file cannot be created, written or renamed.
    """
    paths = [file.path for file in planned]
    temporary = {path: _beside(path, "partial") for path in (*paths, *made_at_the_end)}
    outputs = Outputs(temporary)
    try:
        _create_all(planned, outputs)
        yield outputs
        outputs.sync()
        outputs.close()
        _publish({path: place for path, place in temporary.items() if place.exists()})
        for folder in {path.parent for path in temporary}:
            _sync_folder(folder)
    finally:
        with contextlib.suppress(OutputError):  # the first error counts
            outputs.close()
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(
    folder: Path, planned: Sequence[PlannedFile], *, made_at_the_end: Sequence[Path] = ()
) -> Iterator[Outputs]:
    """Create the files of a plan in a folder that gets its final name when the block ends without an exception.

    Args:
        folder: the final name; a folder that is there already is replaced.
        planned: files directly in it.
        made_at_the_end: further ones, which need not come to exist.

    Raises:
        OutputError: something cannot be created, written or renamed.
    """
    partial = _beside(folder, "partial")
    outputs = Outputs({path: partial / path.name for path in (*(file.path for file in planned), *made_at_the_end)})
    try:
        with _reported(folder):
            partial.mkdir()
        _create_all(planned, outputs)
        yield outputs
        outputs.sync()
        outputs.close()
        _sync_folder(partial)
        _publish_folder(partial, folder)
        _sync_folder(folder.parent)
    finally:
        with contextlib.suppress(OutputError):  # the first error counts
            outputs.close()
        shutil.rmtree(partial, ignore_errors=True)


def _beside(path: Path, what: str) -> Path:
    """Return a name beside `path` that nothing has."""
    return path.with_name(f"{path.name[:_LONGEST_STEM]}.{what}-{secrets.token_hex(4)}")


def _create_all(planned: Sequence[PlannedFile], outputs: Outputs) -> None:
    for file in planned:
        _create(file, outputs.temporary(file.path))
        outputs.write(file.path, file.header, 0)


def _publish_folder(partial: Path, folder: Path) -> None:
    """Give `partial` its final name; if that fails, a folder that had it before has it again."""
    older: Path | None = None
    try:
        with _reported(folder):
            if os.path.lexists(folder):
                require_replaceable(folder)
                older = _beside(folder, "older")
                folder.replace(older)
            partial.replace(folder)
    except BaseException:
        if older is not None and not os.path.lexists(folder):
            with contextlib.suppress(OSError):
                older.replace(folder)
        raise
    if older is not None:
        if older.is_symlink():
            with contextlib.suppress(OSError):
                older.unlink()
        else:
            shutil.rmtree(older, ignore_errors=True)


def _publish(temporary: Mapping[Path, Path]) -> None:
    """Rename all files, the first one last. If one of several fails, every name is again what it was."""
    older: dict[Path, Path] = {}
    published: list[Path] = []
    try:
        for path in reversed(list(temporary)):
            with _reported(path):
                if len(temporary) > 1 and os.path.lexists(path):
                    older[path] = _beside(path, "older")
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
        replace: whether an existing output may be replaced.

    Raises:
        OutputError: an output is an input, exists without `replace`, has no folder, or does not fit on the disk.
    """
    if plan.folder is None:
        paths = [*(file.path for file in plan.files), *plan.paths_made_at_the_end]
        check_files(paths, plan.inputs, plan.nbytes, replace=replace)
        return
    with _reported(plan.folder):
        _check_folder(plan.folder, {_identity(path) for path in plan.inputs}, replace=replace)
    _require_space(plan.output.parent, plan.nbytes)


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
    identities = {_identity(path) for path in inputs}
    for path in paths:
        with _reported(path):
            _check_file(path, identities, replace=replace)
    _require_space(paths[0].parent, nbytes)


def _require_space(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise OutputError(
            "not enough space on the disk", file=folder, found=f"{free} bytes free", expected=f"{nbytes} bytes"
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
