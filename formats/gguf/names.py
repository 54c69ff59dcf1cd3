"""Tensor names in GGUF files of gpt-oss.

Source: `MODEL_TENSORS[GPT_OSS]` in gguf-py (constants.py) and `llama_model_openai_moe` in llama.cpp. A canonical
tensor has one counterpart, but `gate_up_proj` has two, which take its even and odd rows (its bias likewise).
"""

from __future__ import annotations

import re

_OUTSIDE_LAYERS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER = {
    "input_layernorm.weight": ("attn_norm.weight",),
    "self_attn.q_proj.weight": ("attn_q.weight",),
    "self_attn.q_proj.bias": ("attn_q.bias",),
    "self_attn.k_proj.weight": ("attn_k.weight",),
    "self_attn.k_proj.bias": ("attn_k.bias",),
    "self_attn.v_proj.weight": ("attn_v.weight",),
    "self_attn.v_proj.bias": ("attn_v.bias",),
    "self_attn.o_proj.weight": ("attn_output.weight",),
    "self_attn.o_proj.bias": ("attn_output.bias",),
    "self_attn.sinks": ("attn_sinks.weight",),
    "post_attention_layernorm.weight": ("post_attention_norm.weight",),
    "mlp.router.weight": ("ffn_gate_inp.weight",),
    "mlp.router.bias": ("ffn_gate_inp.bias",),
    "mlp.experts.gate_up_proj": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "mlp.experts.gate_up_proj_bias": ("ffn_gate_exps.bias", "ffn_up_exps.bias"),
    "mlp.experts.down_proj": ("ffn_down_exps.weight",),
    "mlp.experts.down_proj_bias": ("ffn_down_exps.bias",),
}
_CANONICAL_LAYER = re.compile(r"model\.layers\.([0-9]+)\.(.+)")
_GGUF_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,3})\.(.+)")


def gguf_names(canonical: str) -> tuple[str, ...]:
    """Return the names of the GGUF tensors that hold canonical tensor `canonical`.

    Two names mean that the first holds the even and the second the odd rows (for a bias: elements).

    Raises:
        KeyError: it is no canonical name.
    """
    match = _CANONICAL_LAYER.fullmatch(canonical)
    if match is None:
        return (_OUTSIDE_LAYERS[canonical],)
    return tuple(f"blk.{match[1]}.{name}" for name in _IN_LAYER[match[2]])


_CANONICAL_OUTSIDE = {name: canonical for canonical, name in _OUTSIDE_LAYERS.items()}
_CANONICAL_IN_LAYER = {name: canonical for canonical, names in _IN_LAYER.items() for name in names}


def split_layer(gguf: str) -> tuple[int | None, str]:
    """Return the layer of GGUF tensor `gguf`, None for one outside the layers, and its name there."""
    match = _GGUF_LAYER.fullmatch(gguf)
    return (None, gguf) if match is None else (int(match[1]), match[2])


def canonical_name(gguf: str) -> str | None:
    """Return the canonical tensor that GGUF tensor `gguf` belongs to, or None if it is not one of gpt-oss."""
    layer, inner = split_layer(gguf)
    if layer is None:
        return _CANONICAL_OUTSIDE.get(inner)
    name = _CANONICAL_IN_LAYER.get(inner)
    return None if name is None else f"model.layers.{layer}.{name}"
