"""Figures held against limits."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gptoss_convert.verify.metrics.plain import Plain
from gptoss_convert.verify.metrics.routing import RoutingSummary
from gptoss_convert.verify.metrics.summary import Estimate, Summary
from gptoss_convert.verify.policy import Evidence, Policy, Profile

Z = 1.959963984540054
"""Standard deviations to both sides that hold 95 % of a normal distribution."""


SAME_ARITHMETIC = ("exact",)
"""Profiles of comparisons in which routing cannot differ but by a fault."""


class Outcome(enum.StrEnum):
    """What a check says."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"

    @classmethod
    def worst(cls, outcomes: Iterable[Outcome]) -> Outcome:
        """Return the worst of the outcomes: a failure is worse than not knowing; PASS if there is none."""
        found = set(outcomes)
        return next((outcome for outcome in (cls.FAIL, cls.INCONCLUSIVE) if outcome in found), cls.PASS)


@dataclass(frozen=True, kw_only=True)
class Gate(Plain):
    """A figure and its limit."""

    figure: str
    value: float
    limit: float
    outcome: Outcome
    low: float | None = None
    """95 % interval of the value, where there is one."""
    high: float | None = None

    def __str__(self) -> str:
        value, limit = _number(self.value), _number(self.limit)
        if self.outcome is Outcome.INCONCLUSIVE and self.low is None:
            return f"{self.figure} {value} is too little, {limit} is the least"
        sign = {Outcome.PASS: "within", Outcome.FAIL: "beyond", Outcome.INCONCLUSIVE: "too close to"}
        return f"{self.figure} {value} is {sign[self.outcome]} the limit of {limit}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.3g}"


@dataclass(frozen=True, kw_only=True)
class Judgement(Plain):
    """What the limits of a profile say about a comparison."""

    profile: str
    outcome: Outcome
    gates: tuple[Gate, ...]
    """Over all positions, or over the steady ones alone if `routing_excused`."""
    routing_excused: bool
    """The limits hold where both sides chose the same experts, and only there."""

    @property
    def reason(self) -> str:
        """The gate that decided, in words."""
        deciding = [gate for gate in self.gates if gate.outcome is self.outcome]
        return (
            str(deciding[0]) if deciding and self.outcome is not Outcome.PASS else "all figures are within limits"
        )


def judge(
    profile_name: str,
    policy: Policy,
    summary: Summary,
    routing: RoutingSummary | None,
    *,
    prompt_set: str,
    noise_floor: float | None = None,
) -> Judgement:
    """Hold a comparison against the limits of a profile.

    Where they do not hold, they are tried on the positions with the same routing, if those are many enough: two
    correct runtimes may choose other experts where router scores are close. Where they were not close, or the same
    numbers were computed in the same arithmetic, other experts are no excuse but a fault. Too little evidence is
    never excused.

    Args:
        profile_name: in `policy.profiles`.
        policy: the limits.
        summary: of all scored positions.
        routing: of the steady positions and the others; None if nothing tells which is which.
        prompt_set: name of the prompts, which says what evidence is asked for.
        noise_floor: mean KL of the reference against itself in other arithmetic, if it was measured.
    """
    profile = policy.profiles[profile_name]
    evidence = policy.evidence_for(prompt_set)
    gates = tuple(_gates(profile, summary, evidence, noise_floor))
    outcome = Outcome.worst(gate.outcome for gate in gates)
    excusable = outcome is not Outcome.PASS and profile_name not in SAME_ARITHMETIC
    if excusable and routing is not None and _may_excuse(policy, evidence, summary, routing):
        least = policy.routing.least_positions
        enough = Evidence(positions=least, prompts=0, coverage=evidence.coverage)
        steady = tuple(_gates(profile, routing.steady, enough, noise_floor))
        if Outcome.worst(gate.outcome for gate in steady) is Outcome.PASS:
            return Judgement(profile=profile_name, outcome=Outcome.PASS, gates=steady, routing_excused=True)
    return Judgement(profile=profile_name, outcome=outcome, gates=gates, routing_excused=False)


