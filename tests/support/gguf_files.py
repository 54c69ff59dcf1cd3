"""GGUF files as gguf-py, which is not ours, reads them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return type, shape (in elements, row-major) and bytes of every tensor by name."""
    return {
        tensor.name: (tensor.tensor_type.name, tuple(int(n) for n in reversed(tensor.shape)), tensor.data.tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


def metadata(path: Path) -> dict[str, tuple[list[str], Any]]:
    """Return the types and the value of every metadata key, in file order; the reader's own keys left out."""
    return {
        name: ([kind.name for kind in field.types], field.contents())
        for name, field in gguf.GGUFReader(path).fields.items()
        if not name.startswith("GGUF.")
    }


def dequantised(path: Path) -> dict[str, np.ndarray]:
    """Return the values of every tensor as gguf-py decodes them, float32."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }
