"""Positions told apart by the experts that were chosen for them.

Two correct runtimes may choose different experts where scores are close, and then the hidden state jumps. So the
positions at which both chose alike are to be judged by strict limits, and the others by their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.errors import VerificationError
from gptoss_convert.verify.metrics.plain import Plain
from gptoss_convert.verify.metrics.positions import Flags, Integers, PositionFigures
from gptoss_convert.verify.metrics.summary import NEAR_TIE, Summary, summarise
from gptoss_convert.verify.recording import Recording

FRAGILE_MARGIN = 0.01
"""Router margin below which another runtime may well choose another expert. Router logits of a size of a few units
come in steps of 0.016 in BF16."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutingAgreement:
    """Where two runs chose the same experts, whatever their order."""

    layers: Flags
    """[positions, layers]: the same set of experts."""
    margins: NDArray[np.float32] | None
    """[positions, layers]: router margins of the reference; None if it does not tell."""

    @property
    def everywhere(self) -> Flags:
        """[positions]: the same experts in all layers."""
        return np.asarray(self.layers.all(axis=1))

    @property
    def first_difference(self) -> Integers:
        """[positions]: the first layer with other experts; -1 if there is none."""
        return np.where(self.everywhere, -1, (~self.layers).argmax(axis=1))

    def first_margins(self, mask: Flags) -> NDArray[np.float32] | None:
        """Return the reference's margin at the first difference of the positions of `mask` that have one."""
        if self.margins is None:
            return None
        rows = np.flatnonzero(mask & ~self.everywhere)
        return self.margins[rows, self.first_difference[rows]]


@dataclass(frozen=True, kw_only=True)
class FirstMargins(Plain):
    """Router margins of the reference at the first layer with other experts."""

    median: float
    p90: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class RoutingSummary(Plain):
    """Scored positions in two parts."""

    criterion: Literal["experts", "margin"]
    """`experts`: `steady` are the positions with the same experts in all layers of both runs. `margin`: the runtime
    of the test does not tell, and `steady` are those at which no router margin of the reference is below
    `threshold`."""
    threshold: float | None
    steady_share: float | None
    """Share of the scored positions that are steady; None if no position is scored."""
    layer_shares: tuple[float, ...] | None
    """Share of the scored positions with the same experts, by layer."""
    first_margins: FirstMargins | None
    """None if experts are the same everywhere, or a recording does not tell."""
    steady: Summary
    others: Summary


def routing_agreement(reference: Recording, test: Recording) -> RoutingAgreement | None:
    """Compare the chosen experts; None if one of the recordings does not tell.

    Raises:
        VerificationError: the recordings are of models of different shape.
    """
    expected, found = reference.routing(), test.routing()
    if expected is None or found is None:
        return None
    if expected.shape != found.shape:
        raise VerificationError(
            "recordings of different routers",
            file=test.folder,
            found=f"positions, layers, experts per token {list(found.shape)}",
            expected=list(expected.shape),
        )
    same = (np.sort(expected, axis=2) == np.sort(found, axis=2)).all(axis=2)
    return RoutingAgreement(layers=same, margins=reference.router_margins())


def summarise_by_routing(
    figures: PositionFigures,
    reference: Recording,
    test: Recording,
    *,
    near_tie: float = NEAR_TIE,
    fragile_margin: float = FRAGILE_MARGIN,
) -> RoutingSummary | None:
    """Summarise the steady positions and the others apart; None if nothing tells which are which.

    Raises:
        VerificationError: the recordings are of models of different shape.
    """
    agreement = routing_agreement(reference, test)
    margins = reference.router_margins()
    if agreement is not None:
        steady = agreement.everywhere
    elif margins is not None:
        steady = np.asarray((margins >= fragile_margin).all(axis=1))
    else:
        return None
    scored = figures.scored
    return RoutingSummary(
        criterion="margin" if agreement is None else "experts",
        threshold=fragile_margin if agreement is None else None,
        steady_share=float(steady[scored].mean()) if scored.any() else None,
        layer_shares=None if agreement is None else _layer_shares(agreement, scored),
        first_margins=None if agreement is None else _first_margins(agreement, scored),
        steady=summarise(figures, steady, near_tie=near_tie),
        others=summarise(figures, ~steady, near_tie=near_tie),
    )


def _layer_shares(agreement: RoutingAgreement, scored: Flags) -> tuple[float, ...] | None:
    if not scored.any():
        return None
    return tuple(float(share) for share in agreement.layers[scored].mean(axis=0))


def _first_margins(agreement: RoutingAgreement, scored: Flags) -> FirstMargins | None:
    margins = agreement.first_margins(scored)
    if margins is None or not len(margins):
        return None
    with np.errstate(invalid="ignore"):  # margins are infinite where all experts are chosen
        median, p90, largest = (float(value) for value in np.quantile(margins, [0.5, 0.9, 1]))
    return FirstMargins(median=median, p90=p90, largest=largest)
