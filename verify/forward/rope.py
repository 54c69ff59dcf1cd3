"""Rotary position embedding with YaRN scaling (arXiv:2309.00071), as gpt-oss has it.

The tables are float32 whatever the model is computed in, made by the same operations as in OpenAI's
`RotaryEmbedding` and transformers' `_compute_yarn_parameters`, and rounded to the type of the activations. They
are part of the model: at position 10,000 an angle in float32 is off by up to 5e-4.
"""

from __future__ import annotations

import math

import torch

from gptoss_convert.checkpoint import YarnRope
from gptoss_convert.errors import UnsupportedError


def inverse_frequencies(rope: YarnRope, head_dim: int) -> torch.Tensor:
    """Return the angle per position of each pair of dimensions, float32 `[head_dim / 2]`.

    Pairs below `low` keep the frequency that they were trained with, those above `high` are slowed down by the
    factor, and those between are mixed. llama.cpp rounds the two bounds outwards (`truncate`), gpt-oss does not.

    Raises:
        UnsupportedError: the base makes no frequencies that fall.
    """
    if rope.theta <= 1:
        raise UnsupportedError("rotary embedding of a base that is not above 1", found=rope.theta)
    pairs = head_dim // 2
    frequencies = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    kept, slowed = 1.0 / frequencies, 1.0 / (rope.factor * frequencies)
    low, high = (_pair_that_turns(turns, rope, head_dim) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    mask = 1 - ((torch.arange(pairs, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return slowed * (1 - mask) + kept * mask


def concentration(rope: YarnRope) -> float:
    """Return the factor on sine and cosine, which makes the attention of longer contexts more pointed."""
    return 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0


def rotation(rope: YarnRope, head_dim: int, length: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines of positions 0 to `length`, each `[length, head_dim / 2]` in `dtype`."""
    positions = torch.arange(length, dtype=torch.float32)
    angles = positions[:, None] * inverse_frequencies(rope, head_dim)
    factor = concentration(rope)
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


def _pair_that_turns(turns: float, rope: YarnRope, head_dim: int) -> float:
    """Return which pair turns so many times within the original context length; pairs lie between whole numbers."""
    wavelength = rope.original_context_length / (turns * 2 * math.pi)
    return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))
