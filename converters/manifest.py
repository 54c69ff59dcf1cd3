"""The manifest of an artifact: hashes of its files and of its values, and what the conversion did to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_convert import __version__
from gptoss_convert.canonical_hash import CheckpointHash
from gptoss_convert.errors import OutputError

TOOL = "gptoss-convert"
VERSION = 1
"""Of the manifest's own format."""
_READ_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class HashedFile:
    """A file of the artifact; `name` is relative to the manifest."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that a manifest says; it depends on source, options and version alone."""

    source: str
    """Name of the file or folder that was converted."""
    source_format: str
    format: str
    loss: str
    files: tuple[HashedFile, ...]
    hash: CheckpointHash
    """Of the values that were written."""
    tensors: tuple[Mapping[str, Any], ...]
    """What happened to each tensor."""

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON-ready data."""
        return {
            "manifest_version": VERSION,
            "tool": {"name": TOOL, "version": __version__},
            "source": {"name": self.source, "format": self.source_format},
            "format": self.format,
            "loss": self.loss,
            "files": [{"name": file.name, "nbytes": file.nbytes, "sha256": file.sha256} for file in self.files],
            "canonical_hash": self.hash.as_dict(),
            "tensors": [dict(tensor) for tensor in self.tensors],
        }

    def serialise(self) -> bytes:
        """Return the contents of the file."""
        return (json.dumps(self.as_dict(), indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode()


def hash_file(path: Path) -> tuple[int, str]:
    """Return size and SHA-256 of a file that was just written.

    Raises:
        OutputError: it cannot be read.
    """
    digest, nbytes = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_READ_AT_ONCE))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                nbytes += count
    except OSError as error:
        raise OutputError(f"cannot read what was written: {error.strerror or error}", file=path) from error
    return nbytes, digest.hexdigest()
