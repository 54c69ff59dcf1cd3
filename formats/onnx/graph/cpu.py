"""Graphs for onnxruntime's processor provider.

`int8` is exact: an MXFP4 number is a small whole number times a power of two, which QMoE with 8 bits in blocks of
32 holds, and all other weights are float32. It is so only with `session.disable_prepacking` set to 1 when the graph
is loaded: of weights that it has packed, onnxruntime keeps a second copy in memory, and QMoE rounds activations to
8 bits, which is faster, and less exact than float16.

The embedding may be bfloat16, as in the checkpoint: rows are widened when they have been picked, a few microseconds
each. Other matrices would have to be widened as a whole for every token.

`int4` is small, and lossy: QMoE with 4 bits, and MatMulNBits with 8 bits for attention and unembedding. Its weights
should be packed, as they are by default: without that a token takes about 28 times as long.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from gptoss_convert.checkpoint import ModelConfig
from gptoss_convert.encodings import Encoding, encoding
from gptoss_convert.encodings.floats import F32
from gptoss_convert.encodings.int4_block import Int4Block
from gptoss_convert.encodings.int8_block import Int8Block
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.onnx.graph.fused import Linear, Operators, Weights, build_decoder, gemm
from gptoss_convert.formats.onnx.graph.fused_writer import FusedWriter
from gptoss_convert.formats.onnx.graph.options import GraphOptions
from gptoss_convert.formats.onnx.weights import Graph

INT8_ACTIVATIONS = 4
"""Level of accuracy at which MatMulNBits rounds activations to 8 bits; without, a token takes 20 times as long."""


@dataclass(frozen=True, kw_only=True)
class _Profile:
    """How a choice of experts is stored and computed."""

    experts: Encoding
    bits: int
    linear: Linear


def build_cpu_graph(config: ModelConfig, options: GraphOptions) -> Graph:
    """Return the graph, with experts `int8` or `int4` and activations `f32`; `fused` has inputs and outputs.

    Raises:
        UnsupportedError: there is no such graph, or its operators do not take such a model.
    """
    profile = _profile(options)

    def experts(weights: Weights, tensor: str) -> list[str]:
        return weights.blocks(tensor, profile.experts)

    operators = Operators(
        embedding=encoding(options.embedding),
        activations=F32(),
        data_type=TensorProto.FLOAT,
        linear=profile.linear,
        experts=experts,
        qmoe={"expert_weight_bits": profile.bits, "block_size": profile.experts.block},
    )
    return build_decoder(config, operators, windowed_cache=options.windowed_cache)


def _matmul_8_bits(writer: FusedWriter, weights: Weights, value: str, matrix: str, bias: str | None) -> str:
    blocks = Int8Block()
    rows, columns = weights.shape(matrix)
    inputs = weights.blocks(matrix, blocks, items_apart=True)
    if bias is not None:
        zero_points_and_order_of_columns = ["", ""]
        inputs += [*zero_points_and_order_of_columns, weights.plain(bias, F32())]
    return writer.fused(
        "MatMulNBits",
        value,
        *inputs,
        dims=["tokens", rows],
        K=columns,
        N=rows,
        bits=8,
        block_size=blocks.block,
        accuracy_level=INT8_ACTIVATIONS,
    )


_PROFILES = {
    "int8": _Profile(experts=Int8Block(), bits=8, linear=gemm(F32())),
    "int4": _Profile(experts=Int4Block(), bits=4, linear=_matmul_8_bits),
}


def _profile(options: GraphOptions) -> _Profile:
    if options.activations != "f32":
        raise UnsupportedError(
            "activations that no graph for the processor has", found=options.activations, expected="f32"
        )
    if options.experts not in _PROFILES:
        raise UnsupportedError(
            "experts that no graph of onnxruntime's operators has",
            found=options.experts,
            expected=" or ".join(_PROFILES),
        )
    return _PROFILES[options.experts]
