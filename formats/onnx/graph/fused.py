"""The decoder with operators that onnxruntime has for such models: GroupQueryAttention and QMoE.

Sources: GroupQueryAttention and QMoE in onnxruntime's docs/ContribOperators.md; its group_query_attention_helper.h
for what the inputs must be; and the graphs that onnxruntime-genai's builder makes for gpt-oss. Norms are
RMSNormalization of ONNX 23, so that the checker of ONNX knows every operator outside of onnxruntime's domain.

Activations are `[tokens, features]`, the positions of all sequences one after the other, except around attention.

What GroupQueryAttention is told of a batch is the length of each sequence, the sum of its row in `attention_mask`:
sequences begin at the first position and are padded at their ends. Padding in front of a sequence is not seen.
Several positions after a cache that is not empty are computed for one sequence at a time only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from gptoss_convert.checkpoint import SLIDING, ModelConfig, inventory
from gptoss_convert.encodings import Encoding
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.onnx.graph.builder import WeightDeclarations
from gptoss_convert.formats.onnx.graph.fused_writer import Dims, FusedWriter
from gptoss_convert.formats.onnx.graph.rope import rotation_tables
from gptoss_convert.formats.onnx.weights import Graph, Weight

OPSET = 23
"""The first with RMSNormalization."""
HEAD_DIM_STEP = 16
"""GroupQueryAttention rotates heads of a multiple of so many dimensions."""

SWIGLU_ALPHA = 1.702
SWIGLU_BETA = 1.0


class Weights:
    """The weights of a graph as they are asked for, by canonical names."""

    def __init__(self, config: ModelConfig) -> None:
        self._inventory = inventory(config)
        self._declared = WeightDeclarations()

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a canonical tensor, in elements."""
        return self._inventory[tensor].shape

    def plain(self, tensor: str, encoding: Encoding) -> str:
        """Return the initialiser of a tensor in an encoding of one number after the other."""
        return self._declared.plain(tensor, encoding, self.shape(tensor))

    def blocks(self, tensor: str, encoding: Encoding, *, items_apart: bool = False) -> list[str]:
        """Return the initialisers of a tensor in an encoding of blocks: codes, and scales.

        Args:
            tensor: its canonical name; its rows must be whole blocks.
            encoding: of two parts.
            items_apart: give codes the dimensions `[..., blocks, items of a block]` instead of `[..., items]`.

        Raises:
            UnsupportedError: rows of the tensor are no whole number of blocks.
        """
        codes, scales = encoding.parts
        *outer, columns = self.shape(tensor)
        require_whole_blocks(tensor, encoding, columns)
        blocks = columns // encoding.block
        items = [blocks, codes.per_block] if items_apart else [blocks * codes.per_block]
        dims = {f"{tensor}.{codes.name}": [*outer, *items], f"{tensor}.{scales.name}": [*outer, blocks]}
        return self._declared.parts(tensor, encoding, dims)

    def put(self, weight: Weight) -> list[str]:
        """Add a weight that is declared elsewhere, and return its initialisers."""
        self._declared.weights[weight.tensor] = weight
        return [item.name for item in weight.initialisers]

    def all(self) -> list[Weight]:
        """Return all that were asked for."""
        return list(self._declared.weights.values())


def require_whole_blocks(tensor: str, encoding: Encoding, columns: int) -> None:
    """Refuse rows of `columns` elements that are no whole number of blocks.

    Raises:
        UnsupportedError: they are not.
    """
    if not encoding.fits(columns):
        raise UnsupportedError(
            f"{encoding.name} needs rows of whole blocks",
            tensor=tensor,
            found=f"{columns} columns",
            expected=f"a multiple of {encoding.block}",
        )


class Linear(Protocol):
    """Adds a matrix product to a graph."""

    def __call__(self, writer: FusedWriter, weights: Weights, value: str, matrix: str, bias: str | None) -> str:
        """Return `value` `[tokens, in]` times the transpose of the tensor `matrix` `[out, in]`, plus `bias`."""


ExpertMatrix: TypeAlias = Callable[[Weights, str], list[str]]
"""Returns the initialisers of a tensor of experts: codes and scales."""


@dataclass(frozen=True, kw_only=True)
class Operators:
    """In what a decoder for one target differs from those for others."""

    embedding: Encoding
    """Of one number after the other; its rows are widened when they have been picked."""

    activations: Encoding
    """Type of the activations, and of all weights but those of `linear`, `experts` and the embedding."""
    data_type: int
    """The same as `onnx.TensorProto.DataType`."""
    linear: Linear
    """Of attention and unembedding; that of the router is `gemm` always."""
    experts: ExpertMatrix
    qmoe: Mapping[str, Any]
    """Attributes that tell QMoE how experts are stored."""
    global_scales: bool = False
    """Whether QMoE is told another scale for each expert, which is 1."""


