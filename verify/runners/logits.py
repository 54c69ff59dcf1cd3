"""What runners make of logits: log-probabilities, and experts with their margins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def route(logits: NDArray[np.float32], count: int) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Return the chosen experts, [..., count], best first, and the margins, [...], as `Scores` has them.

    Args:
        logits: [..., experts].
        count: experts that are chosen. If these are all of them, margins are infinite.
    """
    order = np.argsort(-logits, axis=-1, kind="stable")
    chosen = order[..., :count]
    best = np.take_along_axis(logits, order, axis=-1)
    if count == logits.shape[-1]:
        margins = np.full(logits.shape[:-1], np.inf, np.float32)
    else:
        margins = best[..., count - 1] - best[..., count]
    return chosen.astype(np.int16), margins.astype(np.float32)


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return natural log-probabilities of the last axis, added up in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted.astype(np.float32)
