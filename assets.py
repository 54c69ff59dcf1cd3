"""Files that travel with the weights: tokenizer, chat template, licence, model card."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_convert.errors import InputError

CONFIG = "config.json"
TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"
MODEL_CARD = "README.md"
LICENSE = "LICENSE"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"

SIDECAR = "mxfp4-scales.zip"
MANIFEST = "manifest.json"

TOKENIZER_FILES = (TOKENIZER_JSON, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, CHAT_TEMPLATE)
"""Names of the files that make a tokenizer."""
CARRIED = (*TOKENIZER_FILES, GENERATION_CONFIG, MODEL_CARD, LICENSE, "NOTICE", "USAGE_POLICY")
"""Names of the files that mean the same whatever the layout of the weights, and travel with them."""
KNOWN = (
    *CARRIED,
    CONFIG,
    "model.safetensors.index.json",
    "dtypes.json",
    SIDECAR,
    MANIFEST,
    "model.onnx",
    "genai_config.json",
)
"""Names of files beside the weights."""

LARGEST_TEXT = 16 << 20
"""No text file beside a model is larger than this many bytes; the real tokenizer has its own bound."""
LARGEST_TOKENIZER = 256 << 20


@dataclass(frozen=True)
class Assets:
    """The asset files of one folder; none of them has to exist."""

    folder: Path | None

    def path(self, name: str) -> Path | None:
        """Return the path of asset `name` if the folder has such a regular file.

        Raises:
            InputError: it is a link that leads out of the folder.
        """
        if self.folder is None:
            return None
        path = self.folder / name
        if not path.is_file():
            return None
        require_inside(path)
        return path

    def paths(self) -> tuple[Path, ...]:
        """Return the paths of the known files that the folder has, which an output must not replace."""
        found = map(self.path, KNOWN)
        return tuple(path for path in found if path is not None)

    def read(self, name: str, *, largest: int = LARGEST_TEXT) -> bytes | None:
        """Return the bytes of asset `name`, or None if there is no such file.

        Raises:
            InputError: the file cannot be read or is larger than `largest` bytes.
        """
        path = self.path(name)
        return None if path is None else read_small_file(path, largest=largest, inside=True)

    def read_json_object(self, name: str) -> dict[str, Any] | None:
        """Return asset `name` parsed as a JSON object, or None if there is no such file.

        Raises:
            InputError: the file is not a JSON object.
        """
        path = self.path(name)
        return None if path is None else read_json_object(path)


def read_small_file(path: Path, *, largest: int = LARGEST_TEXT, inside: bool = False) -> bytes:
    """Return the bytes of a file that has to be small.

    Args:
        path: the file.
        largest: bytes that it may have.
        inside: whether it is refused if it lies outside of its folder, as `require_inside` does.

    Raises:
        InputError: the file is missing, unreadable, not a regular file or larger than `largest` bytes, or leads
            out of its folder.
    """
    try:
        if not path.is_file():
            raise InputError("file is missing" if not path.exists() else "not a regular file", file=path)
        if not hasattr(path, "__fspath__"):  # on the Hub, where a path is of one commit, and nothing is a link
            _require_small(path, largest, path.stat().st_size)
            return path.read_bytes()
        # Looked at once more when it is open: a name may lead elsewhere by then, and a pipe would be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError("not a regular file", file=path)
            if inside:
                _require_same(path, status)
            data = b"" if status.st_size > largest else file.read(status.st_size + 1)
        size = max(status.st_size, len(data))
        _require_small(path, largest, size)
        if len(data) > status.st_size:
            raise InputError("file changed while it was in use", file=path)
        return data
    except OSError as error:
        raise InputError(f"cannot read file: {error.strerror}", file=path) from error


def _require_small(path: Path, largest: int, size: int) -> None:
    if size > largest:
        raise InputError("file is too large", file=path, found=f"{size} bytes", expected=f"at most {largest}")


def _require_same(path: Path, opened: os.stat_result) -> None:
    """Refuse an open file that is not the one which `path` leads to inside of its folder."""
    require_inside(path)
    if not os.path.samestat(path.stat(), opened):
        raise InputError("file changed while it was in use", file=path)


def require_inside(path: Path) -> None:
    """Refuse a file of a model's folder that is a symbolic link out of it.

    What lies in a folder gets into outputs, and these get published: a stranger's link must not put a private file
    there. The cache of the Hugging Face hub is a folder of links into `blobs`, which is as good as the folder.

    Raises:
        InputError: the link leads elsewhere, or round in circles.
    """
    if not path.is_symlink():
        return
    try:
        target, folder = path.resolve(strict=True), path.parent.resolve()
    except (OSError, RuntimeError):
        raise InputError("file is a link that leads nowhere", file=path) from None
    cached = (parent.parent / "blobs" for parent in (folder, *folder.parents) if parent.name == "snapshots")
    if not target.is_relative_to(folder) and target.parent not in cached:
        raise InputError(
            "file is a link that leads out of its folder",
            file=path,
            found=target,
            hint="put a copy of the file in its place",
        )


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; the `object_pairs_hook` of a parser that has only one opinion of a file.

    Raises:
        ValueError: a key occurs twice, of which other readers take the first or the last.
    """
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key occurs twice")
    return keys


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a small file of a model's folder.

    Raises:
        InputError: the file cannot be read, leads out of its folder, or is not a JSON object; a key occurs twice.
    """
    require_inside(path)
    data = read_small_file(path, inside=True)
    try:
        parsed = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", file=path, hint=_what_it_is(data)) from None
    if not isinstance(parsed, dict):
        raise InputError("not a JSON object", file=path, found=type(parsed).__name__)
    return parsed


def is_utf8(text: str) -> bool:
    """Return whether `text` can be written as UTF-8: JSON, YAML and arguments may hold halves of characters."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _what_it_is(data: bytes) -> str | None:
    if data.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if data.lstrip()[:1] == b"<":
        return "this looks like a web page; download the file again"
    return None
