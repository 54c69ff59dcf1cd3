"""The reference runner computes what transformers and OpenAI's implementation compute."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gptoss_convert.checkpoint import YarnRope
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.recoding import PLAIN
from gptoss_convert.converters.weight_folder import Carried, plan_weight_folder
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.openai_writer import lay_out_folder
from gptoss_convert.verify.forward.rope import inverse_frequencies
from gptoss_convert.verify.runners.reference import RUNNER
from tests.peers import metrics, openai_reference, transformers_model
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.conversions import TINY
from tests.support.runs import PromptScores, run

IDS = np.load(Path(__file__).parents[1] / "data" / "heldout_ids.npy").ravel().tolist()
ROUNDING, DIVERGENCE = 5e-5, 2e-11
"""What float32 leaves open in the built-in model: log-probabilities, of which OpenAI's implementation and
transformers differ by 2e-5 and 1e-12 nats, and as much again."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, threads wait for each other, and these models are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def require_equal(
    found: PromptScores, expected: np.ndarray, *, rounding: float = ROUNDING, divergence: float = DIVERGENCE
) -> None:
    assert np.abs(found.normalised - expected).max() < rounding
    assert metrics.kl_divergence(expected, found.normalised).max() < divergence
    assert metrics.top1_agreement(expected, found.normalised) == 1


# --- the built-in model


def test_trained_model_in_float32_is_that_of_transformers() -> None:
    (found,) = run(RUNNER, TINY, [IDS[:400]])
    require_equal(found, transformers_model.next_token_logprobs(TINY, IDS[:400]))


def test_every_choice_of_experts_is_that_of_transformers() -> None:
    (found,) = run(RUNNER, TINY, [IDS[:400]])
    np.testing.assert_array_equal(found.routing, transformers_model.chosen_experts(TINY, IDS[:400]))


def test_several_prompts_are_those_of_transformers() -> None:
    prompts = [IDS[:150], IDS[150:155], IDS[155:455]]
    for prompt, found in zip(prompts, run(RUNNER, TINY, prompts), strict=True):
        require_equal(found, transformers_model.next_token_logprobs(TINY, prompt))


def test_float64_is_as_close_to_transformers() -> None:
    (found,) = run(RUNNER, TINY, [IDS[:400]], dtype="float64")
    require_equal(found, transformers_model.next_token_logprobs(TINY, IDS[:400]))


def test_positions_beyond_the_original_context_are_those_of_transformers() -> None:
    """After so many positions either implementation in float32 is up to 1e-4 and 4e-10 nats off float64."""
    ids = (IDS + IDS)[:4200]
    (found,) = run(RUNNER, TINY, [ids])
    require_equal(found, transformers_model.next_token_logprobs(TINY, ids), rounding=1e-4, divergence=1e-9)


def test_imitation_of_llama_cpp_is_the_model_with_a_rounded_range() -> None:
    (found,) = run(RUNNER, TINY, [IDS[:400]], imitates="llama.cpp")
    require_equal(found, transformers_model.next_token_logprobs(TINY, IDS[:400], rope_truncate=True))
    true_model = transformers_model.next_token_logprobs(TINY, IDS[:400])
    assert metrics.kl_divergence(true_model, found.normalised).max() > 1e6 * DIVERGENCE


# --- models of other shapes


SHAPES = {
    "odd sizes": Shape(
        layers=4, hidden=96, intermediate=160, experts=6, experts_per_token=3, heads=6, sliding_window=16
    ),
    "one expert of many": Shape(layers=2, experts=16, experts_per_token=1, heads=2, kv_heads=2, sliding_window=1),
    "a head for each key": Shape(layers=3, hidden=32, intermediate=320, heads=8, kv_heads=8, head_dim=16),
    "all heads on one key": Shape(layers=3, hidden=320, intermediate=64, heads=8, kv_heads=1, head_dim=64),
}


@dataclass(frozen=True)
class Case:
    """A random model and a prompt."""

    shape: Shape
    overrides: dict[str, object] = dataclasses.field(default_factory=dict)


def yarn(**changes: object) -> dict[str, object]:
    published = {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    }
    return {"rope_scaling": published | changes}


