"""Positions are told apart by the experts that both runs chose."""

import json

import numpy as np
import pytest

from gptoss_convert.errors import VerificationError
from gptoss_convert.verify.metrics import position_figures, routing_agreement, summarise_by_routing
from tests.support.recordings import log_softmax, prompt_set, recording

LENGTHS = (10, 14)
COUNT = sum(LENGTHS)
LAYERS, CHOSEN, EXPERTS = 3, 4, 32
PROMPTS = prompt_set([[1] * length for length in LENGTHS])


def routing(seed=0):
    random = np.random.default_rng(seed)
    return np.array([[random.permutation(EXPERTS)[:CHOSEN] for _ in range(LAYERS)] for _ in range(COUNT)])


@pytest.fixture
def record(tmp_path):
    """Makes a recording; each has other log-probabilities."""
    made = []

    def make(routing=None, margins=None):
        logits = np.random.default_rng(len(made)).normal(size=(COUNT, 16))
        made.append(tmp_path / str(len(made)))
        return recording(made[-1], LENGTHS, log_softmax(logits), routing=routing, margins=margins)

    return make


def other_expert(chosen, position, layer):
    """Replace the last expert at a place by one that was not chosen."""
    chosen[position, layer, -1] = min(set(range(EXPERTS)) - set(chosen[position, layer].tolist()))


def test_the_order_of_experts_does_not_matter(record):
    chosen = routing()
    agreement = routing_agreement(record(chosen), record(chosen[:, :, ::-1]))
    assert agreement.everywhere.all()
    assert (agreement.first_difference == -1).all()
    assert agreement.margins is None
    assert agreement.first_margins(np.ones(COUNT, bool)) is None


def test_the_first_difference_and_the_margin_there(record):
    chosen, margins = routing(), np.random.default_rng(1).random((COUNT, LAYERS)).astype(np.float32)
    changed = chosen.copy()
    other_expert(changed, 5, 2)
    other_expert(changed, 8, 1)
    other_expert(changed, 8, 2)
    agreement = routing_agreement(record(chosen, margins), record(changed))
    assert np.flatnonzero(~agreement.everywhere).tolist() == [5, 8]
    assert agreement.first_difference[[4, 5, 8]].tolist() == [-1, 2, 1]
    np.testing.assert_array_equal(agreement.first_margins(np.ones(COUNT, bool)), [margins[5, 2], margins[8, 1]])
    np.testing.assert_array_equal(agreement.first_margins(np.arange(COUNT) > 5), [margins[8, 1]])


def test_positions_with_the_same_experts_and_the_others_are_summarised_apart(record):
    chosen, margins = routing(), np.random.default_rng(1).random((COUNT, LAYERS)).astype(np.float32)
    changed = chosen.copy()
    for position, layer in ((2, 0), (5, 2), (8, 1), (8, 2)):  # the first does not count
        other_expert(changed, position, layer)
    reference, test = record(chosen, margins), record(changed)
    figures = position_figures(reference, test, PROMPTS)
    summary = summarise_by_routing(figures, reference, test)
    assert summary.criterion == "experts"
    assert summary.threshold is None
    assert (summary.steady.positions, summary.others.positions) == (14, 2)
    assert summary.steady_share == 14 / 16
    assert summary.layer_shares == (1.0, 15 / 16, 14 / 16)
    assert summary.others.divergence.mean.mean == pytest.approx(figures.kl[[5, 8]].mean())
    assert summary.first_margins.median == pytest.approx((margins[5, 2] + margins[8, 1]) / 2)
    assert summary.first_margins.largest == max(margins[5, 2], margins[8, 1])
    found = summary.as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_equal_routing_leaves_no_others(record):
    reference, test = record(routing(), np.ones((COUNT, LAYERS))), record(routing())
    summary = summarise_by_routing(position_figures(reference, test, PROMPTS), reference, test)
    assert summary.steady_share == 1
    assert summary.first_margins is None
    assert summary.others.positions == 0
    assert summary.others.divergence is None


def test_where_the_test_does_not_tell_margins_of_the_reference_tell_fragile_positions(record):
    margins = np.full((COUNT, LAYERS), 0.5)
    margins[6, 1] = 0.004
    margins[7, 0] = np.nan
    margins[20, 2] = 0.02
    reference, test = record(routing(), margins), record()
    figures = position_figures(reference, test, PROMPTS)
    summary = summarise_by_routing(figures, reference, test)
    assert (summary.criterion, summary.threshold) == ("margin", 0.01)
    assert (summary.steady.positions, summary.others.positions) == (14, 2)
    assert summary.layer_shares is summary.first_margins is None
    assert summarise_by_routing(figures, reference, test, fragile_margin=0.03).others.positions == 3


def test_nothing_is_said_where_nothing_tells(record):
    reference, test = record(), record(routing())
    assert routing_agreement(reference, test) is None
    assert summarise_by_routing(position_figures(reference, test, PROMPTS), reference, test) is None


def test_routers_of_different_shape_are_refused(record):
    with pytest.raises(VerificationError, match=r"different routers.*found .*\[24, 2, 4\], expected \[24, 3, 4\]"):
        routing_agreement(record(routing()), record(routing()[:, :2]))
