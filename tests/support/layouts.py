"""Shapes of gpt-oss checkpoints: which tensors each layout holds, and the JSON files beside them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["weight", "embedding", "bias", "sink", "norm", "blocks", "scales", "experts"]
"""What a tensor holds; "experts" are dequantised MXFP4 experts, [E, in, out]."""

BYTES_PER_ELEMENT = {"F32": 4, "BF16": 2, "U8": 1}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Hyper-parameters of a gpt-oss model; the defaults make a model of 0.3 MB."""

    layers: int = 2
    hidden: int = 64
    intermediate: int = 96
    experts: int = 4
    experts_per_token: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocab: int = 512
    sliding_window: int = 128

    def __post_init__(self) -> None:
        if self.hidden % 32 or self.intermediate % 32:
            raise ValueError("hidden and intermediate must be multiples of the MXFP4 block, 32")
        if self.heads % self.kv_heads:
            raise ValueError("heads must be a multiple of kv_heads")
        if self.experts_per_token > self.experts:
            raise ValueError("experts_per_token must not exceed experts")


REAL_20B = Shape(
    layers=24,
    hidden=2880,
    intermediate=2880,
    experts=32,
    experts_per_token=4,
    heads=64,
    kv_heads=8,
    head_dim=64,
    vocab=201088,
)


@dataclass(frozen=True)
class Tensor:
    """One stored tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: Kind

    @property
    def nbytes(self) -> int:
        """Bytes of the stored data."""
        return math.prod(self.shape) * BYTES_PER_ELEMENT[self.dtype]


def huggingface_tensors(shape: Shape, *, experts: Literal["mxfp4", "bf16"] = "mxfp4") -> list[Tensor]:
    """All tensors of the Hugging Face layout, in published order: layers sorted as strings, then the rest."""
    tensors: list[Tensor] = []
    for layer in sorted(range(shape.layers), key=str):
        tensors += _huggingface_layer(f"model.layers.{layer}.", shape, experts)
    return [
        *tensors,
        Tensor("model.embed_tokens.weight", "BF16", (shape.vocab, shape.hidden), "embedding"),
        Tensor("model.norm.weight", "BF16", (shape.hidden,), "norm"),
        Tensor("lm_head.weight", "BF16", (shape.vocab, shape.hidden), "weight"),
    ]


def _huggingface_layer(prefix: str, shape: Shape, experts: Literal["mxfp4", "bf16"]) -> list[Tensor]:
    hidden, query, key = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    return [
        Tensor(prefix + "input_layernorm.weight", "BF16", (hidden,), "norm"),
        Tensor(attention + "o_proj.bias", "BF16", (hidden,), "bias"),
        Tensor(attention + "o_proj.weight", "BF16", (hidden, query), "weight"),
        Tensor(attention + "q_proj.bias", "BF16", (query,), "bias"),
        Tensor(attention + "k_proj.bias", "BF16", (key,), "bias"),
        Tensor(attention + "v_proj.bias", "BF16", (key,), "bias"),
        Tensor(attention + "q_proj.weight", "BF16", (query, hidden), "weight"),
        Tensor(attention + "k_proj.weight", "BF16", (key, hidden), "weight"),
        Tensor(attention + "v_proj.weight", "BF16", (key, hidden), "weight"),
        Tensor(attention + "sinks", "BF16", (shape.heads,), "sink"),
        Tensor(mlp + "router.bias", "BF16", (shape.experts,), "bias"),
        Tensor(mlp + "router.weight", "BF16", (shape.experts, hidden), "weight"),
        *_projection(mlp + "experts.gate_up_proj", shape.experts, 2 * shape.intermediate, hidden, experts),
        *_projection(mlp + "experts.down_proj", shape.experts, hidden, shape.intermediate, experts),
        Tensor(prefix + "post_attention_layernorm.weight", "BF16", (hidden,), "norm"),
    ]


def _projection(name: str, count: int, rows: int, columns: int, experts: str) -> list[Tensor]:
    """One expert projection with `rows` outputs and `columns` inputs per expert, in published order."""
    bias = Tensor(name + "_bias", "BF16", (count, rows), "bias")
    if experts == "bf16":
        return [bias, Tensor(name, "BF16", (count, columns, rows), "experts")]
    return [
        bias,
        Tensor(name + "_blocks", "U8", (count, rows, columns // 32, 16), "blocks"),
        Tensor(name + "_scales", "U8", (count, rows, columns // 32), "scales"),
    ]


_ORIGINAL_LAYER = {
    "attn.norm.scale": ("input_layernorm.weight",),
    "attn.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attn.qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "attn.sinks": ("self_attn.sinks",),
    "attn.out.weight": ("self_attn.o_proj.weight",),
    "attn.out.bias": ("self_attn.o_proj.bias",),
    "mlp.norm.scale": ("post_attention_layernorm.weight",),
    "mlp.gate.weight": ("mlp.router.weight",),
    "mlp.gate.bias": ("mlp.router.bias",),
    "mlp.mlp1_weight.blocks": ("mlp.experts.gate_up_proj_blocks",),
    "mlp.mlp1_weight.scales": ("mlp.experts.gate_up_proj_scales",),
    "mlp.mlp1_bias": ("mlp.experts.gate_up_proj_bias",),
    "mlp.mlp2_weight.blocks": ("mlp.experts.down_proj_blocks",),
    "mlp.mlp2_weight.scales": ("mlp.experts.down_proj_scales",),
    "mlp.mlp2_bias": ("mlp.experts.down_proj_bias",),
}


def original_tensors(shape: Shape) -> list[tuple[Tensor, list[Tensor]]]:
    """All tensors of OpenAI's layout in published order, each with the Hugging Face tensors it stacks."""
    names = {"embedding.weight": ["model.embed_tokens.weight"]}
    for layer in range(shape.layers):
        for name, sources in _ORIGINAL_LAYER.items():
            names[f"block.{layer}.{name}"] = [f"model.layers.{layer}.{source}" for source in sources]
    names |= {"norm.scale": ["model.norm.weight"], "unembedding.weight": ["lm_head.weight"]}

    known = {tensor.name: tensor for tensor in huggingface_tensors(shape)}
    return [_stacked(name, [known[source] for source in sources]) for name, sources in names.items()]


