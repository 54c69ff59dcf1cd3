"""Tables of the rotary position embedding with YaRN scaling (arXiv:2309.00071), for all positions of a model.

They are tables, not nodes: Direct3D asks sine and cosine of a shader to be right to 0.0008 up to 100 pi only, and
gpt-oss has angles up to 131,072. The angle is the product of position and frequency rounded to float32, as in
OpenAI's `RotaryEmbedding` and transformers' `_compute_yarn_parameters`, for that rounding is part of the model: at
position 10,000 it is up to 5e-4. Frequencies are those of torch in every bit; sines and cosines are the nearest
float32 numbers, of which torch's are at times the next ones.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.checkpoint import ModelConfig, YarnRope
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.onnx.graph.vector_power import vector_power

Float32: TypeAlias = NDArray[np.float32]

_MOST_BYTES = 512 << 20
"""Of both tables; those of gpt-oss have 32 MiB, and a graph must stay below 2 GiB."""
_STEP = 4096
"""Positions whose angles are held at once."""
_AT_ONCE = 16
"""Numbers that torch's vector functions take at once on processors with AVX2; of 32 with AVX-512, gpt-oss's 32
frequencies are a multiple, too. What is left over goes through the C library."""


def rotation_tables(config: ModelConfig) -> tuple[Float32, Float32]:
    """Return cosines and sines of all positions, times the concentration, each `[positions, head_dim / 2]`.

    Raises:
        UnsupportedError: the tables would be too large, or the base makes no frequencies that fall.
    """
    positions, pairs = config.max_position_embeddings, config.head_dim // 2
    if 8 * positions * pairs > _MOST_BYTES:
        raise UnsupportedError(
            "rotary tables of all positions do not fit into a graph",
            found=f"{positions} positions",
            expected=f"at most {_MOST_BYTES // (8 * pairs)}",
        )
    frequencies = inverse_frequencies(config.rope, config.head_dim)
    factor = np.float32(config.rope.concentration)
    cosines, sines = (np.empty((positions, pairs), np.float32) for _ in range(2))
    for start in range(0, positions, _STEP):
        stop = min(start + _STEP, positions)
        angles = np.arange(start, stop, dtype=np.float32)[:, None] * frequencies
        wide = angles.astype(np.float64)
        cosines[start:stop] = np.cos(wide).astype(np.float32) * factor
        sines[start:stop] = np.sin(wide).astype(np.float32) * factor
    return cosines, sines


def inverse_frequencies(rope: YarnRope, head_dim: int) -> Float32:
    """Return the angle per position of each pair of dimensions, float32 `[head_dim / 2]`.

    Pairs below `low` keep the frequency that they were trained with, those above `high` are slowed down by the
    factor, and those between are mixed.

    Raises:
        UnsupportedError: the base makes no frequencies that fall.
    """
    low, high = rope.mixed_pairs(head_dim)
    one = np.float32(1)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = _powers(rope.theta, exponents)
    kept, slowed = one / powers, one / (np.float32(rope.factor) * powers)
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    mask = one - np.clip(ramp, 0, 1)
    mixed: Float32 = slowed * (one - mask) + kept * mask
    return mixed


def _powers(base: float, exponents: Float32) -> Float32:
    """Return `base` to each of the `exponents` as torch does: the last few are the nearest numbers."""
    whole = len(exponents) // _AT_ONCE * _AT_ONCE
    rest = np.power(np.float64(np.float32(base)), exponents[whole:].astype(np.float64)).astype(np.float32)
    return np.concatenate([vector_power(base, exponents[:whole]), rest])
