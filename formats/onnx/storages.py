"""How the weights of a graph lie in external data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gptoss_convert.checkpoint import Storage
from gptoss_convert.encodings import Encoding
from gptoss_convert.formats.onnx.data_types import row_items
from gptoss_convert.formats.onnx.row_pairs import RowPairsStorage
from gptoss_convert.formats.onnx.weights import Layout
from gptoss_convert.formats.storage import FileRef, PartsStorage, StoredArray


def has_layout(layout: Layout, encoding: Encoding, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor of `shape` may lie so."""
    return layout is Layout.ROWS or (encoding.name == "mxfp4" and len(shape) == 3 and shape[1] % 2 == 0)


def storage_of(
    layout: Layout, encoding: Encoding, shape: tuple[int, ...], places: Sequence[tuple[FileRef, int]]
) -> Storage:
    """Return how a tensor of `shape` lies in files, in a layout that it may have.

    Args:
        layout: order of the numbers.
        encoding: of the tensor.
        shape: in elements, canonical orientation.
        places: for each part of the encoding the file, and the offset of its array.
    """
    arrays = tuple(
        StoredArray(file, offset, part.dtype, row_items(part, encoding, shape[-1]))
        for (file, offset), part in zip(places, encoding.parts, strict=True)
    )
    if layout is Layout.ROWS:
        return PartsStorage(arrays)
    codes, scales = arrays
    return RowPairsStorage(replace(codes, items=shape[1] // 2), scales, shape[-1])
