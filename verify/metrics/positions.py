"""Figures of every position: how the test's next-token distribution differs from the reference's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.errors import InputError, VerificationError
from gptoss_convert.verify.metrics.events import Floats, common_events, looked_up
from gptoss_convert.verify.prompts import PromptSet
from gptoss_convert.verify.recording import Distributions, Recording

SKIPPED = 4
"""Positions at the beginning of each prompt that are not scored: there, the model knows next to nothing."""
LISTED = 10
"""Length of the lists of the likeliest tokens that are compared."""
BLOCK_VALUES = 1 << 21
"""Log-probabilities of one side that are in memory at once: 16 MiB of float64, a few of which are needed."""
MOST_MASS = 1.01
"""Sum of listed probabilities above which a recording cannot be one of log-probabilities."""

Flags = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class CentredErrors:
    """What differs between log-probabilities less their mean, which are logits less theirs. All [positions].

    The sums are over the tokens of which both sides have a finite log-probability.
    """

    tokens: Integers
    """How many there are."""
    squared_error: Floats
    absolute_error: Floats
    largest_error: Floats
    squared_reference: Floats
    squared_test: Floats
    product: Floats
    """Sum of reference times test."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionFigures:
    """All arrays are [positions], through all prompts. Where `nan` is set, all figures of the test are 0."""

    prompt: Integers
    """Index of the prompt."""
    place: Integers
    """Position in the prompt."""
    nan: Flags
    """The test's distribution holds NaN, or is no distribution: reading turns a logit of infinity into NaN."""
    infinite: Flags
    """The test rules out what the reference does not, by a log-probability of -inf: the divergence is infinite."""
    kl: Floats
    """KL(reference || test) in nats; a lower bound unless both recordings are whole (see `events`)."""
    coverage: Floats
    """Probability that the reference gives to the tokens compared one by one; 1 if both recordings are whole."""
    same_top: Flags
    """Both put the same token first; of equally likely ones, that of the lowest id counts as first."""
    margin: Floats
    """Log-probability of the reference's first token less that of its second, in nats."""
    listed: Integers
    """Named tokens compared as the likeliest ones: 10, fewer where a recording or the vocabulary has fewer."""
    listed_by_both: Integers
    """Tokens that stand in both lists, whatever their order."""
    next_known: Flags
    """The log-probability of the token that comes next in the prompt is finite and known on both sides. No token
    comes next at the last position of a prompt."""
    reference_next: Floats
    """Log-probability of that token; 0 where it is not known on both sides."""
    test_next: Floats
    reference_right: Flags
    """The reference puts first the token that comes next in the prompt."""
    test_right: Flags
    centred: CentredErrors | None
    """None unless both recordings are whole."""
    chosen: Flags
    """Positions that the comparison is about."""

    @property
    def scored(self) -> Flags:
        """Positions that count: not those at the beginning of a prompt."""
        return np.asarray((self.place >= SKIPPED) & self.chosen)

    @property
    def comparable(self) -> Flags:
        """Positions whose figures can go into means: neither NaN nor an infinite divergence."""
        return ~(self.nan | self.infinite)

    @property
    def probability_change(self) -> Floats:
        """Probability of the next token in the test, less that in the reference; 0 where not known."""
        return np.exp(self.test_next) - np.exp(self.reference_next)


def position_figures(
    reference: Recording,
    test: Recording,
    prompts: PromptSet,
    *,
    named_tokens: Flags | None = None,
    chosen: Flags | None = None,
) -> PositionFigures:
    """Compare two recordings of `prompts`, a few positions at a time.

    Args:
        reference: what is right.
        test: what is judged.
        prompts: the prompts of both.
        named_tokens: [vocabulary]: tokens that may stand in the lists of the likeliest; None for all. Rows of ids
            that are reserved were never trained, and noise in them says nothing.
        chosen: [positions]: those that count; None for all.

    Raises:
        VerificationError: the recordings are not of these prompts, or not over the same vocabulary.
        ValueError: `named_tokens` is of another length than the vocabulary.
        InputError: a recording is damaged, or the reference holds NaN.
    """
    _require_same_prompts(reference, test, prompts)
    vocabulary = _vocabulary(reference, test, prompts, named_tokens)
    following = np.array([token for prompt in prompts.prompts for token in (*prompt.ids, -1)[1:]])
    whole = reference.is_whole and test.is_whole
    figures, centred = [], []
    for start, stop in _blocks(reference, test):
        expected = _checked(reference, start, stop, vocabulary)
        judged = _checked(test, start, stop, vocabulary)
        if _is_no_distribution(expected).any():
            raise InputError("reference holds NaN and cannot judge", file=reference.folder)
        nan = _is_no_distribution(judged)
        good = np.flatnonzero(~nan)
        expected, judged = _taken(expected, good), _taken(judged, good)
        block = _figures(expected, judged, following[start:stop][good], named_tokens)
        figures.append({"nan": nan} | _spread(block, good, stop - start))
        if whole:
            centred.append(_spread(_centred(expected.logprobs, judged.logprobs), good, stop - start))
    return PositionFigures(
        prompt=reference.prompt_of_position,
        place=reference.place_in_prompt,
        centred=CentredErrors(**_joined(centred)) if whole else None,
        chosen=np.ones(reference.positions, np.bool_) if chosen is None else chosen,
        **_joined(figures),
    )


