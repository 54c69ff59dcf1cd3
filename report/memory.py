"""What a footprint says, as the part of a document that reports show, and as a document of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gptoss_convert import __version__
from gptoss_convert.verify.conditions import Conditions
from gptoss_convert.verify.judgement import Outcome
from gptoss_convert.verify.verification import SCHEMA_VERSION

if TYPE_CHECKING:
    from gptoss_convert.verify.footprint.footprint import Footprint


def memory_entries(footprint: Footprint) -> list[dict[str, Any]]:
    """Return the entries of `memory` in a document: one per budget, or one without a budget."""
    measurement = footprint.measurement
    measured = None
    if measurement is not None:
        measured = {
            phase.phase: {"resident": phase.resident, "anonymous": phase.private, "file_backed": phase.mapped}
            for phase in measurement.phases
            if phase.resident is not None
        }
    entry = {
        "artifact": footprint.subject.path.name,
        "runtime": footprint.prediction.runtime,
        "predicted": _predicted(footprint),
        "measured": measured,
    }
    budgets: list[int | None] = [verdict.budget.available for verdict in footprint.verdicts]
    return [entry | {"budget": budget} for budget in budgets or [None]]


def _predicted(footprint: Footprint) -> dict[str, int]:
    """Return the bytes of every part; parts of the same name are one."""
    predicted: dict[str, int] = {}
    for part in footprint.prediction.parts_at_peak:
        predicted[part.name] = predicted.get(part.name, 0) + part.needed
    return predicted


def memory_document(footprint: Footprint, conditions: Conditions) -> dict[str, Any]:
    """Return a document about nothing but memory, as docs/verification.schema.json describes it."""
    passed = not footprint.is_over_budget and footprint.failure is None
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "gptoss-convert", "version": __version__},
        "reference": None,
        "outcome": str(Outcome.PASS if passed else Outcome.FAIL),
        "policy": None,
        "prompts": None,
        "artifacts": [],
        "memory": memory_entries(footprint),
        "conditions": conditions.as_dict() | {"runs": []},
    }
