"""What an earlier build left: enough to tell whether an artifact is still what the recipe asks for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from gptoss_convert import __version__
from gptoss_convert.assets import read_small_file
from gptoss_convert.converters.manifest import hash_file
from gptoss_convert.errors import InputError, OutputError

if TYPE_CHECKING:
    from gptoss_convert.converters.plan import Plan
    from gptoss_convert.recipes.recipe import ArtifactRecipe, FootprintRecipe, VerifyRecipe

STATE = "build-state.json"
VERSION = 1
LARGEST_STATE = 64 << 20

_SAMPLE = 1 << 20
"""Bytes at the beginning of a file that its fingerprint covers: all of a header, or nearly."""


@dataclass(frozen=True, kw_only=True)
class HashedFile:
    """A file as it was when it was hashed."""

    name: str
    """Relative to the folder of the build, or of the source."""
    nbytes: int
    mtime_ns: int
    sha256: str

    def is_there(self, folder: Path) -> bool:
        """Whether the file is unchanged: the same size and time, or at least the same contents."""
        try:
            facts = os.stat(folder / self.name)  # noqa: PTH116 - pathlib raises for some names
        except (OSError, ValueError):
            return False
        if facts.st_size != self.nbytes:
            return False
        if facts.st_mtime_ns == self.mtime_ns:
            return True
        try:
            return hash_file(folder / self.name)[1] == self.sha256
        except OutputError:  # made anew
            return False

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        return {"name": self.name, "nbytes": self.nbytes, "mtime_ns": self.mtime_ns, "sha256": self.sha256}


class _File(msgspec.Struct, frozen=True):
    name: str
    nbytes: int
    mtime_ns: int
    sha256: str


class _Verdict(msgspec.Struct, frozen=True):
    outcome: Literal["pass", "fail", "inconclusive"]


class _Verification(msgspec.Struct, frozen=True):
    verdict: _Verdict


class _Named(msgspec.Struct, frozen=True):
    name: str
    sha256: str


class _Facts(msgspec.Struct, frozen=True):
    """What manifests, statements of provenance and bills of materials take from the facts of an artifact."""

    name: str
    output: str
    to: str
    format: str
    options: dict[str, Any]
    loss: str
    canonical_hash: str | None
    files: list[_Named]
    verification: _Verification


class _Built(msgspec.Struct, frozen=True):
    key: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    files: list[_File]
    facts: dict[str, Any]
    verification: dict[str, Any]
    memory: list[dict[str, Any]] = []


class _State(msgspec.Struct, frozen=True):
    state_version: int
    outputs: list[str]
    sources: list[_File]
    artifacts: dict[str, _Built]


@dataclass(frozen=True, kw_only=True)
class Built:
    """An artifact that a build made."""

    key: str
    """Digest of everything that it depends on, see `artifact_key`."""
    files: tuple[HashedFile, ...]
    facts: Mapping[str, Any]
    """What the manifest says of it."""
    verification: Mapping[str, Any]
    """Everything that was found out about it, for reports."""
    memory: Sequence[Mapping[str, Any]] = ()
    """What was found out about its memory, for reports."""

    def is_current(self, key: str, folder: Path) -> bool:
        """Whether it is what a build with `key` would make again."""
        return self.key == key and all(file.is_there(folder) for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        files = [file.as_dict() for file in self.files]
        return {
            "key": self.key,
            "files": files,
            "facts": dict(self.facts),
            "verification": dict(self.verification),
            "memory": [dict(entry) for entry in self.memory],
        }


@dataclass(frozen=True, kw_only=True)
class BuildState:
    """What builds in a folder have made so far."""

    outputs: frozenset[str] = frozenset()
    """Files and folders that a build began to write, and a later one may replace."""
    sources: tuple[HashedFile, ...] = ()
    """Files with tensors of the source, so that they need not be hashed again."""
    built: Mapping[str, Built] = field(default_factory=dict)
    """Artifacts that were made and judged, by name."""

    def with_output(self, name: str) -> BuildState:
        """Return the state after a build began to write `name`."""
        return replace(self, outputs=self.outputs | {name})

    def with_sources(self, files: tuple[HashedFile, ...]) -> BuildState:
        """Return the state after the source was hashed."""
        return replace(self, sources=files)

    def with_built(self, name: str, built: Built) -> BuildState:
        """Return the state after the artifact `name` was made and judged."""
        return replace(self, built={**self.built, name: built})

    def serialise(self) -> bytes:
        """Return the contents of the file."""
        document = {
            "state_version": VERSION,
            "outputs": sorted(self.outputs),
            "sources": [file.as_dict() for file in self.sources],
            "artifacts": {name: item.as_dict() for name, item in self.built.items()},
        }
        return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def read_state(folder: Path) -> BuildState:
    """Return what earlier builds in `folder` made.

    Raises:
        InputError: the file is damaged, or of another version.
    """
    path = folder / STATE
    if not path.exists():
        return BuildState()
    try:
        state = msgspec.json.decode(read_small_file(path, largest=LARGEST_STATE), type=_State)
        for item in state.artifacts.values():
            msgspec.convert(item.facts, _Facts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not the state of a build: {error}", file=path, hint="delete it to build anew") from None
    if state.state_version != VERSION:
        raise InputError("state of another version", file=path, found=state.state_version, hint="delete it")
    return BuildState(
        outputs=frozenset(state.outputs),
        sources=tuple(map(_as_hashed, state.sources)),
        built={name: _as_built(item) for name, item in state.artifacts.items()},
    )


def _as_built(item: _Built) -> Built:
    files = tuple(map(_as_hashed, item.files))
    return Built(
        key=item.key, files=files, facts=item.facts, verification=item.verification, memory=tuple(item.memory)
    )


def _as_hashed(file: _File) -> HashedFile:
    return HashedFile(name=file.name, nbytes=file.nbytes, mtime_ns=file.mtime_ns, sha256=file.sha256)


def artifact_key(plan: Plan, artifact: ArtifactRecipe, verify: VerifyRecipe, footprint: FootprintRecipe) -> str:
    """Return a digest of everything that the artifact and its verdict depend on.

    That is the version of this program, the options, the whole plan with the headers of all files, how it is
    judged, and a fingerprint of every input: name, size, time of the last change and first bytes.

    Raises:
        InputError: an input cannot be read.
    """
    digest = hashlib.sha256()
    facts = plan.as_dict()
    for entry in facts["files"]:
        del entry["path"]  # the folder may move
    del facts["source"], facts["files_made_at_the_end"]
    for part in (__version__, repr(artifact), repr(verify), repr(footprint), json.dumps(facts, sort_keys=True)):
        digest.update(f"{len(part)}:{part}".encode("utf-8", "surrogatepass"))
    for file in plan.files:
        digest.update(hashlib.sha256(file.header).digest())
    judging = [path for path in (verify.prompts, verify.policy) if isinstance(path, Path)]
    files = {file for path in (*plan.inputs, *judging) for file in _files(path)}
    for file_path in sorted(files):
        digest.update(_fingerprint(file_path))
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.iterdir() if file.is_file())
    else:
        yield path


def _fingerprint(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            head = hashlib.sha256(file.read(_SAMPLE)).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror or error}", file=path) from error
    return f"{path.name}\0{facts.st_size}\0{facts.st_mtime_ns}\0{head}".encode("utf-8", "surrogatepass")


def hashed_sources(paths: Sequence[Path], known: Sequence[HashedFile]) -> tuple[HashedFile, ...]:
    """Hash the files of a source, but for those that have the name, size and time of a `known` one.

    Raises:
        InputError: one cannot be read.
    """
    found = []
    for path in paths:
        try:
            facts = path.stat()
            earlier = (path.name, facts.st_size, facts.st_mtime_ns)
            same = [file for file in known if (file.name, file.nbytes, file.mtime_ns) == earlier]
            nbytes, sha256 = (facts.st_size, same[0].sha256) if same else hash_file(path)
        except (OSError, OutputError) as error:
            raise InputError("cannot read the source", file=path) from error
        found.append(HashedFile(name=path.name, nbytes=nbytes, mtime_ns=facts.st_mtime_ns, sha256=sha256))
    return tuple(found)


def written_files(folder: Path, hashed: Iterable[tuple[str, int, str]]) -> tuple[HashedFile, ...]:
    """Return files with names relative to `folder`, sizes and digests, with the time of their last change.

    Raises:
        OutputError: a file is gone.
    """
    files = []
    for name, nbytes, sha256 in hashed:
        try:
            mtime = (folder / name).stat().st_mtime_ns
        except OSError as error:
            raise OutputError(f"cannot read what was written: {error.strerror}", file=folder / name) from error
        files.append(HashedFile(name=name, nbytes=nbytes, mtime_ns=mtime, sha256=sha256))
    return tuple(files)