ODD = SHAPES["odd sizes"]
CASES = {name: Case(shape) for name, shape in SHAPES.items()} | {
    "context of 100": Case(ODD, yarn(original_max_position_embeddings=100) | {"initial_context_length": 100}),
    "factor of 4": Case(ODD, yarn(factor=4.0, beta_fast=16.0)),
    "rounded range": Case(ODD, yarn(truncate=True)),
    "no layer slides": Case(ODD, {"layer_types": ["full_attention"] * 4}),
    "last layers slide": Case(ODD, {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 2}),
    "tight limit": Case(ODD, {"swiglu_limit": 0.5}),
    "large epsilon": Case(ODD, {"rms_norm_eps": 0.1}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_random_model_is_that_of_transformers(case: Case, tmp_path: Path) -> None:
    model = write_huggingface(
        tmp_path, case.shape, edge_blocks=False, fill="gauss", config_overrides=case.overrides
    )
    ids = np.random.default_rng(0).integers(0, case.shape.vocab, 260).tolist()
    (found,) = run(RUNNER, model, [ids])
    require_equal(found, transformers_model.next_token_logprobs(model, ids))
    np.testing.assert_array_equal(found.routing, transformers_model.chosen_experts(model, ids))


# --- bfloat16


@pytest.fixture(scope="module")
def tiny_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in OpenAI's layout."""
    source = open_checkpoint(TINY)
    output = tmp_path_factory.mktemp("original") / "tiny"
    weights = lay_out_folder(source.config, output, max_shard_size=None, source=TINY)
    plan = plan_weight_folder(
        source,
        output,
        weights,
        format_name="openai",
        recoding=lambda source, target: PLAIN,
        carried=Carried({}, {}, {}, ()),
        texts={},
        notes=(),
        allow_lossy_source=False,
    )
    execute(plan)
    return output


def test_trained_model_in_bfloat16_is_openais_bit_by_bit(tiny_original: Path) -> None:
    """Log-probabilities come from equal logits, but are summed up and stored by different means."""
    expected = openai_reference.next_token_logprobs(tiny_original, IDS[:400], dtype="bfloat16")
    (found,) = run(RUNNER, TINY, [IDS[:400]], dtype="bfloat16")
    np.testing.assert_array_equal(found.logprobs, expected.astype(np.float32))


@pytest.mark.parametrize("shape", [ODD, SHAPES["all heads on one key"]], ids=["odd sizes", "one key"])
def test_random_model_in_bfloat16_is_openais_bit_by_bit(shape: Shape, tmp_path: Path) -> None:
    original = write_original(tmp_path, shape, edge_blocks=False, fill="gauss")
    ids = np.random.default_rng(0).integers(0, shape.vocab, 260).tolist()
    expected = openai_reference.next_token_logprobs(original, ids, dtype="bfloat16")
    (found,) = run(RUNNER, original, [ids], dtype="bfloat16")
    np.testing.assert_array_equal(found.logprobs, expected.astype(np.float32))


def test_bfloat16_is_as_far_from_float32_as_that_of_transformers() -> None:
    (exact,) = run(RUNNER, TINY, [IDS[:400]])
    (found,) = run(RUNNER, TINY, [IDS[:400]], dtype="bfloat16")
    model = transformers_model.load(TINY, "bfloat16")
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([IDS[:400]]), use_cache=False).logits[0]
    theirs = torch.log_softmax(logits.double(), dim=-1).numpy()
    our_noise = metrics.kl_divergence(exact.normalised, found.normalised).mean()
    their_noise = metrics.kl_divergence(exact.normalised, theirs).mean()
    assert 1e-5 < our_noise < 4 * their_noise
    assert metrics.kl_divergence(theirs, found.normalised).mean() < 4 * their_noise
    assert metrics.top1_agreement(theirs, found.normalised) > 0.97


# --- rotation


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("length", [3, 40, 100, 4096, 1 << 20])
@pytest.mark.parametrize(("theta", "head_dim", "factor"), [(150_000, 64, 32), (10_000, 32, 1), (500_000, 128, 2.5)])
def test_frequencies_are_those_of_transformers_bit_by_bit(
    theta: float, head_dim: int, factor: float, length: int, truncate: bool
) -> None:
    rope = YarnRope(
        theta=theta, factor=factor, beta_fast=32, beta_slow=1, original_context_length=length, truncate=truncate
    )
    parameters = yarn(factor=factor, original_max_position_embeddings=length, truncate=truncate)["rope_scaling"]
    config = transformers.GptOssConfig(head_dim=head_dim, rope_parameters={**parameters, "rope_theta": theta})  # type: ignore[dict-item]
    expected, scaling = ROPE_INIT_FUNCTIONS["yarn"](config)
    assert torch.equal(inverse_frequencies(rope, head_dim), expected)
    assert rope.concentration == scaling
