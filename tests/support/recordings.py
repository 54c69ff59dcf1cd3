"""Small recordings, made from numbers."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.verify.prompts import Prompt, PromptSet
from gptoss_convert.verify.recording import Recording, RecordingWriter
from gptoss_convert.verify.runners.protocol import Scores


def prompt_set(ids: Iterable[Sequence[int]]) -> PromptSet:
    """Prompts of these ids."""
    prompts = tuple(
        Prompt(name=f"p{number}", kind="text", ids=tuple(int(token) for token in tokens))
        for number, tokens in enumerate(ids)
    )
    return PromptSet(name="made up", prompts=prompts)


def recording(
    folder: Path,
    lengths: Sequence[int],
    logprobs: NDArray[Any],
    *,
    listed: int | None = None,
    tokens: NDArray[Any] | None = None,
    rest: NDArray[Any] | None = None,
    routing: NDArray[Any] | None = None,
    margins: NDArray[Any] | None = None,
    prefixes: Sequence[int] | None = None,
) -> Recording:
    """A recording of prompts of these lengths in a new folder.

    Args:
        folder: is made.
        lengths: of the prompts.
        logprobs: [positions, columns], of all prompts.
        listed: keep this many of the likeliest tokens only.
        tokens: [positions, columns], the tokens of the columns.
        rest: [positions], the log-probability of all others together.
        routing: [positions, layers, experts per token].
        margins: [positions, layers].
        prefixes: positions of each prompt that are not decoded; None for all.
    """
    folder.mkdir(parents=True)
    if listed is not None:
        tokens = np.argsort(-logprobs, axis=1, kind="stable")[:, :listed]
        logprobs = np.take_along_axis(logprobs, tokens, axis=1)
    with RecordingWriter(folder, lengths) as writer:
        start = 0
        for number, (first, last) in _pieces(lengths, prefixes):
            rows = slice(start + first, start + last)
            writer.add(
                Scores(
                    prompt=number,
                    start=first,
                    logprobs=logprobs[rows].astype(np.float32),
                    tokens=None if tokens is None else tokens[rows].astype(np.int32),
                    rest=None if rest is None else rest[rows].astype(np.float32),
                    routing=None if routing is None else routing[rows].astype(np.int16),
                    router_margins=None if margins is None else margins[rows].astype(np.float32),
                    decoded=prefixes is not None and first >= prefixes[number],
                )
            )
            start += last if last == lengths[number] else 0
        writer.finish()
    return Recording(folder)


def _pieces(lengths: Sequence[int], prefixes: Sequence[int] | None) -> Iterator[tuple[int, tuple[int, int]]]:
    for number, length in enumerate(lengths):
        prefix = length if prefixes is None else prefixes[number]
        ends = [*([(0, prefix)] if prefix else []), *((place, place + 1) for place in range(prefix, length))]
        yield from ((number, piece) for piece in ends)


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Log-probabilities along the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
