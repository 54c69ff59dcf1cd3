"""The mixture of experts: routing, and what one expert computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

ALPHA = 1.702
"""Steepness of the sigmoid in the gate; no configuration file names it."""


@dataclass(frozen=True, eq=False)
class Routing:
    """Which experts each position uses."""

    experts: torch.Tensor
    """int64 `[positions, experts per token]`, the one of most weight first."""
    shares: torch.Tensor
    """`[positions, experts per token]`: weights, which sum to 1."""
    margins: torch.Tensor
    """`[positions]`: logit of the last expert that was chosen minus that of the best other; infinite if none is."""


@dataclass(frozen=True, eq=False)
class Expert:
    """The weights of one expert; gate i is row 2i of the first matrix, and up i is row 2i + 1."""

    gate_up: torch.Tensor
    """`[2 * inner, hidden]`."""
    gate_up_bias: torch.Tensor
    down: torch.Tensor
    """`[hidden, inner]`."""
    down_bias: torch.Tensor


def route(logits: torch.Tensor, count: int) -> Routing:
    """Choose `count` experts by `logits` `[positions, experts]`: the best first, then softmax over those alone."""
    best = logits.topk(count, dim=-1)
    others = logits.scatter(1, best.indices, -torch.inf)
    return Routing(best.indices, best.values.softmax(dim=-1), best.values[:, -1] - others.amax(dim=-1))


def gated(gate_up: torch.Tensor, limit: float) -> torch.Tensor:
    """Return `(up + 1) * gate * sigmoid(ALPHA * gate)` of `[positions, 2 * inner]`: even columns are the gate.

    The gate is cut off above `limit`, and up is kept within plus and minus `limit`.
    """
    gate, up = gate_up[:, 0::2], gate_up[:, 1::2]
    gate = gate.clamp(max=limit)
    up = up.clamp(-limit, limit)
    return (up + 1) * (gate * torch.sigmoid(ALPHA * gate))


def apply_expert(expert: Expert, inputs: torch.Tensor, limit: float) -> torch.Tensor:
    """Return what `expert` makes of `inputs` `[positions, hidden]`.

    Biases are added to the finished products, so that bfloat16 rounds where OpenAI's implementation does.
    """
    inner = gated((inputs @ expert.gate_up.T).add_(expert.gate_up_bias), limit)
    return (inner @ expert.down.T).add_(expert.down_bias)


def mixture(
    inputs: torch.Tensor, routing: Routing, experts: Iterable[tuple[int, Expert]], limit: float
) -> torch.Tensor:
    """Return the weighted sum of what the chosen experts make of `inputs` `[positions, hidden]`.

    `experts` yields each expert of `routing` once, in any order; the sum runs in the order of the weights.
    """
    outputs = inputs.new_empty(*routing.experts.shape, inputs.shape[1])
    for index, expert in experts:
        positions, places = (routing.experts == index).nonzero(as_tuple=True)
        outputs[positions, places] = apply_expert(expert, inputs[positions], limit)
    return torch.einsum("pkh,pk->ph", outputs, routing.shares)
