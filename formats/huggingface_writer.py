"""Folders in the layout of Hugging Face gpt-oss repositories, before they are written.

Source: as for `gptoss_convert.formats.huggingface`. Experts in MXFP4 become `*_blocks` and `*_scales`; in floating
point they become one tensor `[experts, in, out]`, transposed, under the name without suffix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_convert.checkpoint import ModelConfig, Role, Tensor, TensorSpec, inventory, parameter_count
from gptoss_convert.encodings import Encoding
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.safetensors import INDEX_NAME, StoredTensor
from gptoss_convert.formats.safetensors_tensors import mxfp4_tensor, plain_tensor, transposed_experts
from gptoss_convert.formats.safetensors_writer import NewArray, index_json, lay_out
from gptoss_convert.formats.weight_folder import WeightFolder

_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_METADATA = {"format": "pt"}
"""What transformers writes into every file, and older versions of it demand."""
_QUANTIZATION = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
"""That of openai/gpt-oss-20b and -120b."""


def lay_out_folder(
    config: ModelConfig, encodings: Mapping[str, Encoding], folder: Path, *, max_shard_size: int | None
) -> WeightFolder:
    """Lay out all tensors of a model in canonical order.

    Args:
        config: the model's shape.
        encodings: encoding of every canonical tensor.
        folder: where the files will be.
        max_shard_size: bytes of tensor data per file; None for a single file.

    Raises:
        UnsupportedError: the layout has no place for a tensor in this encoding.
    """
    arrays = {
        name: _arrays(name, spec, encodings[name], folder / INDEX_NAME) for name, spec in inventory(config).items()
    }
    layout = lay_out(
        [array for group in arrays.values() for array in group],
        folder,
        max_shard_size=max_shard_size,
        metadata=_METADATA,
    )
    parts = {name: tuple(layout.placed[array.name] for array in group) for name, group in arrays.items()}
    return WeightFolder(
        files=layout.files,
        tensors={name: _tensor(name, spec.role, parts[name]) for name, spec in inventory(config).items()},
        parts=parts,
        texts={INDEX_NAME: index_json(layout, total_parameters=parameter_count(config))}
        if len(layout.files) > 1
        else {},
    )


def _arrays(name: str, spec: TensorSpec, encoding: Encoding, path: Path) -> tuple[NewArray, ...]:
    """Return the stored tensors that a canonical tensor becomes."""
    if spec.role is Role.EXPERTS and encoding.name == "mxfp4":
        experts, rows, columns = spec.shape
        blocks = columns // encoding.block
        return (
            NewArray(f"{name}_blocks", "U8", (experts, rows, blocks, encoding.block // 2)),
            NewArray(f"{name}_scales", "U8", (experts, rows, blocks)),
        )
    if encoding.name not in _DTYPES:
        raise UnsupportedError(
            "safetensors has no place for this encoding",
            file=path,
            tensor=name,
            found=encoding.name,
            expected="one of " + ", ".join(_DTYPES),
        )
    if spec.role is Role.EXPERTS:
        experts, rows, columns = spec.shape
        return (NewArray(name, _DTYPES[encoding.name], (experts, columns, rows)),)
    return (NewArray(name, _DTYPES[encoding.name], spec.shape),)


def _tensor(name: str, role: Role, parts: tuple[StoredTensor, ...]) -> Tensor:
    """Return the canonical tensor that lies in `parts`."""
    if len(parts) == 2:
        return mxfp4_tensor(name, *parts)
    return transposed_experts(name, parts[0]) if role is Role.EXPERTS else plain_tensor(name, parts[0])


def config_json(
    config: ModelConfig, *, carried: Mapping[str, Any], special_ids: Mapping[str, int], experts: Encoding | None
) -> bytes:
    """Return the contents of config.json, in the spelling of the published repositories.

    Args:
        config: the model's shape, which goes before anything else.
        carried: the contents of the source's config.json; what is not about shape or encoding is kept.
        special_ids: token id by purpose, for those that the source does not declare.
        experts: encoding of the expert matrices; None says nothing of encodings, for weights in other formats.
    """
    kept = {key: value for key, value in carried.items() if key not in _REPLACED}
    ids = {f"{purpose}_token_id": special_ids[purpose] for purpose in ("eos", "pad") if purpose in special_ids}
    document: dict[str, Any] = _CONSTANT | ids | kept | _shape(config)
    if experts is None:
        pass
    elif experts.name == "mxfp4":
        document["quantization_config"] = _QUANTIZATION
    else:
        document["torch_dtype"] = _TORCH_DTYPES[experts.name]
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


_TORCH_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_REPLACED = {
    "quantization_config",
    "quantization",
    "tie_word_embeddings",
    "rope_parameters",
    "torch_dtype",
    "dtype",
}
"""Keys that are written anew or not at all: other spellings, and facts of the source's encoding."""
_CONSTANT = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "gpt_oss",
    "output_router_logits": False,
    "router_aux_loss_coef": 0.9,
    "tie_word_embeddings": False,
    "use_cache": True,
}
"""What the published configurations say and the shape does not, for sources that have no such configuration."""


def _shape(config: ModelConfig) -> dict[str, Any]:
    rope = config.rope
    return {
        "experts_per_token": config.num_experts_per_tok,
        "head_dim": config.head_dim,
        "hidden_size": config.hidden_size,
        "initial_context_length": rope.original_context_length,
        "intermediate_size": config.intermediate_size,
        "layer_types": list(config.layer_types),
        "max_position_embeddings": config.max_position_embeddings,
        "num_attention_heads": config.num_attention_heads,
        "num_experts_per_tok": config.num_experts_per_tok,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "num_local_experts": config.num_local_experts,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": {
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "factor": rope.factor,
            "original_max_position_embeddings": rope.original_context_length,
            "rope_type": "yarn",
            "truncate": rope.truncate,
        },
        "rope_theta": int(rope.theta) if rope.theta == int(rope.theta) else rope.theta,  # as published: 150000
        "sliding_window": config.sliding_window,
        "swiglu_limit": config.swiglu_limit,
        "vocab_size": config.vocab_size,
    }
