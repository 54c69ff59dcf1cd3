"""All of `verify` with real runtimes: sound artifacts pass, every fault is found, and the right one is blamed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.judgement import Outcome, judge
from gptoss_convert.verify.metrics.positions import position_figures
from gptoss_convert.verify.metrics.routing import summarise_by_routing
from gptoss_convert.verify.metrics.summary import summarise
from gptoss_convert.verify.policy import default_policy
from gptoss_convert.verify.prompts import load_prompts
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runners.launch import Run, Status, run_in_child
from gptoss_convert.verify.runners.protocol import Settings
from tests.cli.command import run_here
from tests.peers import onnxruntime_genai_builder
from tests.support.checkpoints import Shape
from tests.support.conversions import TINY, make_checkpoint, to_gguf
from tests.support.onnx_faults import DECODE_FAULTS, plant
from tests.support.planted_faults import DOWN, FAULTS, GATE_UP, NORM, SINKS

MAX_TOKENS = 60
"""Of each of the eight quick prompts, where the built-in policy has to find sound artifacts sound."""
QUICK = ("--max-tokens", str(MAX_TOKENS), "--threads", "1")
DECODED = 128
"""Positions of ONNX models that are also computed token by token."""
SHORT = ("--max-tokens", "30", "--threads", "1")
"""Enough to find a fault."""


def verify(reference: Path, *arguments: str | Path, exit_code: int = 0) -> list[Any]:
    """The artifacts in the JSON document of the command."""
    outcome = run_here("verify", reference, *arguments, "--json")
    artifacts: list[Any] = json.loads(outcome.stdout or "{}").get("artifacts", [])
    assert outcome.exit_code == exit_code, (outcome.stderr, [item["verdict"] for item in artifacts])
    return artifacts


def parts(artifact: Any) -> dict[str, Any]:
    """The comparisons in the one runtime of an artifact, by what lies between the runs."""
    (logits,) = artifact["logits"]
    return {item["part"]: item for item in logits["comparisons"]}


def mean_kl(comparison: Any) -> float:
    return float(comparison["summary"]["divergence"]["mean"]["mean"])


def blamed(artifact: Any) -> tuple[str, str | None]:
    return artifact["verdict"]["outcome"], artifact["verdict"]["cause"]


# --- sound artifacts, in every runtime


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file that keeps every bit: MXFP4 experts, the rest in BF16."""
    return to_gguf(TINY, tmp_path_factory.mktemp("gguf") / "model.gguf")