def _figures(
    reference: Distributions, test: Distributions, following: Integers, named: Flags | None
) -> dict[str, NDArray[Any]]:
    """Return the figures of some positions by name; `following` are the tokens that come next, -1 for none."""
    events = common_events(reference, test)
    divergence = events.divergence()
    first, margin = _first(reference)
    test_first, _ = _first(test)
    listed, listed_by_both = _overlap(reference, test, named)
    next_logprobs = [looked_up(side, following[:, None])[:, 0] for side in (reference, test)]
    known = np.isfinite(next_logprobs).all(axis=0)
    return {
        "infinite": np.isposinf(divergence),
        "kl": divergence,
        "coverage": events.coverage,
        "same_top": first == test_first,
        "margin": margin,
        "listed": listed,
        "listed_by_both": listed_by_both,
        "next_known": known,
        "reference_next": np.where(known, next_logprobs[0], 0),
        "test_next": np.where(known, next_logprobs[1], 0),
        "reference_right": first == following,
        "test_right": test_first == following,
    }


def _centred(reference: Floats, test: Floats) -> dict[str, NDArray[Any]]:
    """Return the pieces of `CentredErrors` for whole distributions."""
    missing = ~(np.isfinite(reference) & np.isfinite(test))
    tokens = reference.shape[1] - missing.sum(axis=1)
    if missing.any():
        reference, test = np.where(missing, 0, reference), np.where(missing, 0, test)
    expected, judged, error = (
        _less_mean(values, missing, tokens) for values in (reference, test, test - reference)
    )
    return {
        "tokens": tokens,
        "squared_error": np.einsum("ij,ij->i", error, error),
        "absolute_error": np.abs(error).sum(axis=1),
        "largest_error": np.abs(error).max(axis=1),
        "squared_reference": np.einsum("ij,ij->i", expected, expected),
        "squared_test": np.einsum("ij,ij->i", judged, judged),
        "product": np.einsum("ij,ij->i", expected, judged),
    }


def _less_mean(values: Floats, missing: Flags, count: Integers) -> Floats:
    """Return the values, 0 where `missing`, less the mean of the `count` others of the row."""
    mean = values.sum(axis=1) / np.maximum(count, 1)
    return np.where(missing, 0, values - mean[:, None])


def _first(side: Distributions) -> tuple[Integers, Floats]:
    """Return the likeliest token and how many nats the second is behind; infinitely many if there is none."""
    tokens, logprobs = _likeliest(side, 2)
    if logprobs.shape[1] < 2:
        return tokens[:, 0], np.full(len(tokens), np.inf)
    with np.errstate(invalid="ignore"):
        return tokens[:, 0], logprobs[:, 0] - logprobs[:, 1]


def _overlap(reference: Distributions, test: Distributions, named: Flags | None) -> tuple[Integers, Integers]:
    """Return the length of the lists of likeliest tokens, and how many tokens stand in both, [positions] each."""
    lists = [_named(side, named) for side in (reference, test)]
    lengths = np.minimum.reduce([np.full(len(reference.logprobs), LISTED), *(length for _, length in lists)])
    tokens = [_likeliest(side, LISTED)[0] for side, _ in lists]
    common = [
        len(set(left[:length].tolist()) & set(right[:length].tolist()))
        for length, left, right in zip(lengths, *tokens, strict=True)
    ]
    return lengths, np.array(common, np.int64)


def _named(side: Distributions, named: Flags | None) -> tuple[Distributions, Integers]:
    """Return the distributions with tokens without name moved to the end or left out, and how many have one."""
    if named is None:
        return side, np.full(len(side.logprobs), side.logprobs.shape[1])
    if side.tokens is None:
        columns = np.flatnonzero(named)
        tokens = np.broadcast_to(columns.astype(np.int32), (len(side.logprobs), len(columns)))
        return Distributions(tokens=tokens, logprobs=side.logprobs[:, columns]), np.full(len(tokens), len(columns))
    has_name = named[side.tokens]
    return (
        Distributions(tokens=side.tokens, logprobs=np.where(has_name, side.logprobs, -np.inf)),
        has_name.sum(axis=1),
    )


_GROUP = 64
"""Columns of which the largest is found first, to look for the likeliest tokens in few numbers."""


