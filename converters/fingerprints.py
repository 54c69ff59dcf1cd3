"""Fingerprints of source files: whether what is read now is what was read before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptoss_convert.errors import InputError
from gptoss_convert.formats.storage import RemotePath

_HEAD_BYTES = 1 << 20
"""Bytes of a file that are hashed: the headers of safetensors files, and of most others."""


@dataclass(frozen=True)
class Fingerprint:
    """What is told of a file without reading all of it."""

    size: int
    """Bytes."""
    modified_ns: int
    head: str
    """SHA-256 of its first megabyte; empty for a file that cannot change, since a commit is part of its path."""

    @classmethod
    def of(cls, path: Path) -> Fingerprint:
        """Look at a regular file.

        Raises:
            InputError: it cannot be read.
        """
        if isinstance(path, RemotePath):
            return cls(path.stat().st_size, 0, "")
        try:
            with path.open("rb", buffering=0) as file:
                head = hashlib.sha256()
                rest = _HEAD_BYTES
                while rest and (piece := file.read(rest)):
                    head.update(piece)
                    rest -= len(piece)
            status = path.stat()
        except OSError as error:
            raise InputError(f"cannot read file: {error.strerror or error}", file=path) from error
        return cls(status.st_size, status.st_mtime_ns, head.hexdigest())

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return asdict(self)


def fingerprints(paths: Iterable[Path]) -> dict[str, Fingerprint]:
    """Return the fingerprint of every regular file among `paths`, by absolute path.

    Raises:
        InputError: one cannot be read.
    """
    files = dict.fromkeys(path.absolute() for path in paths if path.is_file())
    return {str(path): Fingerprint.of(path) for path in files}


def difference(before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]) -> tuple[str, str] | None:
    """Return the first file that is not the same, and what is different about it; None if all are."""
    for path in sorted(before.keys() | now.keys()):
        old, new = before.get(path), now.get(path)
        if old is None or new is None:
            return path, "it was not there before" if old is None else "it is gone"
        if old.size != new.size:
            return path, f"{new.size} bytes instead of {old.size}"
        if old.head != new.head:
            return path, "other contents"
        if old.modified_ns != new.modified_ns:
            return path, "another time of modification"
    return None


def require_unchanged(before: Mapping[str, Fingerprint]) -> None:
    """Look at the files again.

    Raises:
        InputError: one changed since, or is gone.
    """
    mutable = {path: found for path, found in before.items() if found.head}
    changed = difference(mutable, fingerprints(map(Path, mutable)))
    if changed is not None:
        raise InputError(
            "source changed while it was read",
            file=changed[0],
            found=changed[1],
            hint="convert again when nothing writes to it",
        )
