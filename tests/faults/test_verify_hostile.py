"""Files, prompts and policies that should not get a pass from `verify`, nor end it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert.verify import verification
from gptoss_convert.verify.declaration import LARGEST_MANIFEST
from gptoss_convert.verify.runners import RUNTIMES
from tests.cli.command import Outcome, run_here
from tests.faults.checks import assert_one_line
from tests.support.conversions import TINY, make_checkpoint, to_gguf
from tests.support.layouts import Shape
from tests.support.planted_faults import rewrite

LAST_ROUTER_BIAS = "model.layers.3.mlp.router.bias"
SHAPE = Shape(layers=1, vocab=512)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "hf", SHAPE, edge_blocks=False, fill="gauss")


def ids_file(folder: Path, prompts: int, length: int, vocab: int) -> Path:
    rng = np.random.default_rng(1)
    lines = [json.dumps({"ids": rng.integers(0, vocab, length).tolist()}) for _ in range(prompts)]
    path = folder / "ids.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def policy_file(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(f"version = 1\n{text}", encoding="utf-8")
    return path


def changed(model: Path, folder: Path, tensor: str, index: int, value: float) -> Path:
    """Return a copy of a folder in which one BF16 number is another."""
    copy = folder / "changed"
    shutil.copytree(model, copy)

    def change(_tensor: object, chunk: tuple[np.ndarray, ...]) -> None:
        chunk[0].reshape(-1)[index] = np.float32(value).view(np.uint32) >> 16

    rewrite(copy, tensor, change)
    return copy


def verify(*arguments: str | Path) -> tuple[Outcome, dict[str, Any]]:
    outcome = run_here("verify", *arguments, "--json")
    return outcome, json.loads(outcome.stdout)


# --- what must not pass


def test_expert_that_is_never_chosen_is_not_excused_by_routing(tmp_path: Path) -> None:
    """All positions that differ have other experts, and half of them have not: an excuse, if scores were close."""
    artifact = changed(TINY, tmp_path, LAST_ROUTER_BIAS, 3, -1000.0)
    outcome, document = verify(TINY, artifact, "--logits", "--runtime", "reference")
    assert (outcome.exit_code, document["outcome"]) == (1, "fail")
    comparisons = document["artifacts"][0]["logits"][0]["comparisons"]
    comparison = next(item for item in comparisons if item["part"] == "file")
    assert comparison["judgement"]["routing_excused"] is False
    assert comparison["routing"]["steady"]["divergence"]["mean"]["mean"] < 1e-9


def test_runtime_that_never_chooses_an_expert_is_not_excused_by_routing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in a runtime of its own arithmetic, which may flip experts whose scores are close."""
    foreign = replace(RUNTIMES["reference"], name="foreign")
    monkeypatch.setitem(RUNTIMES, "foreign", foreign)
    artifact = changed(TINY, tmp_path, LAST_ROUTER_BIAS, 3, -1000.0)
    monkeypatch.setattr(verification._Examined, "is_exact", True)  # so that only the runtime can be to blame
    outcome, document = verify(TINY, artifact, "--logits", "--runtime", "foreign")
    assert (outcome.exit_code, document["artifacts"][0]["verdict"]["cause"]) == (1, "runtime")


@pytest.mark.parametrize("evidence", ["[evidence]\npositions = 0\nprompts = 0\n"])
def test_no_scored_position_proves_nothing_whatever_the_policy(evidence: str, model: Path, tmp_path: Path) -> None:
    artifact = changed(model, tmp_path, "model.norm.weight", 0, 3.0)
    prompts, policy = ids_file(tmp_path, 3, 4, SHAPE.vocab), policy_file(tmp_path, evidence)
    options = ("--logits", "--runtime", "reference", "--prompts", prompts, "--policy", policy)
    outcome, document = verify(model, artifact, *options)
    assert (outcome.exit_code, document["outcome"]) == (1, "inconclusive")


def test_reference_without_opinion_proves_nothing(model: Path, tmp_path: Path) -> None:
    """All tokens are equally likely whatever the layers compute."""
    flat = tmp_path / "flat"
    shutil.copytree(model, flat)
    rewrite(flat, "lm_head.weight", lambda _tensor, chunk: chunk[0].fill(0))
    artifact = changed(flat, tmp_path, "model.norm.weight", 0, 3.0)
    policy = policy_file(tmp_path, "[evidence]\npositions = 10\nprompts = 2\n")
    prompts = ids_file(tmp_path, 3, 12, SHAPE.vocab)
    outcome, document = verify(
        flat, artifact, "--logits", "--runtime", "reference", "--prompts", prompts, "--policy", policy
    )
    assert (outcome.exit_code, document["outcome"]) == (1, "inconclusive")
    assert "near ties" in document["artifacts"][0]["verdict"]["reason"]


def test_prompts_of_a_file_with_the_name_of_a_preset_need_the_evidence_of_files(
    model: Path, tmp_path: Path
) -> None:
    prompts = ids_file(tmp_path, 8, 40, SHAPE.vocab).rename(tmp_path / "quick")
    outcome, document = verify(model, model, "--logits", "--runtime", "reference", "--prompts", prompts)
    assert (outcome.exit_code, document["outcome"]) == (1, "inconclusive")
    assert document["prompts"]["name"] == "./quick"


