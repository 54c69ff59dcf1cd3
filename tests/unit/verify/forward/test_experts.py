"""Routing, the gate, and the sum over experts."""

import math

import pytest
import torch

from gptoss_convert.verify.forward.experts import ALPHA, Expert, Routing, apply_expert, gated, mixture, route


def test_best_experts_are_chosen_and_share_among_themselves() -> None:
    routing = route(torch.tensor([[0.5, 3.0, -1.0, 2.0], [9.0, 1.0, 2.0, 8.5]]), 2)
    assert routing.experts.tolist() == [[1, 3], [0, 3]]
    expected = [
        [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))],
        [1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))],
    ]
    torch.testing.assert_close(routing.shares, torch.tensor(expected))
    assert routing.margins.tolist() == [1.5, 6.5]


def test_margin_is_zero_at_a_tie_and_infinite_without_a_choice() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0]])
    assert route(logits, 2).margins.tolist() == [0]
    assert route(logits, 3).margins.tolist() == [math.inf]


@pytest.mark.parametrize(
    ("gate", "up", "expected_gate", "expected_up"),
    [(0.5, 0.25, 0.5, 0.25), (9, 9, 7, 7), (-9, -9, -9, -7), (7, -7, 7, -7)],
)
def test_gate_is_cut_above_and_up_on_both_sides(
    gate: float, up: float, expected_gate: float, expected_up: float
) -> None:
    found = gated(torch.tensor([[gate, up]], dtype=torch.float64), 7.0)
    sigmoid = 1 / (1 + math.exp(-1.702 * expected_gate))
    assert ALPHA == 1.702
    assert found.item() == pytest.approx((expected_up + 1) * expected_gate * sigmoid, rel=1e-12)


def test_each_position_gets_the_sum_over_its_experts() -> None:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    experts = [Expert(draw(10, 6), draw(10), draw(6, 5), draw(6)) for _ in range(4)]
    inputs = draw(9, 6)
    routing = route(draw(9, 4), 2)
    expected = torch.stack(
        [
            sum(
                (
                    share * apply_expert(experts[index], row[None], 7.0)[0]
                    for index, share in zip(chosen, shares, strict=True)
                ),
                torch.zeros(6, dtype=torch.float64),
            )
            for row, chosen, shares in zip(inputs, routing.experts, routing.shares, strict=True)
        ]
    )
    backwards = reversed(list(enumerate(experts)))
    torch.testing.assert_close(mixture(inputs, routing, enumerate(experts), 7.0), expected)
    torch.testing.assert_close(mixture(inputs, routing, backwards, 7.0), expected)


def test_an_expert_is_two_matrices_around_the_gate() -> None:
    """Bias and clamps count before the gate; gate and up rows alternate."""
    expert = Expert(
        torch.tensor([[1.0], [0.0]]), torch.tensor([1.0, 2.0]), torch.tensor([[3.0]]), torch.tensor([4.0])
    )
    gate = 1.5
    expected = 3 * (2 + 1) * gate / (1 + math.exp(-1.702 * gate)) + 4
    assert apply_expert(expert, torch.tensor([[0.5]]), 7.0).item() == pytest.approx(expected, rel=1e-6)


def test_shares_weigh_the_bias_too() -> None:
    expert = Expert(torch.zeros(2, 1), torch.zeros(2), torch.zeros(1, 1), torch.tensor([4.0]))
    routing = Routing(torch.tensor([[0, 1]]), torch.tensor([[0.75, 0.25]]), torch.tensor([0.0]))
    other = Expert(expert.gate_up, expert.gate_up_bias, expert.down, torch.tensor([8.0]))
    assert mixture(torch.ones(1, 1), routing, [(0, expert), (1, other)], 7.0).item() == 5
