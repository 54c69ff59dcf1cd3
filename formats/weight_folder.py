"""Folders of files with weights before they are written, whatever their layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.formats.storage import FileRef


class PlacedArray(Protocol):
    """An array of a file, as its format names it."""

    @property
    def name(self) -> str:
        """Its name in the file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In stored elements."""

    @property
    def file(self) -> FileRef:
        """The file that it lies in."""

    @property
    def offset(self) -> int:
        """Where it begins, in bytes from the start of the file."""

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""


@dataclass(frozen=True)
class WeightFolder:
    """The files of a folder that is yet to be written."""

    files: tuple[tuple[FileRef, bytes], ...]
    """The files with tensors, or about them, each with all bytes before its first tensor; what programs open first.

    Bytes that belong to no tensor and come after those are zeros.
    """
    tensors: Mapping[str, Tensor]
    """Canonical tensors as they will be written."""
    parts: Mapping[str, tuple[PlacedArray, ...]]
    """Where each canonical tensor lies: blocks and scales, or a part of a fused tensor."""
    texts: Mapping[str, bytes]
    """Contents of the small files that belong to the layout, by name: configuration, index."""