def _may_excuse(policy: Policy, evidence: Evidence, summary: Summary, routing: RoutingSummary) -> bool:
    steady = routing.steady
    if not steady.positions or steady.positions < policy.routing.least_positions or summary.nan or summary.infinite:
        return False
    margins = routing.first_margins
    if margins is not None and not margins.median <= policy.routing.fragile_margin:
        return False  # the scores were not close
    if summary.positions < evidence.positions or summary.prompts < evidence.prompts:
        return False
    others = routing.others
    if others.divergence is not None and others.divergence.mean.mean > policy.routing.largest_kl:
        return False
    return others.positions <= policy.routing.largest_share * summary.positions


def _gates(profile: Profile, summary: Summary, evidence: Evidence, noise_floor: float | None) -> Iterator[Gate]:
    yield _at_least("scored positions", summary.positions, max(evidence.positions, 1), short=Outcome.INCONCLUSIVE)
    yield _at_least("prompts", summary.prompts, evidence.prompts, short=Outcome.INCONCLUSIVE)
    yield _at_most("positions with NaN", summary.nan, 0)
    yield _at_most("positions with infinite divergence", summary.infinite, 0)
    if summary.divergence is None or summary.top is None:
        return
    if summary.bounded and summary.coverage is not None:
        yield _at_least("coverage", summary.coverage, evidence.coverage, short=Outcome.INCONCLUSIVE)
    divergence = summary.divergence
    allowance = min(profile.noise_factor * (noise_floor or 0.0), profile.largest_mean_kl)
    yield _mean("mean KL", divergence.mean, max(profile.mean_kl, allowance))
    if profile.median_kl is not None:
        yield _at_most("median KL", divergence.median, profile.median_kl)
    if profile.p999_kl is not None:
        yield _at_most("99.9th percentile of KL", divergence.p99_9, profile.p999_kl)
    if profile.same_top1 is not None:
        yield _share("share of same top-1", summary.top.same.mean, summary.positions, profile.same_top1)
    clear = summary.top.same_outside_near_ties
    if profile.same_top1_clear is not None and clear is None:
        yield _at_least("positions outside near ties", 0, 1, short=Outcome.INCONCLUSIVE)
    if profile.same_top1_clear is not None and clear is not None:
        count = summary.positions - summary.top.near_ties
        yield _share("share of same top-1 outside near ties", clear.mean, count, profile.same_top1_clear)


def _at_least(figure: str, value: float, limit: float, *, short: Outcome) -> Gate:
    return Gate(figure=figure, value=value, limit=limit, outcome=Outcome.PASS if value >= limit else short)


def _at_most(figure: str, value: float, limit: float) -> Gate:
    return Gate(figure=figure, value=value, limit=limit, outcome=Outcome.PASS if value <= limit else Outcome.FAIL)


def _mean(figure: str, estimate: Estimate, limit: float) -> Gate:
    """Return the gate for a mean: inconclusive if the limit lies within its interval."""
    low = estimate.mean if estimate.low is None else estimate.low
    high = estimate.mean if estimate.high is None else estimate.high
    outcome = Outcome.PASS if high <= limit else Outcome.FAIL if low > limit else Outcome.INCONCLUSIVE
    return Gate(figure=figure, value=estimate.mean, limit=limit, outcome=outcome, low=low, high=high)


def _share(figure: str, share: float, count: int, limit: float) -> Gate:
    """Return the gate for a share: failed only if no share in its interval reaches the limit.

    The interval is Wilson's (1927, Journal of the American Statistical Association 22), sound near 0 and 1.
    """
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    spread = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    low, high = max(centre - spread, 0.0), min(centre + spread, 1.0)
    outcome = Outcome.PASS if share >= limit else Outcome.FAIL if high < limit else Outcome.INCONCLUSIVE
    if limit >= 1.0 and share < limit:  # an interval always touches 1, but a single change disproves "all"
        outcome = Outcome.FAIL
    return Gate(figure=figure, value=share, limit=limit, outcome=outcome, low=low, high=high)
