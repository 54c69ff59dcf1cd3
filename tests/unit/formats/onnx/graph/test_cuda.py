"""What the graph for CUDA asks for; it is checked, and never run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from gptoss_convert.checkpoint import ModelConfig, inventory
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.graph.cuda import build_cuda_graph
from gptoss_convert.formats.onnx.graph.options import GraphOptions
from gptoss_convert.formats.onnx.weights import Layout
from tests.support.checkpoints import write_huggingface
from tests.support.layouts import Shape

OPTIONS = GraphOptions(experts="mxfp4", activations="f16")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """Hidden 64, intermediate 96, two layers."""
    folder = write_huggingface(tmp_path_factory.mktemp("model"), Shape())
    return replace(open_checkpoint(folder).config, max_position_embeddings=512)


def test_experts_keep_their_codes_and_scales(config: ModelConfig) -> None:
    weights = build_cuda_graph(config, OPTIONS).weights
    assert list(weights) == list(inventory(config))
    for name, weight in weights.items():
        experts = name.endswith(("gate_up_proj", "down_proj"))
        assert weight.encoding.name == ("mxfp4" if experts else "f16")
        assert weight.layout is (Layout.ROW_PAIRS if experts else Layout.ROWS)
        assert sum(item.nbytes for item in weight.initialisers) == weight.encoding.nbytes(
            inventory(config)[name].shape
        )
    name = "model.layers.1.mlp.experts.gate_up_proj"
    codes, scales = weights[name].initialisers
    assert (codes.name, codes.data_type, codes.dims) == (f"{name}.codes", TensorProto.UINT8, (4, 64, 96))
    assert (scales.name, scales.data_type, scales.dims) == (f"{name}.scales", TensorProto.FLOAT8E8M0, (4, 192, 2))


def test_activations_are_float16_everywhere(config: ModelConfig) -> None:
    graph = build_cuda_graph(config, OPTIONS).model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    types = {item.name: item.type.tensor_type.elem_type for item in values}
    assert {types.pop("input_ids"), types.pop("attention_mask")} == {TensorProto.INT64}
    assert set(types.values()) == {TensorProto.FLOAT16}


def test_checker_of_onnx_accepts_it(config: ModelConfig, tmp_path: Path) -> None:
    model = build_cuda_graph(config, OPTIONS).model
    (tmp_path / "data").write_bytes(bytes(1 << 20))
    for item in model.graph.initializer:
        if item.data_location == TensorProto.EXTERNAL:
            item.external_data.add(key="location", value="data")
    onnx.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


def test_every_operator_has_a_kernel_for_cuda_in_its_version(config: ModelConfig) -> None:
    """From docs/OperatorKernels.md of onnxruntime 1.24; opset 23 asks for the kernels of these versions."""
    since = {"Add": 14, "Cast": 23, "Concat": 13, "Gather": 13, "Gemm": 13, "RMSNormalization": 23}
    since |= {"ReduceSum": 13, "Reshape": 23, "Shape": 23, "Sub": 14}
    used = {node.op_type for node in build_cuda_graph(config, OPTIONS).model.graph.node if not node.domain}
    assert used <= since.keys()
    for kind in used:
        assert onnx.defs.get_schema(kind, 23).since_version == since[kind]


def test_qmoe_is_told_a_scale_of_one_for_every_expert(config: ModelConfig) -> None:
    graph = build_cuda_graph(config, OPTIONS).model.graph
    first = next(node for node in graph.node if node.op_type == "QMoE")
    assert first.input[8:15] == [""] * 7
    assert first.input[15] == first.input[16]
    ones = next(item for item in graph.initializer if item.name == first.input[15])
    assert onnx.numpy_helper.to_array(ones).tolist() == [1.0] * 4
    attributes = {item.name: helper.get_attribute_value(item) for item in first.attribute}
    assert (attributes["quant_type"], attributes["expert_weight_bits"]) == (b"fp4", 4)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"experts": "int8"}, "experts that no graph for CUDA has: found int8, expected mxfp4"),
        ({"activations": "f32"}, "activations that no graph for CUDA has: found f32, expected f16"),
    ],
)
def test_choices_without_a_graph_are_refused(config: ModelConfig, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        build_cuda_graph(config, replace(OPTIONS, **choice))


def test_rows_that_are_no_whole_blocks_are_refused(config: ModelConfig) -> None:
    with pytest.raises(UnsupportedError, match=r"down_proj.*found 100 columns"):
        build_cuda_graph(replace(config, intermediate_size=100), OPTIONS)
