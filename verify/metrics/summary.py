"""Figures of many positions put into a few numbers, ready for JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.verify.metrics.events import Floats
from gptoss_convert.verify.metrics.plain import Plain
from gptoss_convert.verify.metrics.positions import CentredErrors, Flags, Integers, PositionFigures

NEAR_TIE = 0.1
"""Nats between the first two tokens of the reference below which either may come first: logits of a size of 20 come
in steps of 0.125 in BF16. The margin is that of the reference, so all tests are judged at the same positions."""
RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 20250805
"""Of the resampling, so that the same recordings give the same interval."""


@dataclass(frozen=True, kw_only=True)
class Estimate(Plain):
    """A mean over positions, and where it would be for other prompts of the same kind."""

    mean: float
    low: float | None
    """Bounds of the 95 % interval of a bootstrap over prompts; None if there are fewer than two."""
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Divergence(Plain):
    """KL(reference || test) in nats."""

    mean: Estimate
    median: float
    p90: float
    p99: float
    p99_9: float
    largest: float
    largest_prompt: int
    """Index of the prompt with the largest, and the position in it."""
    largest_place: int


@dataclass(frozen=True, kw_only=True)
class Top(Plain):
    """The likeliest tokens."""

    same: Estimate
    """Share of positions at which both put the same token first."""
    near_ties: int
    """Positions at which the reference's first two tokens are nearly as likely."""
    same_outside_near_ties: Estimate | None
    """Share among the other positions; None if there are none."""
    overlap: float | None
    """Share of the ten likeliest named tokens of one side that are among those of the other; None if a recording
    lists none."""


@dataclass(frozen=True, kw_only=True)
class NextTokens(Plain):
    """The tokens that come next in the prompts."""

    positions: int
    """Positions at which both recordings tell the token's probability. Recordings of the likeliest tokens leave
    out the others, so perplexities of these are not those of the text."""
    mean_change: float
    """Mean of the probability in the test less that in the reference, from -1 to 1."""
    rms_change: float
    reference_perplexity: float
    test_perplexity: float
    log_ratio: float
    """Natural logarithm of the test's perplexity over the reference's."""
    log_ratio_error: float | None
    """Standard error of that, positions taken as independent; None if there is but one."""
    lost: int
    """Flips: positions at which the reference puts the token first, and the test another one."""
    won: int
    """Flips the other way."""


@dataclass(frozen=True, kw_only=True)
class Centred(Plain):
    """Logits less their mean over the vocabulary."""

    nmse: float | None
    """Squared error over squared reference, both summed over all positions; None if the reference is flat."""
    cosine: float | None
    """Mean cosine between both sides; None if a side is flat at all positions."""
    mean_error: float
    """Mean absolute error."""
    largest_error: float
    """Largest absolute error."""


@dataclass(frozen=True, kw_only=True)
class Summary(Plain):
    """What the figures of some positions come to."""

    positions: int
    """Scored positions; those with NaN or an infinite divergence are counted, and left out of all that follows."""
    prompts: int
    nan: int
    infinite: int
    coverage: float | None
    """Mean probability that the reference gives to the tokens compared one by one."""
    bounded: bool
    """The divergence is a lower bound, since a recording knows the likeliest tokens only."""
    divergence: Divergence | None
    """None, like the following, if no position is left."""
    top: Top | None
    next_tokens: NextTokens | None
    centred: Centred | None
    """None unless both recordings know all tokens."""


def summarise(figures: PositionFigures, mask: Flags | None = None, *, near_tie: float = NEAR_TIE) -> Summary:
    """Summarise the scored positions, those of `mask` only if there is one, [positions]."""
    scored = figures.scored if mask is None else figures.scored & mask
    chosen = np.flatnonzero(scored & figures.comparable)
    known = chosen[figures.next_known[chosen]]
    return Summary(
        positions=int(scored.sum()),
        prompts=len(np.unique(figures.prompt[scored])),
        nan=int((scored & figures.nan).sum()),
        infinite=int((scored & figures.infinite).sum()),
        coverage=float(figures.coverage[chosen].mean()) if len(chosen) else None,
        bounded=figures.centred is None,
        divergence=_divergence(figures, chosen) if len(chosen) else None,
        top=_top(figures, chosen, near_tie) if len(chosen) else None,
        next_tokens=_next_tokens(figures, known) if len(known) else None,
        centred=_centred(figures.centred, chosen) if figures.centred is not None and len(chosen) else None,
    )