def _likeliest(side: Distributions, count: int) -> tuple[Integers, Floats]:
    """Return the tokens of most probability and their log-probabilities, [positions, count] or fewer columns.

    Of equally likely ones, that of the lowest id comes first.
    """
    logprobs = side.logprobs
    count = min(count, logprobs.shape[1])
    tokens, values = np.zeros((len(logprobs), count), np.int64), np.zeros((len(logprobs), count))
    if not count:
        return tokens, values
    width = _GROUP if logprobs.shape[1] >= count * _GROUP else 1
    largest = np.maximum.reduceat(logprobs, np.arange(0, logprobs.shape[1], width), axis=1)
    least = np.partition(largest, -count, axis=1)[:, -count]  # at least as many columns have at least this much
    for row, bound in enumerate(least):
        columns = np.flatnonzero(logprobs[row] >= bound)
        ids = columns if side.tokens is None else side.tokens[row, columns]
        order = np.lexsort((ids, -logprobs[row, columns]))[:count]
        tokens[row], values[row] = ids[order], logprobs[row, columns[order]]
    return tokens, values


def _blocks(*recordings: Recording) -> Iterator[tuple[int, int]]:
    step = max(BLOCK_VALUES // max(recording.columns for recording in recordings), 1)
    for start in range(0, recordings[0].positions, step):
        yield start, min(start + step, recordings[0].positions)


def _taken(side: Distributions, rows: NDArray[np.intp]) -> Distributions:
    if len(rows) == len(side.logprobs):
        return side
    return Distributions(
        tokens=None if side.tokens is None else side.tokens[rows],
        logprobs=side.logprobs[rows],
        rest=None if side.rest is None else side.rest[rows],
    )


def _spread(block: dict[str, NDArray[Any]], rows: NDArray[np.intp], count: int) -> dict[str, NDArray[Any]]:
    """Return the values at their rows, of `count`, and 0 in the others."""
    result = {name: np.zeros(count, values.dtype) for name, values in block.items()}
    for name, values in block.items():
        result[name][rows] = values
    return result


def _joined(blocks: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _require_same_prompts(reference: Recording, test: Recording, prompts: PromptSet) -> None:
    lengths = tuple(len(prompt.ids) for prompt in prompts.prompts)
    for recording in (reference, test):
        if recording.prompt_lengths != lengths:
            raise VerificationError(
                "recording is of other prompts",
                file=recording.folder,
                found=f"{len(recording.prompt_lengths)} prompts of {recording.positions} tokens",
                expected=f"those of {prompts.name}, {len(lengths)} prompts of {sum(lengths)} tokens",
            )
    if not sum(lengths):
        raise VerificationError("there are no prompts to compare", file=test.folder)


def _vocabulary(reference: Recording, test: Recording, prompts: PromptSet, named: Flags | None) -> int | None:
    """Return the size of the vocabulary, None if nothing tells, once all agree on it."""
    if reference.is_whole and test.is_whole and reference.columns != test.columns:
        raise VerificationError(
            "recordings are over different vocabularies",
            file=test.folder,
            found=test.columns,
            expected=reference.columns,
        )
    wholes = [recording for recording in (reference, test) if recording.is_whole]
    size = wholes[0].columns if wholes else None if named is None else len(named)
    if size is None:
        return None
    if named is not None and len(named) != size:
        raise ValueError(f"names of {len(named)} tokens are told, and recordings are over {size}")
    largest = max(max(prompt.ids, default=0) for prompt in prompts.prompts)
    if largest >= size:
        raise VerificationError(
            "a prompt has a token that the recordings do not know",
            file=(wholes[0] if wholes else test).folder,
            found=largest,
            expected=f"less than {size}",
        )
    return size


def _checked(recording: Recording, start: int, stop: int, vocabulary: int | None) -> Distributions:
    """Read distributions; those of the likeliest tokens are checked to be such."""
    side = recording.distributions(start, stop)
    if side.tokens is None:
        return side
    ordered = np.sort(side.tokens, axis=1)
    largest = np.iinfo(np.int32).max if vocabulary is None else vocabulary - 1
    if ordered[:, 0].min() < 0 or ordered[:, -1].max() > largest or (ordered[:, 1:] == ordered[:, :-1]).any():
        raise InputError("recording lists a token twice, or one that does not exist", file=recording.folder)
    with np.errstate(over="ignore"):
        mass = np.exp(side.logprobs).sum(axis=1)
    if (np.isfinite(mass) & (mass > MOST_MASS)).any():
        raise InputError(
            "listed probabilities add up to more than 1", file=recording.folder, found=f"{np.nanmax(mass):.4g}"
        )
    return side


def _is_no_distribution(side: Distributions) -> Flags:
    """[positions]: whether a log-probability is NaN or infinitely large."""
    return ~np.asarray((side.logprobs < np.inf).all(axis=1))
