"""The pieces in which a prompt is computed: many positions at once first, and then one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gptoss_convert.verify.runners.protocol import Settings


@dataclass(frozen=True)
class Piece:
    """Successive positions of a prompt that are computed together."""

    start: int
    stop: int
    decoded: bool
    """It is a single position, on the KV cache of those before."""


def pieces(settings: Settings, prompt: int, length: int, most: int) -> Iterator[Piece]:
    """Yield the pieces of a prompt in order.

    Args:
        settings: tell where the prompt goes on one by one.
        prompt: index of the prompt.
        length: positions that it has.
        most: positions of a piece.
    """
    prefix = length if settings.prefixes is None else min(settings.prefixes[prompt], length)
    for start in range(0, prefix, most):
        yield Piece(start, min(start + most, prefix), decoded=False)
    for start in range(prefix, length):
        yield Piece(start, start + 1, decoded=True)
