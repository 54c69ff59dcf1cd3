"""A layer as a table of stages: what each takes, which tensors it uses, what it computes.

A layer is two blocks. The output of the last stage of a block is added to the hidden state that the block began
with. Since stages are named and take what they need from a mapping, a stage can be run alone on activations that
another checkpoint or precision gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import linear

from gptoss_convert.checkpoint import SLIDING, ModelConfig
from gptoss_convert.verify.forward.attention import attention
from gptoss_convert.verify.forward.batch import Batch
from gptoss_convert.verify.forward.experts import Expert, mixture, route
from gptoss_convert.verify.forward.rope import rotated
from gptoss_convert.verify.forward.weights import Rows, Weights

HIDDEN = "hidden"
"""Name of the activation that a block begins with."""
Activations = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a model, and the prompts that go through it."""

    index: int
    config: ModelConfig
    weights: Weights
    batch: Batch
    rotation: tuple[torch.Tensor, torch.Tensor]
    """Cosines and sines of each position of the batch, `[positions, head_dim / 2]`."""

    def name(self, tensor: str) -> str:
        """Return the canonical name of a tensor of this layer."""
        return f"model.layers.{self.index}.{tensor}"

    def whole(self, tensor: str) -> torch.Tensor:
        """Return a tensor of this layer."""
        return self.weights.whole(self.name(tensor))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a layer."""

    name: str
    """Also of the activation that it computes."""
    takes: tuple[str, ...]
    """`HIDDEN`, or stages before it in the block."""
    tensors: tuple[str, ...]
    """What it uses of the checkpoint, named within the layer."""
    compute: Callable[..., torch.Tensor]
    """Of the stage, the layer, and the activations in the order of `takes`; positions are the first dimension."""

    def run(self, layer: Layer, activations: Activations) -> torch.Tensor:
        """Compute this stage of `layer` from `activations`.

        Raises:
            InputError: the file is damaged.
        """
        return self.compute(self, layer, *(activations[name] for name in self.takes))


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Normalise the rows of `hidden` in the type of `weight`, float32 at least, and return them in their own."""
    wide = hidden.to(weight.dtype)
    wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + epsilon)
    return (wide * weight).to(hidden.dtype)


def _norm(stage: Stage, layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
    return rms_norm(hidden, layer.weights.exact(layer.name(stage.tensors[0])), layer.config.rms_norm_eps)


def _linear(stage: Stage, layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
    weight, bias = stage.tensors
    return linear(inputs, layer.whole(weight), layer.whole(bias))


def _heads(stage: Stage, layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
    return _linear(stage, layer, inputs).view(len(inputs), -1, layer.config.head_dim)


def _rotated_heads(stage: Stage, layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
    return rotated(_heads(stage, layer, inputs), *layer.rotation)


def _attention(
    stage: Stage, layer: Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    config = layer.config
    window = config.sliding_window if config.layer_types[layer.index] == SLIDING else None
    sinks = layer.whole(stage.tensors[0])
    mixed = [
        attention(query[begin:end], key[begin:end], value[begin:end], sinks, window)
        for begin, end in layer.batch.spans
    ]
    return torch.cat(mixed)


def _mixture(stage: Stage, layer: Layer, inputs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    routing = route(logits, layer.config.num_experts_per_tok)
    used = np.unique(routing.experts.numpy()).tolist()
    return mixture(inputs, routing, _experts(stage, layer, used), layer.config.swiglu_limit)


def _experts(stage: Stage, layer: Layer, used: list[int]) -> Iterator[tuple[int, Expert]]:
    """Yield the experts `used`; each is overwritten when the next one is asked for."""
    gate_up, gate_up_bias, down, down_bias = stage.tensors
    first_biases, second_biases = layer.whole(gate_up_bias), layer.whole(down_bias)
    hidden, inner = layer.config.hidden_size, layer.config.intermediate_size
    groups = (
        (
            Rows(layer.name(gate_up), index * 2 * inner, (index + 1) * 2 * inner),
            Rows(layer.name(down), index * hidden, (index + 1) * hidden),
        )
        for index in used
    )
    for index, (first, second) in zip(used, layer.weights.stream(groups), strict=True):
        yield index, Expert(first, first_biases[index], second, second_biases[index])


def _projection(name: str, source: str, module: str, compute: Callable[..., torch.Tensor]) -> Stage:
    return Stage(name=name, takes=(source,), tensors=(f"{module}.weight", f"{module}.bias"), compute=compute)


ROUTER = _projection("router", "norm", "mlp.router", _linear)
"""Its activation is the logits of all experts, `[positions, experts]`."""

ATTENTION_BLOCK = (
    Stage(name="norm", takes=(HIDDEN,), tensors=("input_layernorm.weight",), compute=_norm),
    _projection("query", "norm", "self_attn.q_proj", _rotated_heads),
    _projection("key", "norm", "self_attn.k_proj", _rotated_heads),
    _projection("value", "norm", "self_attn.v_proj", _heads),
    Stage(name="attention", takes=("query", "key", "value"), tensors=("self_attn.sinks",), compute=_attention),
    _projection("output", "attention", "self_attn.o_proj", _linear),
)
EXPERTS_BLOCK = (
    Stage(name="norm", takes=(HIDDEN,), tensors=("post_attention_layernorm.weight",), compute=_norm),
    ROUTER,
    Stage(
        name="experts",
        takes=("norm", "router"),
        tensors=(
            "mlp.experts.gate_up_proj",
            "mlp.experts.gate_up_proj_bias",
            "mlp.experts.down_proj",
            "mlp.experts.down_proj_bias",
        ),
        compute=_mixture,
    ),
)
BLOCKS = (ATTENTION_BLOCK, EXPERTS_BLOCK)
"""In the order of computation; together they use every tensor of a layer once."""

Observer = Callable[[Layer, Stage, Activations], None]
"""Told after each stage; the activations hold what the block computed so far."""


def run_block(
    block: tuple[Stage, ...], layer: Layer, hidden: torch.Tensor, observe: Observer | None = None
) -> torch.Tensor:
    """Return the hidden state `[positions, hidden_size]` after a block.

    Raises:
        InputError: the file is damaged.
    """
    activations = {HIDDEN: hidden}
    for stage in block:
        activations[stage.name] = stage.run(layer, activations)
        if observe is not None:
            observe(layer, stage, activations)
    return hidden + activations[block[-1].name]


def run_layer(layer: Layer, hidden: torch.Tensor, observe: Observer | None = None) -> torch.Tensor:
    """Return the hidden state `[positions, hidden_size]` after a layer.

    Raises:
        InputError: the file is damaged.
    """
    for block in BLOCKS:
        hidden = run_block(block, layer, hidden, observe)
    return hidden
