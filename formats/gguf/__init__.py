"""GGUF, the file format of llama.cpp."""

from __future__ import annotations

from pathlib import Path

from gptoss_convert.formats.gguf.container import MAGIC
from gptoss_convert.formats.gguf.reader import NAME, TITLE, read


def recognises(path: Path) -> bool:
    """Return whether `path` is a file that begins as every GGUF file does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


__all__ = ["NAME", "TITLE", "read", "recognises"]
