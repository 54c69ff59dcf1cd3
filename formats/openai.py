"""OpenAI's original layout: the `original/` folder of the gpt-oss repositories.

Source: openai/gpt-oss-20b at 6cee5e81, `original/`, and `gpt_oss/torch/weights.py`. Names differ from the
canonical ones and q, k and v are fused; every number is the same. The configuration has no epsilon (the code
fixes 1e-5) and no context length (`initial_context_length` times the scaling factor).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gptoss_convert.assets import TOKENIZER_JSON, Assets, read_json_object
from gptoss_convert.checkpoint import (
    FULL,
    SLIDING,
    Checkpoint,
    ModelConfig,
    Tensor,
    YarnRope,
    check_tensors,
    files_of,
    in_canonical_order,
)
from gptoss_convert.errors import GptossConvertError, InputError
from gptoss_convert.formats.config_fields import Count, LayerCount, Positive, convert_config, refuse_conflicts
from gptoss_convert.formats.huggingface import find_tokenizer
from gptoss_convert.formats.safetensors import StoredTensor, read_folder
from gptoss_convert.formats.safetensors_tensors import mxfp4_tensor, plain_tensor
from gptoss_convert.formats.storage import PartsSource, StoredArray

NAME = "openai"
TITLE = "OpenAI original safetensors"

RMS_NORM_EPS = 1e-5

_RENAMED = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
}
_RENAMED_IN_LAYER = {
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
_EXPERTS_IN_LAYER = {
    "mlp.mlp1_weight": "mlp.experts.gate_up_proj",
    "mlp.mlp2_weight": "mlp.experts.down_proj",
}
_LAYER_TENSOR = re.compile(r"block\.(?P<layer>\d{1,4})\.(?P<name>.+)")


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
    initial_context_length: Count
    rope_theta: Positive
    rope_scaling_factor: Positive
    rope_ntk_alpha: Positive
    rope_ntk_beta: Positive
    swiglu_limit: Positive = 7.0


def recognises(path: Path) -> bool:
    """Return whether `path` is a folder with OpenAI's own configuration."""
    config = path / "config.json"
    return path.is_dir() and config.is_file() and "rope_ntk_alpha" in read_json_object(config)


def read(path: Path) -> Checkpoint:
    """Open the folder `path` without reading tensor data.

    The layout has no tokenizer; that of the folder above is used where the folder is the `original/` of a
    repository.

    Raises:
        InputError: the configuration or a safetensors header is damaged.
    """
    config_path = path / "config.json"
    config = parse_config(config_path)
    tensors, problems = canonical_tensors(read_folder(path), config)
    problems += check_tensors(config, tensors, path)
    assets = _find_assets(path)
    declared = {}
    if assets.folder is not None and assets.path("config.json") is not None:
        declared = read_json_object(assets.folder / "config.json")
    return Checkpoint(
        path=path,
        format=NAME,
        config=config,
        tensors=in_canonical_order(config, tensors),
        assets=assets,
        tokenizer=find_tokenizer(assets, declared),
        files=files_of(tensors.values()),
        problems=tuple(problems),
    )


def _find_assets(path: Path) -> Assets:
    repository = path.resolve().parent
    own = Assets(path)
    if own.path(TOKENIZER_JSON) is None and (repository / TOKENIZER_JSON).is_file():
        return Assets(repository)
    return own


def parse_config(path: Path) -> ModelConfig:
    """Return the configuration in OpenAI's config.json at `path`.

    Raises:
        InputError: a field is missing, of the wrong type, or contradicts another.
    """
    fields = convert_config(read_json_object(path), _Config, path)
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
        max_position_embeddings=int(fields.initial_context_length * fields.rope_scaling_factor),
        sliding_window=fields.sliding_window,
        layer_types=tuple(SLIDING if index % 2 == 0 else FULL for index in range(fields.num_hidden_layers)),
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
    refuse_conflicts(config, path)
    return config


def canonical_tensors(
    stored: Mapping[str, StoredTensor], config: ModelConfig
) -> tuple[dict[str, Tensor], list[GptossConvertError]]:
    """Return the stored tensors as canonical ones, and what is wrong with those that cannot be."""
    tensors: dict[str, Tensor] = {}
    problems: list[GptossConvertError] = []
    for name, tensor in stored.items():
        try:
            for made in _canonical(name, tensor, stored, config):
                tensors[made.name] = made
        except GptossConvertError as problem:
            problems.append(problem)
    return tensors, problems


def _canonical(
    name: str, tensor: StoredTensor, stored: Mapping[str, StoredTensor], config: ModelConfig
) -> list[Tensor]:
    if name in _RENAMED:
        return [plain_tensor(_RENAMED[name], tensor)]
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None:
        return [plain_tensor(name, tensor)]
    prefix, rest = f"model.layers.{int(match['layer'])}.", match["name"]
    if rest in _RENAMED_IN_LAYER:
        return [plain_tensor(prefix + _RENAMED_IN_LAYER[rest], tensor)]
    if rest in ("attn.qkv.weight", "attn.qkv.bias"):
        return _split_qkv(prefix + "self_attn.", rest.removeprefix("attn.qkv."), plain_tensor(name, tensor), config)
    base, _, part = rest.rpartition(".")
    if base in _EXPERTS_IN_LAYER and part == "blocks":
        scales = stored.get(name.removesuffix("blocks") + "scales")
        return [mxfp4_tensor(prefix + _EXPERTS_IN_LAYER[base], tensor, scales)]
    if base in _EXPERTS_IN_LAYER and part == "scales":
        if name.removesuffix("scales") + "blocks" not in stored:
            raise InputError("scales without blocks", file=tensor.file.path, tensor=name)
        return []
    return [plain_tensor(name, tensor)]


def _split_qkv(prefix: str, kind: str, fused: Tensor, config: ModelConfig) -> list[Tensor]:
    """Return q, k and v, which lie one after the other along the first dimension of `fused`."""
    key_value = config.num_key_value_heads * config.head_dim
    sizes = {"q": config.num_attention_heads * config.head_dim, "k": key_value, "v": key_value}
    if fused.shape[0] != sum(sizes.values()):
        raise InputError(
            "tensor does not fit the configuration",
            file=fused.file,
            tensor=fused.name,
            found=f"shape {list(fused.shape)}",
            expected=[sum(sizes.values()), *fused.shape[1:]],
        )
    assert isinstance(fused.source, PartsSource)
    (stored,) = fused.source.parts
    bytes_each = stored.dtype.itemsize * (stored.items if len(fused.shape) > 1 else 1)
    tensors, first = [], 0
    for letter, size in sizes.items():
        shape = (size, *fused.shape[1:])
        part = StoredArray(stored.file, stored.offset + first * bytes_each, stored.dtype, shape[-1])
        tensors.append(Tensor(f"{prefix}{letter}_proj.{kind}", shape, fused.encoding, PartsSource((part,))))
        first += size
    return tensors
