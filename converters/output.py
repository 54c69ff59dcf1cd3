"""Output files that appear under their final names only when they are complete and on disk."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_convert.converters.destination import require_replaceable
from gptoss_convert.converters.partial import Partial, beside
from gptoss_convert.converters.plan import PlannedFile
from gptoss_convert.encodings import Array
from gptoss_convert.errors import OutputError, as_output_error
from gptoss_convert.formats.storage import FileRef

_NO_ALLOCATION = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
"""Errors of file systems that cannot reserve space."""
_COPY_BYTES = 256 << 10
"""Bytes that are read and written at once where the system cannot copy from file to file."""

Keep = Callable[[BaseException], bool]
"""Whether what was written so far stays after an exception."""


Identities = Mapping[str, tuple[int, int]]
"""Device and inode of files or of a folder, by the final name."""


def keep_nothing(error: BaseException) -> bool:
    """Return False."""
    return False


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
        with as_output_error(path):
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
        with as_output_error(path):
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

    def read_into(self, path: Path, buffer: Array, offset: int) -> None:
        """Fill the contiguous array `buffer` with what was written from `offset` on.

        Raises:
            OutputError: the file ends before, or cannot be read.
        """
        view = buffer.reshape(-1).view(np.uint8).data
        done = 0
        try:
            descriptor = self._descriptor(path)
            while done < len(view) and (count := self._read_some(descriptor, view[done:], offset + done)):
                done += count
        except OSError as error:
            raise OutputError(f"cannot read what was written: {error.strerror or error}", file=path) from error
        if done < len(view):
            raise OutputError("file became shorter while it was written", file=path)

    def status(self, path: Path) -> os.stat_result:
        """Return what the system says of the open file whose final name is `path`; an `OSError` is passed on."""
        return os.fstat(self._descriptor(path))

    def create(self, path: Path, content: bytes) -> None:
        """Create the file whose final name is `path`, one of those that are made at the end.

        Raises:
            OutputError: the system refused.
        """
        _create(PlannedFile(path, len(content), content), self._temporary[path], resume=False)
        self.write(path, content, 0)

    def sync(self) -> None:
        """Wait until the data of all files are on disk."""
        for path, place in self._temporary.items():
            with as_output_error(path):
                if place.exists():
                    os.fsync(self._descriptor(path))

    def settle(self) -> None:
        """Wait until what was written through this object is on disk, and close the files.

        Raises:
            OutputError: the system refused; network file systems tell of a full disk no earlier.
        """
        with self._lock:
            descriptors = dict(self._descriptors)
        for path, descriptor in descriptors.items():
            with as_output_error(path):
                os.fsync(descriptor)
        self.close()

    def close(self) -> None:
        """Close the files, all of them even if one fails; they keep their temporary names."""
        with self._lock, contextlib.ExitStack() as closing:
            while self._descriptors:
                path, descriptor = self._descriptors.popitem()
                closing.enter_context(as_output_error(path))
                closing.callback(os.close, descriptor)

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(self._temporary[path], os.O_RDWR | getattr(os, "O_BINARY", 0))
            return self._descriptors[path]

    def _read_some(self, descriptor: int, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(descriptor, [view], offset)
        with self._lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(view))
        view[: len(data)] = data
        return len(data)

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
def new_outputs(
    partial: Partial,
    planned: Sequence[PlannedFile],
    *,
    resume: bool = False,
    keep: Keep = keep_nothing,
    token: str | None = None,
) -> Iterator[Outputs]:
    """Create the files of a plan and give them their final names when the block ends without an exception.

    Whatever ends the block early, nothing has appeared under a final name. Files that are made at the end need not
    come to exist.

    Args:
        partial: where they lie until then.
        planned: the files that are known from the start.
        resume: whether files that are there already are gone on with; they must not be otherwise.
        keep: whether what was written stays after an exception; nothing is left over otherwise.
        token: part of the name that older files have while newer ones take their place.

    Raises:
        OutputError: a file cannot be created, written or renamed.
    """
    outputs = Outputs(partial.places)
    token = token or secrets.token_hex(4)
    kept = False
    try:
        _prepare(partial, planned, outputs, resume=resume)
        yield outputs
        outputs.sync()
        outputs.close()
        if partial.folder is not None:
            for place in {partial.folder, *(path.parent for path in partial.places.values())}:
                _sync_folder(place)
            _publish_folder(partial.folder, partial.output, token)
        else:
            _publish({path: place for path, place in partial.places.items() if place.exists()}, token)
        for folder in {partial.output.parent, *(path.parent for path in partial.places if partial.folder is None)}:
            _sync_folder(folder)
    except BaseException as error:
        kept = keep(error)
        raise
    finally:
        with contextlib.suppress(OutputError):  # the first error counts
            outputs.close()
        if not kept:
            partial.remove_files()


def new_files(planned: Sequence[PlannedFile]) -> contextlib.AbstractContextManager[Outputs]:
    """Create files in the manner of `new_outputs` that nothing goes on with: their partial names are new ones.

    Raises:
        OutputError: a file cannot be created, written or renamed.
    """
    suffix = f"partial-{secrets.token_hex(4)}"
    return new_outputs(Partial.of_files([file.path for file in planned], suffix), planned)


def write_file(path: Path, content: bytes) -> None:
    """Write a small file that appears under its name only when it is complete and on disk.

    Raises:
        OutputError: it cannot be created, written or renamed.
    """
    with new_files([PlannedFile(path, len(content), content)]):
        pass


def new_folder(
    folder: Path, planned: Sequence[PlannedFile], *, made_at_the_end: Sequence[Path] = ()
) -> contextlib.AbstractContextManager[Outputs]:
    """Create a folder in the manner of `new_outputs` that nothing goes on with: its partial name is a new one.

    Args:
        folder: the final name.
        planned: files in it, or in folders directly in it.
        made_at_the_end: further ones, which need not come to exist.

    Raises:
        OutputError: something cannot be created, written or renamed.
    """
    paths = [*(file.path for file in planned), *made_at_the_end]
    return new_outputs(Partial.of_folder(folder, paths, f"partial-{secrets.token_hex(4)}"), planned)


def _prepare(partial: Partial, planned: Sequence[PlannedFile], outputs: Outputs, *, resume: bool) -> None:
    if partial.folder is not None:
        with as_output_error(partial.output):
            partial.folder.mkdir(exist_ok=resume)
            for place in partial.places.values():
                place.parent.mkdir(exist_ok=True)
    if resume:
        for path in list(partial.places)[len(planned) :]:  # made at the end, once more
            with as_output_error(path):
                partial.places[path].unlink(missing_ok=True)
    for file in planned:
        _create(file, outputs.temporary(file.path), resume=resume)
        outputs.write(file.path, file.header, 0)


def _publish_folder(partial: Path, folder: Path, token: str) -> None:
    """Give `partial` its final name; if that fails, a folder that had it before has it again."""
    older = beside(folder, f"older-{token}")
    try:
        with as_output_error(folder):
            if os.path.lexists(folder):
                require_replaceable(folder)
                folder.replace(older)
            partial.replace(folder)
    except BaseException:
        if os.path.lexists(older) and not os.path.lexists(folder):
            with contextlib.suppress(OSError):
                older.replace(folder)
        raise
    if older.is_symlink():
        with contextlib.suppress(OSError):
            older.unlink()
    else:
        shutil.rmtree(older, ignore_errors=True)


def _publish(temporary: Mapping[Path, Path], token: str) -> None:
    """Rename all files, the first one last. If one of several fails, every name is again what it was."""
    asides = {path: beside(path, f"older-{token}") for path in temporary}
    try:
        for path in reversed(list(temporary)):
            with as_output_error(path):
                if len(temporary) > 1 and os.path.lexists(path):
                    path.replace(asides[path])
                temporary[path].replace(path)
    except BaseException:
        # What the disk says counts: a signal may come between a renaming and whatever could be noted of it.
        if any(os.path.lexists(place) for place in temporary.values()):
            for path, place in temporary.items():
                if not os.path.lexists(place):
                    with contextlib.suppress(OSError):
                        path.replace(place)
            for path, aside in asides.items():
                with contextlib.suppress(OSError):
                    aside.replace(path)
        raise
    for aside in asides.values():
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def identities(partial: Partial, outputs: Outputs) -> Identities:
    """Return what the partial output is to the system, by final name, so that it is known again under any name.

    Raises:
        OutputError: something else lies in the place of what was written.
    """
    found: dict[str, tuple[int, int]] = {}
    for path, place in partial.places.items():
        with as_output_error(path):
            if os.path.lexists(place):
                status = place.lstat()
                if not os.path.samestat(status, outputs.status(path)):
                    raise OutputError("something else took the place of the unfinished output", file=place)
                found[path.name] = (status.st_dev, status.st_ino)
    if partial.folder is None:
        return found
    with as_output_error(partial.output):
        status = partial.folder.lstat()
    return {partial.output.name: (status.st_dev, status.st_ino)}


def take_back(partial: Partial, ours: Identities) -> None:
    """Give files their partial names again, after a run was killed while it gave them their final ones.

    Args:
        partial: the names.
        ours: what was written; what lies there instead is left alone.

    Raises:
        OutputError: the system refused.
    """
    with as_output_error(partial.output):
        for path, place in _named_at_the_end(partial).items():
            if not os.path.lexists(place) and _is_it(path, ours):
                path.replace(place)


def undo_publishing(partial: Partial, ours: Identities, token: str) -> None:
    """Put older files back that made room for new ones, if a run was killed before all of these had their names.

    Raises:
        OutputError: the system refused.
    """
    with as_output_error(partial.output):
        asides = {path: beside(path, f"older-{token}") for path in _named_at_the_end(partial)}
        if any(os.path.lexists(place) for place in _named_at_the_end(partial).values()):
            take_back(partial, ours)
            for path, aside in asides.items():
                if os.path.lexists(aside) and not os.path.lexists(path):
                    aside.replace(path)


def _named_at_the_end(partial: Partial) -> Mapping[Path, Path]:
    """Return where what is renamed lies until then, by final name."""
    return partial.places if partial.folder is None else {partial.output: partial.folder}


def _is_it(path: Path, ours: Identities) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return ours.get(path.name) == (status.st_dev, status.st_ino)


def _create(file: PlannedFile, temporary: Path, *, resume: bool) -> None:
    """Create a file of its final size and, where the system can, reserve its space: a full disk shows now."""
    with as_output_error(file.path):
        anew = 0 if resume else os.O_EXCL
        flags = os.O_RDWR | os.O_CREAT | anew | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(temporary, flags, 0o666)
        try:
            if os.fstat(descriptor).st_size > file.nbytes:
                os.ftruncate(descriptor, file.nbytes)
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


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the system offers that; the files themselves are on disk already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
