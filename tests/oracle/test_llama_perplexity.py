"""Our figures are those that `llama-perplexity --kl-divergence` of llama.cpp prints for the same logits."""

import re
from pathlib import Path

import numpy as np
import pytest

from gptoss_convert.verify.metrics import position_figures, summarise
from tests.support.recordings import log_softmax, prompt_set, recording

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "llama-perplexity.npz"
STORED = 16 / 65535 / 2
"""llama.cpp stores log-probabilities of the base as 16-bit numbers over 16 nats: they are off by half a step."""


@pytest.fixture(scope="module")
def printed():
    """Numbers by label, as text; what stands before `±`, and after it as `± label`."""
    with np.load(GOLDEN) as golden:
        text = str(golden["printed"])
    numbers = {}
    for label, value, error in re.findall(r"^ *(\S.*?) *: +(-?[\d.]+)(?: ± +([\d.]+))?", text, re.MULTILINE):
        numbers[label] = value
        if error:
            numbers[f"± {label}"] = error
    return numbers


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    with np.load(GOLDEN) as golden:
        tokens, step = golden["tokens"], golden["step"]
        base, test = (log_softmax(golden[name] * step) for name in ("base", "test"))
    chunks, context, vocabulary = base.shape
    folder = tmp_path_factory.mktemp("golden")
    sides = [
        recording(folder / name, [context] * chunks, values.reshape(-1, vocabulary))
        for name, values in (("base", base), ("test", test))
    ]
    figures = position_figures(*sides, prompt_set(tokens))
    return summarise(figures, (figures.place >= context // 2) & (figures.place < context - 1))


def agrees(found, printed, error=STORED):
    """Whether a number is the printed one, give or take an error and the digits that are not printed."""
    unprinted = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    assert found == pytest.approx(float(printed), rel=0, abs=error + unprinted)
    return True


def test_divergence(summary, printed):
    divergence = summary.divergence
    assert agrees(divergence.mean.mean, printed["Mean    KLD"])
    assert agrees(divergence.median, printed["Median  KLD"])
    assert agrees(divergence.p90, printed["90.0%   KLD"])
    assert agrees(divergence.p99, printed["99.0%   KLD"])
    assert agrees(divergence.p99_9, printed["99.9%   KLD"])
    assert agrees(divergence.largest, printed["Maximum KLD"])


def test_interval_over_prompts_is_as_wide_as_the_standard_error_says(summary, printed):
    mean = summary.divergence.mean
    assert (mean.high - mean.low) / (2 * 1.96) == pytest.approx(float(printed["± Mean    KLD"]), rel=0.5)


def test_perplexity(summary, printed):
    tokens = summary.next_tokens
    assert tokens.positions == summary.positions == 8 * 19
    assert agrees(tokens.test_perplexity, printed["Mean PPL(Q)"], error=1e-5)  # not stored: float32 arithmetic only
    assert agrees(
        tokens.reference_perplexity, printed["Mean PPL(base)"], error=STORED * tokens.reference_perplexity
    )
    assert agrees(tokens.log_ratio, printed["Mean ln(PPL(Q)/PPL(base))"])
    assert agrees(tokens.log_ratio_error, printed["± Mean ln(PPL(Q)/PPL(base))"])


def test_probability_of_the_next_token(summary, printed):
    tokens = summary.next_tokens
    assert agrees(100 * tokens.mean_change, printed["Mean    Δp"], error=100 * STORED)
    assert agrees(100 * tokens.rms_change, printed["RMS Δp"], error=100 * STORED)


def test_same_top_token(summary, printed):
    assert agrees(100 * summary.top.same.mean, printed["Same top p"], error=0)
