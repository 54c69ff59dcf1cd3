"""Which prompts a runtime is to compute token by token, and from where on.

Chat programs compute a prompt at once and then one token after the other, on the KV cache. Graphs have branches and
kernels of their own for that, which many positions at once never reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptoss_convert.verify.prompts import DECODE, Prompt, PromptSet

DECODED_POSITIONS = 128
"""Positions that are computed token by token, if nobody says how many."""
PROMPTS = 4
"""Prompts that they are shared among; one of them is decoded from its first token."""
BEYOND = 0.75
"""Share of the decoded positions of a prompt that lie beyond the attention window, where the prompt is so long."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Beginnings of some prompts, each in two parts: a prefix, and what follows it token by token."""

    prompts: PromptSet
    """The beginnings, cut where the decoding ends."""
    indices: tuple[int, ...]
    """Of the prompts among those that they were taken from."""
    prefixes: tuple[int, ...]
    """Positions of each that are computed together."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions of each beginning."""
        return tuple(len(prompt.ids) for prompt in self.prompts.prompts)

    @property
    def positions(self) -> int:
        """Positions that are decoded."""
        return self.prompts.positions - sum(self.prefixes)


def choose_decoding(prompts: PromptSet, window: int, positions: int = DECODED_POSITIONS) -> Decoding | None:
    """Choose what to decode; None if there is nothing to.

    The longest prompts are taken, of equally long ones the first. Those that reach beyond the attention window are
    decoded across its edge, others at their end, and the shortest of them from its first token, on an empty cache.

    Args:
        prompts: what to choose from.
        window: positions that layers with a sliding window attend to.
        positions: how many to decode at most.
    """
    count = min(PROMPTS, len(prompts.prompts))
    steps = positions // count if count else 0
    enough = window + round(BEYOND * steps)
    order = sorted(range(len(prompts.prompts)), key=lambda index: -min(len(prompts.prompts[index].ids), enough))
    chosen: list[tuple[int, int, Prompt]] = []
    for number, index in enumerate(order[:count]):
        prompt = prompts.prompts[index]
        stop = min(len(prompt.ids), enough)
        prefix = max(stop - steps, 1)
        if number == count - 1 and count > 1:
            prefix, stop = 0, min(steps, len(prompt.ids))
        if prefix < stop:
            chosen.append((index, prefix, replace(prompt, ids=prompt.ids[:stop])))
    if not chosen or not steps:
        return None
    indices, prefixes, beginnings = zip(*chosen, strict=True)
    return Decoding(
        prompts=PromptSet(name=DECODE, prompts=beginnings), indices=tuple(indices), prefixes=tuple(prefixes)
    )
