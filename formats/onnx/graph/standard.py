"""gpt-oss in operators of the ONNX standard alone, for runtimes without kernels of their own for it.

Layouts and formulas are those of transformers' `modeling_gpt_oss.py`. Inputs and outputs are named as
onnxruntime-genai names them. Sequences of a batch are padded on the left.
"""

from __future__ import annotations

from onnx import TensorProto, ValueInfoProto, helper

from gptoss_convert.checkpoint import ModelConfig, inventory
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.onnx.graph.attention import write_attention, write_places
from gptoss_convert.formats.onnx.graph.builder import GraphWriter, WeightDeclarations
from gptoss_convert.formats.onnx.graph.dense import rms_norm
from gptoss_convert.formats.onnx.graph.expert_matrices import declaration
from gptoss_convert.formats.onnx.graph.experts import write_mixture, write_tokens
from gptoss_convert.formats.onnx.graph.options import GraphOptions
from gptoss_convert.formats.onnx.graph.precision import PRECISIONS, Precision
from gptoss_convert.formats.onnx.weights import Graph


def build_standard_graph(config: ModelConfig, options: GraphOptions) -> Graph:
    """Return the graph of a model.

    Inputs: int64 `input_ids` and `position_ids` `[batch, sequence]`, `attention_mask` `[batch, total]`, and
    `past_key_values.{layer}.key` and `.value` `[batch, key heads, past, head_dim]`. Outputs: `logits`
    `[batch, sequence, vocab_size]`, and `present.{layer}.key` and `.value`. All but the integers are of the type of
    the activations.

    Raises:
        UnsupportedError: standard operators have no such experts or cache, or rotary tables would be too large.
    """
    if options.windowed_cache:
        raise UnsupportedError("cache of one window in a graph of standard operators")
    precision = PRECISIONS[options.activations]
    writer, weights = GraphWriter(""), WeightDeclarations()
    with writer.within("places"):
        places = write_places(writer, config)
        tokens = write_tokens(writer)
        declare = declaration(writer, weights, options.experts, precision)

    hidden = config.hidden_size
    embedding = weights.plain("model.embed_tokens.weight", precision.encoding, (config.vocab_size, hidden))
    embedded = writer.op("Gather", embedding, "input_ids", axis=0)
    state = precision.widen(writer, writer.op("Reshape", embedded, writer.integers(-1, hidden)))

    def normed(tensor: str, value: str) -> str:
        return rms_norm(writer, weights, tensor, value, hidden, config.rms_norm_eps)

    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        with writer.within(f"layers.{layer}.attention"):
            value = normed(f"{prefix}input_layernorm.weight", state)
            value = write_attention(writer, weights, config, precision, layer, value, places)
            state = writer.op("Add", state, value)
        with writer.within(f"layers.{layer}.experts"):
            value = normed(f"{prefix}post_attention_layernorm.weight", state)
            value = write_mixture(writer, weights, config, precision, declare, layer, value, tokens)
            state = writer.op("Add", state, value)

    value = precision.narrow(writer, normed("model.norm.weight", state))
    unembedding = weights.plain("lm_head.weight", precision.encoding, (config.vocab_size, hidden))
    logits = writer.op("Gemm", value, unembedding, transB=1)
    with writer.within("places"):
        shape = writer.op("Concat", writer.op("Shape", "input_ids"), writer.integers(config.vocab_size), axis=0)
    writer.op("Reshape", logits, shape, output="logits")
    return weights.graph(writer, inventory(config), _inputs(config, precision), _outputs(config, precision))


def _inputs(config: ModelConfig, precision: Precision) -> list[ValueInfoProto]:
    return [
        _value("input_ids", TensorProto.INT64, "batch", "sequence"),
        _value("attention_mask", TensorProto.INT64, "batch", "total"),
        _value("position_ids", TensorProto.INT64, "batch", "sequence"),
        *_cache("past_key_values", "past", config, precision),
    ]


def _outputs(config: ModelConfig, precision: Precision) -> list[ValueInfoProto]:
    return [
        _value("logits", precision.data_type, "batch", "sequence", config.vocab_size),
        *_cache("present", "total", config, precision),
    ]


def _cache(name: str, length: str, config: ModelConfig, precision: Precision) -> list[ValueInfoProto]:
    return [
        _value(
            f"{name}.{layer}.{part}",
            precision.data_type,
            "batch",
            config.num_key_value_heads,
            length,
            config.head_dim,
        )
        for layer in range(config.num_hidden_layers)
        for part in ("key", "value")
    ]


def _value(name: str, data_type: int, *dims: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, data_type, dims)
