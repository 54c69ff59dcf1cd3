"""The rotation is that of the published model, at every position."""

from dataclasses import replace

import pytest
import torch

from gptoss_convert.checkpoint import YarnRope
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.verify.forward.rope import inverse_frequencies, rotated, rotation

PUBLISHED = YarnRope(
    theta=150_000, factor=32, beta_fast=32, beta_slow=1, original_context_length=4096, truncate=False
)
LOW, HIGH = 8.0927791, 17.3980245
"""Between these pairs the published model mixes slowed and kept frequencies."""


@pytest.mark.parametrize(("truncate", "low", "high"), [(False, LOW, HIGH), (True, 8, 18)])
def test_pairs_are_kept_mixed_or_slowed(truncate: bool, low: float, high: float) -> None:
    pair = torch.arange(32, dtype=torch.float64)
    plain = 150_000 ** (-pair / 32)
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    expected = plain / 32 * ramp + plain * (1 - ramp)
    found = inverse_frequencies(replace(PUBLISHED, truncate=truncate), 64)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_concentration_is_that_of_yarn() -> None:
    assert PUBLISHED.concentration == 1.3465735902799727
    assert replace(PUBLISHED, factor=1.0).concentration == 1


@pytest.mark.parametrize("theta", [1, 0.5])
def test_base_without_falling_frequencies_is_refused(theta: float) -> None:
    with pytest.raises(UnsupportedError, match="base"):
        inverse_frequencies(replace(PUBLISHED, theta=theta), 64)


def test_tables_are_float32_and_rounded() -> None:
    cosines, sines = rotation(PUBLISHED, 64, 5000, torch.float32)
    assert cosines.shape == sines.shape == (5000, 32)
    angle = torch.tensor(4999.0) * inverse_frequencies(PUBLISHED, 64)
    assert torch.equal(sines[-1], angle.sin() * PUBLISHED.concentration)
    for dtype in (torch.bfloat16, torch.float64):
        assert torch.equal(rotation(PUBLISHED, 64, 5000, dtype)[0], cosines.to(dtype))


def test_halves_are_rotated_as_complex_numbers() -> None:
    heads = torch.randn(7, 3, 64, dtype=torch.float64)
    angles = torch.randn(7, 32, dtype=torch.float64)
    turned = torch.complex(heads[..., :32], heads[..., 32:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    found = rotated(heads, angles.cos(), angles.sin())
    torch.testing.assert_close(found, torch.cat((turned.real, turned.imag), dim=-1))