def build_decoder(config: ModelConfig, operators: Operators, *, windowed_cache: bool) -> Graph:
    """Return the graph of a model.

    Inputs and outputs are those of onnxruntime-genai: `input_ids` int64 `[batch, positions]`, `attention_mask`
    int64 `[batch, positions so far]`, `past_key_values.N.key` and `.value` `[batch, key heads, past positions,
    head_dim]`; `logits` `[batch, positions, vocabulary]`, `present.N.key` and `.value`.

    Args:
        config: the model.
        operators: for the target.
        windowed_cache: whether the caches of sliding layers have the length of the window, zeros at first, and are
            moved on by the graph.

    Raises:
        UnsupportedError: the operators do not take such a model.
    """
    if config.head_dim % HEAD_DIM_STEP:
        raise UnsupportedError(
            "GroupQueryAttention rotates no such heads",
            found=f"head_dim {config.head_dim}",
            expected=f"a multiple of {HEAD_DIM_STEP}",
        )
    return _Decoder(config, operators, windowed_cache).graph()


def gemm(encoding: Encoding) -> Linear:
    """Return the matrix product with weights in an encoding of plain numbers."""

    def linear(writer: FusedWriter, weights: Weights, value: str, matrix: str, bias: str | None) -> str:
        inputs = [weights.plain(name, encoding) for name in (matrix, bias) if name is not None]
        return writer.op("Gemm", value, *inputs, transB=1)

    return linear


@dataclass(frozen=True)
class _Positions:
    """What the attention of every layer is told about positions."""

    lengths: str
    """int32 `[batch]`: positions of each sequence so far, less one."""
    total: str
    """int32: positions of the longest sequence so far."""
    cosines: str
    """`[all positions, head_dim / 2]`."""
    sines: str
    """The same."""
    shape: str
    """int64: `[batch, positions, -1]`."""


