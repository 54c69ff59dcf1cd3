"""OpenAI's original layout: the `original/` folder of the gpt-oss repositories.

Source: openai/gpt-oss-20b at 6cee5e81, `original/`, and `gpt_oss/torch/weights.py`. Names differ from the
canonical ones and q, k and v are fused; every number is the same. The configuration has no epsilon (the code
fixes 1e-5) and no context length (`initial_context_length` times the scaling factor).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec

from gptoss_convert.assets import CONFIG, TOKENIZER_JSON, Assets, read_json_object
from gptoss_convert.checkpoint import (
    Checkpoint,
    ModelConfig,
    Tensor,
    YarnRope,
    alternating_layers,
    assemble_checkpoint,
    collect_tensors,
    parameter_count,
)
from gptoss_convert.errors import InputError
from gptoss_convert.formats.config_fields import Count, LayerCount, Positive, convert_config
from gptoss_convert.formats.model_card import describer
from gptoss_convert.formats.safetensors import StoredTensor, read_folder
from gptoss_convert.formats.safetensors_tensors import mxfp4_tensor, narrowed, plain_tensor
from gptoss_convert.formats.tokenizer_json import find_tokenizer

NAME = "openai"
TITLE = "OpenAI original safetensors"

RMS_NORM_EPS = 1e-5
LARGEST_CONTEXT = 1 << 31

RENAMED = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
}
"""Canonical names of tensors outside the layers, by their names here."""
RENAMED_IN_LAYER = {
    "attn.norm.scale": "input_layernorm.weight",
    "attn.out.weight": "self_attn.o_proj.weight",
    "attn.out.bias": "self_attn.o_proj.bias",
    "attn.sinks": "self_attn.sinks",
    "mlp.norm.scale": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.router.weight",
    "mlp.gate.bias": "mlp.router.bias",
    "mlp.mlp1_bias": "mlp.experts.gate_up_proj_bias",
    "mlp.mlp2_bias": "mlp.experts.down_proj_bias",
}
"""Canonical names of tensors in a layer, by their names here."""
EXPERTS_IN_LAYER = {
    "mlp.mlp1_weight": "mlp.experts.gate_up_proj",
    "mlp.mlp2_weight": "mlp.experts.down_proj",
}
"""Canonical names of the MXFP4 tensors in a layer, which lie here as `.blocks` and `.scales`."""
FUSED_IN_LAYER = "attn.qkv"
"""Queries, keys and values, as `.weight` and `.bias`."""
_LAYER_TENSOR = re.compile(r"block\.(?P<layer>0|[1-9][0-9]{0,3})\.(?P<name>.+)")


class _Config(msgspec.Struct):
    num_hidden_layers: LayerCount
    num_experts: Count
    experts_per_token: Count
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    head_dim: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    sliding_window: Count
    initial_context_length: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    rope_theta: Positive
    rope_scaling_factor: Annotated[float, msgspec.Meta(ge=1, le=1e4)]
    rope_ntk_alpha: Positive
    rope_ntk_beta: Positive
    swiglu_limit: Positive = 7.0


def recognises(path: Path) -> bool:
    """Return whether `path` is a folder with OpenAI's own configuration."""
    config = path / CONFIG
    return path.is_dir() and config.is_file() and "rope_ntk_alpha" in read_json_object(config)


def read(path: Path) -> Checkpoint:
    """Open the folder `path` without reading tensor data.

    The layout has no tokenizer; that of the folder above is used where the folder is the `original/` of a
    repository.

    Raises:
        InputError: the configuration or a safetensors header is damaged.
    """
    config = parse_config(read_json_object(path / CONFIG), path / CONFIG)
    stored = read_folder(path)
    assets = _find_assets(path)
    declared = assets.read_json_object(CONFIG) or {}
    return assemble_checkpoint(
        path,
        NAME,
        config,
        collect_tensors(stored.values(), partial(canonical_tensors, stored, config)),
        tensor_place=path,
        assets=assets,
        tokenizer=find_tokenizer(assets, declared),
        describe=describer(assets, declared, parameter_count(config)),
    )


