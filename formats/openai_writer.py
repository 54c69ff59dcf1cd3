"""Folders in OpenAI's original layout, before they are written.

Source: openai/gpt-oss-20b at 6cee5e81 and openai/gpt-oss-120b at b5c939de, `original/`; names and fusing are as in
`gptoss_convert.formats.openai`. The layout fixes every encoding: experts are MXFP4, all else is BF16. Tensors go to
files by name, so that the files of gpt-oss-120b come out with their published index and sizes if the limit is that
of `PUBLISHED_SHARD_SIZE`. (OpenAI's own program finds the experts of the first 36 layers only.)
"""

from __future__ import annotations

import itertools
import json
from dataclasses import fields
from pathlib import Path

from gptoss_convert.assets import CONFIG
from gptoss_convert.checkpoint import ModelConfig, Role, Tensor, inventory
from gptoss_convert.encodings import ENCODINGS, Encoding
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.openai import (
    EXPERTS_IN_LAYER,
    FUSED_IN_LAYER,
    RENAMED,
    RENAMED_IN_LAYER,
    canonical_tensors,
    parse_config,
)
from gptoss_convert.formats.safetensors import INDEX_NAME, StoredTensor
from gptoss_convert.formats.safetensors_tensors import narrowed
from gptoss_convert.formats.safetensors_writer import NewArray, index_json, lay_out
from gptoss_convert.formats.weight_folder import WeightFolder

DTYPES = "dtypes.json"
PUBLISHED_SHARD_SIZE = 10 << 30
"""Bytes of tensor data per file of gpt-oss-120b; gpt-oss-20b is one file of 13.8 GB."""

_IN_LAYER = (
    "attn.norm.scale",
    f"{FUSED_IN_LAYER}.weight",
    f"{FUSED_IN_LAYER}.bias",
    "attn.sinks",
    "attn.out.weight",
    "attn.out.bias",
    "mlp.norm.scale",
    "mlp.gate.weight",
    "mlp.gate.bias",
    "mlp.mlp1_weight",
    "mlp.mlp1_bias",
    "mlp.mlp2_weight",
    "mlp.mlp2_bias",
)
"""The order of the published dtypes.json."""
_BLOCKS, _SCALES = ".blocks", ".scales"
_MXFP4, _BF16 = ENCODINGS["mxfp4"], ENCODINGS["bf16"]


def encodings(config: ModelConfig) -> dict[str, Encoding]:
    """Return the encoding of every canonical tensor in this layout."""
    return {name: _MXFP4 if spec.role is Role.EXPERTS else _BF16 for name, spec in inventory(config).items()}


def lay_out_folder(config: ModelConfig, folder: Path, *, max_shard_size: int | None, source: Path) -> WeightFolder:
    """Lay out all tensors of a model, with config.json, dtypes.json and the index.

    Args:
        config: the model's shape.
        folder: where the files will be.
        max_shard_size: bytes of tensor data per file; None for a single file.
        source: where the model comes from, to be named if the layout cannot express it.

    Raises:
        UnsupportedError: the layout cannot express the configuration.
    """
    configuration = config_json(config, source=source)
    dtypes = _stored_dtypes(config, source)
    layout = lay_out(
        sorted(dtypes, key=lambda array: array.name),
        folder,
        max_shard_size=max_shard_size,
        shard_name=_shard_name,
    )
    tensors: dict[str, Tensor] = {}
    parts: dict[str, tuple[StoredTensor, ...]] = {}
    for stored in layout.placed.values():
        first = 0
        for tensor in canonical_tensors(layout.placed, config, stored):
            tensors[tensor.name] = tensor
            part = narrowed(stored, first, tensor.shape[0])
            first += tensor.shape[0]
            base = stored.name.removesuffix(_BLOCKS)
            parts[tensor.name] = (part,) if base == stored.name else (part, layout.placed[base + _SCALES])
    texts = {
        CONFIG: configuration,
        DTYPES: json.dumps({array.name: dtype for array, dtype in dtypes.items()}).encode(),
    }
    if len(layout.files) > 1:
        texts[INDEX_NAME] = index_json(layout).removesuffix(b"\n")  # as published
    order = inventory(config)
    return WeightFolder(
        files=layout.files,
        tensors={name: tensors[name] for name in order},
        parts={name: parts[name] for name in order},
        texts=texts,
    )