@pytest.fixture(scope="module")
def accepted(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of one run of the command: GGUF files in llama.cpp, a folder in transformers."""
    folder = tmp_path_factory.mktemp("accepted")
    lossy = to_gguf(TINY, folder / "q8_0.gguf", dense="q8_0")
    assert run_here("to-bf16", TINY, "-o", folder / "bf16", "-q").exit_code == 0
    artifacts = verify(TINY, sound, lossy, folder / "bf16", *QUICK)
    return dict(zip(("bf16", "q8_0", "folder"), artifacts, strict=True))


@pytest.mark.parametrize(
    ("name", "runtime", "profile"),
    [
        ("bf16", "llama.cpp", "exact"),
        ("q8_0", "llama.cpp", "lossy-8bit"),
        ("folder", "transformers", "exact"),
    ],
)
def test_sound_artifact_passes(accepted: dict[str, Any], name: str, runtime: str, profile: str) -> None:
    artifact = accepted[name]
    assert blamed(artifact) == ("pass", None)
    assert artifact["profile"] == profile
    assert [item["runtime"] for item in artifact["logits"]] == [runtime]
    for comparison in parts(artifact).values():
        assert comparison["summary"]["positions"] == 8 * (MAX_TOKENS - 4)
        assert comparison["judgement"] is None or comparison["judgement"]["outcome"] == "pass"
    (versions,) = {tuple(run["versions"]) for run in artifact["logits"][0]["runs"] if run["runtime"] == runtime}
    assert versions[0] in ("transformers", "xllamacpp", "llama-cpp-python")


def test_transformers_computes_what_the_reference_does(accepted: dict[str, Any]) -> None:
    found = parts(accepted["folder"])
    assert set(found) == {"total", "runtime", "arithmetic", "conversion"}
    assert max(mean_kl(item) for item in found.values()) < 1e-9
    assert found["total"]["routing"]["criterion"] == "experts"
    assert found["total"]["routing"]["steady_share"] == 1


def test_llama_cpp_computes_what_the_reference_does_in_its_way(accepted: dict[str, Any]) -> None:
    """The most exact file leaves nothing but the rounded YaRN range, which is small here."""
    for name in ("bf16", "q8_0"):
        found = parts(accepted[name])
        assert mean_kl(found["arithmetic"]) < 1e-8
        assert 1e-8 < mean_kl(found["departures"]) < 1e-3


def test_llama_cpp_rounds_activations_of_a_file_that_keeps_every_bit(accepted: dict[str, Any]) -> None:
    found = parts(accepted["bf16"])
    assert "file" not in found  # its weights were compared
    for part in ("total", "runtime", "conversion"):
        assert 1e-6 < mean_kl(found[part]) < 5e-3


def test_loss_of_8_bits_is_told_from_that_of_llama_cpp(accepted: dict[str, Any]) -> None:
    found = parts(accepted["q8_0"])
    assert 1e-6 < mean_kl(found["file"]) < 1e-2
    assert 1e-6 < mean_kl(found["runtime"]) < 1e-2
    assert found["file"]["judgement"]["profile"] == found["conversion"]["judgement"]["profile"] == "lossy-8bit"
    assert found["runtime"]["judgement"]["profile"] == "exact-in-runtime"


def test_onnxruntime_is_within_the_limits_of_a_runtime(tmp_path: Path) -> None:
    """A graph as a foreign builder makes it, run by a third runtime, judged by the same figures and limits."""
    graph = onnxruntime_genai_builder.build(TINY, tmp_path / "model")
    checkpoint = open_checkpoint(TINY)
    prompts = load_prompts("quick", checkpoint.tokenizer, checkpoint.config, max_tokens=MAX_TOKENS)
    ids = [prompt.ids for prompt in prompts.prompts]

    def recorded(name: str, path: Path) -> Any:
        run: Run = run_in_child(RUNTIMES[name], path, ids, tmp_path / name, Settings(threads=1))
        assert run.status is Status.COMPLETED, run.reason
        return run.recording()

    reference, test = recorded("reference", TINY), recorded("onnxruntime", graph)
    figures = position_figures(reference, test, prompts)
    policy = default_policy()
    judgement = judge(
        "exact-in-runtime", policy, summarise(figures), summarise_by_routing(figures, reference, test),
        prompt_set="quick",
    )  # fmt: skip
    assert judgement.outcome is Outcome.PASS
    assert not judgement.routing_excused
    divergence = summarise(figures).divergence
    assert divergence is not None
    assert divergence.mean.mean < 1e-9


# --- faults of the file


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the processor, exact, and two with float16, for DirectML and for CUDA."""
    folder = tmp_path_factory.mktemp("onnx")
    for target in ("cpu", "directml", "cuda"):
        assert run_here("to-onnx", TINY, "-o", folder / target, "--target", target).exit_code == 0
    return folder


def test_onnx_folder_for_the_processor_passes_in_both_runtimes(onnx: Path) -> None:
    (artifact,) = verify(TINY, onnx / "cpu")
    assert blamed(artifact) == ("pass", None)
    assert [result["runtime"] for result in artifact["logits"]] == ["onnxruntime", "onnxruntime-genai"]
    for result in artifact["logits"]:
        found = {item["part"]: item for item in result["comparisons"]}
        assert set(found) == {"total", "runtime", "decode", "cache"}
        assert max(map(mean_kl, found.values())) < 1e-9
        assert found["decode"]["summary"]["positions"] == DECODED - 4
    execution = artifact["execution"]
    assert execution["executed_on_target"] is True
    assert [(run["provider"], run["decode_positions"]) for run in execution["runs"]] == [
        ("CPUExecutionProvider", DECODED)
    ] * 2


@pytest.mark.parametrize("name", DECODE_FAULTS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-genai"])
def test_fault_on_the_cache_alone_fails_and_is_named(name: str, runtime: str, onnx: Path, tmp_path: Path) -> None:
    """All weights and all of the prefill are right; a chat would be wrong from the second token on."""
    target, fault = DECODE_FAULTS[name]
    folder = shutil.copytree(onnx / target, tmp_path / "faulty")
    plant(folder, fault)
    arguments = (folder, "--runtime", runtime, "--provider", "cpu", "--logits")
    (artifact,) = verify(TINY, *arguments, exit_code=1)
    assert blamed(artifact) == ("fail", "runtime")
    reason = (
        f"decode: token by token, {runtime} computes with the graph something else than the weights say: mean KL"
    )
    assert artifact["verdict"]["reason"].startswith(reason)
    outcomes = {part: item["judgement"]["outcome"] for part, item in parts(artifact).items()}
    assert {part for part, outcome in outcomes.items() if outcome != "pass"} == {"decode", "cache"}


def test_onnx_folder_for_directml_passes_on_the_processor(onnx: Path) -> None:
    (artifact,) = verify(TINY, onnx / "directml", "--provider", "cpu")
    assert blamed(artifact) == ("pass", None)
    assert artifact["execution"]["executed_on_target"] is False
    assert artifact["execution"]["statement"] == (
        "executed on CPUExecutionProvider (onnxruntime: prefill 897 positions, decode 128; onnxruntime-genai: "
        "prefill 897 positions, decode 128); DirectML: kernels checked statically, onnxruntime 1.24 has them all, "
        "not executed here"
    )
    for result in artifact["logits"]:
        total = next(item for item in result["comparisons"] if item["part"] == "total")
        assert mean_kl(total) < 1e-4


def test_package_without_the_provider_of_a_folder_proves_nothing(onnx: Path) -> None:
    """Nobody has DirectML on Linux; the file is not to blame."""
    (artifact,) = verify(TINY, onnx / "directml", "--runtime", "onnxruntime-genai", exit_code=1)
    assert blamed(artifact) == ("inconclusive", "evidence")
    assert "choose another provider with --provider" in artifact["verdict"]["reason"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-genai"])
def test_folder_that_only_cuda_runs_proves_nothing_without_it(runtime: str, onnx: Path) -> None:
    (artifact,) = verify(TINY, onnx / "cuda", "--runtime", runtime, "--provider", "cpu", exit_code=1)
    assert artifact["weights"]["passed"] is True
    assert artifact["execution"]["statement"] == (
        "nothing executed; CUDA: kernels not checked: no list of them is known, not executed here"
    )
    assert blamed(artifact) == ("inconclusive", "evidence")


def faulty(sound: Path, folder: Path, fault: str) -> Path:
    path = Path(shutil.copyfile(sound, folder / f"{fault.replace(' ', '-')}.gguf"))
    FAULTS[fault].plant(path)
    return path


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_fails_and_is_named(name: str, sound: Path, tmp_path: Path) -> None:
    """By the tier that sees it first; nothing has to be run."""
    fault = FAULTS[name]
    path = faulty(sound, tmp_path, name)
    (artifact,) = verify(TINY, path, *SHORT, exit_code=1)
    assert blamed(artifact) == ("fail", "file")
    assert artifact["logits"] == []
    structure, weights = artifact["structure"], artifact["weights"]
    assert structure["passed"] is (fault.tier == "weights")
    assert artifact["verdict"]["reason"] == (weights if fault.tier == "weights" else structure)["reason"]
    if fault.tier == "weights":
        assert f"tensor {fault.named} " in artifact["verdict"]["reason"]
        assert [item["name"] for item in weights["tensors"] if not item["passed"]] == [fault.named]
    else:
        assert fault.named in [check["name"] for check in structure["checks"] if check["passed"] is False]
        named = path.name if name == "cut file" else fault.named.removeprefix("tensor.")
        assert named in artifact["verdict"]["reason"]


@pytest.fixture(scope="module")
def searched(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results for faults that are sought by their distributions alone."""
    folder = tmp_path_factory.mktemp("faulty")
    paths = [faulty(sound, folder, name) for name in SEARCHED]
    arguments = (*paths, "--logits", "--bisect", "--runtime", "reference", *SHORT)
    return dict(zip(SEARCHED, verify(TINY, *arguments, exit_code=1), strict=True))


SEARCHED = {
    "norm zeroed": (1, "norm", NORM),
    "swapped experts": (1, "experts", DOWN),
    "sinks zeroed": (1, "attention", SINKS),
    "window off by one": (0, "attention", None),
    "rope factor": (0, "query", None),
    "flipped nibble": (0, "experts", GATE_UP),
}
"""Layer, stage and tensor that a bisection names."""


@pytest.mark.parametrize("name", ["norm zeroed", "swapped experts", "sinks zeroed", "rope factor"])
def test_fault_shows_in_distributions_alone(name: str, searched: dict[str, Any]) -> None:
    artifact = searched[name]
    assert blamed(artifact) == ("fail", "file")
    assert artifact["weights"] is None
    assert parts(artifact)["file"]["judgement"]["outcome"] == "fail"
    assert mean_kl(parts(artifact)["file"]) > 1e-6


@pytest.mark.parametrize("name", SEARCHED.keys() - {"window off by one"})
def test_bisection_names_layer_stage_and_tensor(name: str, searched: dict[str, Any]) -> None:
    finding = searched[name]["bisection"]["finding"]
    layer, stage, tensor = SEARCHED[name]
    assert (finding["departure"]["layer"], finding["departure"]["stage"]) == (layer, stage)
    assert finding["tensor"] == tensor
    if tensor is None:
        assert "config.rope.factor" in finding["reason"]


def test_window_does_not_show_in_prompts_that_fit_it(searched: dict[str, Any]) -> None:
    """Only the configuration tells: structure fails what distributions and stages cannot see."""
    artifact = searched["window off by one"]
    assert blamed(artifact) == ("fail", "file")
    assert "config.sliding_window is 127, not 128" in artifact["verdict"]["reason"]
    assert mean_kl(parts(artifact)["file"]) == 0
    assert artifact["bisection"]["finding"] is None


def test_single_nibble_is_what_weights_are_compared_for(
    searched: dict[str, Any], sound: Path, tmp_path: Path
) -> None:
    """It is far below what a runtime may make of a sound file; comparing numbers, it is one of all."""
    limits = default_policy().profiles["exact-in-runtime"]
    assert mean_kl(parts(searched["flipped nibble"])["file"]) < limits.mean_kl / 100
    (artifact,) = verify(TINY, faulty(sound, tmp_path, "flipped nibble"), "--weights", exit_code=1)
    assert f"tensor {GATE_UP} " in artifact["verdict"]["reason"]
    (tensor,) = (item for item in artifact["weights"]["tensors"] if not item["passed"])
    assert tensor["different"] == 1


# --- sound files whose runtime deviates


def write_prompts(path: Path, count: int) -> Path:
    """Random prompts for small models, which have no sense for better ones."""
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randint(0, 480, (28,), generator=generator).tolist() for _ in range(count)]
    path.write_text("\n".join(json.dumps({"ids": ids}) for ids in drawn), encoding="utf-8")
    return path


def write_policy(path: Path, *lines: str) -> Path:
    evidence = ("version = 1", "[evidence]", "positions = 200", "prompts = 8")
    path.write_text("\n".join([*evidence, *lines]) + "\n", encoding="utf-8")
    return path


def yarn(**changes: float) -> dict[str, Any]:
    """The key of config.json for a rotary embedding that differs from the published one."""
    published = {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    }
    return {"rope_scaling": published | changes}


def test_known_departure_of_llama_cpp_is_named_where_it_matters(tmp_path: Path) -> None:
    """In so short an original context, YaRN's range ends just above the second pair; rounded, at the third."""
    model = make_checkpoint(
        tmp_path / "model",
        Shape(),
        fill="gauss",
        edge_blocks=False,
        config_overrides=yarn(original_max_position_embeddings=14),
    )
    file = to_gguf(model, tmp_path / "model.gguf", dense="f32", experts="f32")
    policy = write_policy(tmp_path / "policy.toml")
    prompts = write_prompts(tmp_path / "prompts.jsonl", 10)
    (artifact,) = verify(model, file, "--prompts", prompts, "--policy", policy, "--threads", "1")
    assert blamed(artifact) == ("pass", "runtime")
    assert "but for its own rounded YaRN range, which alone makes mean KL" in artifact["verdict"]["reason"]
    found = parts(artifact)
    assert found["departures"]["judgement"]["outcome"] == "fail"
    assert mean_kl(found["departures"]) > 1e-2
    assert mean_kl(found["total"]) == pytest.approx(mean_kl(found["departures"]), rel=1e-3)
    assert mean_kl(found["runtime"]) < 1e-10


def coarse_activations(model: Path) -> None:
    """Let llama.cpp's 8-bit activations choose other experts at some positions, which matters much.

    One large activation in every block of 32 makes the rounding of the others coarse in the first layer, whose
    router is decisive. In the second layer, one expert is chosen and makes most of the hidden state.
    """
    weights: dict[str, torch.Tensor] = load_file(model / "model.safetensors")
    biases = weights["model.layers.0.mlp.experts.gate_up_proj_bias"]
    biases[:, 0::64] = biases[:, 1::64] = 3  # gate and up alternate
    weights["model.layers.0.mlp.router.weight"] *= 16
    weights["model.layers.1.mlp.experts.down_proj_scales"] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def test_other_experts_by_close_scores_are_named_and_pass(tmp_path: Path) -> None:
    model = make_checkpoint(
        tmp_path / "model",
        Shape(experts=8, experts_per_token=1),
        fill="gauss",
        edge_blocks=False,
        config_overrides=yarn(factor=1.0),  # in which there is no range to be rounded
    )
    coarse_activations(model)
    file = to_gguf(model, tmp_path / "model.gguf")
    policy = write_policy(
        tmp_path / "policy.toml",
        "[routing]",
        "fragile_margin = 0.15",
        "[profiles.exact-in-runtime]",
        "mean_kl = 1e-3",
        "same_top1 = 0.9",
        "noise_factor = 0.0",
    )
    prompts = write_prompts(tmp_path / "prompts.jsonl", 16)
    (artifact,) = verify(model, file, "--prompts", prompts, "--policy", policy, "--threads", "1")
    assert blamed(artifact) == ("pass", "routing")
    assert "llama.cpp agrees where the same experts are chosen; at " in artifact["verdict"]["reason"]
    found = parts(artifact)
    assert mean_kl(found["departures"]) == 0
    assert mean_kl(found["arithmetic"]) < 1e-10
    for part in ("runtime", "conversion"):
        routing = found[part]["routing"]
        assert found[part]["judgement"]["routing_excused"]
        assert mean_kl(found[part]) > 3e-3
        assert routing["steady"]["divergence"]["mean"]["high"] < 5e-4
        assert 0.6 < routing["steady_share"] < 0.9