def _find_assets(path: Path) -> Assets:
    repository = path.resolve().parent
    own = Assets(path)
    if own.path(TOKENIZER_JSON) is None and (repository / TOKENIZER_JSON).is_file():
        return Assets(repository)
    return own


def parse_config(raw: Mapping[str, Any], path: Path) -> ModelConfig:
    """Return the configuration in `raw`, the contents of an OpenAI config.json at `path`.

    Raises:
        InputError: a field is missing, of the wrong type, or contradicts another.
    """
    fields = convert_config(raw, _Config, path)
    context_length = int(fields.initial_context_length * fields.rope_scaling_factor)
    if context_length > LARGEST_CONTEXT:
        raise InputError(
            "configuration: context length is impossible",
            file=path,
            found=context_length,
            expected=f"at most {LARGEST_CONTEXT}",
        )
    config = ModelConfig(
        num_hidden_layers=fields.num_hidden_layers,
        hidden_size=fields.hidden_size,
        intermediate_size=fields.intermediate_size,
        num_local_experts=fields.num_experts,
        num_experts_per_tok=fields.experts_per_token,
        num_attention_heads=fields.num_attention_heads,
        num_key_value_heads=fields.num_key_value_heads,
        head_dim=fields.head_dim,
        vocab_size=fields.vocab_size,
        max_position_embeddings=context_length,
        sliding_window=fields.sliding_window,
        layer_types=alternating_layers(fields.num_hidden_layers),
        rope=YarnRope(
            theta=fields.rope_theta,
            factor=fields.rope_scaling_factor,
            beta_fast=fields.rope_ntk_beta,
            beta_slow=fields.rope_ntk_alpha,
            original_context_length=fields.initial_context_length,
            truncate=False,
        ),
        rms_norm_eps=RMS_NORM_EPS,
        swiglu_limit=fields.swiglu_limit,
    )
    config.require_consistent(path)
    return config


def canonical_tensors(
    stored: Mapping[str, StoredTensor], config: ModelConfig, tensor: StoredTensor
) -> Iterator[Tensor]:
    """Yield the canonical tensors that `tensor`, one of `stored`, holds: three for qkv, none for MXFP4 scales.

    Raises:
        InputError: the tensor, or the other part that it needs, is missing or malformed.
    """
    match = _LAYER_TENSOR.fullmatch(tensor.name)
    if match is None:
        yield plain_tensor(RENAMED.get(tensor.name, tensor.name), tensor)
        return
    prefix, rest = f"model.layers.{match['layer']}.", match["name"]
    base, _, part = rest.rpartition(".")
    if base == FUSED_IN_LAYER:
        yield from _split_qkv(prefix, part, tensor, config)
    elif base in EXPERTS_IN_LAYER and part == "blocks":
        scales = stored.get(tensor.name.removesuffix("blocks") + "scales")
        yield mxfp4_tensor(prefix + EXPERTS_IN_LAYER[base], tensor, scales)
    elif base in EXPERTS_IN_LAYER and part == "scales":
        if tensor.name.removesuffix("scales") + "blocks" not in stored:
            raise InputError("scales without blocks", file=tensor.file.path, tensor=tensor.name)
    elif rest in RENAMED_IN_LAYER:
        yield plain_tensor(prefix + RENAMED_IN_LAYER[rest], tensor)
    else:
        yield plain_tensor(tensor.name, tensor)


def _split_qkv(prefix: str, kind: str, fused: StoredTensor, config: ModelConfig) -> Iterator[Tensor]:
    """Yield q, k and v, which lie one after the other along the first dimension of `fused`."""
    key_value = config.num_key_value_heads * config.head_dim
    sizes = {"q": config.num_attention_heads * config.head_dim, "k": key_value, "v": key_value}
    if fused.shape[:1] != (sum(sizes.values()),):
        raise InputError(
            "tensor does not fit the configuration",
            file=fused.file.path,
            tensor=fused.name,
            found=f"shape {list(fused.shape)}",
            expected=[sum(sizes.values()), *fused.shape[1:]],
        )
    first = 0
    for letter, size in sizes.items():
        yield plain_tensor(f"{prefix}self_attn.{letter}_proj.{kind}", narrowed(fused, first, size))
        first += size
