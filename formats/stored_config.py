"""A configuration as this project stores it in JSON: the fields of `ModelConfig`, checked when they are read."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gptoss_convert.checkpoint import FULL, SLIDING, ModelConfig, YarnRope
from gptoss_convert.errors import InputError
from gptoss_convert.formats.config_fields import Count, LayerCount, Positive


class StoredRope(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of `YarnRope`."""

    theta: Positive
    factor: Positive
    beta_fast: Positive
    beta_slow: Positive
    original_context_length: Count
    truncate: bool


class StoredConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of `ModelConfig`."""

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
    rope: StoredRope
    rms_norm_eps: Positive
    swiglu_limit: Positive

    def model_config(self, path: Path) -> ModelConfig:
        """Return the configuration.

        Raises:
            InputError: it contradicts itself, or has an unknown type of layer; `path` is the file to name.
        """
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        rope = {name: getattr(self.rope, name) for name in self.rope.__struct_fields__}
        config = ModelConfig(**{**fields, "rope": YarnRope(**rope)})
        config.require_consistent(path)
        unknown = [kind for kind in config.layer_types if kind not in (SLIDING, FULL)]
        if unknown:
            raise InputError(
                "unknown layer type", file=path, found=repr(unknown[0]), expected=f"{SLIDING} or {FULL}"
            )
        return config
