"""Rotation tables of the shape of a model; `tests/oracle/test_rotary_tables.py` holds them against transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gptoss_convert.checkpoint import YarnRope
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.graph.rope import inverse_frequencies, rotation_tables
from gptoss_convert.verify.forward import rope
from tests.support.conversions import TINY

PUBLISHED = YarnRope(
    theta=150_000, factor=32, beta_fast=32, beta_slow=1, original_context_length=4096, truncate=False
)
LAST_BIT = 2.0**-23


@pytest.mark.parametrize(
    "yarn",
    [
        PUBLISHED,
        replace(PUBLISHED, truncate=True),
        replace(PUBLISHED, factor=1.0, theta=10_000),
        replace(PUBLISHED, factor=8.0, theta=1e6, original_context_length=8192),
    ],
)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
def test_frequencies_are_those_of_torch(yarn: YarnRope, head_dim: int) -> None:
    found = inverse_frequencies(yarn, head_dim)
    expected = rope.inverse_frequencies(yarn, head_dim).numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:32], expected[:32])
    np.testing.assert_allclose(found, expected, rtol=LAST_BIT, atol=0)


def test_tables_are_sines_of_angles_in_float32() -> None:
    config = open_checkpoint(TINY).config
    cosines, sines = rotation_tables(config)
    assert cosines.shape == sines.shape == (131072, 32)
    frequencies = inverse_frequencies(config.rope, 64)
    angles = torch.arange(131072, dtype=torch.float32)[:, None] * torch.from_numpy(frequencies)
    for found, function in ((cosines, torch.cos), (sines, torch.sin)):
        expected = (function(angles) * config.rope.concentration).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=2 * LAST_BIT)
        assert (found == expected).mean() > 0.9


def test_tables_that_no_graph_holds_are_refused() -> None:
    config = replace(open_checkpoint(TINY).config, max_position_embeddings=1 << 31)
    with pytest.raises(UnsupportedError, match="2147483648 positions, expected at most 2097152"):
        rotation_tables(config)


@pytest.mark.parametrize("theta", [1, 0.5])
def test_base_without_falling_frequencies_is_refused(theta: float) -> None:
    with pytest.raises(UnsupportedError, match="base"):
        inverse_frequencies(replace(PUBLISHED, theta=theta), 64)
