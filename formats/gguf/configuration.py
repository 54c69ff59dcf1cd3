"""The model configuration as GGUF metadata.

Source: `TextModel.set_gguf_parameters` and `GptOssModel` in llama.cpp's converter (conversion/), and
`llama_model_openai_moe::load_arch_hparams`. Keys are written in the converter's order.

Three facts of the model have no key, because llama.cpp fixes them in its code: the swiglu limit 7, its alpha
1.702, and that the range of YaRN is rounded to whole dimensions, which the model does not do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_convert.checkpoint import (
    FULL,
    LARGEST_LAYER_COUNT,
    SLIDING,
    ModelConfig,
    YarnRope,
    alternating_layers,
)
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.gguf.container import Value, ValueType, float32, string, uint32
from gptoss_convert.formats.gguf.dialects import LLAMA_CPP, Dialect, dialect_of

ARCHITECTURE = LLAMA_CPP.architecture
LARGEST_NUMBER = 1e30
SWIGLU_LIMIT = 7.0
"""The only limit that llama.cpp computes with (`llm_graph_context::build_moe_ffn`)."""


def configuration_metadata(config: ModelConfig, *, file_type: int, path: Path) -> dict[str, Value]:
    """Return the metadata that describes `config`; `path` is the file to name in errors.

    Raises:
        UnsupportedError: llama.cpp cannot compute this variant of the model.
    """
    if config.swiglu_limit != SWIGLU_LIMIT:
        raise UnsupportedError(
            "llama.cpp computes gpt-oss with a fixed swiglu limit",
            file=path,
            found=config.swiglu_limit,
            expected=SWIGLU_LIMIT,
        )
    rope = config.rope
    metadata = {
        "block_count": uint32(config.num_hidden_layers),
        "context_length": uint32(config.max_position_embeddings),
        "embedding_length": uint32(config.hidden_size),
        "feed_forward_length": uint32(config.intermediate_size),
        "attention.head_count": uint32(config.num_attention_heads),
        "attention.head_count_kv": uint32(config.num_key_value_heads),
        "rope.scaling.type": string("yarn"),
        "rope.scaling.factor": float32(rope.factor),
        "rope.scaling.original_context_length": uint32(rope.original_context_length),
        "rope.scaling.yarn_beta_fast": float32(rope.beta_fast),
        "rope.scaling.yarn_beta_slow": float32(rope.beta_slow),
        "rope.freq_base": float32(rope.theta),
        "attention.layer_norm_rms_epsilon": float32(config.rms_norm_eps),
        "expert_count": uint32(config.num_local_experts),
        "expert_used_count": uint32(config.num_experts_per_tok),
        "attention.key_length": uint32(config.head_dim),
        "attention.value_length": uint32(config.head_dim),
    }
    with_file_type = {f"{ARCHITECTURE}.{key}": value for key, value in metadata.items()}
    with_file_type["general.file_type"] = uint32(file_type)
    with_file_type[f"{ARCHITECTURE}.attention.sliding_window"] = uint32(config.sliding_window)
    if config.layer_types != alternating_layers(config.num_hidden_layers):
        pattern = np.array([kind == SLIDING for kind in config.layer_types])
        with_file_type[f"{ARCHITECTURE}.attention.sliding_window_pattern"] = Value(ValueType.BOOL, pattern)
    with_file_type[f"{ARCHITECTURE}.expert_feed_forward_length"] = uint32(config.intermediate_size)
    return with_file_type


def parse_configuration(metadata: Mapping[str, Value], vocab_size: int, path: Path) -> ModelConfig:
    """Return the configuration in the metadata of a gpt-oss GGUF file.

    Raises:
        InputError: a key is missing, of the wrong type, or contradicts another.
        UnsupportedError: it is another architecture.
    """
    keys = _Keys(metadata, dialect_of(metadata, path), path)
    scaling = keys.text("rope.scaling.type")
    if scaling != "yarn":
        raise UnsupportedError("rotary embedding is not YaRN", file=path, found=scaling, expected="yarn")
    layers = keys.integer("block_count", largest=LARGEST_LAYER_COUNT)
    heads = keys.integer("attention.head_count")
    context = keys.integer("context_length")
    factor = keys.number("rope.scaling.factor")
    config = ModelConfig(
        num_hidden_layers=layers,
        hidden_size=keys.integer("embedding_length"),
        intermediate_size=keys.integer("expert_feed_forward_length"),
        num_local_experts=keys.integer("expert_count"),
        num_experts_per_tok=keys.integer("expert_used_count"),
        num_attention_heads=heads,
        num_key_value_heads=keys.integer("attention.head_count_kv", default=heads),
        head_dim=keys.integer("attention.key_length"),
        vocab_size=vocab_size,
        max_position_embeddings=context,
        sliding_window=keys.integer("attention.sliding_window"),
        layer_types=_layer_types(keys, layers, path),
        rope=YarnRope(
            theta=keys.number("rope.freq_base"),
            factor=factor,
            # Files of August 2025 lack the betas; llama.cpp then takes these.
            beta_fast=keys.number("rope.scaling.yarn_beta_fast", default=32.0),
            beta_slow=keys.number("rope.scaling.yarn_beta_slow", default=1.0),
            original_context_length=keys.integer("rope.scaling.original_context_length"),
            truncate=False,
        ),
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        swiglu_limit=SWIGLU_LIMIT,
    )
    config.require_consistent(path)
    return config


def _layer_types(keys: _Keys, layers: int, path: Path) -> tuple[str, ...]:
    """Return the kind of each layer; a number n as pattern means that every n-th layer is full, 0 that none is."""
    key, value = keys.find("attention.sliding_window_pattern")
    if value is None:
        return alternating_layers(layers)
    pattern = value.value
    if isinstance(pattern, np.ndarray):
        return tuple(SLIDING if sliding else FULL for sliding in pattern)
    if type(pattern) is not int or pattern < 0:
        raise InputError(
            f"metadata value is no pattern of layers: {key}", file=path, expected="a list of flags, or a number"
        )
    return tuple(FULL if pattern and index % pattern == pattern - 1 else SLIDING for index in range(layers))


class _Keys:
    """Typed access to the metadata of the architecture; keys are named without its prefix."""

    def __init__(self, metadata: Mapping[str, Value], dialect: Dialect, path: Path) -> None:
        self._metadata = metadata
        self._dialect = dialect
        self._path = path

    def find(self, key: str) -> tuple[str, Value | None]:
        """Return the full key and its value, or what stands for it where the dialect leaves it out."""
        full = f"{self._dialect.architecture}.{key}"
        substitute = self._dialect.substitutes.get(key)
        if full not in self._metadata and substitute is not None:
            return self.find(substitute)
        if full not in self._metadata and key in self._dialect.constants:
            return full, string(self._dialect.constants[key])
        return full, self._metadata.get(full)

    def integer(self, key: str, *, default: int | None = None, largest: int = (1 << 31) - 1) -> int:
        value = self._scalar(key, int, default)
        if not 1 <= value <= largest:
            raise self._error("metadata value is out of range", key, value, f"1 to {largest}")
        return int(value)

    def number(self, key: str, *, default: float | None = None) -> float:
        value = self._scalar(key, (int, float), default)
        if not 0 < value < LARGEST_NUMBER or not (single := np.float32(value)):
            raise self._error("metadata value is out of range", key, value, "a positive number")
        # float32 stands for the decimal number that was written, such as 1e-05.
        return float(np.format_float_positional(single, unique=True))

    def text(self, key: str) -> str:
        full, value = self.find(key)
        if value is None or not isinstance(value.value, str):
            raise self._error("metadata key is missing or no text", full, None, "text")
        return value.value

    def _scalar(self, key: str, kinds: Any, default: float | None) -> Any:
        full, value = self.find(key)
        if value is None and default is not None:
            return default
        if value is None or isinstance(value.value, bool) or not isinstance(value.value, kinds):
            raise self._error("metadata key is missing or no number", full, value and value.value, "a number")
        return value.value

    def _error(self, what: str, key: str, found: object, expected: str) -> InputError:
        return InputError(f"{what}: {key}", file=self._path, found=found, expected=expected)
