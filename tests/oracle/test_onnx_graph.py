"""The graph of standard operators computes what transformers computes in float32."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.graph.options import GraphOptions
from gptoss_convert.formats.onnx.graph.standard import build_standard_graph
from gptoss_convert.verify.runners.reference import RUNNER
from tests.peers import metrics, transformers_model
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.memory import InMemory
from tests.support.onnx_models import Model, write_model
from tests.support.runs import run

DEMO = Path(__file__).parents[2] / "demo" / "tiny-gpt-oss"
HELD_OUT = np.load(Path(__file__).parents[1] / "data" / "heldout_ids.npy").ravel()
LENGTH = 220
"""Positions of a prompt: the window of 128 is crossed."""
RANDOM = {
    # Few of the experts are chosen, and the last group of them is not full.
    "unequal": Shape(layers=3, hidden=96, intermediate=160, experts=6, experts_per_token=2, sliding_window=64),
    # Every query head has a key head of its own, and every token goes to all experts.
    "ungrouped": Shape(hidden=128, intermediate=64, experts=4, heads=2, kv_heads=2, head_dim=64),
}
CASES = ["trained", *RANDOM]
CUTS: dict[str, Sequence[int]] = {
    "at once": (),
    "in chunks": (64, 128, 192),
    "token by token after a prompt": range(180, LENGTH),
    "token by token": range(1, 40),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a checkpoint."""
    place = tmp_path_factory.mktemp("checkpoints")

    def path(case: str) -> Path:
        if case == "trained":
            return DEMO
        if not (place / case).exists():
            write_huggingface(place / case, RANDOM[case], fill="gauss", edge_blocks=False)
        return place / case

    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, folder: Callable[[str], Path]) -> Callable[..., Model]:
    """The graph of a checkpoint, loaded."""
    place = tmp_path_factory.mktemp("graphs")
    loaded: dict[str, Model] = {}

    def load(case: str, **options: Any) -> Model:
        key = "-".join([case, *options.values()])
        if key not in loaded:
            checkpoint = open_checkpoint(folder(case))
            graph = build_standard_graph(checkpoint.config, GraphOptions(**options))
            loaded[key] = Model(write_model(graph, checkpoint, place / key))
        return loaded[key]

    return load


def prompt(case: str, length: int = LENGTH, seed: int = 0) -> list[int]:
    if case == "trained":
        ids = HELD_OUT[seed * LENGTH :][:length]
    else:
        ids = np.random.default_rng(seed).integers(0, RANDOM[case].vocab, length)
    tokens: list[int] = ids.tolist()
    return tokens


