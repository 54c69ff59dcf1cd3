"""How the figures of positions are spread: what pictures are drawn of, ready for JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.verify.metrics.plain import Plain
from gptoss_convert.verify.metrics.positions import SKIPPED, PositionFigures

BINS_PER_DECADE = 4
LEAST_DECADE, MOST_DECADE = -16, 4
"""Powers of ten between which divergences are told apart: float64 knows nothing smaller next to 1, and 10,000 nats
say no more than 100 do. All histograms have the same grid, so that they can be laid side by side."""
LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)


@dataclass(frozen=True, kw_only=True)
class Bin(Plain):
    """Positions with a divergence from `low` on, and below `high`, in nats."""

    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Percentile(Plain):
    """The divergence, in nats, that a share of the positions is not above."""

    level: float
    value: float


@dataclass(frozen=True, kw_only=True)
class Stretch(Plain):
    """Positions of all prompts at the same distance from their beginning, from `first` up to and with `last`."""

    first: int
    last: int
    positions: int
    same_top1: float
    """Share at which both put the same token first."""
    mean_kl: float
    median_kl: float


@dataclass(frozen=True, kw_only=True)
class Spread(Plain):
    """Scored positions but those with NaN or an infinite divergence, which are counted in the summary."""

    below: int
    """Positions with a divergence below that of the first possible bin: next to none, or zero."""
    histogram: tuple[Bin, ...]
    """Bins without gaps, from the first to the last that is not empty; empty if no position is in any."""
    percentiles: tuple[Percentile, ...]
    """Empty if there is no position."""
    by_position: tuple[Stretch, ...]
    """Each stretch is twice as long as the one before; stretches without positions are left out."""


def spread_of(figures: PositionFigures) -> Spread:
    """Return how the divergences of the scored positions are spread, and where in the prompts they lie."""
    chosen = np.flatnonzero(figures.scored & figures.comparable)
    kl = figures.kl[chosen]
    least = 10.0**LEAST_DECADE
    return Spread(
        below=int((kl < least).sum()),
        histogram=_histogram(kl[kl >= least]),
        percentiles=_percentiles(kl),
        by_position=_by_position(figures, chosen),
    )


def _histogram(kl: NDArray[np.float64]) -> tuple[Bin, ...]:
    if not len(kl):
        return ()
    edges = [10 ** (step / BINS_PER_DECADE) for step in range(LEAST_DECADE * BINS_PER_DECADE, _STEPS + 1)]
    places = np.clip(np.searchsorted(edges, kl, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(places, minlength=len(edges) - 1)
    return tuple(
        Bin(low=edges[place], high=edges[place + 1], count=int(counts[place]))
        for place in range(int(places.min()), int(places.max()) + 1)
    )


_STEPS = MOST_DECADE * BINS_PER_DECADE


def _percentiles(kl: NDArray[np.float64]) -> tuple[Percentile, ...]:
    if not len(kl):
        return ()
    values = np.quantile(kl, LEVELS)
    return tuple(Percentile(level=level, value=float(value)) for level, value in zip(LEVELS, values, strict=True))


def _by_position(figures: PositionFigures, chosen: NDArray[np.intp]) -> tuple[Stretch, ...]:
    places = figures.place[chosen]
    stretches = []
    for power in range(int(math.log2(SKIPPED)), int(places.max(initial=0)).bit_length()):
        first, last = 1 << power, (2 << power) - 1
        rows = chosen[(places >= first) & (places <= last)]
        if len(rows):
            stretches.append(
                Stretch(
                    first=first,
                    last=last,
                    positions=len(rows),
                    same_top1=float(figures.same_top[rows].mean()),
                    mean_kl=float(figures.kl[rows].mean()),
                    median_kl=float(np.median(figures.kl[rows])),
                )
            )
    return tuple(stretches)
