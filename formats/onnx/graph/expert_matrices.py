"""Matrices of experts as nodes: picked by index, and decoded.

An index must depend on what the graph is fed: with a constant one, a runtime decodes all experts while it loads.
Experts are picked with Gather, for DirectML compiles a graph anew for every new start of a Slice.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from onnx import TensorProto

from gptoss_convert.encodings import Array, Encoding, encoding
from gptoss_convert.encodings.mxfp4_format import BLOCK, CODE_VALUES, SCALE_BIAS, SCALE_NAN
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.onnx.graph.builder import GraphWriter, WeightDeclarations
from gptoss_convert.formats.onnx.graph.precision import Precision


class ExpertMatrix(Protocol):
    """One matrix of every expert of a layer."""

    def pick(self, writer: GraphWriter, indices: str, count: int) -> str:
        """Return `[count, out, in]` in the type of the activations: the experts at int64 `indices` `[count]`."""


class Mxfp4Matrix:
    """MXFP4 as in the checkpoint: a byte is looked up as two numbers, and multiplied with its block's scale."""

    encoding = encoding("mxfp4")

    def __init__(
        self, weights: WeightDeclarations, tensor: str, shape: tuple[int, int, int], precision: Precision
    ) -> None:
        self.shape = shape
        self.precision = precision
        self.codes, self.scales = weights.parts(tensor, self.encoding, _block_dims(tensor, self.encoding, shape))

    def pick(self, writer: GraphWriter, indices: str, count: int) -> str:
        """Return the experts at `indices`, looked up in tables of 256 entries."""
        _, rows, columns = self.shape
        codes = writer.op("Gather", self.codes, indices, axis=0)
        pairs = _looked_up(writer, pair_table(self.precision), codes)
        scales = _looked_up(writer, scale_table(self.precision), writer.op("Gather", self.scales, indices, axis=0))
        blocks = writer.op("Reshape", pairs, writer.integers(count, rows * columns // BLOCK, BLOCK))
        return writer.op("Reshape", writer.op("Mul", blocks, scales), writer.integers(count, rows, columns))


class PlainMatrix:
    """Half precision, as it is."""

    encoding = encoding("f16")

    def __init__(
        self, weights: WeightDeclarations, tensor: str, shape: tuple[int, int, int], precision: Precision
    ) -> None:
        self.precision = precision
        self.values = weights.plain(tensor, self.encoding, shape)

    def pick(self, writer: GraphWriter, indices: str, count: int) -> str:
        """Return the experts at `indices`, in another type if activations have one."""
        picked = writer.op("Gather", self.values, indices, axis=0)
        if self.precision.data_type == TensorProto.FLOAT16:
            return picked
        return writer.op("Cast", picked, to=self.precision.data_type)


def expert_matrix(
    kind: str, weights: WeightDeclarations, tensor: str, shape: tuple[int, int, int], precision: Precision
) -> ExpertMatrix:
    """Declare the matrices `tensor` of `shape` `[experts, out, in]` as `GraphOptions.experts` says.

    Raises:
        UnsupportedError: standard operators have no such experts.
    """
    match kind:
        case "mxfp4":
            return Mxfp4Matrix(weights, tensor, shape, precision)
        case "f16":
            return PlainMatrix(weights, tensor, shape, precision)
        case _:
            raise UnsupportedError("experts that standard operators do not decode", found=kind)


def pair_table(precision: Precision) -> Array:
    """Return the two numbers of every byte of codes, the low four bits first, `[256, 2]`."""
    byte = np.arange(256)
    return np.stack([CODE_VALUES[byte & 15], CODE_VALUES[byte >> 4]], axis=-1).astype(precision.dtype)


def scale_table(precision: Precision) -> Array:
    """Return the number of every scale byte, `[256, 1]`; NaN for the one that stands for it.

    In float16 those below 2**-24 are 0, and those above 2**15 are 2**15 rather than infinite, since a block of
    zeros may have them, and zero times infinity is not zero.
    """
    scales = np.ldexp(1.0, np.arange(256) - SCALE_BIAS)
    scales = np.minimum(scales, 2.0 ** np.floor(np.log2(float(np.finfo(precision.dtype).max))))
    scales[SCALE_NAN] = np.nan
    table: Array = scales.astype(precision.dtype)[:, None]
    return table


def _looked_up(writer: GraphWriter, table: Array, indices: str) -> str:
    """Return rows of `table` by uint8 `indices`."""
    return writer.op("Gather", writer.constant(table), writer.op("Cast", indices, to=TensorProto.INT32), axis=0)


def _block_dims(tensor: str, stored: Encoding, shape: tuple[int, int, int]) -> dict[str, tuple[int, int]]:
    """Return initialisers of the parts of block-encoded experts: a row has all that one expert needs."""
    experts, rows, columns = shape
    blocks = rows * columns // stored.block
    return {f"{tensor}.{part.name}": (experts, blocks * part.per_block) for part in stored.parts}
