"""Whether files are those that a manifest names, also on another machine than the one that made them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec

from gptoss_convert.assets import MANIFEST, read_small_file
from gptoss_convert.converters.manifest import TOOL, VERSION, hash_file
from gptoss_convert.errors import GptossConvertError, InputError
from gptoss_convert.recipes import manifest as build_manifest

LARGEST_MANIFEST = 64 << 20

_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _File(msgspec.Struct, frozen=True):
    name: str
    nbytes: _Size
    sha256: _Digest


class _Artifact(msgspec.Struct, frozen=True):
    name: str
    files: list[_File] = []


class _Tool(msgspec.Struct, frozen=True):
    name: str


class _Manifest(msgspec.Struct, frozen=True):
    """The fields that both kinds of manifest have, and those of one kind."""

    tool: _Tool
    manifest_version: int
    kind: str | None = None
    files: list[_File] | None = None
    artifacts: list[_Artifact] | None = None


class FileState(enum.StrEnum):
    """What was found where a manifest names a file."""

    SAME = "same"
    MISSING = "missing"
    OTHER_SIZE = "other size"
    OTHER_CONTENTS = "other contents"
    UNREADABLE = "cannot be read"
    OUTSIDE = "names no file beside the manifest"


@dataclass(frozen=True, kw_only=True)
class CheckedFile:
    """A file that a manifest names."""

    name: str
    nbytes: int
    state: FileState


@dataclass(frozen=True, kw_only=True)
class ManifestCheck:
    """What was found out about all files of a manifest."""

    manifest: Path
    files: tuple[CheckedFile, ...]
    not_made: tuple[str, ...]
    """Artifacts that the build could not make, and of which there are no files."""

    @property
    def passed(self) -> bool:
        """Whether every artifact is there, and every file is the one that was made."""
        return not self.not_made and all(file.state is FileState.SAME for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        return {
            "manifest": str(self.manifest),
            "passed": self.passed,
            "files": [{"name": file.name, "nbytes": file.nbytes, "state": str(file.state)} for file in self.files],
            "not_made": list(self.not_made),
        }


def check_manifest(
    path: Path, *, jobs: int = 1, progress: Callable[[str, int], None] = lambda name, nbytes: None
) -> ManifestCheck:
    """Hash every file that a manifest names, and compare.

    Args:
        path: the manifest of a build or of one artifact, or the folder that holds it.
        jobs: files that are hashed at a time.
        progress: is told the name and bytes of every file that was hashed.

    Raises:
        InputError: there is no manifest, or it is damaged or of another tool or version.
    """
    path = path / MANIFEST if path.is_dir() else path
    try:
        stated = msgspec.json.decode(read_small_file(path, largest=LARGEST_MANIFEST), type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not a manifest: {error}", file=path) from None
    if stated.tool.name != TOOL:
        raise InputError("manifest of another tool", file=path, found=stated.tool.name, expected=TOOL)
    version = build_manifest.VERSION if stated.kind == build_manifest.KIND else VERSION
    if stated.manifest_version != version:
        raise InputError("manifest of another version", file=path, found=stated.manifest_version, expected=version)
    artifacts = stated.artifacts or []
    files = [*(stated.files or []), *(file for artifact in artifacts for file in artifact.files)]
    if not files and not artifacts:
        raise InputError("manifest names no files", file=path)
    return ManifestCheck(
        manifest=path,
        files=tuple(_checked(files, path.parent, jobs, progress)),
        not_made=tuple(artifact.name for artifact in artifacts if not artifact.files),
    )


def _checked(
    files: Sequence[_File], folder: Path, jobs: int, progress: Callable[[str, int], None]
) -> list[CheckedFile]:
    found = []
    with ThreadPoolExecutor(jobs) as pool:
        for file, state in zip(files, pool.map(lambda file: _state(file, folder), files), strict=True):
            progress(file.name, file.nbytes)
            found.append(CheckedFile(name=file.name, nbytes=file.nbytes, state=state))
    return found


def _state(file: _File, folder: Path) -> FileState:
    parts = PurePosixPath(file.name).parts
    if not parts or len(parts) > 2 or any(part in ("..", "/") or "\\" in part or "\0" in part for part in parts):
        return FileState.OUTSIDE
    path = folder.joinpath(*parts)
    try:
        if path.is_symlink() or (len(parts) == 2 and path.parent.is_symlink()):
            return FileState.OUTSIDE
        if not path.is_file():
            return FileState.MISSING
        if path.stat().st_size != file.nbytes:
            return FileState.OTHER_SIZE
        return FileState.SAME if hash_file(path)[1] == file.sha256 else FileState.OTHER_CONTENTS
    except (OSError, GptossConvertError):
        return FileState.UNREADABLE
