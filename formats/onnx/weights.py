"""What a graph wants of the weights: which canonical tensor, in which encoding, under which initialiser names.

Graph and weights are apart. A graph module says what it uses; the writer places the numbers in external data files,
row by row in canonical order, so that every initialiser is a part of a canonical tensor seen through other
dimensions, and nothing is transposed unless the weight's layout says so.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gptoss_convert.encodings import Array, Encoding

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, kw_only=True)
class Initialiser:
    """An initialiser whose numbers lie in an external data file."""

    name: str
    data_type: int
    """`onnx.TensorProto.DataType`."""
    dims: tuple[int, ...]
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)


class Layout(enum.StrEnum):
    """In which order the numbers of a weight lie."""

    ROWS = "rows"
    """Row by row, in canonical order."""
    ROW_PAIRS = "row-pairs"
    """Codes of MXFP4 transposed, two rows in a byte: `formats.onnx.row_pairs` has the storage."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A canonical tensor as a graph uses it."""

    tensor: str
    """Canonical name."""
    encoding: Encoding
    initialisers: tuple[Initialiser, ...]
    """One for each part of the encoding, in the order of the parts; the rows of all are those of the tensor."""
    layout: Layout = Layout.ROWS


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A graph without the numbers of its weights."""

    model: ModelProto
    """Initialisers of weights are declared with `data_location` EXTERNAL, and no location yet."""
    weights: Mapping[str, Weight]
    """Every tensor of the inventory, by canonical name."""
    tables: Mapping[str, Array] = field(default_factory=dict)
    """Numbers that follow from the configuration and are too many for the ONNX file, by the name of their
    initialiser, which is declared like those of weights."""