class _Decoder:
    def __init__(self, config: ModelConfig, operators: Operators, windowed_cache: bool) -> None:
        self._config = config
        self._operators = operators
        self._windowed_cache = windowed_cache
        self._writer = FusedWriter(operators.data_type)
        self._weights = Weights(config)
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []

    def graph(self) -> Graph:
        """Write everything, and return it."""
        writer, config = self._writer, self._config
        ids = self._input("input_ids", TensorProto.INT64, ["batch", "positions"])
        mask = self._input("attention_mask", TensorProto.INT64, ["batch", "total_positions"])
        self._output("logits", ["batch", "positions", config.vocab_size])
        positions = self._positions(ids, mask)
        with writer.within("embedding"):
            tokens = writer.op("Reshape", ids, writer.integers(-1))
            table = self._weights.plain("model.embed_tokens.weight", self._operators.embedding)
            hidden = writer.op("Gather", table, tokens)
            if self._operators.embedding != self._operators.activations:
                hidden = writer.op("Cast", hidden, to=self._operators.data_type)
        for layer in range(config.num_hidden_layers):
            with writer.within(f"layers.{layer}"):
                hidden = self._layer(layer, hidden, positions)
        with writer.within("unembedding"):
            normed = self._norm(hidden, "model.norm.weight")
            flat = self._operators.linear(writer, self._weights, normed, "lm_head.weight", None)
            writer.op("Reshape", flat, positions.shape, output="logits")
        return writer.finish(config, self._weights.all(), self._inputs, self._outputs, opset=OPSET)

    def _layer(self, layer: int, hidden: str, positions: _Positions) -> str:
        writer, prefix = self._writer, f"model.layers.{layer}."
        with writer.within("attention"):
            normed = self._norm(hidden, prefix + "input_layernorm.weight")
            attended = self._attention(layer, normed, positions)
            hidden = writer.op("Add", hidden, attended)
        with writer.within("experts"):
            normed = self._norm(hidden, prefix + "post_attention_layernorm.weight")
            return writer.op("Add", hidden, self._experts(prefix + "mlp.", normed))

    def _attention(self, layer: int, normed: str, positions: _Positions) -> str:
        writer, config, prefix = self._writer, self._config, f"model.layers.{layer}.self_attn."
        projected = []
        for kind in ("q", "k", "v"):
            with writer.within(kind):
                flat = self._linear(normed, f"{prefix}{kind}_proj")
                projected.append(writer.op("Reshape", flat, positions.shape))
        past, present = self._cache(layer)
        attributes: dict[str, int | float] = {
            "num_heads": config.num_attention_heads,
            "kv_num_heads": config.num_key_value_heads,
            "scale": config.head_dim**-0.5,
            "do_rotary": 1,
            "local_window_size": config.sliding_window if config.layer_types[layer] == SLIDING else -1,
        }
        if self._has_window(layer):
            attributes["sliding_window_cache"] = 1
        columns = config.num_attention_heads * config.head_dim
        position_ids_and_bias = ("", "")  # the lengths tell the positions
        heads = writer.fused(
            "GroupQueryAttention",
            *(*projected, *past, positions.lengths, positions.total, positions.cosines, positions.sines),
            *(*position_ids_and_bias, self._plain(prefix + "sinks")),
            dims=["batch", "positions", columns],
            further=present,
            **attributes,
        )
        flat = writer.op("Reshape", heads, writer.integers(-1, columns))
        return self._linear(flat, f"{prefix}o_proj")

    def _experts(self, prefix: str, normed: str) -> str:
        writer, config, operators = self._writer, self._config, self._operators
        router = gemm(operators.activations)
        logits = router(writer, self._weights, normed, prefix + "router.weight", prefix + "router.bias")
        inputs = [normed, logits]
        for name in ("gate_up_proj", "down_proj"):
            tensor = f"{prefix}experts.{name}"
            inputs += [*operators.experts(self._weights, tensor), self._plain(f"{tensor}_bias")]
        if operators.global_scales:
            ones = writer.constant(np.ones(config.num_local_experts, np.float32))
            third_matrix_zero_points_and_routing_weights = [""] * 7
            inputs += [*third_matrix_zero_points_and_routing_weights, ones, ones]
        return writer.fused(
            "QMoE",
            *inputs,
            dims=["tokens", config.hidden_size],
            activation_type="swiglu",
            activation_alpha=SWIGLU_ALPHA,
            activation_beta=SWIGLU_BETA,
            swiglu_fusion=1,  # rows of gate and up alternate
            swiglu_limit=config.swiglu_limit,
            k=config.num_experts_per_tok,
            normalize_routing_weights=1,
            **operators.qmoe,
        )

    def _positions(self, ids: str, mask: str) -> _Positions:
        writer = self._writer
        one = writer.integers(1)
        with writer.within("positions"):
            last = writer.op("Sub", writer.op("ReduceSum", mask, one, keepdims=0), one)
            lengths = writer.op("Cast", last, to=TensorProto.INT32)
            longest = writer.op("Gather", writer.op("Shape", mask), writer.constant(np.array(1, np.int64)))
            total = writer.op("Cast", longest, to=TensorProto.INT32)
            shape = writer.op("Concat", writer.op("Shape", ids), writer.integers(-1), axis=0)
            dtype = self._operators.activations.parts[0].dtype
            cosines, sines = (
                writer.table(name, table.astype(dtype, copy=False))
                for name, table in zip(("cosines", "sines"), rotation_tables(self._config), strict=True)
            )
        return _Positions(lengths, total, cosines, sines, shape)

    def _cache(self, layer: int) -> tuple[list[str], list[str]]:
        """Declare the cache of a layer before and after, and return the names of both."""
        heads, size = self._config.num_key_value_heads, self._config.head_dim
        window = "window_" if self._has_window(layer) else ""
        past, present = [], []
        for part in ("key", "value"):
            dims = ("batch", heads, f"past_{window}positions", size)
            past.append(self._input(f"past_key_values.{layer}.{part}", self._operators.data_type, dims))
            dims = ("batch", heads, f"present_{window}positions", size)
            present.append(self._output(f"present.{layer}.{part}", dims))
        return past, present

    def _has_window(self, layer: int) -> bool:
        return self._windowed_cache and self._config.layer_types[layer] == SLIDING

    def _input(self, name: str, data_type: int, dims: Dims) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, data_type, dims))
        return name

    def _output(self, name: str, dims: Dims) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, self._operators.data_type, dims))
        return name

    def _norm(self, value: str, tensor: str) -> str:
        epsilon = self._config.rms_norm_eps
        return self._writer.op("RMSNormalization", value, self._plain(tensor), axis=-1, epsilon=epsilon)

    def _linear(self, value: str, module: str) -> str:
        return self._operators.linear(self._writer, self._weights, value, f"{module}.weight", f"{module}.bias")

    def _plain(self, tensor: str) -> str:
        return self._weights.plain(tensor, self._operators.activations)