def _shard_name(index: int, count: int) -> str:
    return f"model--{index + 1:05d}-of-{count:05d}.safetensors"


def _stored_dtypes(config: ModelConfig, source: Path) -> dict[NewArray, str]:
    """Return the stored tensors, each with what dtypes.json calls its dtype, in the order of the published file."""
    shapes = {name: spec.shape for name, spec in inventory(config).items()}
    embedding, *others = RENAMED
    dtypes = {NewArray(embedding, "BF16", shapes[RENAMED[embedding]]): "BF16"}
    for layer, name in itertools.product(range(config.num_hidden_layers), _IN_LAYER):
        stored, canonical = f"block.{layer}.{name}", f"model.layers.{layer}."
        if name in EXPERTS_IN_LAYER:
            dtypes |= _expert_parts(stored, shapes[canonical + EXPERTS_IN_LAYER[name]], source)
        elif name in RENAMED_IN_LAYER:
            dtypes[NewArray(stored, "BF16", shapes[canonical + RENAMED_IN_LAYER[name]])] = "BF16"
        else:
            kind = name.removeprefix(FUSED_IN_LAYER)
            fused = [shapes[f"{canonical}self_attn.{letter}_proj{kind}"] for letter in "qkv"]
            rows = sum(shape[0] for shape in fused)
            dtypes[NewArray(stored, "BF16", (rows, *fused[0][1:]))] = "BF16"
    return dtypes | {NewArray(name, "BF16", shapes[RENAMED[name]]): "BF16" for name in others}


def _expert_parts(stored: str, shape: tuple[int, ...], source: Path) -> dict[NewArray, str]:
    experts, rows, columns = shape
    if not _MXFP4.fits(columns):
        raise UnsupportedError(
            "OpenAI's layout has experts in MXFP4 only",
            file=source,
            tensor=stored,
            found=f"rows of {columns}",
            expected=f"whole blocks of {_MXFP4.block}",
        )
    blocks = columns // _MXFP4.block
    return {
        NewArray(stored + _BLOCKS, "U8", (experts, rows, blocks, _MXFP4.block // 2)): "FP4",
        NewArray(stored + _SCALES, "U8", (experts, rows, blocks)): "UE8",
    }


def config_json(config: ModelConfig, *, source: Path) -> bytes:
    """Return the contents of config.json, with the fields, order and spelling of the published ones.

    Args:
        config: the model's shape.
        source: where it comes from, to be named in errors.

    Raises:
        UnsupportedError: the layout cannot express it: read again, the contents would mean another model.
    """
    document = {
        "num_hidden_layers": config.num_hidden_layers,
        "num_experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_tok,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "swiglu_limit": config.swiglu_limit,
        "head_dim": config.head_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
        "initial_context_length": config.rope.original_context_length,
        "rope_theta": _shortest(config.rope.theta),
        "rope_scaling_factor": config.rope.factor,
        "rope_ntk_alpha": _shortest(config.rope.beta_slow),
        "rope_ntk_beta": _shortest(config.rope.beta_fast),
    }
    try:
        read_again = parse_config(document, source)
    except InputError as error:
        raise UnsupportedError(
            f"OpenAI's layout cannot express the model: {error.what}",
            file=source,
            found=error.found,
            expected=error.expected,
        ) from None
    for field, wanted in _fields(config).items():
        if (found := _fields(read_again)[field]) != wanted:
            raise UnsupportedError(
                f"OpenAI's layout cannot express the model's {field}", file=source, found=wanted, expected=found
            )
    return json.dumps(document).encode()


def _shortest(number: float) -> int | float:
    return int(number) if number.is_integer() else number


def _fields(config: ModelConfig) -> dict[str, object]:
    """Return every single value by its name."""
    own = {field.name: getattr(config, field.name) for field in fields(config)}
    del own["rope"], own["layer_types"]
    rope = {f"rope.{field.name}": getattr(config.rope, field.name) for field in fields(config.rope)}
    return own | rope | {f"layer_types[{index}]": kind for index, kind in enumerate(config.layer_types)}
