"""The spread holds every scored position once, on a grid that is the same for all comparisons."""

import json
from itertools import pairwise

import numpy as np
import pytest

from gptoss_convert.verify.metrics.spread import LEVELS, spread_of
from tests.unit.verify.metrics.test_summary import COUNT, figures


def test_every_scored_position_is_in_the_histogram_once() -> None:
    all_figures = figures()
    spread = spread_of(all_figures)
    assert spread.below + sum(item.count for item in spread.histogram) == COUNT - 16
    for item in spread.histogram:
        inside = (all_figures.kl >= item.low) & (all_figures.kl < item.high) & all_figures.scored
        assert item.count == inside.sum()


def test_bins_have_no_gaps_and_begin_and_end_with_a_position() -> None:
    bins = spread_of(figures()).histogram
    assert all(left.high == right.low for left, right in pairwise(bins))
    assert bins[0].count
    assert bins[-1].count
    assert np.allclose([item.high / item.low for item in bins], 10**0.25)


def test_nothing_and_huge_divergences_are_counted_too() -> None:
    kl = np.full(COUNT, 0.5)
    kl[[5, 6, 7]] = [0.0, -1e-17, 1e9]
    spread = spread_of(figures(kl=kl))
    assert spread.below == 2
    assert spread.histogram[-1].count == 1
    assert spread.histogram[-1].high == pytest.approx(1e4)
    json.dumps(spread.as_dict(), allow_nan=False)


def test_positions_with_nan_and_infinite_divergence_are_left_out() -> None:
    bad = np.zeros(COUNT, bool)
    bad[[10, 40]] = True
    spread = spread_of(figures(nan=bad, infinite=np.roll(bad, 1)))
    assert spread.below + sum(item.count for item in spread.histogram) == COUNT - 16 - 4
    assert sum(item.positions for item in spread.by_position) == COUNT - 16 - 4


def test_percentiles_are_those_of_numpy() -> None:
    all_figures = figures()
    expected = np.quantile(all_figures.kl[all_figures.scored], LEVELS)
    found = spread_of(all_figures).percentiles
    assert [item.level for item in found] == list(LEVELS)
    assert [item.value for item in found] == pytest.approx(expected)


def test_stretches_tell_places_apart() -> None:
    all_figures = figures()
    stretches = spread_of(all_figures).by_position
    assert [(item.first, item.last) for item in stretches] == [(4, 7), (8, 15), (16, 31)]
    inside = (all_figures.place >= 8) & (all_figures.place <= 15)
    assert stretches[1].positions == inside.sum()
    assert stretches[1].mean_kl == pytest.approx(all_figures.kl[inside].mean())
    assert stretches[1].median_kl == pytest.approx(np.median(all_figures.kl[inside]))
    assert stretches[1].same_top1 == pytest.approx(all_figures.same_top[inside].mean())


def test_no_position_is_no_picture() -> None:
    spread = spread_of(figures(nan=np.ones(COUNT, bool)))
    assert (spread.below, spread.histogram, spread.percentiles, spread.by_position) == (0, (), (), ())
