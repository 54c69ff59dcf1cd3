"""Grouped-query attention with sinks and an optional sliding window, from standard operators.

Query heads that share a key head are one after the other, so they are seen as more queries of that head, and the
cache is never repeated. No value has more than four dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from gptoss_convert.checkpoint import SLIDING, ModelConfig
from gptoss_convert.formats.onnx.graph.builder import GraphWriter, WeightDeclarations
from gptoss_convert.formats.onnx.graph.dense import linear
from gptoss_convert.formats.onnx.graph.precision import EXACT, Precision
from gptoss_convert.formats.onnx.graph.rope import rotation_tables

_HIDDEN = -1e30
"""Added to scores of keys that are not seen: its exponential is 0. It is finite, so that no difference is NaN."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """What all layers need to know about the positions of a run; names of values."""

    cosines: str
    """float32 `[batch, sequence, 1, head_dim / 2]`."""
    sines: str
    masks: dict[str, str]
    """By layer type, float32 `[batch, 1, sequence, total]`: 0 where a key is seen."""
    query_shape: str
    """`[batch, sequence, heads, head_dim]`; these are int64 vectors to reshape to."""
    key_shape: str
    """`[batch, sequence, key heads, head_dim]`."""
    by_head: str
    """`[batch, heads, sequence, -1]`."""
    by_key_head: str
    """`[batch, key heads, heads / key heads * sequence, -1]`."""
    sink_shape: str
    """`[batch, heads, sequence, 1]`."""


def write_places(writer: GraphWriter, config: ModelConfig) -> Places:
    """Write what depends on `input_ids`, `attention_mask` and `position_ids` alone."""
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    shape = writer.op("Shape", "input_ids")
    batch = writer.op("Gather", shape, writer.integers(0))
    sequence = writer.op("Gather", shape, writer.integers(1))

    def vector(*entries: str | int) -> str:
        names = (entry if isinstance(entry, str) else writer.integers(entry) for entry in entries)
        return writer.op("Concat", *names, axis=0)

    grouped = writer.op("Mul", sequence, writer.integers(heads // key_heads))
    cosines, sines = (
        writer.op("Unsqueeze", writer.op("Gather", writer.table(name, table), "position_ids"), writer.integers(2))
        for name, table in zip(("cosines", "sines"), rotation_tables(config), strict=True)
    )
    return Places(
        cosines=cosines,
        sines=sines,
        masks=_write_masks(writer, config),
        query_shape=vector(batch, sequence, heads, config.head_dim),
        key_shape=vector(batch, sequence, key_heads, config.head_dim),
        by_head=vector(batch, heads, sequence, -1),
        by_key_head=vector(batch, key_heads, grouped, -1),
        sink_shape=vector(batch, heads, sequence, 1),
    )


def _write_masks(writer: GraphWriter, config: ModelConfig) -> dict[str, str]:
    """Write the mask of each layer type: keys are at most at the position of the query, and not padding.

    Positions of keys are counted by the attention mask, so padding has to be on the left.
    """
    counted = writer.op("CumSum", "attention_mask", writer.constant(np.array(1, np.int64)))
    key = writer.op("Unsqueeze", writer.op("Sub", counted, writer.integers(1)), writer.integers(1, 2))
    query = writer.op("Unsqueeze", "position_ids", writer.integers(1, 3))
    real = writer.op("Cast", writer.op("Unsqueeze", "attention_mask", writer.integers(1, 2)), to=TensorProto.BOOL)
    seen = writer.op("And", writer.op("LessOrEqual", key, query), real)
    masks = {}
    for layer_type in dict.fromkeys(config.layer_types):
        if layer_type == SLIDING:
            distance = writer.op("Sub", query, key)
            near = writer.op("LessOrEqual", distance, writer.integers(config.sliding_window - 1))
            visible = writer.op("And", seen, near)
        else:
            visible = seen
        masks[layer_type] = writer.op("Where", visible, writer.number(0.0), writer.number(_HIDDEN))
    return masks


def write_attention(
    writer: GraphWriter,
    weights: WeightDeclarations,
    config: ModelConfig,
    precision: Precision,
    layer: int,
    value: str,
    places: Places,
) -> str:
    """Return float32 `[tokens, hidden]` of one layer for `value` of the same shape, the output of its first norm.

    Its cache goes from the inputs `past_key_values.{layer}.*` to the outputs `present.{layer}.*`.
    """
    heads, key_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    prefix = f"model.layers.{layer}.self_attn."
    narrow = precision.narrow(writer, value)

    def projected(name: str, count: int, shape: str) -> str:
        tensor, bias = f"{prefix}{name}.weight", f"{prefix}{name}.bias"
        matrix = (count * size, config.hidden_size)
        return writer.op("Reshape", linear(writer, weights, tensor, narrow, matrix, precision, bias=bias), shape)

    def to_heads(parted: str) -> str:
        return writer.op("Transpose", precision.narrow(writer, parted), perm=[0, 2, 1, 3])

    query = _rotated(writer, projected("q_proj", heads, places.query_shape), places)
    query = to_heads(writer.op("Mul", query, writer.number(size**-0.5)))
    key = to_heads(_rotated(writer, projected("k_proj", key_heads, places.key_shape), places))
    new_value = to_heads(projected("v_proj", key_heads, places.key_shape))
    keys = _appended(writer, f"{layer}.key", key)
    values = _appended(writer, f"{layer}.value", new_value)

    few = writer.op("Reshape", query, places.by_key_head)
    scores = writer.op("MatMul", few, writer.op("Transpose", keys, perm=[0, 1, 3, 2]))
    scores = precision.widen(writer, writer.op("Reshape", scores, places.by_head))
    scores = writer.op("Add", scores, places.masks[config.layer_types[layer]])
    sinks = writer.op("Expand", weights.plain(f"{prefix}sinks", EXACT, (1, heads, 1, 1)), places.sink_shape)
    shares = writer.op("Softmax", writer.op("Concat", scores, sinks, axis=3), axis=3)
    # A sink takes its share, and has no value.
    shares = writer.op("Slice", shares, writer.integers(0), writer.integers(-1), writer.integers(3))
    shares = writer.op("Reshape", precision.narrow(writer, shares), places.by_key_head)
    read = writer.op("Reshape", writer.op("MatMul", shares, values), places.by_head)
    read = writer.op("Reshape", writer.op("Transpose", read, perm=[0, 2, 1, 3]), writer.integers(-1, heads * size))
    matrix = (config.hidden_size, heads * size)
    return linear(writer, weights, f"{prefix}o_proj.weight", read, matrix, precision, bias=f"{prefix}o_proj.bias")


def _rotated(writer: GraphWriter, heads: str, places: Places) -> str:
    """Return `heads` `[batch, sequence, heads, head_dim]`, dimensions i and i + head_dim / 2 rotated as a pair."""
    first, second = writer.ops("Split", heads, outputs=2, axis=3, num_outputs=2)

    def mixed(kind: str, cosine_of: str, sine_of: str) -> str:
        return writer.op(kind, writer.op("Mul", cosine_of, places.cosines), writer.op("Mul", sine_of, places.sines))

    return writer.op("Concat", mixed("Sub", first, second), mixed("Add", second, first), axis=3)


def _appended(writer: GraphWriter, entry: str, new: str) -> str:
    return writer.op("Concat", f"past_key_values.{entry}", new, axis=2, output=f"present.{entry}")