def _stacked(name: str, parts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    rows = sum(part.shape[0] for part in parts)
    return Tensor(name, parts[0].dtype, (rows, *parts[0].shape[1:]), parts[0].kind), parts


def original_dtype(tensor: Tensor) -> str:
    """What OpenAI's dtypes.json calls the tensor's dtype."""
    return {"blocks": "FP4", "scales": "UE8"}.get(tensor.kind, tensor.dtype)


def huggingface_config(shape: Shape, *, special_ids: Mapping[str, int], quantized: bool = True) -> dict[str, Any]:
    """The published config.json; without quantization_config unless `quantized`."""
    config: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": special_ids["<|return|>"],
        "experts_per_token": shape.experts_per_token,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(shape.layers)],
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": shape.heads,
        "num_experts_per_tok": shape.experts_per_token,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "num_local_experts": shape.experts,
        "output_router_logits": False,
        "pad_token_id": special_ids["<|endoftext|>"],
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": shape.sliding_window,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
        "vocab_size": shape.vocab,
    }
    if not quantized:
        del config["quantization_config"]
    return config


def generation_config(*, special_ids: Mapping[str, int]) -> dict[str, Any]:
    """The published generation_config.json."""
    return {
        "bos_token_id": special_ids["<|startoftext|>"],
        "do_sample": True,
        "eos_token_id": [special_ids[token] for token in ("<|return|>", "<|endoftext|>", "<|call|>")],
        "pad_token_id": special_ids["<|endoftext|>"],
        "transformers_version": "4.55.0.dev0",
    }


def original_config(shape: Shape) -> dict[str, Any]:
    """The published original/config.json."""
    return {
        "num_hidden_layers": shape.layers,
        "num_experts": shape.experts,
        "experts_per_token": shape.experts_per_token,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "swiglu_limit": 7.0,
        "head_dim": shape.head_dim,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "sliding_window": shape.sliding_window,
        "initial_context_length": 4096,
        "rope_theta": 150000,
        "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1,
        "rope_ntk_beta": 32,
    }
