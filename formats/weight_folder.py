"""Folders of safetensors files before they are written, whatever their layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.formats.safetensors import StoredTensor
from gptoss_convert.formats.safetensors_writer import SafetensorsLayout


@dataclass(frozen=True)
class WeightFolder:
    """The files of a folder that is yet to be written."""

    layout: SafetensorsLayout
    """The files with tensors."""
    tensors: Mapping[str, Tensor]
    """Canonical tensors as they will be written."""
    parts: Mapping[str, tuple[StoredTensor, ...]]
    """Where each canonical tensor lies: blocks and scales, or a part of a fused tensor."""
    texts: Mapping[str, bytes]
    """Contents of the small files that belong to the layout, by name: configuration, index."""
