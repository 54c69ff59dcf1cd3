"""The mixture of experts, from standard operators.

A single token picks the experts that it goes to. More tokens would need as many times the memory, so all experts
are decoded then, a few at a time, each once for all tokens; tokens that do not go to an expert leave its output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gptoss_convert.checkpoint import ModelConfig
from gptoss_convert.formats.onnx.graph.builder import GraphWriter, WeightDeclarations
from gptoss_convert.formats.onnx.graph.expert_matrices import Declare, ExpertMatrix
from gptoss_convert.formats.onnx.graph.precision import EXACT, Precision

ALPHA = 1.702
"""Steepness of the sigmoid in the gate; no configuration file names it."""
GROUP = 4
"""Experts that are decoded at once for many tokens: as many as one token of gpt-oss picks, for the same memory."""
_SMALLEST_GATE = -60000.0
"""Below, the gate gives 0 in any type; minus infinity, which an overflow in float16 makes, would give NaN."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What all layers need to know about the number of tokens; names of values."""

    single: str
    """bool scalar: whether there is one token at most."""
    zero: str
    """int64 `[1]`: 0, which no runtime knows before it runs."""


def write_tokens(writer: GraphWriter) -> Tokens:
    """Write what depends on the number of `input_ids` alone."""
    flat = writer.op("Shape", writer.op("Reshape", "input_ids", writer.integers(-1)))
    count = writer.op("Squeeze", flat, writer.integers(0))
    return Tokens(
        single=writer.op("LessOrEqual", count, writer.constant(np.array(1, np.int64))),
        zero=writer.op("Mul", flat, writer.integers(0)),
    )


@dataclass(frozen=True, kw_only=True)
class _Layer:
    config: ModelConfig
    precision: Precision
    gate_up: ExpertMatrix
    gate_up_bias: str
    """`[experts, 2 * inner]`."""
    down: ExpertMatrix
    down_bias: str
    """`[experts, hidden]`."""

    def apply(self, writer: GraphWriter, indices: str, count: int, columns: str) -> str:
        """Return float32 `[count, hidden, tokens]`: what `count` experts make of `columns` `[hidden, tokens]`."""
        config, precision = self.config, self.precision
        product = writer.op("MatMul", self.gate_up.pick(writer, indices, count), columns)
        biased = _biased(writer, precision.widen(writer, product), self.gate_up_bias, indices)
        inner = _gated(writer, biased, count, config)
        if precision.headroom != 1:
            inner = writer.op("Mul", inner, writer.number(1 / precision.headroom))
        product = writer.op("MatMul", self.down.pick(writer, indices, count), precision.narrow(writer, inner))
        wide = precision.widen(writer, product)
        if precision.headroom != 1:
            wide = writer.op("Mul", wide, writer.number(precision.headroom))
        return _biased(writer, wide, self.down_bias, indices)


def write_mixture(
    writer: GraphWriter,
    weights: WeightDeclarations,
    config: ModelConfig,
    precision: Precision,
    declare: Declare,
    layer: int,
    value: str,
    tokens: Tokens,
) -> str:
    """Return float32 `[tokens, hidden]` of one layer for `value` of the same shape, its second norm's output."""
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_local_experts
    prefix = f"model.layers.{layer}.mlp."
    router = weights.plain(f"{prefix}router.weight", EXACT, (experts, hidden))
    logits = writer.op("Gemm", value, router, weights.plain(f"{prefix}router.bias", EXACT, (experts,)), transB=1)
    # Of equal logits the first is chosen, says the operator.
    best, chosen = writer.ops("TopK", logits, writer.integers(config.num_experts_per_tok), outputs=2, axis=1)
    shares = writer.op("Softmax", best, axis=1)
    prefix += "experts."
    matrices = _Layer(
        config=config,
        precision=precision,
        gate_up=declare(f"{prefix}gate_up_proj", (experts, 2 * inner, hidden)),
        gate_up_bias=weights.plain(f"{prefix}gate_up_proj_bias", EXACT, (experts, 2 * inner)),
        down=declare(f"{prefix}down_proj", (experts, hidden, inner)),
        down_bias=weights.plain(f"{prefix}down_proj_bias", EXACT, (experts, hidden)),
    )
    narrow = precision.narrow(writer, value)
    one = _write_one_token(writer.branch("one"), matrices, narrow, chosen, shares)
    many = _write_many_tokens(writer.branch("many"), matrices, narrow, chosen, shares, tokens.zero)
    return writer.choose(tokens.single, one, many)


