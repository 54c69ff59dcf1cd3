"""Summaries count every scored position, and their means are those of scipy."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gptoss_convert.verify.metrics import CentredErrors, PositionFigures, summarise
from gptoss_convert.verify.metrics.summary import CONFIDENCE, RESAMPLES, SEED, estimate

LENGTHS = (30, 12, 25, 9)
COUNT = sum(LENGTHS)


def figures(seed=0, **changes):
    """Figures of four prompts; `changes` replace some."""
    random = np.random.default_rng(seed)
    reference = -random.exponential(size=COUNT)
    values = {
        "prompt": np.repeat(np.arange(len(LENGTHS)), LENGTHS),
        "chosen": np.ones(COUNT, bool),
        "place": np.concatenate([np.arange(length) for length in LENGTHS]),
        "nan": np.zeros(COUNT, bool),
        "infinite": np.zeros(COUNT, bool),
        "kl": random.lognormal(-5, 2, COUNT),
        "coverage": np.ones(COUNT),
        "same_top": random.random(COUNT) < 0.9,
        "margin": random.exponential(size=COUNT),
        "listed": np.full(COUNT, 10),
        "listed_by_both": random.integers(5, 11, COUNT),
        "next_known": np.ones(COUNT, bool),
        "reference_next": reference,
        "test_next": reference + random.normal(scale=0.1, size=COUNT),
        "reference_right": random.random(COUNT) < 0.5,
        "test_right": random.random(COUNT) < 0.5,
        "centred": CentredErrors(
            tokens=np.full(COUNT, 20),
            squared_error=random.random(COUNT),
            absolute_error=random.random(COUNT) * 9,
            largest_error=random.random(COUNT),
            squared_reference=100 + random.random(COUNT),
            squared_test=100 + random.random(COUNT),
            product=99 + random.random(COUNT),
        ),
    }
    return PositionFigures(**(values | changes))


def test_the_first_four_positions_of_each_prompt_do_not_count():
    all_figures = figures()
    scored = all_figures.place >= 4
    summary = summarise(all_figures)
    assert (summary.positions, summary.prompts) == (COUNT - 16, 4)
    assert summary.divergence.mean.mean == pytest.approx(all_figures.kl[scored].mean())
    assert summary.next_tokens.positions == COUNT - 16


def test_a_mask_chooses_among_them():
    all_figures = figures()
    summary = summarise(all_figures, all_figures.prompt == 2)
    assert (summary.positions, summary.prompts) == (21, 1)
    assert summary.divergence.mean.mean == pytest.approx(all_figures.kl[42 + 4 : 42 + 25].mean())
    assert summary.divergence.mean.low is summary.divergence.mean.high is None


def test_nan_and_infinity_are_counted_and_left_out_of_means():
    bad = np.zeros((2, COUNT), bool)
    bad[0, [2, 10, 40]] = True
    bad[1, [11, 72]] = True
    expected = figures()
    kl = np.where(bad[1], np.inf, expected.kl)
    summary = summarise(figures(nan=bad[0], infinite=bad[1], kl=kl))
    assert (summary.positions, summary.nan, summary.infinite) == (COUNT - 16, 2, 2)
    left = expected.scored & ~bad.any(axis=0)
    assert summary.divergence.mean.mean == pytest.approx(expected.kl[left].mean())
    assert summary.next_tokens.positions == left.sum()
    assert summary.top.same.mean == pytest.approx(expected.same_top[left].mean())


def test_quantiles_and_the_largest_with_its_place():
    all_figures = figures()
    divergence = summarise(all_figures).divergence
    values = np.sort(all_figures.kl[all_figures.scored])
    found = (divergence.median, divergence.p90, divergence.p99, divergence.p99_9)
    expected = stats.mstats.mquantiles(values, [0.5, 0.9, 0.99, 0.999], alphap=1, betap=1)
    np.testing.assert_allclose(found, expected)
    row = np.flatnonzero(all_figures.kl == values[-1])[0]
    assert divergence.largest == values[-1]
    assert (divergence.largest_prompt, divergence.largest_place) == (
        all_figures.prompt[row],
        all_figures.place[row],
    )


def test_the_interval_is_that_of_scipy_for_sums_and_sizes_of_prompts():
    all_figures = figures()
    values, prompts = all_figures.kl, all_figures.prompt
    sums, sizes = (np.array([part(values[prompts == prompt]) for prompt in range(4)]) for part in (np.sum, np.size))
    expected = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    found = estimate(values, prompts)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert estimate(values, prompts) == found


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=1, max_size=5), min_size=2, max_size=30))
@settings(deadline=None, max_examples=60)
def test_the_interval_holds_the_mean(values_of_prompts):
    prompts = np.repeat(np.arange(len(values_of_prompts)) * 3, [len(values) for values in values_of_prompts])
    found = estimate(np.concatenate(values_of_prompts), prompts)
    assert found.low <= found.mean * (1 + 1e-12)
    assert found.high >= found.mean * (1 - 1e-12)


def test_an_interval_covers_the_truth_as_often_as_it_promises():
    random = np.random.default_rng(5)
    prompts = np.repeat(np.arange(60), 8)
    hits = 0
    for _ in range(200):
        of_prompt = np.repeat(random.normal(size=60), 8)  # positions of a prompt resemble each other
        found = estimate(1 + of_prompt + random.normal(size=480), prompts)
        hits += found.low <= 1 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_near_ties_are_set_apart():
    all_figures = figures()
    scored = all_figures.scored
    clear = scored & (all_figures.margin >= 0.5)
    top = summarise(all_figures, near_tie=0.5).top
    assert top.near_ties == scored.sum() - clear.sum() > 0
    assert top.same_outside_near_ties.mean == pytest.approx(all_figures.same_top[clear].mean())
    assert top.same.mean == pytest.approx(all_figures.same_top[scored].mean())
    assert summarise(all_figures, near_tie=math.inf).top.same_outside_near_ties is None


def test_overlap_of_the_likeliest():
    all_figures = figures(listed=np.arange(COUNT) % 11)
    common = np.minimum(all_figures.listed, all_figures.listed_by_both)
    all_figures = figures(listed=all_figures.listed, listed_by_both=common)
    scored = all_figures.scored
    expected = common[scored].sum() / all_figures.listed[scored].sum()
    assert summarise(all_figures).top.overlap == pytest.approx(expected)
    nothing = np.zeros(COUNT, int)
    assert summarise(figures(listed=nothing, listed_by_both=nothing)).top.overlap is None


def test_perplexities_and_changes_of_probability():
    all_figures = figures(next_known=np.arange(COUNT) % 5 != 0)
    known = all_figures.scored & all_figures.next_known
    reference, test = all_figures.reference_next[known], all_figures.test_next[known]
    tokens = summarise(all_figures).next_tokens
    assert tokens.positions == known.sum() < all_figures.scored.sum()
    assert tokens.reference_perplexity == pytest.approx(stats.gmean(np.exp(-reference)))
    assert tokens.test_perplexity == pytest.approx(stats.gmean(np.exp(-test)))
    assert tokens.log_ratio == pytest.approx(np.log(tokens.test_perplexity / tokens.reference_perplexity))
    assert tokens.log_ratio_error == pytest.approx(stats.sem(reference - test))
    assert tokens.mean_change == pytest.approx((np.exp(test) - np.exp(reference)).mean())
    assert tokens.rms_change == pytest.approx(stats.pmean(np.abs(np.exp(test) - np.exp(reference)), 2))


def test_flips():
    right = np.zeros((2, COUNT), bool)
    right[0, [5, 6, 7, 20, 1]] = True  # position 1 does not count
    right[1, [6, 36, 75]] = True
    tokens = summarise(figures(reference_right=right[0], test_right=right[1])).next_tokens
    assert (tokens.lost, tokens.won) == (3, 2)


def test_centred_logits():
    all_figures = figures()
    errors, scored = all_figures.centred, all_figures.scored
    centred = summarise(all_figures).centred
    assert centred.nmse == pytest.approx(
        errors.squared_error[scored].sum() / errors.squared_reference[scored].sum()
    )
    cosines = errors.product / np.sqrt(errors.squared_reference * errors.squared_test)
    assert centred.cosine == pytest.approx(cosines[scored].mean())
    assert centred.mean_error == pytest.approx(errors.absolute_error[scored].sum() / (20 * scored.sum()))
    assert centred.largest_error == errors.largest_error[scored].max()
    assert summarise(figures(centred=None)).centred is None


def test_a_bound_is_told():
    assert not summarise(figures()).bounded
    summary = summarise(figures(centred=None, coverage=np.full(COUNT, 0.75)))
    assert summary.bounded
    assert summary.coverage == 0.75


@pytest.mark.parametrize("reason", ["nothing chosen", "all NaN"])
def test_where_nothing_is_left_there_are_no_means(reason):
    if reason == "all NaN":
        summary = summarise(figures(nan=np.ones(COUNT, bool)))
        assert summary.nan == summary.positions == COUNT - 16
    else:
        summary = summarise(figures(), np.zeros(COUNT, bool))
        assert summary.positions == summary.prompts == 0
    assert summary.divergence is summary.top is summary.next_tokens is summary.centred is summary.coverage is None


def test_summaries_are_json():
    far = np.full(COUNT, -1e4)  # a perplexity too large for a number
    found = summarise(figures(test_next=far, kl=np.full(COUNT, 3.5))).as_dict()
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert found["next_tokens"]["test_perplexity"] is None
    assert found["divergence"]["mean"] == {"mean": 3.5, "low": 3.5, "high": 3.5}
    assert list(found)[:4] == ["positions", "prompts", "nan", "infinite"]
