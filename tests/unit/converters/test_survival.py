"""What is left of a change: figures of the definition, which add up over pieces."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_convert.converters.survival import LEAST_SURVIVING, Survival, survival
from gptoss_convert.encodings import Float32

numbers = hnp.arrays(np.float32, (4, 8), elements=st.floats(-100, 100, width=16))


def array(*values: float) -> Float32:
    return np.array([values], np.float32)


@given(numbers, numbers, numbers)
def test_figures_are_those_of_the_definition(base: Float32, tuned: Float32, quantised: Float32) -> None:
    found = survival(base, tuned, quantised)
    b, t, q = (each.astype(np.float64) for each in (base, tuned, quantised))
    assert found.values == 32
    assert found.tuned == np.count_nonzero(t != b)
    assert found.moved == np.count_nonzero(q != b)
    assert found.share_tuned == found.tuned / 32
    assert found.share_moved == found.moved / 32
    assert found.squared_base == pytest.approx((b * b).sum(), rel=1e-6)
    assert found.squared_change == pytest.approx(((t - b) ** 2).sum(), rel=1e-6)
    assert found.kept_change == pytest.approx(((t - b) * (q - b)).sum(), rel=1e-5, abs=1e-6)


@given(numbers, numbers, numbers, st.integers(0, 4))
def test_figures_of_pieces_add_up(base: Float32, tuned: Float32, quantised: Float32, cut: int) -> None:
    whole = survival(base, tuned, quantised)
    parts = survival(base[:cut], tuned[:cut], quantised[:cut]) + survival(base[cut:], tuned[cut:], quantised[cut:])
    assert (parts.values, parts.tuned, parts.moved) == (whole.values, whole.tuned, whole.moved)
    assert parts.squared_change == pytest.approx(whole.squared_change, rel=1e-12)
    assert parts.kept_change == pytest.approx(whole.kept_change, rel=1e-9, abs=1e-9)


def test_change_that_was_kept() -> None:
    found = survival(array(4, 2, 0), array(5, 2, 0), array(5, 2, 0))
    assert found.share_kept == 1
    assert not found.rounded_away
    assert found.relative_change == pytest.approx(math.sqrt(1 / 20))


def test_change_that_is_gone() -> None:
    found = survival(array(4, 2), array(4.1, 2), array(4, 2))
    assert found.share_kept == 0
    assert found.moved == 0
    assert found.rounded_away


def test_change_in_the_opposite_direction_is_negative() -> None:
    found = survival(array(4), array(4.1), array(3))
    assert found.share_kept is not None
    assert found.share_kept < 0
    assert found.rounded_away


@pytest.mark.parametrize(("kept", "rounded_away"), [(LEAST_SURVIVING, False), (LEAST_SURVIVING - 0.01, True)])
def test_half_of_a_change_is_enough(kept: float, rounded_away: bool) -> None:
    assert Survival(values=1, squared_change=1.0, kept_change=kept).rounded_away == rounded_away


def test_without_a_change_nothing_is_lost() -> None:
    found = survival(array(4, 2), array(4, 2), array(4, 2))
    assert found.share_kept is None
    assert not found.rounded_away
    assert found.relative_change == 0


def test_base_of_zeros_has_no_relative_change() -> None:
    assert survival(array(0, 0), array(1, 0), array(1, 0)).relative_change is None


def test_nothing_has_no_shares() -> None:
    assert (Survival().share_tuned, Survival().share_moved, Survival().share_kept) == (0, 0, None)