def _write_one_token(
    writer: GraphWriter, layer: _Layer, value: str, chosen: str, shares: str
) -> tuple[GraphWriter, str]:
    count, hidden = layer.config.num_experts_per_tok, layer.config.hidden_size
    column = writer.op("Reshape", value, writer.integers(hidden, 1))
    output = layer.apply(writer, writer.op("Reshape", chosen, writer.integers(count)), count, column)
    return writer, writer.op("MatMul", shares, writer.op("Reshape", output, writer.integers(count, hidden)))


def _write_many_tokens(
    writer: GraphWriter, layer: _Layer, value: str, chosen: str, shares: str, zero: str
) -> tuple[GraphWriter, str]:
    columns = writer.op("Transpose", value, perm=[1, 0])
    total: str | None = None
    experts = range(layer.config.num_local_experts)
    nothing = writer.number(0.0)
    for start in experts[::GROUP]:
        group = experts[start : start + GROUP]
        indices = writer.op("Add", zero, writer.integers(*group))
        output = layer.apply(writer, indices, len(group), columns)
        # [experts, tokens, chosen ones] to [experts, 1, tokens]
        places = writer.op("Equal", chosen, writer.op("Unsqueeze", indices, writer.integers(1, 2)))
        share = writer.op("Where", places, shares, nothing)
        share = writer.op(
            "Unsqueeze", writer.op("ReduceSum", share, writer.integers(2), keepdims=0), writer.integers(1)
        )
        # Not by a product with 0: outputs for tokens that go elsewhere may be infinite.
        weighted = writer.op(
            "Where", writer.op("Greater", share, nothing), writer.op("Mul", output, share), nothing
        )
        summed = writer.op("ReduceSum", weighted, writer.integers(0), keepdims=0)
        total = summed if total is None else writer.op("Add", total, summed)
    assert total is not None, "a configuration has experts"
    return writer, writer.op("Transpose", total, perm=[1, 0])


def _biased(writer: GraphWriter, value: str, bias: str, indices: str) -> str:
    """Return float32 `value` `[count, rows, tokens]` plus `bias` of the experts at `indices`."""
    picked = writer.op("Gather", bias, indices, axis=0)
    return writer.op("Add", value, writer.op("Unsqueeze", picked, writer.integers(2)))


def _gated(writer: GraphWriter, gate_up: str, count: int, config: ModelConfig) -> str:
    """Return `(up + 1) * gate * sigmoid(ALPHA * gate)`, `[count, inner, tokens]`; even rows are the gate."""
    inner, limit = config.intermediate_size, config.swiglu_limit
    pairs = writer.op("Reshape", gate_up, writer.integers(count, inner, 2, -1))
    parts = writer.ops("Split", pairs, outputs=2, axis=2, num_outputs=2)
    gate, up = (writer.op("Reshape", part, writer.integers(count, inner, -1)) for part in parts)
    gate = writer.op("Clip", gate, writer.number(_SMALLEST_GATE), writer.number(limit))
    up = writer.op("Clip", up, writer.number(-limit), writer.number(limit))
    opened = writer.op("Mul", gate, writer.op("Sigmoid", writer.op("Mul", gate, writer.number(ALPHA))))
    return writer.op("Mul", writer.op("Add", up, writer.number(1.0)), opened)
