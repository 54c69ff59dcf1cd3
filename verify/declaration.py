"""What the manifest beside an artifact declares, and whether it is the artifact's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from gptoss_convert.assets import MANIFEST, read_small_file
from gptoss_convert.canonical_hash import model_digest
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.manifest import TOOL, VERSION, hash_file
from gptoss_convert.encodings import LossClass
from gptoss_convert.errors import InputError, OutputError

LARGEST_MANIFEST = 16 << 20
"""Bytes; that of gpt-oss-120b takes less than one million."""

_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Tool(msgspec.Struct, frozen=True):
    name: str = ""


class _Stamp(msgspec.Struct, frozen=True):
    """What tells a manifest of this tool from other files of that name."""

    tool: _Tool = _Tool()
    manifest_version: int = 0


class _Source(msgspec.Struct, frozen=True):
    name: str
    format: str


class _File(msgspec.Struct, frozen=True):
    name: str
    nbytes: int
    sha256: _Digest


class _Hash(msgspec.Struct, frozen=True):
    model: _Digest
    tensors: dict[str, _Digest]


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    source_encoding: str
    encoding: str
    loss: LossClass


class _Manifest(msgspec.Struct, frozen=True):
    """The fields of `converters.manifest.Manifest.as_dict` that are looked at."""

    source: _Source
    format: str
    loss: LossClass
    files: list[_File]
    canonical_hash: _Hash
    tensors: list[_Tensor]


@dataclass(frozen=True)
class DeclaredTensor:
    """What a manifest says of a tensor."""

    source_encoding: str
    encoding: str
    loss: LossClass


@dataclass(frozen=True)
class Declaration:
    """What a manifest says of an artifact, and what speaks against its being the artifact's."""

    path: Path
    source_format: str | None
    """None for a manifest that cannot be read."""
    tensors: Mapping[str, DeclaredTensor]
    findings: tuple[str, ...]
    """Why the manifest is not the artifact's, a sentence each; empty for one that is."""

    def losses(self, reference: Checkpoint) -> dict[str, LossClass]:
        """Return what is declared of the conversion from `reference`, by tensor.

        A conversion from another format or encoding says nothing about the way from this reference, and a manifest
        of another file nothing about this one.
        """
        if self.findings or self.source_format != reference.format:
            return {}
        return {
            name: declared.loss
            for name, declared in self.tensors.items()
            if name in reference.tensors and reference.tensors[name].encoding.name == declared.source_encoding
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        return {"path": str(self.path), "passed": not self.findings, "findings": list(self.findings)}


def manifest_path(artifact: Path) -> Path:
    """Return where the manifest of an artifact lies: in a folder, beside a file."""
    return artifact / MANIFEST if artifact.is_dir() else artifact.with_name(f"{artifact.name}.{MANIFEST}")


def read_declaration(artifact: Checkpoint, *, jobs: int = 1) -> Declaration | None:
    """Read the manifest beside an artifact, and hash the files that it names with `jobs` threads.

    Returns:
        None if there is no manifest, or only another tool's file of that name. What is wrong with it is a finding.
    """
    path = manifest_path(artifact.path)
    if not path.is_file():
        return None
    try:
        data = read_small_file(path, largest=LARGEST_MANIFEST)
    except InputError as error:
        return Declaration(path, None, {}, (f"manifest {path.name} cannot be read: {error.what}",))
    try:
        stamp = msgspec.json.decode(data, type=_Stamp)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Declaration(path, None, {}, (f"manifest {path.name} is damaged: {error}",))
    if stamp.tool.name != TOOL:
        return None
    if stamp.manifest_version != VERSION:
        finding = f"manifest {path.name} is of version {stamp.manifest_version}, not {VERSION}"
        return Declaration(path, None, {}, (finding,))
    try:
        manifest = msgspec.json.decode(data, type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Declaration(path, None, {}, (f"manifest {path.name} is damaged: {error}",))
    tensors = {
        item.name: DeclaredTensor(item.source_encoding, item.encoding, item.loss) for item in manifest.tensors
    }
    with ThreadPoolExecutor(jobs) as pool:
        files = pool.map(lambda file: _file_finding(path.parent, file), manifest.files)
        findings = [finding for finding in files if finding is not None]
    findings += _contradictions(manifest, tensors, artifact)
    return Declaration(path, manifest.source.format, tensors, tuple(findings))


def _file_finding(folder: Path, declared: _File) -> str | None:
    """Return why a file is not the one that was hashed; None if it is."""
    path = folder / declared.name
    if Path(declared.name).name != declared.name or declared.name in (".", ".."):
        return f"manifest names a file outside of its folder: {declared.name[:100]}"
    if not path.is_file():
        return f"manifest names {declared.name}, which is missing"
    if path.stat().st_size != declared.nbytes:
        return f"{declared.name} has {path.stat().st_size} bytes, not the {declared.nbytes} of the manifest"
    try:
        _, digest = hash_file(path)
    except OutputError as error:
        return f"{declared.name} cannot be hashed: {error}"
    return None if digest == declared.sha256 else f"{declared.name} is not the file of the manifest: other SHA-256"


def _contradictions(
    manifest: _Manifest, tensors: Mapping[str, DeclaredTensor], artifact: Checkpoint
) -> Iterator[str]:
    """Yield what the manifest contradicts: the artifact, or itself."""
    named = {file.name for file in manifest.files}
    for file in artifact.files:
        if file.name not in named:
            yield f"manifest does not name {file.name}, which holds tensors"
    if model_digest(manifest.canonical_hash.tensors) != manifest.canonical_hash.model:
        yield "canonical hash of the manifest is not that of its tensors"
    if manifest.loss is not LossClass.worst(item.loss for item in manifest.tensors):
        yield f"manifest says {manifest.loss} of the model, but not as the worst of its tensors"
    for name, tensor in artifact.tensors.items():
        declared = tensors.get(name)
        if declared is None or name not in manifest.canonical_hash.tensors:
            yield f"manifest does not name tensor {name}"
        elif declared.encoding != tensor.encoding.name:
            yield f"manifest says {declared.encoding} of tensor {name}, which is in {tensor.encoding.name}"
