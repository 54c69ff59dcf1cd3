"""Rotary position embedding with YaRN scaling (arXiv:2309.00071), as gpt-oss has it.

The tables are float32 whatever the model is computed in, made by the same operations as in OpenAI's
`RotaryEmbedding` and transformers' `_compute_yarn_parameters`, and rounded to the type of the activations. They
are part of the model: at position 10,000 an angle in float32 is off by up to 5e-4.
"""

from __future__ import annotations

import torch

from gptoss_convert.checkpoint import YarnRope
from gptoss_convert.verify.first_use import use_vector_functions_alone


def inverse_frequencies(rope: YarnRope, head_dim: int) -> torch.Tensor:
    """Return the angle per position of each pair of dimensions, float32 `[head_dim / 2]`.

    Pairs below `low` keep the frequency that they were trained with, those above `high` are slowed down by the
    factor, and those between are mixed. llama.cpp rounds the two bounds outwards (`truncate`), gpt-oss does not.

    Raises:
        UnsupportedError: the base makes no frequencies that fall.
    """
    low, high = rope.mixed_pairs(head_dim)
    pairs = head_dim // 2
    frequencies = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    kept, slowed = 1.0 / frequencies, 1.0 / (rope.factor * frequencies)
    mask = 1 - ((torch.arange(pairs, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return slowed * (1 - mask) + kept * mask


def rotation(rope: YarnRope, head_dim: int, length: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines of positions 0 to `length`, each `[length, head_dim / 2]` in `dtype`."""
    use_vector_functions_alone()
    positions = torch.arange(length, dtype=torch.float32)
    angles = positions[:, None] * inverse_frequencies(rope, head_dim)
    factor = rope.concentration
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def rotated(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate `heads` `[positions, heads, head_dim]`; dimension i and i + head_dim / 2 are a pair.

    Args:
        heads: queries or keys.
        cosines: `[positions, head_dim / 2]`.
        sines: the same.
    """
    cosines, sines = cosines[:, None], sines[:, None]
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