def expected(path: Path, ids: Sequence[int]) -> NDArray[np.float64]:
    """Logits [positions, vocab] of transformers."""
    with torch.inference_mode():
        logits: NDArray[np.float64] = reference(path)(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    return logits


def reference(path: Path, _loaded: dict[Path, Any] = {}) -> Any:  # noqa: B006 - each is loaded once
    if path not in _loaded:
        _loaded[path] = transformers_model.load(path, "float32")
    return _loaded[path]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(
    case: str, cuts: str, folder: Callable[[str], Path], model: Callable[..., Model]
) -> None:
    ids = prompt(case)
    found = model(case).logits(ids, CUTS[cuts])
    np.testing.assert_allclose(found, expected(folder(case), ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_padded_batch_is_that_of_transformers(
    case: str, folder: Callable[[str], Path], model: Callable[..., Model]
) -> None:
    long, short = prompt(case, 150), prompt(case, 90, seed=1)
    padding = len(long) - len(short)
    ids = np.array([long, [0] * padding + short])
    mask = np.array([[1] * len(long), [0] * padding + [1] * len(short)])
    graph = model(case)
    first, state = graph.step(ids[:, :140], graph.start(2), mask[:, :140])
    rest = []
    for position in range(140, 150):
        logits, state = graph.step(ids[:, position : position + 1], state)
        rest.append(logits)
    found = np.concatenate([first, *rest], axis=1)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0], expected(folder(case), long), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[1, padding:], expected(folder(case), short), rtol=0, atol=1e-4)


@pytest.mark.parametrize("experts", ["mxfp4", "int8", "f16"])
@pytest.mark.parametrize("case", ["trained", "ungrouped"])
def test_half_precision_is_close(
    case: str, experts: str, folder: Callable[[str], Path], model: Callable[..., Model]
) -> None:
    ids = prompt(case)
    graph = model(case, activations="f16", experts=experts)
    (scores,) = run(RUNNER, folder(case), [ids])
    clear = scores.margins.min(axis=1) > 1e-3  # elsewhere, rounding chooses between two experts
    assert clear.mean() > 0.95
    for cuts in ("at once", "token by token after a prompt"):
        require_close(graph.logits(ids, CUTS[cuts])[clear], expected(folder(case), ids)[clear])


@pytest.mark.parametrize("experts", ["int8", "f16"])
def test_wider_experts_lose_nothing(
    experts: str, folder: Callable[[str], Path], model: Callable[..., Model]
) -> None:
    ids = prompt("trained")
    for cuts in ("at once", "token by token"):
        found = model("trained", experts=experts).logits(ids, CUTS[cuts])
        np.testing.assert_allclose(found, expected(folder("trained"), ids), rtol=0, atol=1e-4)


def test_hidden_states_beyond_float16_are_held(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    """The attention of the first layer adds 3e5 to one channel, and its experts add as much to another."""
    peer = transformers_model.load(folder("ungrouped"), "float32")
    layer = peer.model.layers[0]
    checkpoint = open_checkpoint(folder("ungrouped"))
    prefix = "model.layers.0."
    bias = checkpoint.tensors[f"{prefix}self_attn.o_proj.bias"]
    (bits,) = bias.read(0, bias.rows)
    bits[0, 3] = 0x4892  # 299008
    opening = checkpoint.tensors[f"{prefix}mlp.experts.gate_up_proj_bias"]
    down = checkpoint.tensors[f"{prefix}mlp.experts.down_proj"]
    codes, scales = down.read(0, down.rows)
    scales[5 :: down.shape[1]] += 12
    opened = np.full((opening.rows, opening.columns), 0x4248, np.uint16)  # 50
    planted = {
        tensor.name: dataclasses.replace(tensor, storage=InMemory(parts))
        for tensor, parts in ((bias, (bits,)), (opening, (opened,)), (down, (codes, scales)))
    }
    checkpoint = dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, **planted})
    states = []
    peer.model.layers[1].register_forward_pre_hook(lambda layer, inputs: states.append(inputs[0]))
    with torch.inference_mode():
        layer.self_attn.o_proj.bias[3] = 299008
        layer.mlp.experts.gate_up_proj_bias[:] = 50
        layer.mlp.experts.down_proj[:, :, 5] *= 2.0**12
        truth = peer(input_ids=torch.tensor([prompt("ungrouped")])).logits[0].double().numpy()
    assert states[0][..., 3].min() > 2e5
    assert 1e5 < states[0][..., 5].abs().max() < 1e6

    graph = build_standard_graph(checkpoint.config, GraphOptions(activations="f16"))
    path = write_model(graph, checkpoint, tmp_path)
    require_close(Model(path).logits(prompt("ungrouped")), truth)
    for length in (1, 3):
        require_close(rounded_logits(path, prompt("ungrouped", length)), truth[:length])


def test_rounding_after_every_operator_is_close(tmp_path: Path) -> None:
    ids = prompt("trained", 12)
    checkpoint = open_checkpoint(DEMO)
    path = write_model(
        build_standard_graph(checkpoint.config, GraphOptions(activations="f16")), checkpoint, tmp_path
    )
    require_close(rounded_logits(path, ids), expected(DEMO, ids))


def rounded_logits(path: Path, ids: Sequence[int]) -> NDArray[np.float64]:
    """Return logits [positions, vocab] by the standard's reference, which rounds what a graph has in float16.

    onnxruntime's kernels for processors leave out conversions from float32 and back.
    """
    inputs = onnx.load(path, load_external_data=False).graph.input
    shapes = {item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in inputs}
    past = {
        name: np.zeros((1, shape[1], 0, shape[3]), np.float16)
        for name, shape in shapes.items()
        if name.startswith("past")
    }
    feeds = {
        "input_ids": np.array([ids]),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids))[None],
    }
    [logits] = ReferenceEvaluator(str(path)).run(["logits"], {**feeds, **past})
    found: NDArray[np.float64] = logits[0].astype(np.float64)
    return found


def require_close(found: NDArray[np.float64], truth: NDArray[np.float64]) -> None:
    """Require what float16 can keep of logits [positions, vocab]."""
    assert np.isfinite(found).all()
    assert metrics.kl_divergence(log_softmax(truth), log_softmax(found)).max() < 1e-4
    second, best = np.sort(truth)[:, -2:].T
    clear = best - second > 0.05
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(found.argmax(-1)[clear], truth.argmax(-1)[clear])


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    normalised: NDArray[np.float64] = torch.from_numpy(logits).log_softmax(-1).numpy()
    return normalised
