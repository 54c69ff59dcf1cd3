"""What a noise floor may turn: the mean, which a few jumps make large, and not the median."""

import pytest

from gptoss_convert.verify.judgement import Judgement, Outcome, judge
from gptoss_convert.verify.metrics.summary import Divergence, Estimate, Summary, Top
from gptoss_convert.verify.policy import default_policy


def judged(mean: float, median: float, noise_floor: float | None) -> Judgement:
    divergence = Divergence(
        mean=Estimate(mean=mean, low=mean, high=mean),
        median=median, p90=median, p99=median, p99_9=median, largest=median, largest_prompt=0, largest_place=4,
    )  # fmt: skip
    every = Estimate(mean=1.0, low=1.0, high=1.0)
    summary = Summary(
        positions=3000, prompts=40, nan=0, infinite=0, coverage=1.0, bounded=False, divergence=divergence,
        top=Top(same=every, near_ties=0, same_outside_near_ties=every, overlap=1.0), next_tokens=None, centred=None,
    )  # fmt: skip
    return judge("exact-in-runtime", default_policy(), summary, None, prompt_set="full", noise_floor=noise_floor)


@pytest.mark.parametrize(
    ("mean", "median", "noise_floor", "outcome"),
    [
        (0.02, 1e-4, None, Outcome.FAIL),
        (0.02, 1e-4, 0.01, Outcome.PASS),
        (0.02, 2e-3, 0.01, Outcome.FAIL),
    ],
)
def test_noise_excuses_a_mean_and_no_median(
    mean: float, median: float, noise_floor: float | None, outcome: Outcome
) -> None:
    assert judged(mean, median, noise_floor).outcome is outcome
