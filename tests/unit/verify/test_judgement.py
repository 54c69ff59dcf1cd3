"""Figures held against limits: what passes, what fails, and when there is too little evidence to say."""

import math

import msgspec
import pytest
from scipy.stats import binomtest

from gptoss_convert.verify.judgement import Gate, Judgement, Outcome, judge
from gptoss_convert.verify.metrics.routing import RoutingSummary
from gptoss_convert.verify.metrics.summary import Divergence, Estimate, Summary, Top
from gptoss_convert.verify.policy import (
    Evidence,
    NearTies,
    Policy,
    Profile,
    RoutingPolicy,
    _EvidenceByPreset,
)

LIMITS = Profile(mean_kl=0.01, median_kl=0.005, p999_kl=1.0, same_top1=0.9, same_top1_clear=0.95)


def policy(
    profile: Profile = LIMITS, *, largest_share: float = 0.5, least_positions: int = 100, largest_kl: float = 1.0
) -> Policy:
    quick = Evidence(positions=200, prompts=4, coverage=0.9)
    return Policy(
        version=1,
        evidence=_EvidenceByPreset(positions=1000, prompts=16, coverage=0.95, quick=quick, decode=quick),
        near_ties=NearTies(margin=0.1),
        routing=RoutingPolicy(
            fragile_margin=0.01, largest_share=largest_share, least_positions=least_positions, largest_kl=largest_kl
        ),
        profiles={"limits": profile},
    )


def summary(
    *,
    positions: int = 1000,
    prompts: int = 16,
    mean: float = 0.001,
    interval: tuple[float | None, float | None] = (None, None),
    median: float = 0.001,
    p99_9: float = 0.1,
    same: float = 1.0,
    clear: float | None = 1.0,
    near_ties: int = 0,
    nan: int = 0,
    infinite: int = 0,
    coverage: float = 1.0,
    bounded: bool = False,
) -> Summary:
    """A comparison well within `LIMITS`, but for what is said."""
    none_left = nan + infinite >= positions
    divergence = Divergence(
        mean=Estimate(mean=mean, low=interval[0], high=interval[1]),
        median=median,
        p90=p99_9,
        p99=p99_9,
        p99_9=p99_9,
        largest=p99_9,
        largest_prompt=0,
        largest_place=4,
    )
    top = Top(
        same=Estimate(mean=same, low=None, high=None),
        near_ties=near_ties,
        same_outside_near_ties=None if clear is None else Estimate(mean=clear, low=None, high=None),
        overlap=1.0,
    )
    return Summary(
        positions=positions,
        prompts=prompts,
        nan=nan,
        infinite=infinite,
        coverage=coverage,
        bounded=bounded,
        divergence=None if none_left else divergence,
        top=None if none_left else top,
        next_tokens=None,
        centred=None,
    )


def routing(steady: Summary, others: Summary) -> RoutingSummary:
    return RoutingSummary(
        criterion="experts",
        threshold=None,
        steady_share=steady.positions / max(steady.positions + others.positions, 1),
        layer_shares=None,
        first_margins=None,
        steady=steady,
        others=others,
    )


def judged(figures: Summary, profile: Profile = LIMITS, **options: object) -> Judgement:
    return judge("limits", policy(profile), figures, None, prompt_set="full", **options)  # type: ignore[arg-type]


def gate(judgement: Judgement, figure: str) -> Gate:
    (found,) = (item for item in judgement.gates if item.figure == figure)
    return found


def test_figures_within_limits_pass() -> None:
    judgement = judged(summary())
    assert judgement.outcome is Outcome.PASS
    assert not judgement.routing_excused
    assert judgement.reason == "all figures are within limits"
    assert {item.outcome for item in judgement.gates} == {Outcome.PASS}


@pytest.mark.parametrize(
    ("figures", "figure"),
    [
        ({"mean": 0.02}, "mean KL"),
        ({"median": 0.006}, "median KL"),
        ({"p99_9": 1.1}, "99.9th percentile of KL"),
        ({"same": 0.8}, "share of same top-1"),
        ({"clear": 0.9}, "share of same top-1 outside near ties"),
        ({"nan": 1}, "positions with NaN"),
        ({"infinite": 1}, "positions with infinite divergence"),
    ],
)
def test_each_limit_fails_alone_and_is_named(figures: dict[str, float], figure: str) -> None:
    judgement = judged(summary(**figures))  # type: ignore[arg-type]
    assert judgement.outcome is Outcome.FAIL
    assert [item.figure for item in judgement.gates if item.outcome is not Outcome.PASS] == [figure]
    assert judgement.reason.startswith(f"{figure} ")
    assert "is beyond the limit of" in judgement.reason


