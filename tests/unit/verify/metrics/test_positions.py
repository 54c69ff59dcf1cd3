"""Figures of single positions, held against scipy and against plain loops."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import distance
from scipy.special import rel_entr
from scipy.stats import entropy

from gptoss_convert.errors import InputError, VerificationError
from gptoss_convert.verify.metrics import position_figures, positions
from gptoss_convert.verify.metrics.events import SOFTMAX_ERROR
from gptoss_convert.verify.recording import Recording
from tests.support.recordings import log_softmax, prompt_set, recording

LENGTHS = (7, 12)
COUNT = sum(LENGTHS)
VOCABULARY = 40
FLOAT32 = 2e-5
"""Absolute error that storing log-probabilities as float32 leaves in figures of this size."""


def logits(seed, spread=3.0, noise=0.3):
    """Logits of two sides that resemble each other, [positions, vocabulary]."""
    random = np.random.default_rng(seed)
    reference = random.normal(scale=spread, size=(COUNT, VOCABULARY))
    return reference, reference + random.normal(scale=noise, size=reference.shape)


def prompts(seed=0):
    random = np.random.default_rng(seed)
    return prompt_set([random.integers(0, VOCABULARY, length) for length in LENGTHS])


def compare(reference, test, *, listed=(None, None), asked=None, named=None):
    """Figures of two sides, given as log-probabilities of which the likeliest may be kept only."""
    with tempfile.TemporaryDirectory() as scratch:
        sides = [
            recording(Path(scratch, str(number)), LENGTHS, logprobs, listed=kept)
            for number, (logprobs, kept) in enumerate(zip((reference, test), listed, strict=True))
        ]
        return position_figures(*sides, asked or prompts(), named_tokens=named)


def in_order(*sides):
    return [log_softmax(side) for side in sides]


def arrays(figures):
    """All arrays of the figures by name."""
    found = {field.name: getattr(figures, field.name) for field in dataclasses.fields(figures)}
    if (centred := found.pop("centred")) is not None:
        found |= {field.name: getattr(centred, field.name) for field in dataclasses.fields(centred)}
    return found


def test_divergence_is_that_of_scipy():
    reference, test = in_order(*logits(1))
    figures = compare(reference, test)
    np.testing.assert_allclose(figures.kl, entropy(np.exp(reference), np.exp(test), axis=1), atol=FLOAT32)
    assert not figures.nan.any()
    assert not figures.infinite.any()
    assert (figures.coverage == 1).all()


def test_centred_logits_are_compared_whatever_their_constant():
    reference, test = logits(2)
    centred = compare(*in_order(reference, test)).centred
    reference -= reference.mean(axis=1, keepdims=True)
    test -= test.mean(axis=1, keepdims=True)
    error = test - reference
    np.testing.assert_allclose(centred.squared_error, (error**2).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(centred.absolute_error, np.abs(error).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(centred.largest_error, np.abs(error).max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(centred.squared_reference, (reference**2).sum(axis=1), rtol=1e-5)
    cosines = centred.product / np.sqrt(centred.squared_reference * centred.squared_test)
    expected = [1 - distance.cosine(left, right) for left, right in zip(reference, test, strict=True)]
    np.testing.assert_allclose(cosines, expected, rtol=1e-5)
    assert (centred.tokens == VOCABULARY).all()


@pytest.mark.parametrize("listed", [(None, 8), (8, None), (5, 30), (30, 5)])
def test_divergence_between_listed_tokens_and_the_rest(listed):
    reference, test = in_order(*logits(3))
    figures = compare(reference, test, listed=listed)
    ranks = [np.argsort(np.argsort(-side, axis=1), axis=1) for side in (reference, test)]
    both = np.logical_and(*(rank < (kept or VOCABULARY) for rank, kept in zip(ranks, listed, strict=True)))
    p, q = (np.where(both, np.exp(side), 0) for side in (reference, test))
    exact = rel_entr(p, q).sum(axis=1) + rel_entr(1 - p.sum(axis=1), 1 - q.sum(axis=1))
    assert (figures.kl <= exact + FLOAT32).all()
    # the masses may be off by the error of a softmax, which the divergence feels by their ratio
    ratio = np.maximum((1 - p.sum(axis=1)) / (1 - q.sum(axis=1)), 1)
    assert (figures.kl >= exact - 4 * SOFTMAX_ERROR * ratio).all()
    assert exact.mean() > 50 * SOFTMAX_ERROR
    np.testing.assert_allclose(figures.coverage, p.sum(axis=1), atol=FLOAT32)
    assert figures.centred is None


def test_a_rest_that_is_known_leaves_nothing_uncertain(tmp_path):
    """As in recordings of the reference: what the list leaves is told, not the sum of a softmax in float32."""
    reference, test = in_order(*logits(3))
    listed = np.argsort(-reference, axis=1)[:, :8]
    p, q = (np.exp(np.take_along_axis(side, listed, axis=1)) for side in (reference, test))
    exact = rel_entr(p, q).sum(axis=1) + rel_entr(1 - p.sum(axis=1), 1 - q.sum(axis=1))
    told = recording(tmp_path / "told", LENGTHS, reference, listed=8, rest=np.log(1 - p.sum(axis=1)))
    untold = recording(tmp_path / "untold", LENGTHS, reference, listed=8)
    whole = recording(tmp_path / "whole", LENGTHS, test)
    np.testing.assert_allclose(position_figures(told, whole, prompts()).kl, exact, atol=FLOAT32)
    assert np.abs(position_figures(untold, whole, prompts()).kl - exact).max() > 2 * FLOAT32


@pytest.mark.parametrize("off", [-1e-4, 1e-4])
def test_a_softmax_in_float32_makes_no_divergence_between_listed_tokens(off):
    reference, _ = in_order(*logits(4, spread=6))  # the rest is often smaller than the error
    figures = compare(reference, reference + off, listed=(None, 12))
    assert figures.kl.max() < 1e-9
    assert not figures.infinite.any()


def test_a_test_that_puts_mass_elsewhere_is_seen_though_its_list_has_nothing_of_the_reference():
    reference, _ = in_order(*logits(5))
    figures = compare(reference, reference[:, ::-1], listed=(5, 5))
    exact = entropy(np.exp(reference), np.exp(reference[:, ::-1]), axis=1)
    assert (figures.kl > 0).all()
    assert (figures.kl < exact).all()
    assert figures.kl.mean() > 0.2 * exact.mean()


def test_positions_with_nan_are_flagged_and_nothing_else_changes():
    reference, test = in_order(*logits(6))
    expected = compare(reference, test)
    test[3, 7] = np.nan
    test[9, :2] = np.inf
    test[12] = -np.inf
    figures = compare(reference, test)
    rows = np.array([3, 9, 12])
    assert np.flatnonzero(figures.nan).tolist() == rows.tolist()
    assert (~figures.comparable).sum() == 3
    for name, values in arrays(figures).items():
        assert np.isfinite(values).all(), name
        kept = np.delete(arrays(expected)[name], rows)
        np.testing.assert_array_equal(np.delete(values, rows), kept, err_msg=name)


def test_nan_in_listed_tokens_is_flagged():
    reference, test = in_order(*logits(7))
    with tempfile.TemporaryDirectory() as scratch:
        likeliest = np.argsort(-test, axis=1)[:, :8]
        few = np.take_along_axis(test, likeliest, axis=1)
        few[4, 2] = np.nan
        few[5, 2] = np.inf
        sides = [
            recording(Path(scratch, "reference"), LENGTHS, reference),
            recording(Path(scratch, "test"), LENGTHS, few, tokens=likeliest),
        ]
        figures = position_figures(*sides, prompts())
    assert np.flatnonzero(figures.nan).tolist() == [4, 5]


@pytest.mark.parametrize("listed", [None, VOCABULARY])
def test_a_token_that_the_test_rules_out_makes_the_divergence_infinite(listed):
    reference, test = in_order(*logits(8))
    test[[5, 6], reference[[5, 6]].argmax(axis=1)] = -np.inf
    figures = compare(reference, test, listed=(None, listed))
    assert np.flatnonzero(figures.infinite).tolist() == [5, 6]
    assert np.isposinf(figures.kl[[5, 6]]).all()
    assert np.isfinite(figures.kl[figures.comparable]).all()


def test_a_token_that_is_not_listed_is_not_ruled_out():
    reference, test = in_order(*logits(8))
    test[:, 3] = -np.inf
    figures = compare(reference, test, listed=(None, 8))
    assert figures.comparable.all()
    assert np.isfinite(figures.kl).all()


@pytest.mark.parametrize("listed", [(None, 2), (2, 2)])
def test_a_test_that_rules_out_all_tokens_that_it_lists(tmp_path, listed):
    reference, _ = in_order(*logits(8))
    tokens = np.argsort(-reference, axis=1)[:, :2]
    sides = [
        recording(tmp_path / "reference", LENGTHS, reference, listed=listed[0]),
        recording(tmp_path / "test", LENGTHS, np.full((COUNT, 2), -np.inf), tokens=tokens),
    ]
    figures = position_figures(*sides, prompts())
    assert figures.infinite.all()
    assert not figures.nan.any()


def test_a_token_that_the_reference_rules_out_adds_nothing():
    reference, test = logits(9)
    reference[:, 3] = -np.inf
    test[::2, 3] = -np.inf
    reference, test = in_order(reference, test)
    figures = compare(reference, test)
    assert not figures.infinite.any()
    np.testing.assert_allclose(figures.kl, entropy(np.exp(reference), np.exp(test), axis=1), atol=FLOAT32)
    assert (figures.centred.tokens == VOCABULARY - 1).all()
    others = np.delete(np.arange(VOCABULARY), 3)
    expected = compare(
        *in_order(reference[:, others], test[:, others]), asked=prompt_set([[0] * n for n in LENGTHS])
    )
    for name in (
        "squared_error",
        "absolute_error",
        "largest_error",
        "squared_reference",
        "squared_test",
        "product",
    ):
        found, wanted = getattr(figures.centred, name), getattr(expected.centred, name)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, err_msg=name)


def test_top_token_and_its_lead():
    reference, test = in_order(*logits(10, noise=1.5))
    figures = compare(reference, test)
    same = reference.argmax(axis=1) == test.argmax(axis=1)
    assert 0 < same.sum() < COUNT
    np.testing.assert_array_equal(figures.same_top, same)
    ordered = np.sort(reference, axis=1)
    np.testing.assert_allclose(figures.margin, ordered[:, -1] - ordered[:, -2], atol=FLOAT32)


@pytest.mark.parametrize("listed", [(None, None), (None, 20), (20, 20)])
def test_of_equally_likely_tokens_that_of_the_lowest_id_is_the_first(listed):
    reference = np.zeros((COUNT, VOCABULARY))
    reference[:, [30, 11, 25]] = 2.0
    test = reference.copy()
    test[1, 11] -= 0.01
    figures = compare(*in_order(reference, test), listed=listed)
    assert np.flatnonzero(~figures.same_top).tolist() == [1]
    assert (figures.margin == 0).all()


@pytest.mark.parametrize("listed", [(None, None), (None, 25), (25, None), (25, 25)])
def test_lists_of_the_likeliest_named_tokens(listed):
    reference, test = in_order(*logits(11, noise=1.5))
    named = np.arange(VOCABULARY) % 3 != 0
    figures = compare(reference, test, named=named, listed=listed)
    for row in range(COUNT):
        left, right = (
            [token for token in np.argsort(-side[row])[:kept].tolist() if named[token]][:10]
            for side, kept in zip((reference, test), listed, strict=True)
        )
        length = min(len(left), len(right))
        assert figures.listed[row] == length
        assert figures.listed_by_both[row] == len(set(left[:length]) & set(right[:length]))
    assert 0 < figures.listed_by_both.sum() < figures.listed.sum()


def test_lists_from_a_large_vocabulary(tmp_path):
    """Those are looked for in groups of columns."""
    random = np.random.default_rng(3)
    size = 700
    reference = random.normal(size=(COUNT, size)).round(1)  # many are equally likely
    test = reference + random.normal(scale=0.3, size=reference.shape).round(1)
    sides = [recording(tmp_path / str(n), LENGTHS, side) for n, side in enumerate(in_order(reference, test))]
    figures = position_figures(*sides, prompts())
    lists = [np.argsort(-side, axis=1, kind="stable") for side in (reference, test)]
    np.testing.assert_array_equal(figures.same_top, lists[0][:, 0] == lists[1][:, 0])
    common = [len(set(left[:10]) & set(right[:10])) for left, right in zip(*lists, strict=True)]
    np.testing.assert_array_equal(figures.listed_by_both, common)
    assert (figures.listed == 10).all()


def test_noise_in_reserved_tokens_is_not_in_the_lists():
    reference, test = in_order(*logits(12, noise=0))
    named = np.arange(VOCABULARY) < 25
    test[:, 25:] += np.random.default_rng(0).normal(scale=9, size=(COUNT, 15))
    figures = compare(reference, test, named=named)
    np.testing.assert_array_equal(figures.listed_by_both, figures.listed)
    assert (figures.listed == 10).all()
    assert (compare(reference, test).listed_by_both < 10).any()


def test_the_next_token_of_the_prompt():
    reference, test = in_order(*logits(13))
    asked = prompts(3)
    figures = compare(reference, test, asked=asked)
    following = [*asked.prompts[0].ids[1:], None, *asked.prompts[1].ids[1:], None]
    for row, token in enumerate(following):
        assert figures.next_known[row] == (token is not None)
        if token is None:
            assert figures.reference_next[row] == figures.test_next[row] == 0
            assert not figures.reference_right[row]
            continue
        assert figures.reference_next[row] == pytest.approx(reference[row, token], abs=FLOAT32)
        assert figures.test_next[row] == pytest.approx(test[row, token], abs=FLOAT32)
        change = np.exp(test[row, token]) - np.exp(reference[row, token])
        assert figures.probability_change[row] == pytest.approx(change, abs=FLOAT32)
        assert figures.reference_right[row] == (reference[row].argmax() == token)
        assert figures.test_right[row] == (test[row].argmax() == token)


def test_a_next_token_that_is_not_listed_is_not_known():
    reference, test = in_order(*logits(14))
    asked = prompts(4)
    figures = compare(reference, test, asked=asked, listed=(None, 15))
    following = np.array([*asked.prompts[0].ids[1:], -1, *asked.prompts[1].ids[1:], -1])
    rank = (test > np.take_along_axis(test, following[:, None], axis=1)).sum(axis=1)
    np.testing.assert_array_equal(figures.next_known, (rank < 15) & (following >= 0))
    assert 0 < figures.next_known.sum() < COUNT - 2


@pytest.mark.parametrize("listed", [(None, None), (None, 12), (12, 12)])
def test_blocks_of_any_size_give_the_same_figures(monkeypatch, listed):
    reference, test = in_order(*logits(15))
    expected = arrays(compare(reference, test, listed=listed))
    sizes = []
    read = Recording.distributions

    def counted(self, start, stop):
        sizes.append((stop - start) * self.columns)
        return read(self, start, stop)

    monkeypatch.setattr(Recording, "distributions", counted)
    monkeypatch.setattr(positions, "BLOCK_VALUES", 5 * VOCABULARY)
    found = arrays(compare(reference, test, listed=listed))
    assert max(sizes) <= 5 * VOCABULARY
    assert len(sizes) > 2
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_places_in_prompts():
    figures = compare(*in_order(*logits(16)))
    assert figures.prompt.tolist() == [0] * 7 + [1] * 12
    assert figures.place.tolist() == [*range(7), *range(12)]
    assert figures.scored.tolist() == [False] * 4 + [True] * 3 + [False] * 4 + [True] * 8


seeds = st.integers(0, 2**32 - 1)
spreads = st.floats(0.01, 20)


@given(seeds, spreads, st.sampled_from([(None, None), (None, 9), (9, None), (9, 9)]))
@settings(deadline=None, max_examples=40)
def test_equal_recordings_differ_in_nothing(seed, spread, listed):
    reference, _ = logits(seed, spread)
    reference[:, seed % VOCABULARY] = -np.inf
    reference = log_softmax(reference)
    figures = compare(reference, reference, listed=listed)
    assert figures.comparable.all()
    if listed[0] == listed[1]:
        assert (figures.kl == 0).all()
    else:  # whole sides are normalised when read, listed tokens are not
        assert figures.kl.max() < 1e-12
    assert figures.same_top.all()
    np.testing.assert_array_equal(figures.listed_by_both, figures.listed)
    if figures.centred:
        assert (figures.probability_change == 0).all()
        assert (figures.centred.squared_error == 0).all()
        assert (figures.centred.largest_error == 0).all()


@given(seeds, spreads, st.floats(0, 10), st.integers(1, VOCABULARY), st.sampled_from([(0, 1), (1, 0), (1, 1)]))
@settings(deadline=None, max_examples=60)
def test_listed_tokens_give_a_lower_bound(seed, spread, noise, kept, which):
    reference, test = in_order(*logits(seed, spread, noise))
    whole = compare(reference, test)
    part = compare(reference, test, listed=tuple(kept if side else None for side in which))
    assert (whole.kl >= 0).all()
    assert (part.kl >= 0).all()
    assert (part.kl <= whole.kl + 1e-9 + 1e-6 * whole.kl).all()
    if kept == VOCABULARY:
        np.testing.assert_allclose(part.kl, whole.kl, rtol=1e-5, atol=1e-6)


def test_longer_lists_give_better_bounds():
    reference, test = in_order(*logits(17))
    whole = compare(reference, test).kl.mean()
    bounds = [compare(reference, test, listed=(None, kept)).kl.mean() for kept in (2, 5, 10, 20, 30, 40)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(whole, rel=1e-6)
    assert bounds[0] < 0.8 * whole


@given(seeds, spreads)
@settings(deadline=None, max_examples=30)
def test_the_order_of_the_vocabulary_does_not_matter(seed, spread):
    reference, test = in_order(*logits(seed, spread))
    order = np.random.default_rng(seed).permutation(VOCABULARY)
    asked = prompts(seed)
    place = np.argsort(order)
    moved = prompt_set([[place[token] for token in prompt.ids] for prompt in asked.prompts])
    expected = arrays(compare(reference, test, asked=asked))
    found = arrays(compare(reference[:, order], test[:, order], asked=moved))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-9, err_msg=name)


@given(seeds, st.floats(-50, 50))
@settings(deadline=None, max_examples=30)
def test_a_constant_on_all_logits_does_not_matter(seed, constant):
    reference, test = in_order(*logits(seed))
    expected = arrays(compare(reference, test))
    found = arrays(compare(reference, test + constant))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4, err_msg=name)


class TestRefusals:
    @pytest.fixture
    def sides(self, tmp_path):
        values = in_order(*logits(18))
        return [recording(tmp_path / str(number), LENGTHS, side) for number, side in enumerate(values)]

    def test_recordings_of_other_prompts(self, sides):
        with pytest.raises(VerificationError, match=r"other prompts.*2 prompts of 19 tokens"):
            position_figures(*sides, prompt_set([[1] * 12, [1] * 7]))

    def test_another_vocabulary(self, sides, tmp_path):
        other = recording(tmp_path / "other", LENGTHS, np.zeros((COUNT, VOCABULARY + 1)))
        with pytest.raises(VerificationError, match=r"different vocabularies.*found 41, expected 40"):
            position_figures(sides[0], other, prompts())

    def test_prompts_with_unknown_tokens(self, sides):
        with pytest.raises(VerificationError, match="found 40, expected less than 40"):
            position_figures(*sides, prompt_set([[1] * 7, [VOCABULARY] * 12]))

    def test_names_of_another_vocabulary(self, sides):
        with pytest.raises(ValueError, match="names of 41 tokens"):
            position_figures(*sides, prompts(), named_tokens=np.ones(41, np.bool_))

    def test_a_reference_with_nan(self, sides, tmp_path):
        values = np.zeros((COUNT, VOCABULARY))
        values[4, 4] = np.nan
        with pytest.raises(InputError, match="cannot judge"):
            position_figures(recording(tmp_path / "nan", LENGTHS, values), sides[1], prompts())

    @pytest.mark.parametrize("listed", [[1, 1], [-1, 2], [3, VOCABULARY]])
    def test_tokens_that_cannot_be(self, sides, tmp_path, listed):
        tokens = np.tile([1, 2], (COUNT, 1))
        tokens[11] = listed
        bad = recording(tmp_path / "bad", LENGTHS, np.full((COUNT, 2), -2.0), tokens=tokens)
        with pytest.raises(InputError, match="lists a token twice"):
            position_figures(sides[0], bad, prompts())

    def test_listed_logits(self, sides, tmp_path):
        tokens = np.tile([1, 2], (COUNT, 1))
        bad = recording(tmp_path / "bad", LENGTHS, np.full((COUNT, 2), 3.0), tokens=tokens)
        with pytest.raises(InputError, match="add up to more than 1"):
            position_figures(sides[0], bad, prompts())
