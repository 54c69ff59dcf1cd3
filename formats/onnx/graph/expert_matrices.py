"""Matrices of experts as nodes: picked by index, and decoded.

An index must depend on what the graph is fed: with a constant one, a runtime decodes all experts while it loads.
Experts are picked with Gather, for DirectML compiles a graph anew for every new start of a Slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
from onnx import TensorProto

from gptoss_convert.encodings import Array, Encoding, encoding
from gptoss_convert.encodings.mxfp4 import PAIR_VALUES
from gptoss_convert.encodings.mxfp4_format import BLOCK, SCALE_NAN
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.onnx.graph.builder import GraphWriter, WeightDeclarations
from gptoss_convert.formats.onnx.graph.precision import Precision

Shape: TypeAlias = tuple[int, int, int]
"""`[experts, out, in]`."""

_ZERO = 128
"""The byte of int8 blocks that stands for 0."""


class ExpertMatrix(Protocol):
    """One matrix of every expert of a layer."""

    def pick(self, writer: GraphWriter, indices: str, count: int) -> str:
        """Return `[count, out, in]` in the type of the activations: the experts at int64 `indices` `[count]`."""


class Mxfp4Matrix:
    """MXFP4 as in the checkpoint: a byte of codes and the scale of its block are looked up as two numbers.

    One table for both leaves nothing to multiply, so that zeros stay zeros whatever the scale, and numbers are
    rounded to float16 once. Few of its rows are used, for the scales of a tensor are few.
    """

    def __init__(self, weights: WeightDeclarations, tensor: str, shape: Shape, table: str) -> None:
        """Declare the tensor; `table` is the name of `number_pairs`."""
        self.shape = shape
        self.table = table
        self.codes, self.scales = _declare_blocks(weights, tensor, encoding("mxfp4"), shape)

    def pick(self, writer: GraphWriter, indices: str, count: int) -> str:
        """Return the experts at `indices`, looked up."""
        _, rows, columns = self.shape
        scales = writer.op("Cast", writer.op("Gather", self.scales, indices, axis=0), to=TensorProto.INT32)
        first = writer.op("Mul", scales, writer.constant(np.array(256, np.int32)))
        codes = writer.op("Cast", writer.op("Gather", self.codes, indices, axis=0), to=TensorProto.INT32)
        codes = writer.op("Reshape", codes, writer.integers(count, rows * columns // BLOCK, BLOCK // 2))
        entries = writer.op("Add", codes, writer.op("Unsqueeze", first, writer.integers(2)))
        pairs = writer.op("Gather", self.table, entries, axis=0)
        return writer.op("Reshape", pairs, writer.integers(count, rows, columns))


class Int8Matrix:
    """Int8 blocks: `(byte - 128) * scale`."""

    def __init__(self, weights: WeightDeclarations, tensor: str, shape: Shape, precision: Precision) -> None:
        self.shape = shape
        self.precision = precision
        self.encoding = encoding("int8-block")
        self.values, self.scales = _declare_blocks(weights, tensor, self.encoding, shape)

    def pick(self, writer: GraphWriter, indices: str, count: int) -> str:
        """Return the experts at `indices`, multiplied with their scales."""
        _, rows, columns = self.shape
        block = self.encoding.block
        values = writer.op("Gather", self.values, indices, axis=0)
        values = writer.op("Cast", values, to=self.precision.data_type)
        values = writer.op("Sub", values, writer.constant(np.array(_ZERO, self.precision.dtype)))
        values = writer.op("Reshape", values, writer.integers(count, rows * columns // block, block))
        scales = self.precision.narrow(writer, writer.op("Gather", self.scales, indices, axis=0))
        scaled = writer.op("Mul", values, writer.op("Unsqueeze", scales, writer.integers(2)))
        return writer.op("Reshape", scaled, writer.integers(count, rows, columns))


class PlainMatrix:
    """Half precision, as it is."""

    def __init__(self, weights: WeightDeclarations, tensor: str, shape: Shape, precision: Precision) -> None:
        self.precision = precision
        self.values = weights.plain(tensor, encoding("f16"), shape)

    def pick(self, writer: GraphWriter, indices: str, count: int) -> str:
        """Return the experts at `indices`, in another type if activations have one."""
        picked = writer.op("Gather", self.values, indices, axis=0)
        if self.precision.data_type == TensorProto.FLOAT16:
            return picked
        return writer.op("Cast", picked, to=self.precision.data_type)


Declare: TypeAlias = Callable[[str, Shape], ExpertMatrix]
"""Declares the canonical tensor of a name."""


def declaration(writer: GraphWriter, weights: WeightDeclarations, kind: str, precision: Precision) -> Declare:
    """Return what declares matrices as `GraphOptions.experts` says; `writer` gets what all of them share.

    Raises:
        UnsupportedError: standard operators have no such experts.
    """
    match kind:
        case "mxfp4":
            table = writer.table("number_pairs", number_pairs(precision))
            return lambda tensor, shape: Mxfp4Matrix(weights, tensor, shape, table)
        case "int8":
            return lambda tensor, shape: Int8Matrix(weights, tensor, shape, precision)
        case "f16":
            return lambda tensor, shape: PlainMatrix(weights, tensor, shape, precision)
        case _:
            raise UnsupportedError("experts that a graph of standard operators does not decode", found=kind)


def number_pairs(precision: Precision) -> Array:
    """Return the two numbers of every byte with every scale, item `scale << 8 | byte` of `[65536, 2]`.

    Scale 255 stands for NaN.
    """
    pairs = PAIR_VALUES.copy()
    pairs[SCALE_NAN << 8 :] = np.nan
    with np.errstate(over="ignore"):
        table: Array = pairs.astype(precision.dtype)
    return table


def _declare_blocks(weights: WeightDeclarations, tensor: str, stored: Encoding, shape: Shape) -> list[str]:
    """Return the initialisers of block-encoded experts: a row of each has all that one expert needs."""
    experts, rows, columns = shape
    blocks = rows * columns // stored.block
    dims = {f"{tensor}.{part.name}": (experts, blocks * part.per_block) for part in stored.parts}
    return weights.parts(tensor, stored, dims)
