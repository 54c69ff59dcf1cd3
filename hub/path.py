"""Paths of files on the Hub, with as much of the interface of `pathlib.Path` as readers of models use.

A `HubPath` knows the list of all files of one commit, which is fetched once, so looking around makes no requests.
Files with weights are read by ranges where they lie. All others are small and are read as a whole; they are
downloaded into the cache of `huggingface_hub`, each of them once.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from huggingface_hub import HfApi, constants, hf_hub_download

from gptoss_convert.errors import InputError
from gptoss_convert.formats.storage import OpenedFile, open_local
from gptoss_convert.hub.download import progress_bars
from gptoss_convert.hub.failures import RETRIES, Retries, reported, transient_failures
from gptoss_convert.hub.ranges import TIMEOUT, RangedFile
from gptoss_convert.hub.reference import SCHEME, HubReference

_WEIGHTS = (".safetensors", ".gguf", ".onnx", ".onnx.data")
"""How the names of files end that are read by ranges."""
_LARGEST_SMALL = 256 << 20
"""Bytes of a file that is downloaded, whatever its name."""


@dataclass(frozen=True)
class HubFile:
    """What the Hub lists of a file."""

    size: int
    """Bytes."""
    etag: str
    """SHA-256 of the contents of a large file; git's hash of a small one."""


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit, which cannot change."""

    repository: str
    commit: str
    files: Mapping[str, HubFile] = field(compare=False, repr=False)
    """By name in the repository."""
    retries: Retries = field(default=RETRIES, compare=False, repr=False)

    @classmethod
    def of(cls, reference: HubReference, retries: Retries = RETRIES) -> Snapshot:
        """Look up the commit of a revision, and list its files.

        Raises:
            InputError: the Hub does not have it, does not give it, or does not answer.
        """

        def attempt() -> Snapshot:
            with transient_failures():
                found = HfApi().model_info(
                    reference.repository, revision=reference.revision, files_metadata=True, timeout=TIMEOUT.read
                )
            files = {}
            for item in found.siblings or ():
                size, etag = (item.size, item.blob_id) if item.lfs is None else (item.lfs.size, item.lfs.sha256)
                if size is not None and etag is not None:
                    files[item.rfilename] = HubFile(size, etag)
            if found.sha is None:
                raise InputError("the Hub names no commit", file=str(reference))
            return cls(reference.repository, found.sha, files, retries)

        with reported(str(reference)):
            return retries.run(attempt)


@dataclass(frozen=True)
class HubStatus:
    """What `stat` says of a file."""

    st_size: int
    st_mtime_ns: int = 0
    """A commit says what it is; no time has to."""


@dataclass(frozen=True)
class HubPath:
    """A file or folder of a snapshot, which need not exist; a plain value."""

    snapshot: Snapshot
    path: PurePosixPath
    """In the repository."""

    @property
    def name(self) -> str:
        """Return the last part; of the root, the name of the repository."""
        return self.path.name or self.snapshot.repository.partition("/")[2]

    @property
    def stem(self) -> str:
        """Return the name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """Return how the name ends, from its last dot on."""
        return self.path.suffix

    @property
    def parent(self) -> HubPath:
        """Return the folder that it is in; the root is in itself."""
        return HubPath(self.snapshot, self.path.parent)

    def __truediv__(self, name: str) -> HubPath:
        return HubPath(self.snapshot, self.path / name)

    def __str__(self) -> str:
        root = f"{SCHEME}{self.snapshot.repository}@{self.snapshot.commit}"
        return f"{root}/{self.path}" if self.path.parts else root

    def __lt__(self, other: object) -> bool:
        return str(self) < str(other)

    def __gt__(self, other: object) -> bool:
        return str(self) > str(other)

    def with_name(self, name: str) -> HubPath:
        """Return the path of `name` beside it."""
        return HubPath(self.snapshot, self.path.with_name(name))

    def absolute(self) -> HubPath:
        """Return the same path."""
        return self

    def is_symlink(self) -> bool:
        """Return False: the Hub follows no links."""
        return False

    def resolve(self) -> HubPath:
        """Return the same path; there are no links."""
        return self

    def is_relative_to(self, other: object) -> bool:
        """Return whether it is `other` or in it."""
        return (
            isinstance(other, HubPath) and other.snapshot == self.snapshot and self.path.is_relative_to(other.path)
        )

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return str(self.path) in self.snapshot.files

    def is_dir(self) -> bool:
        """Return whether there are files in it; git has no empty folders."""
        return not self.path.parts or any(name.startswith(f"{self.path}/") for name in self.snapshot.files)

    def exists(self) -> bool:
        """Return whether it is a file or folder."""
        return self.is_file() or self.is_dir()

    def stat(self) -> HubStatus:
        """Return the size of a file.

        Raises:
            FileNotFoundError: it is none.
        """
        return HubStatus(self._file.size)

    def iterdir(self) -> Iterator[HubPath]:
        """Yield the files and folders in it."""
        depth = len(self.path.parts)
        inside = (PurePosixPath(name).parts for name in self.snapshot.files)
        names = {parts[depth] for parts in inside if len(parts) > depth and parts[:depth] == self.path.parts}
        yield from (self / name for name in sorted(names))

    def glob(self, pattern: str) -> Iterator[HubPath]:
        """Yield what is directly in it and has a name that matches."""
        yield from (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def read_bytes(self) -> bytes:
        """Return the contents.

        Raises:
            FileNotFoundError: it is no file.
            InputError: it cannot be read.
        """
        with self.open() as stream:
            return stream.read()

    def open(self, mode: str = "rb", buffering: int = -1) -> BinaryIO:
        """Open the file for reading.

        Raises:
            FileNotFoundError: it is no file.
            InputError: it cannot be read.
        """
        if mode != "rb":
            raise ValueError("files on the Hub are only read")
        if not self._is_streamed:
            return io.BytesIO(self._downloaded().read_bytes())
        stream = _Stream(self.open_ranges(), self._file.size)
        return cast(BinaryIO, stream if buffering == 0 else io.BufferedReader(stream))

    def open_ranges(self) -> OpenedFile:
        """Open the file for positional reads.

        Raises:
            FileNotFoundError: it is no file.
            InputError: it cannot be read.
        """
        file = self._file
        if not self._is_streamed:
            return open_local(self._downloaded())
        return RangedFile(
            self.snapshot.repository,
            self.snapshot.commit,
            str(self.path),
            size=file.size,
            etag=file.etag,
            retries=self.snapshot.retries,
        )

    @property
    def _file(self) -> HubFile:
        try:
            return self.snapshot.files[str(self.path)]
        except KeyError:
            raise FileNotFoundError(2, "No such file", str(self)) from None

    @property
    def _is_streamed(self) -> bool:
        return self.name.endswith(_WEIGHTS) or self._file.size > _LARGEST_SMALL

    def _downloaded(self) -> Path:
        """Return where the file lies in the cache."""

        def attempt() -> str:
            with transient_failures():
                return hf_hub_download(self.snapshot.repository, str(self.path), revision=self.snapshot.commit)

        assert self._file
        with reported(str(self), cache=Path(constants.HF_HUB_CACHE)), progress_bars(shown=False):
            return Path(self.snapshot.retries.run(attempt))


class _Stream(io.RawIOBase):
    """Bytes of a remote file one after the other."""

    def __init__(self, file: OpenedFile, size: int) -> None:
        self._file, self._size, self._position = file, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        view = view[: self._size - self._position]
        count = self._file.read_some(view, self._position) if view else 0
        self._position += count
        return count


def open_remote(reference: HubReference, *, retries: Retries = RETRIES) -> Path:
    """Return a path by which a model of the Hub is read where it lies.

    Raises:
        InputError: the Hub does not have it, does not give it, or does not answer.
    """
    path = HubPath(Snapshot.of(reference, retries), PurePosixPath(reference.path))
    if not path.exists():
        raise InputError("repository has nothing there that can be read", file=str(path))
    # Readers ask for a Path, which cannot be derived from before Python 3.12, and use what is here.
    return cast(Path, path)
