"""Distances between next-token distributions, given as natural log-probabilities [positions, vocab]."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def kl_divergence(p_logprobs: ArrayLike, q_logprobs: ArrayLike) -> NDArray[np.float64]:
    """KL(p || q) in nats for every position; p is the reference."""
    p, q = _pair(p_logprobs, q_logprobs)
    possible = p > -np.inf  # a token that p excludes contributes nothing, whatever q says
    difference = np.subtract(p, q, out=np.zeros_like(p), where=possible)
    return np.asarray((np.exp(p) * difference).sum(axis=-1))


def top1_agreement(p_logprobs: ArrayLike, q_logprobs: ArrayLike) -> float:
    """Share of positions at which both put the same token first."""
    p, q = _pair(p_logprobs, q_logprobs)
    return float((p.argmax(axis=-1) == q.argmax(axis=-1)).mean())


def _pair(p: ArrayLike, q: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if first.shape != second.shape or first.ndim != 2 or not first.size:
        raise ValueError(f"need two equal [positions, vocab] arrays, got {first.shape} and {second.shape}")
    return first, second
