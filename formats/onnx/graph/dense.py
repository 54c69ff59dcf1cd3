"""Norms and matrices that every position uses."""

from __future__ import annotations

from gptoss_convert.formats.onnx.graph.builder import GraphWriter, WeightDeclarations
from gptoss_convert.formats.onnx.graph.precision import EXACT, Precision


def rms_norm(
    writer: GraphWriter, weights: WeightDeclarations, tensor: str, value: str, size: int, eps: float
) -> str:
    """Return float32 `value` `[tokens, size]` divided by its root mean square, times the norm's weight.

    It is written out: fused kernels of it give wrong numbers on some of DirectML's drivers.
    """
    square = writer.op("Mul", value, value)
    mean = writer.op("ReduceMean", square, writer.integers(1), keepdims=1)
    root = writer.op("Sqrt", writer.op("Add", mean, writer.number(eps)))
    return writer.op("Mul", writer.op("Div", value, root), weights.plain(tensor, EXACT, (size,)))


def linear(
    writer: GraphWriter,
    weights: WeightDeclarations,
    tensor: str,
    value: str,
    shape: tuple[int, int],
    precision: Precision,
    *,
    bias: str | None = None,
) -> str:
    """Return float32 `[tokens, out]`: `value` `[tokens, in]` times the matrix `tensor` of `shape` `[out, in]`.

    `value` and the product are of the type of `precision`; the canonical tensor `bias` is added in float32.
    """
    product = writer.op("Gemm", value, weights.plain(tensor, precision.encoding, shape), transB=1)
    wide = precision.widen(writer, product)
    if bias is None:
        return wide
    return writer.op("Add", wide, weights.plain(bias, EXACT, shape[:1]))
