"""Hugging Face folders: a gpt-oss config.json beside safetensors files, whichever tool wrote them.

Source: openai/gpt-oss-20b at 6cee5e81 and `transformers/models/gpt_oss`. Published MXFP4 experts lie as two U8
tensors, `*_blocks` `[experts, out, in / 32, 16]` and `*_scales` `[experts, out, in / 32]`, in any shards. BF16
(F16, F32) experts lie as one tensor `[experts, in, out]`, transposed against the canonical orientation. What other
tools name and lay out differently is in `huggingface_names` and `quantization`, and for people in docs/sources.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from gptoss_convert.assets import CONFIG, Assets, read_json_object
from gptoss_convert.checkpoint import (
    FULL,
    SLIDING,
    Checkpoint,
    Collected,
    ModelConfig,
    YarnRope,
    alternating_layers,
    assemble_checkpoint,
    parameter_count,
)
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.config_fields import Count, LayerCount, Positive, convert_config
from gptoss_convert.formats.huggingface_tensors import read_tensors
from gptoss_convert.formats.model_card import describer
from gptoss_convert.formats.quantization import read_quantization
from gptoss_convert.formats.safetensors import INDEX_NAME, SINGLE_NAME, read_folder
from gptoss_convert.formats.tokenizer_json import find_tokenizer

SWIGLU_ALPHA = 1.702
"""Fixed in every implementation of gpt-oss; transformers 5 writes it into config.json."""

NAME = "huggingface"
TITLE = "Hugging Face safetensors"

_EMBEDDING, _UNEMBEDDING = "model.embed_tokens.weight", "lm_head.weight"


class _Rope(msgspec.Struct):
    """`rope_scaling`, or `rope_parameters` as transformers 5 writes it, which holds `rope_theta` too."""

    rope_type: str
    factor: Positive
    original_max_position_embeddings: Count
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    truncate: bool = True
    rope_theta: Positive | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None


class _Config(msgspec.Struct):
    """The fields of config.json that matter; a default is what the published models have."""

    num_hidden_layers: LayerCount
    hidden_size: Count
    intermediate_size: Count
    num_local_experts: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    vocab_size: Count
    sliding_window: Count
    num_experts_per_tok: Count | None = None
    experts_per_token: Count | None = None
    max_position_embeddings: Count = 131072
    layer_types: list[str] | None = None
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    rope_theta: Positive | None = None
    rms_norm_eps: Positive = 1e-5
    swiglu_limit: Positive = 7.0
    swiglu_alpha: float = SWIGLU_ALPHA
    tie_word_embeddings: bool = False
    attention_bias: bool = True
    hidden_act: str = "silu"
    quantization_config: dict[str, Any] | None = None


def recognises(path: Path) -> bool:
    """Return whether `path` is a folder with a Hugging Face gpt-oss configuration."""
    config = path / CONFIG
    return path.is_dir() and config.is_file() and "model_type" in read_json_object(config)


def read(path: Path) -> Checkpoint:
    """Open the folder `path` without reading tensor data.

    Raises:
        InputError: the configuration or a safetensors header is damaged.
        UnsupportedError: the folder holds another kind of model.
    """
    raw = read_json_object(path / CONFIG)
    config = parse_config(raw, path / CONFIG)
    quantization = read_quantization(raw, path / CONFIG)
    collected, remarks = read_tensors(read_folder(path), config, quantization)
    if raw.get("tie_word_embeddings"):
        collected, remark = _untied(collected, path / CONFIG)
        remarks += remark
    assets = Assets(path)
    return assemble_checkpoint(
        path,
        NAME,
        config,
        collected,
        tensor_place=path / INDEX_NAME if (path / INDEX_NAME).exists() else path / SINGLE_NAME,
        assets=assets,
        tokenizer=find_tokenizer(assets, raw),
        describe=describer(assets, raw, parameter_count(config)),
        remarks=remarks,
    )


def _untied(collected: Collected, config: Path) -> tuple[Collected, tuple[str, ...]]:
    """Return the tensors of a model whose configuration says that embedding and lm_head are one.

    gpt-oss has both, and every other format needs both. Somebody who tied them on purpose (to train a small model,
    for instance) expects the function that transformers computes: logits by the embedding. So lm_head is read from
    the embedding's bytes, which computes just that. If the file has an lm_head all the same, two answers are
    possible: some runtimes tie, others use it. Only its owner knows, so that is a problem for them to decide.
    """
    if _UNEMBEDDING in collected.tensors:
        problem = UnsupportedError(
            "configuration says that lm_head is the embedding, but there is an lm_head.weight",
            file=config,
            found="tie_word_embeddings true",
            hint="set tie_word_embeddings to false to use it; remove the tensor to use the embedding",
        )
        return replace(collected, problems=(*collected.problems, problem)), ()
    if _EMBEDDING not in collected.tensors:
        return collected, ()
    shared = replace(collected.tensors[_EMBEDDING], name=_UNEMBEDDING)
    tensors = {**collected.tensors, _UNEMBEDDING: shared}
    remark = "lm_head.weight is absent and tie_word_embeddings is true: it is read from the embedding's bytes"
    return replace(collected, tensors=tensors), (remark,)


def parse_config(raw: Mapping[str, Any], path: Path) -> ModelConfig:
    """Return the configuration in `raw`, the contents of a config.json at `path`.

    Raises:
        InputError: a field is missing, of the wrong type, or contradicts another.
        UnsupportedError: the model is not a gpt-oss.
    """
    model_type = raw.get("model_type")
    if model_type != "gpt_oss":
        raise UnsupportedError(
            "not a gpt-oss model", file=path, found=f"model_type {model_type!r}", expected="gpt_oss"
        )
    fields = convert_config(raw, _Config, path)
    _check_variant(fields, path)
    rope = fields.rope_parameters or fields.rope_scaling
    theta = (fields.rope_parameters and fields.rope_parameters.rope_theta) or fields.rope_theta
    if rope is None or theta is None:
        raise InputError(
            "configuration lacks rotary embedding",
            file=path,
            expected="rope_scaling and rope_theta, or rope_parameters",
        )
    for factor in ("attention_factor", "mscale", "mscale_all_dim"):
        if (value := getattr(rope, factor)) is not None:
            raise UnsupportedError(f"rotary embedding has a {factor}", file=path, found=value, expected="none")
    if rope.rope_type != "yarn":
        raise UnsupportedError("rotary embedding is not YaRN", file=path, found=rope.rope_type, expected="yarn")
    top_k = fields.num_experts_per_tok or fields.experts_per_token
    if top_k is None:
        raise InputError("configuration lacks num_experts_per_tok", file=path)
    layer_types = fields.layer_types or alternating_layers(fields.num_hidden_layers)
    if unknown := set(layer_types) - {SLIDING, FULL}:
        raise UnsupportedError(
            "unknown layer type", file=path, found=", ".join(sorted(unknown)), expected=f"{SLIDING} or {FULL}"
        )
    config = ModelConfig(
        num_hidden_layers=fields.num_hidden_layers,
        hidden_size=fields.hidden_size,
        intermediate_size=fields.intermediate_size,
        num_local_experts=fields.num_local_experts,
        num_experts_per_tok=top_k,
        num_attention_heads=fields.num_attention_heads,
        num_key_value_heads=fields.num_key_value_heads,
        head_dim=fields.head_dim,
        vocab_size=fields.vocab_size,
        max_position_embeddings=fields.max_position_embeddings,
        sliding_window=fields.sliding_window,
        layer_types=tuple(layer_types),
        rope=YarnRope(
            theta=theta,
            factor=rope.factor,
            beta_fast=rope.beta_fast,
            beta_slow=rope.beta_slow,
            original_context_length=rope.original_max_position_embeddings,
            truncate=rope.truncate,
        ),
        rms_norm_eps=fields.rms_norm_eps,
        swiglu_limit=fields.swiglu_limit,
    )
    config.require_consistent(path)
    return config


def _check_variant(fields: _Config, path: Path) -> None:
    """Refuse what the gpt-oss architecture does not have."""
    for name, found, expected in (
        ("attention_bias", fields.attention_bias, True),
        ("hidden_act", fields.hidden_act, "silu"),
        ("swiglu_alpha", fields.swiglu_alpha, SWIGLU_ALPHA),
    ):
        if found != expected:
            raise UnsupportedError(f"{name} is not that of gpt-oss", file=path, found=found, expected=expected)
