"""Runners tell what the programs that they run compute, at every position of every prompt."""

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert.errors import OptionError
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runners import transformers as transformers_runner
from gptoss_convert.verify.runners.launch import Run, Status, run_in_child
from gptoss_convert.verify.runners.llama_cpp import RUNNER as LLAMA_CPP
from gptoss_convert.verify.runners.protocol import Scores, Settings
from tests.peers import llama_cpp_runtime, metrics, onnxruntime_genai_builder, transformers_model
from tests.support import runners
from tests.support.checkpoints import write_huggingface
from tests.support.conversions import TINY, to_gguf
from tests.support.layouts import Shape

IDS = np.load(Path(__file__).parents[1] / "data" / "heldout_ids.npy").ravel().tolist()
VOCAB = 3584
LONG = IDS[:160]
"""Longer than the attention window."""
SHORT = IDS[40:70]
FLOAT32_STEP = 2e-6
"""Distance of the float32 numbers about 16, the size of large log-probabilities."""

Runs = Callable[..., Run]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Run a runtime on a model and some prompts in a child."""

    def run(runtime: str, artifact: Path, *prompts: list[int], module: str | None = None) -> Run:
        how = RUNTIMES[runtime]
        folder = tmp_path_factory.mktemp("run")
        return run_in_child(
            replace(how, module=module or how.module), artifact, prompts, folder, Settings(threads=1)
        )

    return run


@pytest.fixture(autouse=True)
def _runners_on_the_path_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(runners.__file__).parent), prepend=os.pathsep)


def logprobs(run: Run) -> np.ndarray:
    """What a completed run recorded, whole distributions."""
    assert (run.status, run.reason) == (Status.COMPLETED, None), run.log_tail
    recording = run.recording()
    assert recording.is_whole
    return recording.distributions(0, recording.positions).logprobs


# transformers


@pytest.fixture(scope="module")
def by_transformers(runs: Runs) -> Run:
    return runs("transformers", TINY, LONG, SHORT)


def test_transformers_runner_tells_what_transformers_computes(by_transformers: Run) -> None:
    expected = [transformers_model.next_token_logprobs(TINY, ids) for ids in (LONG, SHORT)]
    np.testing.assert_allclose(logprobs(by_transformers), np.concatenate(expected), rtol=0, atol=FLOAT32_STEP)
    assert by_transformers.versions.keys() == {"transformers", "torch"}
    assert by_transformers.memory is not None
    assert 100e6 < by_transformers.memory.resident < 3e9


def test_transformers_runner_tells_which_experts_the_routers_choose(by_transformers: Run) -> None:
    model = transformers_model.load(TINY, "float32")
    routing, margins = routed(model, LONG, SHORT)
    recording = by_transformers.recording()
    np.testing.assert_array_equal(recording.routing(), routing)
    np.testing.assert_allclose(recording.router_margins(), margins, rtol=0, atol=1e-5)


def routed(model: Any, *prompts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Chosen experts, [positions, layers, 4], and margins, by the router logits that transformers returns."""
    import torch

    with torch.inference_mode():
        outputs = [model(input_ids=torch.tensor([ids]), output_router_logits=True) for ids in prompts]
        logits = torch.cat([torch.stack(output.router_logits, dim=1) for output in outputs])
    values, indices = logits.sort(dim=-1, descending=True)
    return indices[..., :4].numpy(), (values[..., 3] - values[..., 4]).numpy()


def in_this_process(**settings: Any) -> list[Scores]:
    with transformers_runner.RUNNER.open(TINY, Settings(**settings)) as session:
        return list(session.run([SHORT]))


def test_transformers_runner_computes_logits_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    [whole] = in_this_process(dtype="float64")  # in which sums of another order differ too little to be seen
    monkeypatch.setattr(transformers_runner, "BLOCK_BYTES", 8 * VOCAB * 7)
    blocks = in_this_process(dtype="float64")
    assert [(block.start, len(block.logprobs)) for block in blocks] == [(0, 7), (7, 7), (14, 7), (21, 7), (28, 2)]
    for name in ("logprobs", "routing", "router_margins"):
        joined = np.concatenate([getattr(block, name) for block in blocks])
        np.testing.assert_allclose(joined, getattr(whole, name), rtol=0, atol=FLOAT32_STEP)


