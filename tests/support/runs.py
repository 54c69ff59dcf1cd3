"""Runs of a runner in this process, with all that it yields put together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.verify.runners.protocol import Runner, Scores, Settings


@dataclass(frozen=True, eq=False)
class PromptScores:
    """What a runner says about one prompt."""

    logprobs: NDArray[np.float32]
    """[positions, vocab]."""
    routing: NDArray[np.int16]
    """[positions, layers, experts per token]."""
    margins: NDArray[np.float32]
    """[positions, layers]."""

    @property
    def normalised(self) -> NDArray[np.float64]:
        """Log-probabilities without the rounding of their normalisation, as a recording returns them."""
        wide = self.logprobs.astype(np.float64)
        return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


def run(runner: Runner, artifact: Path, prompts: Sequence[Sequence[int]], **settings: object) -> list[PromptScores]:
    """Scores of each prompt, whose positions have to come in order; `settings` are those of `Settings`."""
    with runner.open(artifact, Settings(**settings)) as session:  # type: ignore[arg-type]
        scores = list(session.run(prompts))
    assert [item.prompt for item in scores] == sorted(item.prompt for item in scores)
    return [_joined([item for item in scores if item.prompt == index]) for index in range(len(prompts))]


def _joined(scores: list[Scores]) -> PromptScores:
    position = 0
    for item in scores:
        assert item.start == position
        assert item.tokens is None
        assert item.routing is not None
        assert item.router_margins is not None
        position += len(item.logprobs)
    return PromptScores(
        np.concatenate([item.logprobs for item in scores]),
        np.concatenate([item.routing for item in scores if item.routing is not None]),
        np.concatenate([item.router_margins for item in scores if item.router_margins is not None]),
    )