def test_block_of_one_token_is_found_among_rounded_ones(tmp_path: Path) -> None:
    """The noise of the whole tensor does not show it, and no prompt has the token."""
    artifact = to_gguf(TINY, tmp_path / "model.gguf", dense="q8_0")

    def exchange(_tensor: object, chunk: tuple[np.ndarray, ...]) -> None:
        chunk[0][3000, :32] = -chunk[0][3000, :32][::-1]

    assert run_here("verify", TINY, artifact, "--weights").exit_code == 0
    rewrite(artifact, "model.embed_tokens.weight", exchange)
    outcome, document = verify(TINY, artifact, "--weights")
    assert (outcome.exit_code, document["outcome"]) == (1, "fail")
    (tensor,) = [item for item in document["artifacts"][0]["weights"]["tensors"] if not item["passed"]]
    assert tensor["name"] == "model.embed_tokens.weight"
    assert tensor["signal_to_noise"] > tensor["least_signal_to_noise"]
    assert "row 3000, column 0" in tensor["failure"]


# --- what must not end a run


def test_nan_in_one_artifact_is_its_failure_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, "foreign", replace(RUNTIMES["reference"], name="foreign"))
    artifact = changed(model, tmp_path, "model.norm.weight", 0, float("nan"))
    prompts = ids_file(tmp_path, 3, 12, SHAPE.vocab)
    outcome, document = verify(model, artifact, model, "--logits", "--runtime", "foreign", "--prompts", prompts)
    assert outcome.exit_code == 1
    wrong, right = (item["verdict"] for item in document["artifacts"])
    assert (wrong["outcome"], wrong["cause"]) == ("fail", "file")
    assert right["outcome"] == "inconclusive"  # there are few prompts


@pytest.mark.parametrize("other", [Shape(layers=2), Shape(layers=1, vocab=544), Shape(layers=1, experts=8)])
def test_model_of_another_shape_fails(other: Shape, model: Path, tmp_path: Path) -> None:
    artifact = make_checkpoint(tmp_path / "other", other, edge_blocks=False)
    prompts = ids_file(tmp_path, 2, 8, SHAPE.vocab)
    options = ("--logits", "--bisect", "--runtime", "reference", "--prompts", prompts)
    outcome, document = verify(model, artifact, *options)
    assert (outcome.exit_code, document["outcome"]) == (1, "fail"), outcome.stderr
    assert document["artifacts"][0]["bisection"] is None


def test_baseline_that_cannot_be_made_is_done_without(model: Path, tmp_path: Path) -> None:
    reference = tmp_path / "without-tokenizer"
    shutil.copytree(model, reference)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (reference / name).unlink()
    artifact = to_gguf(model, tmp_path / "model.gguf")
    prompts = ids_file(tmp_path, 1, 5, SHAPE.vocab)
    outcome, document = verify(reference, artifact, "--prompts", prompts)
    assert (outcome.exit_code, document["outcome"]) == (1, "inconclusive"), outcome.stderr


def test_manifest_that_cannot_be_read_is_the_failure_of_its_artifact_alone(model: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    shutil.copytree(model, artifact)
    (artifact / "manifest.json").write_bytes(bytes(LARGEST_MANIFEST + 1))
    outcome, document = verify(model, artifact, model, "--weights")
    assert outcome.exit_code == 1
    wrong, right = (item["verdict"] for item in document["artifacts"])
    assert (wrong["outcome"], right["outcome"]) == ("fail", "pass")
    assert "manifest.json cannot be read: file is too large" in wrong["reason"]


# --- what is refused before the weights are read


@pytest.fixture
def _no_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("gptoss_convert.verify.reference.verify_weights", refuse)


@pytest.mark.usefixtures("_no_weights_are_read")
@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        (("--runtime", "ollama"), 2, ["no such runtime", "ollama", "llama.cpp"]),
        (("--runtime", "reference", "--runtime", "ollama"), 2, ["no such runtime", "ollama"]),
        (("--runtime", "llama.cpp"), 2, ["none of the runtimes", "llama.cpp", "transformers"]),
        (("--baseline", "nowhere"), 3, ["nothing is there", "nowhere"]),
    ],
)
def test_impossible_options_are_refused_at_once(
    options: tuple[str, ...], exit_code: int, words: list[str], model: Path, tmp_path: Path
) -> None:
    prompts = ids_file(tmp_path, 1, 8, SHAPE.vocab)
    outcome = run_here("verify", model, model, "--prompts", prompts, *options)
    assert_one_line(outcome, exit_code, words, tmp_path)


@pytest.mark.usefixtures("_no_weights_are_read")
def test_search_without_torch_is_refused_at_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, "reference", replace(RUNTIMES["reference"], needs=(("no_such_module",),)))
    prompts = ids_file(tmp_path, 1, 8, SHAPE.vocab)
    outcome = run_here("verify", model, model, "--weights", "--bisect", "--prompts", prompts)
    assert_one_line(outcome, 4, ["needs torch", "pip install torch"], tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "[evidence]\npositions = " + "9" * 400,
        "[profiles.exact]\nmean_kl = " + "9" * 400,
        "[profiles.exact]\nmean_kl = inf",
        "[profiles.exact]\nmean_kl = nan",
        "[near_ties]\nmargin = inf",
        "[routing]\nfragile_margin = inf",
    ],
    ids=lambda text: text[:40],
)
def test_policy_that_is_none_is_refused(text: str, model: Path, tmp_path: Path) -> None:
    prompts, policy = ids_file(tmp_path, 1, 8, SHAPE.vocab), policy_file(tmp_path, text)
    outcome = run_here("verify", model, model, "--prompts", prompts, "--policy", policy)
    assert_one_line(outcome, 3, ["not a policy"], tmp_path)