def test_transformers_runner_computes_in_the_type_that_is_asked_for() -> None:
    expected = transformers_model.next_token_logprobs(TINY, SHORT)
    distance = {
        dtype: metrics.kl_divergence(expected, in_this_process(dtype=dtype)[0].logprobs).mean()
        for dtype in ("bfloat16", "float32", "float64")
    }
    assert 1e-5 < distance["bfloat16"] < 1e-2
    assert abs(distance["float32"]) < 1e-7
    assert abs(distance["float64"]) < 1e-7
    with pytest.raises(OptionError, match="found float8, expected float32 or bfloat16 or float64"):
        in_this_process(dtype="float8")


def test_transformers_runner_needs_memory_for_its_parameters() -> None:
    parameters = transformers_model.load(TINY, "float32").num_parameters()
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        needed = transformers_runner.RUNNER.memory_needed(TINY, Settings(dtype=dtype))
        assert size * parameters < needed < 1.2 * size * parameters


def test_transformers_runner_refuses_a_folder_that_transformers_completes_with_random_numbers(
    runs: Runs, tmp_path: Path
) -> None:
    shape = Shape(layers=1)
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    run = runs("transformers", write_huggingface(tmp_path, shape, config_overrides=layers), [1, 2])
    assert run.status == Status.REFUSED
    assert run.reason is not None
    assert "transformers does not load all of it: missing keys" in run.reason
    assert "model.layers.1." in run.reason


# llama.cpp


@pytest.fixture(scope="module")
def exact_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_gguf(TINY, tmp_path_factory.mktemp("gguf") / "f32.gguf", dense="f32", experts="f32")


@pytest.fixture(scope="module")
def peer_logprobs(exact_file: Path) -> np.ndarray:
    return llama_cpp_runtime.next_token_logprobs(exact_file, SHORT, vocab=VOCAB)


