"""Attention against its definition, one query and one head at a time, in float64."""

import math

import pytest
import torch

from gptoss_convert.verify.forward import attention as module
from gptoss_convert.verify.forward.attention import attention

HEADS, GROUPS, HEAD_DIM = 6, 2, 8


def inputs(length: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(length)
    shapes = (length, HEADS, HEAD_DIM), (length, GROUPS, HEAD_DIM), (length, GROUPS, HEAD_DIM), (HEADS,)
    return tuple(torch.randn(shape, generator=random, dtype=dtype) * 2 for shape in shapes)


def by_definition(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor, window: int | None
) -> torch.Tensor:
    result = torch.empty_like(query)
    for position in range(len(query)):
        first = 0 if window is None else max(position - window + 1, 0)
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            scores = key[first : position + 1, group] @ query[position, head] / math.sqrt(HEAD_DIM)
            shares = scores.exp() / (scores.exp().sum() + sinks[head].exp())
            result[position, head] = shares @ value[first : position + 1, group]
    return result.reshape(len(query), -1)


@pytest.mark.parametrize("window", [None, 1, 16, 128, 1000])
@pytest.mark.parametrize("length", [1, 17, 300])
def test_heads_read_what_they_see(length: int, window: int | None) -> None:
    arguments = inputs(length)
    torch.testing.assert_close(attention(*arguments, window), by_definition(*arguments, window))


@pytest.mark.parametrize("window", [None, 16])
def test_cutting_into_few_queries_changes_nothing(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = inputs(200)
    whole = attention(*arguments, window)
    for scores in (1, 200 * HEADS * 8 * 3):  # of one query, or of three
        monkeypatch.setattr(module, "_SCORE_BYTES", scores)
        torch.testing.assert_close(attention(*arguments, window), whole)


def test_window_leaves_bfloat16_sums_as_they_are_with_all_keys() -> None:
    """The values outside of the window are zero here, so they may be in the sum or not."""
    query, key, value, sinks = inputs(400, torch.bfloat16)
    found = attention(query, key, value, sinks, 128)
    distance = torch.arange(400)[:, None] - torch.arange(400)
    scores = torch.einsum("qgmd,kgd->gmqk", query.view(400, GROUPS, -1, HEAD_DIM), key) * HEAD_DIM**-0.5
    scores = scores.masked_fill((distance < 0) | (distance >= 128), -torch.inf)
    scores = torch.cat([scores, sinks.view(GROUPS, -1, 1, 1).expand(-1, -1, 400, -1)], dim=-1)
    expected = torch.einsum("gmqk,kgd->qgmd", scores.softmax(dim=-1)[..., :-1], value).reshape(400, -1)
    assert torch.equal(found, expected)


def test_memory_does_not_grow_with_the_square_of_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    softmax = torch.Tensor.softmax

    def watched(scores: torch.Tensor, dim: int) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, scores.nbytes)
        return softmax(scores, dim=dim)

    monkeypatch.setattr(torch.Tensor, "softmax", watched)
    monkeypatch.setattr(module, "_SCORE_BYTES", 1 << 18)
    attention(*inputs(1000, torch.float32), None)
    assert largest < 1.1 * (1 << 18)
    largest = 0
    attention(*inputs(1000, torch.float32), 128)
    assert largest < 1.1 * (1 << 18)
