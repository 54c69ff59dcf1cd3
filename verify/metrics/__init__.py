"""How far a model's answers lie from those of a reference.

Two recordings of the same prompts become figures of every position (`positions`), which are summarised (`summary`),
also apart for positions that went to the same experts and the others (`routing`).
"""

from gptoss_convert.verify.metrics.positions import CentredErrors, PositionFigures, position_figures
from gptoss_convert.verify.metrics.routing import (
    RoutingAgreement,
    RoutingSummary,
    routing_agreement,
    summarise_by_routing,
)
from gptoss_convert.verify.metrics.summary import Summary, summarise

__all__ = [
    "CentredErrors",
    "PositionFigures",
    "RoutingAgreement",
    "RoutingSummary",
    "Summary",
    "position_figures",
    "routing_agreement",
    "summarise",
    "summarise_by_routing",
]
