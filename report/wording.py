"""How reports say numbers and outcomes, the same in every format."""

from __future__ import annotations

import math

from gptoss_convert.report.document import Artifact, Comparison, Document, Gate, Run, Summary
from gptoss_convert.verify.parts import DEPARTURES, IN_WORDS, TOTAL

NOTHING = "-"
HEADINGS = (
    "what differs", "limits", "mean KL", "95 %", "median", "99.9 %", "top-1", "clear top-1", "top-10", "RMS dp",
    "PPL", "experts",
)  # fmt: skip
"""Of the table of figures; docs/verification.md says what they are."""


def number(value: float | None) -> str:
    """Return a figure with two or three digits."""
    if value is None:
        return NOTHING
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e9 else f"{value:.3g}"


def share(value: float | None) -> str:
    """Return a share as a percentage; all and none are told apart from nearly so."""
    if value is None:
        return NOTHING
    text = f"{value:.2%}"
    return "> 99.99%" if text == "100.00%" and value < 1 else text


def size(count: float | None) -> str:
    """Return bytes in decimal units, as disks and downloads are measured."""
    if count is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def seconds(value: float | None) -> str:
    """Return a duration."""
    return NOTHING if value is None else f"{value:.1f} s"


def part(comparison: Comparison, runtime: str) -> str:
    """Return what lies between the two runs, in words."""
    return IN_WORDS[comparison.part].format(runtime) if comparison.part in IN_WORDS else comparison.part


def mean_kl(summary: Summary) -> str:
    """Return the mean divergence, as a lower bound where it is one."""
    if summary.divergence is None or summary.divergence.mean.mean is None:
        return NOTHING
    return f"{'>= ' if summary.bounded else ''}{number(summary.divergence.mean.mean)}"


def figures(comparison: Comparison, runtime: str) -> tuple[str, ...]:
    """Return a row under `HEADINGS`."""
    summary, routing, judgement = comparison.summary, comparison.routing, comparison.judgement
    divergence, top, following = summary.divergence, summary.top, summary.next_tokens
    mean = None if divergence is None else divergence.mean
    clear = None if top is None else top.same_outside_near_ties
    ratio = None if following is None else following.log_ratio
    by_experts = routing is not None and routing.criterion == "experts"
    excused = ", steady positions" if judgement is not None and judgement.routing_excused else ""
    return (
        part(comparison, runtime),
        NOTHING if judgement is None else f"{judgement.outcome}{excused}",
        mean_kl(summary),
        NOTHING if mean is None or mean.low is None or mean.high is None else f"{mean.low:.2g} to {mean.high:.2g}",
        NOTHING if divergence is None else number(divergence.median),
        NOTHING if divergence is None else number(divergence.p99_9),
        NOTHING if top is None else share(top.same.mean),
        NOTHING if clear is None else share(clear.mean),
        NOTHING if top is None else share(top.overlap),
        NOTHING if following is None else share(following.rms_change),
        NOTHING if ratio is None else _ratio(ratio),
        share(routing.steady_share) if routing is not None and by_experts else NOTHING,
    )


def _ratio(log_ratio: float) -> str:
    return f"{math.expm1(log_ratio):+.3%}" if log_ratio < 700 else "infinite"


def gate(item: Gate) -> str:
    """Return a figure and its limit in a clause."""
    interval = "" if item.low is None else f" [{number(item.low)}, {number(item.high)}]"
    return f"{item.figure} {number(item.value)}{interval}, limit {number(item.limit)}: {item.outcome}"


def decides(comparison: Comparison) -> bool:
    """Return whether the limits of a comparison can fail an artifact: known departures of a runtime cannot."""
    return comparison.part != DEPARTURES


def run(item: Run) -> str:
    """Return what was run, in words."""
    manner = f" as {item.imitates} computes" if item.imitates else ""
    manner += f" in {item.dtype}" if item.dtype != "float32" else ""
    return f"{item.artifact} in {item.runtime}{manner}"


def verdict(artifact: Artifact) -> str:
    """Return an outcome with its cause."""
    cause = f" ({artifact.verdict.cause})" if artifact.verdict.cause else ""
    return f"{artifact.verdict.outcome.upper()}{cause}"


def totals(artifact: Artifact) -> list[tuple[str, Summary]]:
    """Return the figures of everything together, by runtime."""
    found = ((logits.runtime, logits.comparison(TOTAL)) for logits in artifact.logits)
    return [(runtime, item.summary) for runtime, item in found if item is not None]


def subject(document: Document) -> str:
    """Return what the report is about."""
    if document.reference is None:
        return "Memory"
    return f"Verification against {document.reference.path}"
