"""Grouped-query attention with sinks and an optional sliding window, a few queries at a time."""

from __future__ import annotations

import torch

_SCORE_BYTES = 16 << 20
"""Scores that are held at once; the allocator gives much larger memory back each time, which costs more than all
else here."""
_MOST_QUERIES = 128
"""With a sliding window, more queries at once have more keys that most of them do not see."""

_KEY_STEP = 64
"""Keys outside of the window are left out in whole steps, which bfloat16 sums are added up in: the result is the
same, bit by bit, as with all keys."""


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Return what every head reads from the values at and before each position of one prompt.

    A sink is one more score per head: it takes its share of the softmax and has no value.

    Args:
        query: `[positions, heads, head_dim]`; query head h reads key head `h // (heads / key heads)`.
        key: `[positions, key heads, head_dim]`.
        value: as `key`.
        sinks: `[heads]`.
        window: number of keys that a position sees, itself included; None for all.

    Returns:
        `[positions, heads * head_dim]`.
    """
    length, heads, head_dim = query.shape
    groups = key.shape[1]
    scale = head_dim**-0.5
    keys, values = (part.transpose(0, 1).contiguous() for part in (key, value))
    sink = sinks.view(groups, heads // groups, 1, 1)
    mixed = torch.empty_like(query)
    seen = length if window is None else min(length, window + _MOST_QUERIES)
    step = max(min(_SCORE_BYTES // (heads * seen * query.element_size()), _MOST_QUERIES), 1)
    for start in range(0, length, step):
        stop = min(start + step, length)
        first = 0 if window is None else max(start - window + 1, 0) // _KEY_STEP * _KEY_STEP
        # [groups, query heads of a group * queries, head_dim]
        few = query[start:stop].view(stop - start, groups, -1, head_dim).permute(1, 2, 0, 3)
        scores = few.reshape(groups, -1, head_dim) @ keys[:, first:stop].transpose(1, 2)
        scores *= scale
        scores = scores.view(groups, -1, stop - start, stop - first)
        scores.masked_fill_(_hidden(start, stop, first, window), -torch.inf)
        scores = torch.cat((scores, sink.expand(-1, -1, stop - start, -1)), dim=-1)
        shares = scores.softmax(dim=-1)[..., :-1].reshape(groups, -1, stop - first)
        read = (shares @ values[:, first:stop]).view(groups, -1, stop - start, head_dim)
        mixed[start:stop] = read.permute(2, 0, 1, 3).reshape(stop - start, heads, head_dim)
    return mixed.view(length, heads * head_dim)


def _hidden(start: int, stop: int, first: int, window: int | None) -> torch.Tensor:
    """Return which keys `first` to `stop` the queries `start` to `stop` do not see, `[queries, keys]`."""
    distance = torch.arange(start, stop)[:, None] - torch.arange(first, stop)
    hidden = distance < 0
    return hidden if window is None else hidden | (distance >= window)