def estimate(values: NDArray[Any], prompts: Integers) -> Estimate:
    """Return the mean of `values`, [positions], and its interval over prompts, of which the indices are given.

    Positions of a prompt depend on each other, so whole prompts are drawn, with replacement, as many as there are;
    a mean is that of all positions drawn (percentile bootstrap; Efron and Tibshirani 1993, chapter 13).
    """
    groups, of_position, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    mean = float(values.mean())
    if len(groups) < 2:
        return Estimate(mean=mean, low=None, high=None)
    sums = np.bincount(of_position, weights=values)
    drawn = np.random.default_rng(SEED).integers(0, len(groups), (RESAMPLES, len(groups)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean=mean, low=float(low), high=float(high))


def _divergence(figures: PositionFigures, chosen: NDArray[np.intp]) -> Divergence:
    values = figures.kl[chosen]
    median, p90, p99, p99_9 = (float(value) for value in np.quantile(values, [0.5, 0.9, 0.99, 0.999]))
    largest = chosen[values.argmax()]
    return Divergence(
        mean=estimate(values, figures.prompt[chosen]),
        median=median,
        p90=p90,
        p99=p99,
        p99_9=p99_9,
        largest=float(figures.kl[largest]),
        largest_prompt=int(figures.prompt[largest]),
        largest_place=int(figures.place[largest]),
    )


def _top(figures: PositionFigures, chosen: NDArray[np.intp], near_tie: float) -> Top:
    clear = chosen[figures.margin[chosen] >= near_tie]
    listed = int(figures.listed[chosen].sum())
    return Top(
        same=estimate(figures.same_top[chosen], figures.prompt[chosen]),
        near_ties=len(chosen) - len(clear),
        same_outside_near_ties=estimate(figures.same_top[clear], figures.prompt[clear]) if len(clear) else None,
        overlap=int(figures.listed_by_both[chosen].sum()) / listed if listed else None,
    )


def _next_tokens(figures: PositionFigures, known: NDArray[np.intp]) -> NextTokens:
    change = figures.probability_change[known]
    reference, test = -figures.reference_next[known], -figures.test_next[known]
    more = test - reference
    lost = figures.reference_right[known] & ~figures.test_right[known]
    won = figures.test_right[known] & ~figures.reference_right[known]
    return NextTokens(
        positions=len(known),
        mean_change=float(change.mean()),
        rms_change=math.sqrt(np.square(change).mean()),
        reference_perplexity=_exp(reference),
        test_perplexity=_exp(test),
        log_ratio=float(more.mean()),
        log_ratio_error=float(more.std(ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else None,
        lost=int(lost.sum()),
        won=int(won.sum()),
    )


def _exp(negative_logprobs: Floats) -> float:
    """Return the perplexity; infinity if it is too large for a number."""
    with np.errstate(over="ignore"):
        return float(np.exp(negative_logprobs.mean()))


def _centred(errors: CentredErrors, chosen: NDArray[np.intp]) -> Centred:
    signal = float(errors.squared_reference[chosen].sum())
    norms = np.sqrt(errors.squared_reference[chosen]) * np.sqrt(errors.squared_test[chosen])
    steep = norms > 0
    cosines = errors.product[chosen][steep] / norms[steep]
    return Centred(
        nmse=float(errors.squared_error[chosen].sum()) / signal if signal else None,
        cosine=float(cosines.mean()) if len(cosines) else None,
        mean_error=float(errors.absolute_error[chosen].sum() / max(int(errors.tokens[chosen].sum()), 1)),
        largest_error=float(errors.largest_error[chosen].max()),
    )
