"""What a model says about its weights, in the metadata of the ONNX file: enough to read them back.

The property `gptoss_convert` holds JSON: `layout_version`; `config`, the fields of `ModelConfig`; and `weights`, by
canonical name the `encoding` of a tensor, the names of its `initialisers`, one for each part in order, and its
`layout` unless that is in rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from gptoss_convert.checkpoint import FULL, SLIDING, ModelConfig, YarnRope
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.config_fields import Count, LayerCount, Positive
from gptoss_convert.formats.onnx.weights import Layout, Weight

METADATA_KEY = "gptoss_convert"
LAYOUT_VERSION = 1


class _Rope(msgspec.Struct, forbid_unknown_fields=True):
    theta: Positive
    factor: Positive
    beta_fast: Positive
    beta_slow: Positive
    original_context_length: Count
    truncate: bool


class _Config(msgspec.Struct, forbid_unknown_fields=True):
    num_hidden_layers: LayerCount
    hidden_size: Count
    intermediate_size: Count
    num_local_experts: Count
    num_experts_per_tok: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    vocab_size: Count
    max_position_embeddings: Count
    sliding_window: Count
    layer_types: tuple[str, ...]
    rope: _Rope
    rms_norm_eps: Positive
    swiglu_limit: Positive


class StoredWeight(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How a canonical tensor is stored."""

    encoding: str
    initialisers: tuple[str, ...]
    layout: Layout = Layout.ROWS


class _Version(msgspec.Struct):
    layout_version: int


class _Metadata(msgspec.Struct, forbid_unknown_fields=True):
    layout_version: int
    config: _Config
    weights: dict[str, StoredWeight]


def serialise(config: ModelConfig, weights: Mapping[str, Weight]) -> str:
    """Return the property's value."""
    document: dict[str, Any] = {
        "layout_version": LAYOUT_VERSION,
        "config": asdict(config),
        "weights": {
            name: {
                "encoding": weight.encoding.name,
                "initialisers": [initialiser.name for initialiser in weight.initialisers],
                **({} if weight.layout is Layout.ROWS else {"layout": str(weight.layout)}),
            }
            for name, weight in weights.items()
        },
    }
    return json.dumps(document, separators=(",", ":"))


def parse(text: str, path: Path) -> tuple[ModelConfig, Mapping[str, StoredWeight]]:
    """Return configuration and weights from the property's value.

    Args:
        text: the value.
        path: the file to name in errors.

    Raises:
        InputError: it is damaged, or contradicts itself.
        UnsupportedError: its layout is not known.
    """
    try:
        version = msgspec.json.decode(text, type=_Version).layout_version
        if version != LAYOUT_VERSION:
            raise UnsupportedError(
                "layout of this ONNX model is not known",
                file=path,
                found=f"layout_version {version}",
                expected=LAYOUT_VERSION,
                hint="a newer gptoss-convert may read it",
            )
        metadata = msgspec.json.decode(text, type=_Metadata)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InputError(f"damaged metadata {METADATA_KEY}: {error}", file=path) from None
    fields = {name: getattr(metadata.config, name) for name in metadata.config.__struct_fields__}
    rope = {name: getattr(metadata.config.rope, name) for name in metadata.config.rope.__struct_fields__}
    config = ModelConfig(**{**fields, "rope": YarnRope(**rope)})
    config.require_consistent(path)
    _require_known_layers(config, path)
    return config, metadata.weights


def _require_known_layers(config: ModelConfig, path: Path) -> None:
    unknown = [kind for kind in config.layer_types if kind not in (SLIDING, FULL)]
    if unknown:
        raise InputError("unknown layer type", file=path, found=repr(unknown[0]), expected=f"{SLIDING} or {FULL}")
