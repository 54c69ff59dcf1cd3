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

from gptoss_convert.checkpoint import ModelConfig
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.onnx.weights import Layout, Weight
from gptoss_convert.formats.stored_config import StoredConfig

METADATA_KEY = "gptoss_convert"
LAYOUT_VERSION = 1


class StoredWeight(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How a canonical tensor is stored."""

    encoding: str
    initialisers: tuple[str, ...]
    layout: Layout = Layout.ROWS


class _Version(msgspec.Struct):
    layout_version: int


class _Metadata(msgspec.Struct, forbid_unknown_fields=True):
    layout_version: int
    config: StoredConfig
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
    return metadata.config.model_config(path), metadata.weights
