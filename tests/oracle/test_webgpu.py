"""Graphs run on onnxruntime's WebGPU provider, by the runner that `verify` uses, and give what the CPU gives."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_onnx import OnnxOptions, plan_onnx
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runners.launch import Run, Status, run_in_child
from gptoss_convert.verify.runners.protocol import Settings
from tests.peers import transformers_model, webgpu
from tests.support.conversions import TINY

CHUNK = 8
"""Positions of the model that are computed at once: SwiftShader is slow."""
CPU = "CPUExecutionProvider"
PROMPTS = [list(range(1, 90)), [9, 2]]
"""One of them longer than what is computed at once."""

TOY = """
    <ir_version: 10, opset_import: ["" : 20]>
    agraph (int64[1, n] input_ids, float[1, 1, past, 64] past_key_0,
            float[1, 1, past, 64] past_value_0)
        => (float[1, n, 96] logits, float[1, 1, total, 64] present_key_0, float[1, 1, total, 64] present_value_0)
    <int64[1] heads = {1}, int64[1] positions = {2}, int64[3] blocks = {96, 2, 32}, int64[2] matrix = {96, 64},
     int64 second = {1}, int64 zero = {0}>
    {
        hidden = Gather(embedding, input_ids)
        key = Unsqueeze(hidden, heads)
        present_key_0 = Concat<axis = 2>(past_key_0, key)
        present_value_0 = Concat<axis = 2>(past_value_0, key)
        mean = ReduceMean<keepdims = 0>(present_value_0, positions)
        mixed = Add(hidden, mean)
        size = Shape(input_ids)
        length = Gather(size, second)
        nothing = Mul(length, zero)
        rows = Add(order, nothing)
        picked = Gather(codes, rows)
        bytes = Cast<to = 6>(picked)
        pairs = Gather(values, bytes)
        values_of_blocks = Reshape(pairs, blocks)
        scaled = Mul(values_of_blocks, scales)
        weights = Reshape(scaled, matrix)
        columns = Transpose<perm = [1, 0]>(weights)
        logits = MatMul(mixed, columns)
    }
"""
"""Embedding, a cache, and an output matrix in MXFP4, decoded at run time as graphs for GPUs do it.

Its rows are picked by numbers that depend on the input, or onnxruntime would decode it when it loads the graph.
"""
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph of the inputs and outputs of gpt-oss."""
    folder = tmp_path_factory.mktemp("toy")
    random = np.random.default_rng(0)
    model = parser.parse_model(TOY)
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name)
        for name, array in {
            "embedding": random.standard_normal((96, 64), np.float32),
            "order": np.arange(96),
            "codes": random.integers(0, 256, (96, 32), np.uint8),
            "values": np.stack([np.tile(E2M1, 16), np.repeat(E2M1, 16)], axis=1),
            "scales": np.exp2(random.integers(-4, 1, (96, 2, 1))).astype(np.float32),
        }.items()
    )
    onnx.save(model, folder / "model.onnx")
    decoder = {
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "head_size": 64,
        "inputs": {"past_key_names": "past_key_%d", "past_value_names": "past_value_%d"},
        "outputs": {"present_key_names": "present_key_%d", "present_value_names": "present_value_%d"},
    }
    config = {"model": {"vocab_size": 96, "decoder": decoder}}
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _with_webgpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children get the package with the provider."""
    for name, value in webgpu.environment().items():
        monkeypatch.setenv(name, value)


def run(folder: Path, provider: str, scratch: Path, prompts: list[list[int]] = PROMPTS) -> Run:
    settings = Settings(threads=1, provider=provider)
    return run_in_child(RUNTIMES["onnxruntime"], folder, prompts, scratch / provider, settings)


def test_runner_computes_on_webgpu_what_it_computes_on_the_cpu(toy: Path, tmp_path: Path) -> None:
    runs = [run(toy, provider, tmp_path) for provider in (CPU, webgpu.PROVIDER)]
    assert [item.status for item in runs] == [Status.COMPLETED] * 2, [item.log_tail for item in runs]
    assert [item.provider for item in runs] == [CPU, webgpu.PROVIDER]
    assert {item.versions["onnxruntime"] for item in runs} == {webgpu.VERSION}
    on_cpu, on_webgpu = (item.recording().distributions(0, 91).logprobs for item in runs)
    np.testing.assert_allclose(on_webgpu, on_cpu, rtol=0, atol=1e-4)
    assert not np.array_equal(on_webgpu, on_cpu)  # sums in another order


def test_most_nodes_are_given_to_webgpu(toy: Path) -> None:
    counts = webgpu.placements(toy / "model.onnx")
    assert counts[webgpu.PROVIDER] >= 12
    assert counts.get(CPU, 0) <= 6


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model as it is converted for DirectML; SwiftShader has no float16."""
    options = OnnxOptions(target="directml", activations="f32", prefill_chunk=CHUNK)
    plan = plan_onnx(open_checkpoint(TINY), tmp_path_factory.mktemp("onnx") / "x", options)
    execute(plan)
    return plan.output


def test_graph_for_directml_computes_the_model_on_webgpu(gpt_oss: Path, tmp_path: Path) -> None:
    """In both branches of the experts: of many tokens, and of the one that is left over."""
    ids = np.load(Path(__file__).parents[1] / "data" / "heldout_ids.npy").ravel()[: CHUNK + 1].tolist()
    done = run(gpt_oss, webgpu.PROVIDER, tmp_path, [ids])
    assert (done.status, done.provider) == (Status.COMPLETED, webgpu.PROVIDER), done.log_tail
    found = done.recording().distributions(0, len(ids)).logprobs
    np.testing.assert_allclose(found, transformers_model.next_token_logprobs(TINY, ids), rtol=0, atol=1e-4)


def test_nodes_of_the_graph_for_directml_are_given_to_webgpu(gpt_oss: Path) -> None:
    counts = webgpu.placements(gpt_oss / "model.onnx")
    assert counts[webgpu.PROVIDER] > 1000
    assert counts[CPU] < 250  # numbers of shapes