def test_llama_cpp_runner_tells_what_llama_cpp_computes(
    runs: Runs, exact_file: Path, peer_logprobs: np.ndarray
) -> None:
    run = runs("llama.cpp", exact_file, SHORT[:3], SHORT, module="by_server")
    np.testing.assert_allclose(logprobs(run)[3:], peer_logprobs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(logprobs(run)[:3], peer_logprobs[:3], rtol=0, atol=1e-4)
    assert run.versions.keys() == {"xllamacpp"}


def test_llama_cpp_runner_tells_the_likeliest_tokens_of_a_large_vocabulary(
    runs: Runs, exact_file: Path, peer_logprobs: np.ndarray
) -> None:
    run = runs("llama.cpp", exact_file, SHORT[:5], module="by_server_likeliest")
    assert run.status == Status.COMPLETED, run.log_tail
    found = run.recording().distributions(0, 5)
    assert found.tokens is not None
    assert found.tokens.shape == (5, 50)
    order = np.argsort(-peer_logprobs[:5], axis=1)[:, :50]
    np.testing.assert_array_equal(found.tokens, order)
    np.testing.assert_allclose(
        found.logprobs, np.take_along_axis(peer_logprobs[:5], order, axis=1), rtol=0, atol=1e-3
    )


def test_llama_cpp_runner_takes_the_first_shard_of_a_split_file(runs: Runs, tmp_path: Path) -> None:
    first = to_gguf(TINY, tmp_path / "model.gguf", split_max_size=2_000_000)
    assert "-00001-of-" in first.name
    whole = to_gguf(TINY, tmp_path / "whole.gguf")
    ids = SHORT[:4]
    np.testing.assert_array_equal(logprobs(runs("llama.cpp", first, ids)), logprobs(runs("llama.cpp", whole, ids)))


def test_llama_cpp_runner_needs_memory_for_its_files_and_its_cache(exact_file: Path, tmp_path: Path) -> None:
    first = to_gguf(TINY, tmp_path / "model.gguf", split_max_size=2_000_000)
    shards = sum(path.stat().st_size for path in tmp_path.iterdir())
    cache = 4096 * 2 * 4 * 2 * 64 * 4  # positions, keys and values, layers, heads, head size, bytes
    needed = [LLAMA_CPP.memory_needed(path, Settings()) for path in (exact_file, first)]
    assert needed[0] - exact_file.stat().st_size == needed[1] - shards > cache


def test_truncated_file_is_refused(runs: Runs, exact_file: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.gguf"
    part.write_bytes(exact_file.read_bytes()[:-1000])
    run = runs("llama.cpp", part, SHORT)
    assert run.status == Status.REFUSED
    assert run.reason is not None
    assert str(part) in run.reason


def test_file_that_llama_cpp_refuses_is_refused(runs: Runs, exact_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    data = exact_file.read_bytes()
    assert data.count(b"gpt-4o") == 1
    other.write_bytes(data.replace(b"gpt-4o", b"gpt-9x"))
    run = runs("llama.cpp", other, SHORT)
    assert run.status == Status.REFUSED
    assert run.reason is not None
    assert "llama.cpp does not load it" in run.reason
    assert "unknown pre-tokenizer type: 'gpt-9x'" in run.log_tail


if find_spec("llama_cpp") is not None:  # not among the packages of the tests, for it takes minutes to compile

    def test_llama_cpp_python_is_preferred_and_tells_routing_too(runs: Runs, exact_file: Path) -> None:
        run = runs("llama.cpp", exact_file, LONG, SHORT)
        expected = [transformers_model.next_token_logprobs(TINY, ids, rope_truncate=True) for ids in (LONG, SHORT)]
        np.testing.assert_allclose(logprobs(run), np.concatenate(expected), rtol=0, atol=1e-3)
        assert run.versions.keys() == {"llama-cpp-python"}
        model = transformers_model.load(TINY, "float32", rope_truncate=True)
        routing, margins = routed(model, LONG, SHORT)
        found = run.recording()
        agree = (found.routing() == routing).all(axis=-1)
        assert agree.mean() > 0.99
        np.testing.assert_allclose(found.router_margins(), margins, rtol=0, atol=1e-3)


# onnxruntime


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as onnxruntime-genai's own tool makes it: float32, caches of sliding layers for a window."""
    return onnxruntime_genai_builder.build(TINY, tmp_path_factory.mktemp("onnx") / "model")


@pytest.fixture(scope="module")
def in_float32() -> np.ndarray:
    return np.concatenate([transformers_model.next_token_logprobs(TINY, ids) for ids in (LONG, SHORT)])


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-genai"])
def test_onnx_runners_tell_what_onnxruntime_computes(
    runs: Runs, graph: Path, in_float32: np.ndarray, runtime: str
) -> None:
    run = runs(runtime, graph, LONG, SHORT)
    np.testing.assert_allclose(logprobs(run), in_float32, rtol=0, atol=5e-5)
    assert metrics.kl_divergence(in_float32, logprobs(run)).mean() < 1e-10
    assert run.versions[runtime]


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-genai"])
def test_damaged_graph_is_refused(runs: Runs, graph: Path, tmp_path: Path, runtime: str) -> None:
    (tmp_path / "genai_config.json").write_bytes((graph / "genai_config.json").read_bytes())
    (tmp_path / "model.onnx").write_bytes((graph / "model.onnx").read_bytes()[:1000])
    run = runs(runtime, tmp_path, SHORT)
    assert run.status == Status.REFUSED
    assert run.reason is not None
    assert f"{runtime} does not load it" in run.reason


def test_execution_provider_of_onnxruntime_genai_can_be_chosen(graph: Path, tmp_path: Path) -> None:
    runtime = RUNTIMES["onnxruntime-genai"]
    chosen = {
        provider: run_in_child(runtime, graph, [SHORT], tmp_path / provider, Settings(provider=provider))
        for provider in ("CPUExecutionProvider", "dml", "NoneSuchExecutionProvider")
    }
    assert chosen["CPUExecutionProvider"].status == Status.COMPLETED
    assert chosen["CPUExecutionProvider"].provider == "CPU"
    assert chosen["dml"].status == Status.REFUSED
    assert "has not been built with DML support" in str(chosen["dml"].reason)
    assert chosen["NoneSuchExecutionProvider"].status == Status.REFUSED
    assert "NoneSuch" in str(chosen["NoneSuchExecutionProvider"].reason)
