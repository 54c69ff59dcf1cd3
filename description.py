"""What is said about a model besides its numbers: who made it, under which licence, from what.

The fields are those that model cards and GGUF files share (`gguf.Metadata`). None means that nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Another model, or a data set, that a model comes from."""

    name: str | None = None
    author: str | None = None
    version: str | None = None
    organization: str | None = None
    description: str | None = None
    url: str | None = None
    doi: str | None = None
    uuid: str | None = None
    repo_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is said about a model."""

    name: str | None = None
    author: str | None = None
    version: str | None = None
    organization: str | None = None
    finetune: str | None = None
    basename: str | None = None
    description: str | None = None
    quantized_by: str | None = None
    size_label: str | None = None
    license: str | None = None
    """SPDX id where there is one."""
    license_name: str | None = None
    license_link: str | None = None
    url: str | None = None
    doi: str | None = None
    uuid: str | None = None
    repo_url: str | None = None
    source_url: str | None = None
    source_doi: str | None = None
    source_uuid: str | None = None
    source_repo_url: str | None = None
    source_revision: str | None = None
    """Commit of the repository that the weights came from."""
    base_models: tuple[Reference, ...] = ()
    datasets: tuple[Reference, ...] = ()
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    sampling: Mapping[str, float | int | str] = field(default_factory=dict)
    """Recommended sampling settings by GGUF's names: top_k, top_p, temp, ..."""

    def updated(self, stated: Description) -> Description:
        """Return this description with everything that `stated` says in its place."""
        said = {item.name: getattr(stated, item.name) for item in fields(stated)}
        return replace(self, **{name: value for name, value in said.items() if value not in (None, (), {})})


_CACHED = re.compile(r"models--.+?--(?P<name>.+)")


def model_name(path: Path) -> str:
    """Return what a model at `path` is called: the name of the file or folder.

    In the cache of `huggingface_hub`, where folders are called as commits are and files as their hashes, it is the
    name of the repository or of the file in it (`models--OWNER--NAME/snapshots/COMMIT/FILE`).
    """
    resolved = path.resolve()
    if resolved.parent.name == "blobs":
        return path.name
    repository = _CACHED.fullmatch(resolved.parent.parent.name)
    if resolved.parent.name == "snapshots" and repository is not None:
        return repository["name"]
    return resolved.name
