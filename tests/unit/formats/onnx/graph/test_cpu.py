"""What the graph for the processor asks for: operators, attributes, weights; that it computes is an oracle test."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from gptoss_convert.checkpoint import ModelConfig, inventory
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.graph.cpu import build_cpu_graph
from gptoss_convert.formats.onnx.graph.options import GraphOptions
from gptoss_convert.formats.onnx.weights import Graph, Layout
from gptoss_convert.verify.forward.rope import rotation
from tests.support.checkpoints import write_huggingface
from tests.support.layouts import Shape

EXPERTS, GATE_UP, DOWN = 4, "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """Hidden 64, intermediate 96, two layers, 512 tokens."""
    folder = write_huggingface(tmp_path_factory.mktemp("model"), Shape(experts=EXPERTS))
    return replace(open_checkpoint(folder).config, max_position_embeddings=512)


def build(config: ModelConfig, experts: str = "int8", **options: Any) -> Graph:
    return build_cpu_graph(config, GraphOptions(experts=experts, activations="f32", **options))


def nodes(graph: Graph, kind: str) -> list[dict[str, Any]]:
    """Attributes of all nodes of a kind, and their inputs under "inputs"."""
    return [
        {item.name: helper.get_attribute_value(item) for item in node.attribute} | {"inputs": list(node.input)}
        for node in graph.model.graph.node
        if node.op_type == kind
    ]


@pytest.mark.parametrize("experts", ["int8", "int4"])
def test_every_tensor_of_the_model_is_a_weight(config: ModelConfig, experts: str) -> None:
    graph = build(config, experts)
    assert list(graph.weights) == list(inventory(config))
    declared = {
        item.name: (item.data_type, tuple(item.dims))
        for item in graph.model.graph.initializer
        if item.data_location == TensorProto.EXTERNAL
    }
    wanted = {
        item.name: (item.data_type, item.dims) for weight in graph.weights.values() for item in weight.initialisers
    }
    assert set(graph.tables) == {"positions/cosines", "positions/sines"}
    wanted |= {name: (TensorProto.FLOAT, table.shape) for name, table in graph.tables.items()}
    assert declared == wanted
    used = {name for node in graph.model.graph.node for name in node.input}
    assert wanted.keys() <= used


@pytest.mark.parametrize("experts", ["int8", "int4"])
def test_sizes_are_those_of_the_encoded_rows(config: ModelConfig, experts: str) -> None:
    for name, weight in build(config, experts).weights.items():
        assert weight.layout is Layout.ROWS
        shape = inventory(config)[name].shape
        assert sum(item.nbytes for item in weight.initialisers) == weight.encoding.nbytes(shape)


@pytest.mark.parametrize("windowed_cache", [False, True])
@pytest.mark.parametrize("experts", ["int8", "int4"])
def test_checker_of_onnx_accepts_it(
    config: ModelConfig, experts: str, windowed_cache: bool, tmp_path: Path
) -> None:
    model = build(config, experts, windowed_cache=windowed_cache).model
    (tmp_path / "data").write_bytes(bytes(1 << 20))
    for item in model.graph.initializer:
        if item.data_location == TensorProto.EXTERNAL:
            item.external_data.add(key="location", value="data")
    onnx.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


def test_exact_experts_are_bytes_with_scales_of_blocks(config: ModelConfig) -> None:
    graph = build(config)
    gate_up, down = graph.weights[GATE_UP], graph.weights[DOWN]
    assert (gate_up.encoding.name, down.encoding.name) == ("int8-block", "int8-block")
    assert [(item.name, item.dims) for item in (*gate_up.initialisers, *down.initialisers)] == [
        (f"{GATE_UP}.values", (EXPERTS, 192, 64)),
        (f"{GATE_UP}.scales", (EXPERTS, 192, 2)),
        (f"{DOWN}.values", (EXPERTS, 64, 96)),
        (f"{DOWN}.scales", (EXPERTS, 64, 3)),
    ]
    others = {weight.encoding.name for name, weight in graph.weights.items() if not name.endswith("_proj")}
    assert others == {"f32"}


def test_small_experts_are_nibbles_and_other_matrices_bytes(config: ModelConfig) -> None:
    graph = build(config, "int4")
    assert [(item.name, item.dims) for item in graph.weights[GATE_UP].initialisers] == [
        (f"{GATE_UP}.codes", (EXPERTS, 192, 32)),
        (f"{GATE_UP}.scales", (EXPERTS, 192, 2)),
    ]
    assert [item.dims for item in graph.weights["model.layers.0.self_attn.q_proj.weight"].initialisers] == [
        (128, 2, 32),
        (128, 2),
    ]
    assert graph.weights["lm_head.weight"].encoding.name == "int8-block"
    assert graph.weights["model.layers.0.mlp.router.weight"].encoding.name == "f32"
    products = nodes(graph, "MatMulNBits")
    assert len(products) == 2 * 4 + 1
    assert {(node["bits"], node["block_size"]) for node in products} == {(8, 32)}


def test_experts_are_computed_as_in_gpt_oss(config: ModelConfig) -> None:
    first, second = nodes(build(replace(config, swiglu_limit=5.5, num_experts_per_tok=3)), "QMoE")
    assert first["inputs"][2:] == [
        *(f"{GATE_UP}{suffix}" for suffix in (".values", ".scales", "_bias")),
        *(f"{DOWN}{suffix}" for suffix in (".values", ".scales", "_bias")),
    ]
    expected = {
        "activation_type": b"swiglu",
        "activation_alpha": pytest.approx(1.702),
        "activation_beta": 1.0,
        "swiglu_fusion": 1,
        "swiglu_limit": 5.5,
        "k": 3,
        "normalize_routing_weights": 1,
        "expert_weight_bits": 8,
        "block_size": 32,
    }
    for node in (first, second):
        assert {name: value for name, value in node.items() if name != "inputs"} == expected


@pytest.mark.parametrize("windowed_cache", [False, True])
def test_layers_slide_in_turn(config: ModelConfig, windowed_cache: bool) -> None:
    graph = build(replace(config, sliding_window=77), windowed_cache=windowed_cache)
    sliding, full = nodes(graph, "GroupQueryAttention")
    assert (sliding["local_window_size"], full["local_window_size"]) == (77, -1)
    assert ("sliding_window_cache" in sliding, "sliding_window_cache" in full) == (windowed_cache, False)
    assert sliding["scale"] == pytest.approx(32**-0.5)
    assert sliding["inputs"][-1] == "model.layers.0.self_attn.sinks"
    dims = {item.name: [d.dim_param for d in item.type.tensor_type.shape.dim] for item in graph.model.graph.input}
    first, second = (dims[f"past_key_values.{layer}.key"][2] for layer in (0, 1))
    assert (first == second) is not windowed_cache


def test_inputs_and_outputs_have_the_names_of_onnxruntime_genai(config: ModelConfig) -> None:
    graph = build(config).model.graph
    caches = [f"{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    assert [item.name for item in graph.input] == [
        "input_ids",
        "attention_mask",
        *(f"past_key_values.{cache}" for cache in caches),
    ]
    assert [item.name for item in graph.output] == ["logits", *(f"present.{cache}" for cache in caches)]


def test_the_same_model_gives_the_same_bytes(config: ModelConfig) -> None:
    first, second = (build(config).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_positions_turn_as_they_do_in_the_model(config: ModelConfig) -> None:
    graph = build(config)
    cosines, sines = nodes(graph, "GroupQueryAttention")[0]["inputs"][7:9]
    expected = rotation(config.rope, config.head_dim, 128, torch.float32)
    for name, table in zip((cosines, sines), expected, strict=True):
        assert graph.tables[name].shape[0] == 512
        np.testing.assert_allclose(graph.tables[name][:128], table.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 24}, "found head_dim 24, expected a multiple of 16"),
        ({"hidden_size": 80}, r"gate_up_proj.*found 80 columns, expected a multiple of 32"),
        ({"intermediate_size": 100}, r"down_proj.*found 100 columns, expected a multiple of 32"),
    ],
)
def test_models_that_the_operators_do_not_take_are_refused(
    config: ModelConfig, change: dict[str, int], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        build(replace(config, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("experts", "activations", "message"),
    [
        ("mxfp4", "f32", "found mxfp4, expected int8 or int4"),
        ("f16", "f32", "found f16, expected int8 or int4"),
        ("int8", "f16", "found f16, expected f32"),
    ],
)
def test_choices_without_a_graph_are_refused(
    config: ModelConfig, experts: str, activations: str, message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        build_cpu_graph(config, GraphOptions(experts=experts, activations=activations))
