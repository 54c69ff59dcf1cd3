"""The description of a model as GGUF metadata, under `general.`.

Source: `Metadata.set_gguf_meta_model` in gguf-py (metadata.py); keys are written in its order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gptoss_convert.checkpoint import ModelConfig, Role, inventory
from gptoss_convert.description import Description, Reference
from gptoss_convert.formats.gguf.configuration import ARCHITECTURE
from gptoss_convert.formats.gguf.container import StringArray, Value, ValueType, string, strings, uint32

REVISION_KEY = "gptoss_convert.source.revision"
"""GGUF has no key for the revision of the source; keys of a tool carry its name."""

_TEXT_KEYS = {
    "name": "general.name",
    "author": "general.author",
    "version": "general.version",
    "organization": "general.organization",
    "finetune": "general.finetune",
    "basename": "general.basename",
    "description": "general.description",
    "quantized_by": "general.quantized_by",
    "size_label": "general.size_label",
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "url": "general.url",
    "doi": "general.doi",
    "uuid": "general.uuid",
    "repo_url": "general.repo_url",
    "source_url": "general.source.url",
    "source_doi": "general.source.doi",
    "source_uuid": "general.source.uuid",
    "source_repo_url": "general.source.repo_url",
}
_REFERENCE_KEYS = {"base_models": "general.base_model", "datasets": "general.dataset"}
_LIST_KEYS = {"tags": "general.tags", "languages": "general.languages"}
_SAMPLING_TYPES = {
    "sequence": ValueType.STRING,
    "top_k": ValueType.INT32,
    "top_p": ValueType.FLOAT32,
    "min_p": ValueType.FLOAT32,
    "xtc_probability": ValueType.FLOAT32,
    "xtc_threshold": ValueType.FLOAT32,
    "temp": ValueType.FLOAT32,
    "penalty_last_n": ValueType.INT32,
    "penalty_repeat": ValueType.FLOAT32,
    "mirostat": ValueType.INT32,
    "mirostat_tau": ValueType.FLOAT32,
    "mirostat_eta": ValueType.FLOAT32,
}
LARGEST_REFERENCE_COUNT = 1000


def description_metadata(said: Description, config: ModelConfig) -> dict[str, Value]:
    """Return the metadata for a description; a size label that is not stated is computed."""
    metadata = {"general.architecture": string(ARCHITECTURE), "general.type": string("model")}
    for name, kind in _SAMPLING_TYPES.items():
        if name in said.sampling:
            metadata[f"general.sampling.{name}"] = Value(kind, said.sampling[name])
    texts = {name: getattr(said, name) for name in _TEXT_KEYS}
    texts["size_label"] = said.size_label or size_label(config)
    metadata |= {key: string(_utf8(texts[name])) for name, key in _TEXT_KEYS.items() if texts[name]}
    for name, prefix in _REFERENCE_KEYS.items():
        references: tuple[Reference, ...] = getattr(said, name)
        if references:
            metadata[f"{prefix}.count"] = uint32(len(references))
        for index, reference in enumerate(references):
            for item in fields(Reference):
                if text := getattr(reference, item.name):
                    metadata[f"{prefix}.{index}.{item.name}"] = string(text)
    metadata |= {key: strings(getattr(said, name)) for name, key in _LIST_KEYS.items() if getattr(said, name)}
    if said.source_revision:
        metadata[REVISION_KEY] = string(_utf8(said.source_revision))
    return metadata


def _utf8(text: str) -> str:
    """Return `text` as it can be stored: names of files and arguments may hold bytes that are no characters."""
    return text.encode("utf-8", "replace").decode("utf-8")


def parse_description(metadata: Mapping[str, Value]) -> Description:
    """Return what the metadata of a GGUF file say about the model."""

    def text(key: str) -> str | None:
        value = metadata.get(key)
        return value.value if value is not None and isinstance(value.value, str) and value.value else None

    said: dict[str, Any] = {name: text(key) for name, key in _TEXT_KEYS.items()}
    for name, prefix in _REFERENCE_KEYS.items():
        count = metadata.get(f"{prefix}.count")
        number = count.value if count is not None and type(count.value) is int else 0
        said[name] = tuple(
            Reference(**{item.name: text(f"{prefix}.{index}.{item.name}") for item in fields(Reference)})
            for index in range(min(number, LARGEST_REFERENCE_COUNT))
        )
    for name, key in _LIST_KEYS.items():
        value = metadata.get(key)
        said[name] = tuple(value.value) if value is not None and isinstance(value.value, StringArray) else ()
    sampling = {name: metadata.get(f"general.sampling.{name}") for name in _SAMPLING_TYPES}
    said["sampling"] = {
        name: value.value
        for name, value in sampling.items()
        if value is not None and value.type is _SAMPLING_TYPES[name] and not value.is_array
    }
    return Description(**said, source_revision=text(REVISION_KEY))


def size_label(config: ModelConfig) -> str:
    """Return the label of llama.cpp's converter, such as `32x2.4B`: experts times parameters with one of them.

    Expert biases count as shared: so does `GGUFWriter.get_total_parameter_count` in gguf-py.
    """
    import gguf

    total = shared = expert = 0
    for spec in inventory(config).values():
        size = math.prod(spec.shape)
        total += size
        if spec.role is Role.EXPERTS:
            expert += size // config.num_local_experts
        else:
            shared += size
    label: str = gguf.size_label(total, shared, expert, config.num_local_experts)
    return label