@pytest.mark.parametrize("name", ["median_kl", "p999_kl", "same_top1", "same_top1_clear"])
def test_what_a_profile_does_not_limit_is_not_judged(name: str) -> None:
    bad = summary(median=9, p99_9=9, same=0, clear=0)
    everything = {gate.figure for gate in judged(bad).gates}
    without = {gate.figure for gate in judged(bad, msgspec.structs.replace(LIMITS, **{name: None})).gates}
    assert len(everything - without) == 1


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        ((0.001, 0.01), Outcome.PASS),
        ((0.001, 0.010001), Outcome.INCONCLUSIVE),
        ((0.01, 0.02), Outcome.INCONCLUSIVE),
        ((0.010001, 0.02), Outcome.FAIL),
        ((None, None), Outcome.PASS),
    ],
)
def test_limit_within_the_interval_of_a_mean_is_inconclusive(
    interval: tuple[float | None, float | None], outcome: Outcome
) -> None:
    judgement = judged(summary(mean=0.005, interval=interval))
    assert judgement.outcome is outcome
    assert gate(judgement, "mean KL").low == (0.005 if interval[0] is None else interval[0])


@pytest.mark.parametrize("count", [1000, 1001, 25_000])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.88, 0.899, 0.9, 1.0])
def test_share_has_wilsons_interval(share: float, count: int) -> None:
    hits = round(share * count)
    found = gate(judged(summary(positions=count, same=hits / count)), "share of same top-1")
    expected = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.outcome is (
        Outcome.PASS if hits / count >= 0.9 else Outcome.FAIL if expected.high < 0.9 else Outcome.INCONCLUSIVE
    )


def test_share_outside_near_ties_is_one_of_the_positions_that_are_left() -> None:
    found = gate(judged(summary(near_ties=400, clear=0.9)), "share of same top-1 outside near ties")
    expected = binomtest(540, 600).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_one_change_disproves_all() -> None:
    profile = Profile(mean_kl=1, same_top1=1.0)
    assert judged(summary(same=1.0), profile).outcome is Outcome.PASS
    assert judged(summary(same=0.999), profile).outcome is Outcome.FAIL


def test_where_every_position_is_a_near_tie_nothing_is_proved() -> None:
    judgement = judged(summary(near_ties=1000, clear=None))
    assert judgement.outcome is Outcome.INCONCLUSIVE
    assert "share of same top-1 outside near ties" not in [item.figure for item in judgement.gates]


@pytest.mark.parametrize(
    ("figures", "figure"), [({"positions": 999}, "scored positions"), ({"prompts": 15}, "prompts")]
)
def test_too_little_evidence_is_inconclusive(figures: dict[str, int], figure: str) -> None:
    judgement = judged(summary(**figures))  # type: ignore[arg-type]
    assert judgement.outcome is Outcome.INCONCLUSIVE
    assert gate(judgement, figure).outcome is Outcome.INCONCLUSIVE
    assert judgement.reason.startswith(figure)


def test_quick_prompts_need_less_evidence() -> None:
    few = summary(positions=200, prompts=4)
    outcomes = {name: judge("limits", policy(), few, None, prompt_set=name).outcome for name in ("quick", "full")}
    assert outcomes == {"quick": Outcome.PASS, "full": Outcome.INCONCLUSIVE}


def test_failure_counts_more_than_too_little_evidence() -> None:
    assert judged(summary(positions=10, mean=0.02)).outcome is Outcome.FAIL


@pytest.mark.parametrize("figures", [{"nan": 1000}, {"infinite": 1000}])
def test_fails_where_no_position_can_be_compared(figures: dict[str, int]) -> None:
    judgement = judged(summary(**figures))  # type: ignore[arg-type]
    assert judgement.outcome is Outcome.FAIL
    assert judgement.reason == f"positions with {_named(figures)} 1000 is beyond the limit of 0"


def _named(figures: dict[str, int]) -> str:
    return "NaN" if "nan" in figures else "infinite divergence"


def test_without_any_position_it_is_inconclusive() -> None:
    assert judged(summary(positions=0, prompts=0)).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("coverage", "bounded", "outcome"),
    [
        (0.95, True, Outcome.PASS),
        (0.94, True, Outcome.INCONCLUSIVE),
        (0.94, False, Outcome.PASS),
    ],
)
def test_recording_of_the_likeliest_tokens_has_to_cover_most_of_the_probability(
    coverage: float, bounded: bool, outcome: Outcome
) -> None:
    assert judged(summary(coverage=coverage, bounded=bounded)).outcome is outcome


@pytest.mark.parametrize(("floor", "mean_limit"), [(None, 0.01), (0.001, 0.01), (0.01, 0.03), (0.1, 0.05)])
def test_mean_alone_may_be_some_times_the_noise_floor(floor: float | None, mean_limit: float) -> None:
    noisy = msgspec.structs.replace(LIMITS, noise_factor=3.0, largest_mean_kl=0.05)
    judgement = judged(summary(), noisy, noise_floor=floor)
    limits = gate(judgement, "mean KL").limit, gate(judgement, "median KL").limit
    assert limits == pytest.approx((mean_limit, 0.005))
    assert gate(judgement, "99.9th percentile of KL").limit == 1.0


