"""Prompts that go through the model together, one after the other along a single axis of positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Token ids of some prompts. Nothing of a prompt is seen by another."""

    prompts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]]) -> Batch:
        """Return the batch of `prompts`."""
        return cls(tuple(tuple(int(token) for token in prompt) for prompt in prompts))

    @property
    def ids(self) -> NDArray[np.int64]:
        """[positions]: the tokens of all prompts."""
        return np.array([token for prompt in self.prompts for token in prompt], np.int64)

    @property
    def positions(self) -> int:
        """Tokens in all prompts."""
        return sum(map(len, self.prompts))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompts), default=0)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where each prompt begins and ends."""
        ends = list(accumulate(map(len, self.prompts)))
        return tuple(zip([0, *ends], ends, strict=False))

    @property
    def places(self) -> NDArray[np.int64]:
        """[positions]: position in the prompt."""
        return np.concatenate([np.arange(len(prompt)) for prompt in self.prompts] or [np.empty(0, np.int64)])

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Cut positions `start` to `stop` where prompts end; yield prompt, begin and end of each piece."""
        for prompt, (begin, end) in enumerate(self.spans):
            if begin < stop and start < end:
                yield prompt, max(begin, start), min(end, stop)
