"""Two next-token distributions brought to the events that both know, and the divergence over these.

Where both recordings are whole, the events are the tokens. Where one or both know the likeliest tokens only, the
events are the tokens that both list, and the rest as one event. To put events together never raises a divergence
(the data-processing inequality), so what comes out is a lower bound of that over the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.verify.recording import Distributions

Floats = NDArray[np.float64]

SOFTMAX_ERROR = 2e-4
"""Nats by which the log-probabilities of a recording of the likeliest tokens may be off, one constant per position:
runtimes add up their softmax in float32. Whole recordings are normalised when they are read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rest:
    """Mass of all tokens that are not compared one by one, [positions]: the least and the most that it can be."""

    least: Floats
    most: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Events:
    """What both sides know at some positions."""

    reference: Floats
    """[positions, columns]: log-probabilities of the tokens that both list; -inf where a column holds none."""
    test: Floats
    """[positions, columns]: the same tokens."""
    splits: tuple[tuple[Rest, Rest], ...] = ()
    """Ways to put all tokens into two parts of which the first holds those of the columns: mass of the second on
    the side of the reference, and of the test. None are needed if all tokens are in the columns."""

    @property
    def coverage(self) -> Floats:
        """[positions]: probability that the reference gives to the tokens that are compared one by one."""
        if not self.splits:
            return np.ones(len(self.reference))
        return np.asarray(np.minimum(np.exp(self.reference).sum(axis=1), 1))

    def divergence(self) -> Floats:
        """Return KL(reference || test) over the events, [positions], in nats.

        A token of which the reference has no probability adds nothing. It is infinite where the test rules out what
        the reference does not. With a rest, the chain rule parts it into

            P(listed) KL(reference given listed || test given listed) + KL(part || part) + what is not known,

        of which the first does not change when all log-probabilities are off by a constant. The second, of two
        parts of which one holds the listed, is taken at those possible masses that make it the least.
        """
        mass = np.exp(self.reference)
        divergence = _weighted_difference(mass, self.reference, self.test)
        if not self.splits:
            return np.maximum(divergence, 0)  # below zero by rounding only
        listed, test_listed = mass.sum(axis=1), np.exp(self.test).sum(axis=1)
        ruled_out = np.isposinf(divergence)  # where the test has none of the listed tokens, inf - inf would be left
        divergence = np.where(ruled_out, 0, divergence)
        given = divergence - _weighted_difference(listed, _log(listed), _log(test_listed))
        parts = np.maximum.reduce([_least_binary_divergence(*split) for split in self.splits])
        return np.where(ruled_out, np.inf, np.maximum(given, 0) + parts)


def common_events(reference: Distributions, test: Distributions) -> Events:
    """Return the events that both know; the distributions are of the same positions and without NaN."""
    if reference.tokens is None and test.tokens is None:
        return Events(reference=reference.logprobs, test=test.logprobs)
    if reference.tokens is None:
        assert test.tokens is not None
        gathered, rest = _gathered(reference.logprobs, test.tokens)
        return Events(reference=gathered, test=test.logprobs, splits=((rest, _unlisted(test)),))
    if test.tokens is None:
        gathered, rest = _gathered(test.logprobs, reference.tokens)
        return Events(reference=reference.logprobs, test=gathered, splits=((_unlisted(reference), rest),))
    found = looked_up(test, reference.tokens)
    both = ~np.isnan(found)
    listed, found = np.where(both, reference.logprobs, -np.inf), np.where(both, found, -np.inf)
    others = (_unlisted(reference), _left_of_reference(found, test.logprobs, (~both).sum(axis=1)))
    return Events(reference=listed, test=found, splits=((_left_of(listed), _left_of(found)), others))


def looked_up(distributions: Distributions, tokens: NDArray[np.integer]) -> Floats:
    """Return the log-probabilities of `tokens`, [positions, any]; NaN where they are not known.

    Tokens below zero stand for none.
    """
    if distributions.tokens is None:
        values = np.take_along_axis(distributions.logprobs, np.maximum(tokens, 0).astype(np.intp), axis=1)
        return np.where(tokens < 0, np.nan, values)
    result = np.full(tokens.shape, np.nan)
    order = np.argsort(distributions.tokens, axis=1)
    for row, columns in enumerate(order):
        listed = distributions.tokens[row, columns]
        places = np.minimum(np.searchsorted(listed, tokens[row]), len(listed) - 1)
        hits = listed[places] == tokens[row]
        result[row, hits] = distributions.logprobs[row, columns[places[hits]]]
    return result


def _gathered(logprobs: Floats, tokens: NDArray[np.int32]) -> tuple[Floats, Rest]:
    """Return the log-probabilities of some tokens of a whole distribution, and the exact mass of the others."""
    columns = tokens.astype(np.intp)
    mass = np.exp(logprobs)
    np.put_along_axis(mass, columns, 0, axis=1)
    rest = mass.sum(axis=1)
    return np.take_along_axis(logprobs, columns, axis=1), Rest(least=rest, most=rest)


def _unlisted(side: Distributions) -> Rest:
    """Return the mass of the tokens that a side does not list."""
    return _left_of(side.logprobs) if side.rest is None else Rest(least=side.rest, most=side.rest)


def _left_of(listed: Floats) -> Rest:
    """Return what log-probabilities of which the sum is not known to be right leave to the others."""
    mass = np.exp(listed).sum(axis=1)
    return Rest(
        least=np.clip(1 - mass * np.exp(SOFTMAX_ERROR), 0, 1), most=np.clip(1 - mass * np.exp(-SOFTMAX_ERROR), 0, 1)
    )


def _left_of_reference(found: Floats, listed: Floats, missing: NDArray[np.integer]) -> Rest:
    """Return what the test leaves to tokens that the reference does not list.

    Args:
        found: what the test gives to tokens that the reference lists; -inf where the test does not list them.
        listed: what it gives to the tokens that it lists itself.
        missing: how many tokens of the reference it does not list. They have no more than the least that it lists.
    """
    unlisted = np.minimum(missing * np.exp(listed.min(axis=1)), _left_of(listed).most)
    rest = _left_of(found)
    return Rest(least=np.maximum(rest.least - unlisted * np.exp(SOFTMAX_ERROR), 0), most=rest.most)


def _least_binary_divergence(reference: Rest, test: Rest) -> Floats:
    """Return the least divergence between rest and listed; none where the masses may be the same."""
    more, less = reference.least > test.most, reference.most < test.least
    p = np.select([more, less], [reference.least, reference.most], default=0.5)
    q = np.select([more, less], [test.most, test.least], default=0.5)
    return _weighted_difference(p, _log(p), _log(q)) + _weighted_difference(1 - p, _log(1 - p), _log(1 - q))


def _weighted_difference(mass: Floats, first: Floats, second: Floats) -> Floats:
    """Return the sums over rows of mass * (first - second), of numbers alone if there is one dimension."""
    with np.errstate(invalid="ignore"):
        difference = first - second
    if not np.isfinite(difference).all():
        difference = np.where(mass > 0, difference, 0)
    if mass.ndim == 1:
        return np.asarray(mass * difference)
    return np.asarray(np.einsum("ij,ij->i", mass, difference))


def _log(mass: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(mass))