def test_noise_floor_is_nothing_to_a_profile_without_factor() -> None:
    assert gate(judged(summary(), noise_floor=9.0), "mean KL").limit == 0.01


# --- routing


BAD = {"mean": 0.02, "median": 0.02, "same": 0.5}


def excused(
    figures: Summary, steady: Summary, others: Summary, *, prompt_set: str = "full", **limits: float
) -> Judgement:
    return judge("limits", policy(**limits), figures, routing(steady, others), prompt_set=prompt_set)  # type: ignore[arg-type]


def test_limits_that_hold_where_experts_are_the_same_are_excused_elsewhere() -> None:
    judgement = excused(summary(**BAD), summary(positions=700), summary(positions=300, **BAD))
    assert judgement.outcome is Outcome.PASS
    assert judgement.routing_excused
    assert gate(judgement, "scored positions").value == 700
    assert gate(judgement, "scored positions").limit == 100


def test_routing_is_not_looked_at_where_limits_hold_anyway() -> None:
    judgement = excused(summary(), summary(positions=700, **BAD), summary(positions=300))
    assert judgement.outcome is Outcome.PASS
    assert not judgement.routing_excused


@pytest.mark.parametrize(
    ("figures", "steady", "others", "limits"),
    [
        pytest.param(BAD, {"positions": 700, "mean": 0.02}, {"positions": 300}, {}, id="steady ones fail too"),
        pytest.param(BAD, {"positions": 499}, {"positions": 501}, {}, id="too many differ"),
        pytest.param(BAD, {"positions": 99}, {"positions": 901}, {"largest_share": 1.0}, id="too few are steady"),
        pytest.param(BAD, {"positions": 0}, {"positions": 1000}, {"largest_share": 1.0, "least_positions": 0},
                     id="none is steady"),
        pytest.param({"nan": 1}, {"positions": 700}, {"positions": 300, "nan": 1}, {}, id="NaN elsewhere"),
        pytest.param({"infinite": 1}, {"positions": 700}, {"positions": 300, "infinite": 1}, {}, id="ruled out"),
        pytest.param(BAD, {"positions": 700, "mean": 0.009, "interval": (0.008, 0.011)}, {"positions": 300}, {},
                     id="steady ones are too close to call"),
    ],
)  # fmt: skip
def test_other_experts_are_no_excuse(
    figures: dict[str, float], steady: dict[str, float], others: dict[str, float], limits: dict[str, float]
) -> None:
    judgement = excused(
        summary(**figures),  # type: ignore[arg-type]
        summary(**steady),  # type: ignore[arg-type]
        summary(**others),  # type: ignore[arg-type]
        **limits,
    )
    assert judgement.outcome is Outcome.FAIL
    assert not judgement.routing_excused
    assert gate(judgement, "scored positions").value == 1000


@pytest.mark.parametrize("few", [{"positions": 150}, {"prompts": 3}])
def test_other_experts_do_not_excuse_too_little_evidence(few: dict[str, int]) -> None:
    steady = summary(positions=140, prompts=3)
    judgement = excused(summary(**{"positions": 200, "prompts": 4} | few), steady, summary(positions=10),
                        prompt_set="quick")  # fmt: skip
    assert judgement.outcome is Outcome.INCONCLUSIVE
    assert not judgement.routing_excused


def test_share_that_may_differ_is_inclusive() -> None:
    assert excused(summary(**BAD), summary(positions=500), summary(positions=500)).routing_excused


# --- outcomes and gates


def test_worst_outcome() -> None:
    assert Outcome.worst([]) is Outcome.PASS
    assert Outcome.worst([Outcome.PASS, Outcome.INCONCLUSIVE]) is Outcome.INCONCLUSIVE
    assert Outcome.worst([Outcome.INCONCLUSIVE, Outcome.FAIL, Outcome.PASS]) is Outcome.FAIL


def test_gate_is_a_sentence() -> None:
    texts = [
        str(Gate(figure="mean KL", value=0.0123456, limit=0.01, outcome=outcome, low=0, high=1))
        for outcome in (Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE)
    ]
    texts += [str(Gate(figure="prompts", value=7, limit=2000, outcome=Outcome.INCONCLUSIVE))]
    assert texts == [
        "mean KL 0.0123 is within the limit of 0.01",
        "mean KL 0.0123 is beyond the limit of 0.01",
        "mean KL 0.0123 is too close to the limit of 0.01",
        "prompts 7 is too little, 2000 is the least",
    ]


def test_a_mean_that_is_no_number_does_not_pass() -> None:
    assert judged(summary(mean=math.nan)).outcome is not Outcome.PASS
    assert judged(summary(mean=math.inf)).outcome is Outcome.FAIL
