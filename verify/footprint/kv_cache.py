"""Bytes of the KV cache: by kind of layer, and as llama.cpp rounds it.

Every cell of a layer holds a key and a value of `num_key_value_heads * head_dim` numbers each. The head size is
that of the configuration, which is not hidden size by heads: 64, not 45, in the published models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gptoss_convert.checkpoint import SLIDING, ModelConfig
from gptoss_convert.errors import OptionError

KV_TYPES: Mapping[str, tuple[int, int]] = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q4_0": (18, 32),
}
"""Bytes for so many numbers, by type: ggml's blocks of 32 have a scale of two bytes."""

LLAMA_CPP_PADDING = 256
"""Cells of a cache are a multiple of this (`llama_kv_cache_iswa` in llama-kv-cache-iswa.cpp)."""


@dataclass(frozen=True, kw_only=True)
class KvCache:
    """Cells of the two kinds of layers, and what they take."""

    full_layers: int
    window_layers: int
    full_cells: int
    """Positions in each layer with full attention."""
    window_cells: int
    """Positions in each layer with a sliding window."""
    cell_bytes: int
    """Of one position in one layer: key and value."""

    @property
    def full_bytes(self) -> int:
        """Bytes of the layers with full attention."""
        return self.full_layers * self.full_cells * self.cell_bytes

    @property
    def window_bytes(self) -> int:
        """Bytes of the layers with a sliding window."""
        return self.window_layers * self.window_cells * self.cell_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return self.full_bytes + self.window_bytes


def cell_bytes(config: ModelConfig, kv_type: str) -> int:
    """Return the bytes of key and value of one position in one layer.

    Raises:
        OptionError: there is no such type, or heads are not whole blocks of it.
    """
    if kv_type not in KV_TYPES:
        raise OptionError("no such type of a KV cache", found=kv_type, expected=" or ".join(KV_TYPES))
    size, block = KV_TYPES[kv_type]
    if config.head_dim % block:
        raise OptionError(
            f"heads of {config.head_dim} numbers are not whole blocks of {block}",
            found=kv_type,
            hint="choose another --kv-type",
        )
    return 2 * config.num_key_value_heads * config.head_dim // block * size


def least_cache(config: ModelConfig, positions: int, kv_type: str) -> KvCache:
    """Return what attention has to remember after `positions`: all of them, or those of the window."""
    return _cache(config, kv_type, full=positions, window=min(positions, config.sliding_window))


def whole_cache(config: ModelConfig, positions: int, kv_type: str) -> KvCache:
    """Return a cache that keeps `positions` in every layer, whether attention looks at them or not."""
    return _cache(config, kv_type, full=positions, window=positions)


def llama_cpp_cache(config: ModelConfig, context: int, batch: int, kv_type: str) -> KvCache:
    """Return what llama.cpp allocates for one sequence when it is started.

    Layers with a window have room for it and for one batch, since old positions are overwritten only between
    batches; both kinds are padded.
    """
    full = _padded(context)
    return _cache(config, kv_type, full=full, window=min(full, _padded(config.sliding_window + batch)))


def _padded(cells: int) -> int:
    return -(-cells // LLAMA_CPP_PADDING) * LLAMA_CPP_PADDING


def _cache(config: ModelConfig, kv_type: str, *, full: int, window: int) -> KvCache:
    windowed = sum(kind == SLIDING for kind in config.layer_types)
    return KvCache(
        full_layers=config.num_hidden_layers - windowed,
        window_layers=windowed,
        full_cells=full,
        window_cells=window,
        cell_bytes=cell_bytes(config, kv_type),
    )
