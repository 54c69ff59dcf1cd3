"""Graphs for onnxruntime's CUDA provider: experts in MXFP4, as in the checkpoint but for the order of their codes.

QMoE with `quant_type` "fp4" computes with the checkpoint's codes and scales; onnxruntime has the kernel only where
it was built with `onnxruntime_USE_FP4_QMOE`. The initialisers are those of the graphs that onnxruntime-genai's
builder makes with `moe_quant_type=mxfp4`. Such a graph was checked and never run: no other provider has the kernel.
"""

from __future__ import annotations

import math

from onnx import TensorProto

from gptoss_convert.checkpoint import ModelConfig
from gptoss_convert.encodings import Encoding
from gptoss_convert.encodings.floats import F16
from gptoss_convert.encodings.mxfp4 import MXFP4
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.onnx.graph.fused import (
    Operators,
    Weights,
    build_decoder,
    gemm,
    require_whole_blocks,
)
from gptoss_convert.formats.onnx.graph.options import GraphOptions
from gptoss_convert.formats.onnx.weights import Graph, Initialiser, Layout, Weight


def build_cuda_graph(config: ModelConfig, options: GraphOptions) -> Graph:
    """Return the graph, with experts `mxfp4` and activations `f16`; `fused` has inputs and outputs.

    All weights but those of the experts are float16, too.

    Raises:
        UnsupportedError: there is no such graph, or its operators do not take such a model.
    """
    for choice, found, expected in (
        ("experts", options.experts, "mxfp4"),
        ("activations", options.activations, "f16"),
    ):
        if found != expected:
            raise UnsupportedError(f"{choice} that no graph for CUDA has", found=found, expected=expected)
    encoding: Encoding = F16()
    operators = Operators(
        embedding=encoding,
        activations=encoding,
        data_type=TensorProto.FLOAT16,
        linear=gemm(encoding),
        experts=_experts,
        qmoe={"expert_weight_bits": 4, "block_size": MXFP4.block, "quant_type": "fp4"},
        global_scales=True,
    )
    return build_decoder(config, operators, windowed_cache=options.windowed_cache)


def _experts(weights: Weights, tensor: str) -> list[str]:
    """Return the codes `[experts, in, out / 2]` and scales `[experts, out, in / 32]` of a tensor of experts."""
    encoding = MXFP4()
    experts, rows, columns = weights.shape(tensor)
    require_whole_blocks(tensor, encoding, columns)
    views = (
        (TensorProto.UINT8, (experts, columns, rows // 2)),
        (TensorProto.FLOAT8E8M0, (experts, rows, columns // encoding.block)),
    )
    initialisers = tuple(
        Initialiser(name=f"{tensor}.{part.name}", data_type=data_type, dims=dims, nbytes=math.prod(dims))
        for part, (data_type, dims) in zip(encoding.parts, views, strict=True)
    )
    weight = Weight(tensor=tensor, encoding=encoding, initialisers=initialisers, layout=Layout.ROW_PAIRS)
    return weights.put(weight)
