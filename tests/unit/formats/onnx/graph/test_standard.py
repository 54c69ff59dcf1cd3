"""The graph is sound by ONNX's rules, small, and asks for the checkpoint's tensors; DirectML has what it uses."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, defs, shape_inference

from gptoss_convert.checkpoint import ModelConfig, Role, alternating_layers, inventory
from gptoss_convert.errors import OptionError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.graph.options import GraphOptions
from gptoss_convert.formats.onnx.graph.standard import build_standard_graph
from gptoss_convert.formats.onnx.weights import Graph
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.conversions import TINY
from tests.support.onnx_models import Model, write_model

OPTIONS = [
    GraphOptions(activations=activations, experts=experts)
    for activations in ("f32", "f16")
    for experts in ("mxfp4", "int8", "f16")
]
DIRECTML = """
Add-14 And-7 Cast-19 Clip-13 Concat-13 CumSum-14 Div-14 Equal-19 Expand-13 Gather-13 Gemm-13 Greater-13
If-19 LessOrEqual-16 MatMul-13 Mul-14 ReduceMean-18 ReduceSum-13 Reshape-19 Shape-19 Sigmoid-13 Slice-13 Softmax-13
Split-18 Sqrt-13 Squeeze-13 Sub-14 TopK-11 Transpose-13 Unsqueeze-13 Where-16"""
"""Operators that DirectML has a kernel for, in the versions of opset 20 (onnxruntime, docs/OperatorKernels.md)."""
INDICES = {TensorProto.INT32, TensorProto.INT64}
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return open_checkpoint(TINY).config


@pytest.fixture(params=OPTIONS, ids=lambda options: f"{options.activations}-{options.experts}", scope="module")
def written(request: Any, config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, Path]:
    graph = build_standard_graph(config, request.param)
    return graph, write_model(graph, open_checkpoint(TINY), tmp_path_factory.mktemp("graph"))


def published(layers: int = 24, experts: int = 32) -> ModelConfig:
    return replace(
        open_checkpoint(TINY).config,
        num_hidden_layers=layers,
        layer_types=alternating_layers(layers),
        hidden_size=2880,
        intermediate_size=2880,
        num_local_experts=experts,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=201088,
    )


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def inferred(path: Path) -> ModelProto:
    found = path.with_name("inferred.onnx")
    shape_inference.infer_shapes_path(str(path), str(found), check_type=True, strict_mode=True, data_prop=True)
    return onnx.load(found, load_external_data=False)


def test_graph_is_sound(written: tuple[Graph, Path]) -> None:
    graph, path = written
    onnx.checker.check_model(str(path), full_check=True)
    names = [item.name for part in graphs(graph.model.graph) for item in (*part.initializer, *part.node)]
    assert len(set(names)) == len(names)


def test_directml_has_every_operator(written: tuple[Graph, Path]) -> None:
    model = inferred(written[1])
    [opset] = model.opset_import
    assert (opset.domain, opset.version, model.ir_version) == ("", 20, 10)
    types: dict[str, int] = {}
    for part in graphs(model.graph):
        types |= {item.name: item.data_type for item in part.initializer}
        values = [*part.input, *part.output, *part.value_info]
        types |= {value.name: value.type.tensor_type.elem_type for value in values}
        assert all(len(value.type.tensor_type.shape.dim) <= 4 for value in values)
    nodes = [node for part in graphs(model.graph) for node in part.node]
    assert {f"{node.op_type}-{defs.get_schema(node.op_type, 20).since_version}" for node in nodes} <= set(
        DIRECTML.split()
    )
    for node in nodes:
        assert not node.domain
        first = types[node.input[0]]
        match node.op_type:
            case "MatMul" | "Gemm" | "Softmax" | "Sigmoid" | "Sqrt" | "ReduceMean":
                assert first in FLOATS
            case "CumSum" | "TopK" | "ReduceSum":
                assert first in FLOATS | INDICES
            case "Gather":
                assert types[node.input[1]] in INDICES


def test_branches_share_no_initialiser_with_the_rest(written: tuple[Graph, Path]) -> None:
    """DirectML compiles an initialiser into the one place where it is used."""
    main = written[0].model.graph
    used = {name for node in main.node for name in node.input}
    branches = [part for part in graphs(main) if part is not main]
    inside = {name for part in branches for node in part.node for name in node.input}
    assert not {item.name for item in main.initializer} & used & inside
    for part in branches:
        assert all(len(item.raw_data) <= 64 for item in part.initializer)


def test_weights_are_the_tensors_of_a_checkpoint(written: tuple[Graph, Path], config: ModelConfig) -> None:
    graph, _ = written
    specs = inventory(config)
    assert list(graph.weights) == list(specs)
    protos = {proto.name: proto for proto in graph.model.graph.initializer}
    external = set()
    for name, weight in graph.weights.items():
        assert weight.tensor == name
        assert sum(item.nbytes for item in weight.initialisers) == weight.encoding.nbytes(specs[name].shape)
        assert len(weight.initialisers) == len(weight.encoding.parts)
        for item in weight.initialisers:
            proto = protos[item.name]
            assert (proto.data_type, tuple(proto.dims)) == (item.data_type, item.dims)
            assert proto.data_location == TensorProto.EXTERNAL
            size = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(item.data_type)).itemsize
            assert item.elements * size == item.nbytes
            external.add(item.name)
        if len(weight.encoding.parts) > 1:
            parts = [part.name for part in weight.encoding.parts]
            assert [item.name for item in weight.initialisers] == [f"{name}.{part}" for part in parts]
        else:
            assert [item.name for item in weight.initialisers] == [name]
            exact = specs[name].role not in (Role.ATTENTION, Role.EXPERTS, Role.EMBEDDING, Role.UNEMBEDDING)
            assert not exact or weight.encoding.name == "f32"
    assert external == {name for name, proto in protos.items() if proto.data_location == TensorProto.EXTERNAL}


@pytest.mark.parametrize(("layers", "experts", "limit"), [(24, 32, 2 << 20), (36, 128, 10 << 20)])
def test_graph_of_the_published_models_is_small(layers: int, experts: int, limit: int) -> None:
    config = published(layers, experts)
    model = build_standard_graph(config, GraphOptions()).model
    assert model.ByteSize() < limit
    assert max(len(item.raw_data) for item in model.graph.initializer) < 1024


def test_numbers_of_every_byte_and_scale_are_those_of_mxfp4(config: ModelConfig) -> None:
    for activations, dtype in (("f32", np.float32), ("f16", np.float16)):
        table = build_standard_graph(config, GraphOptions(activations=activations)).tables["places/number_pairs"]
        magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
        codes = np.array(magnitudes + [-value for value in magnitudes])
        codes[8] = -0.0
        byte = np.arange(256)
        scales = np.ldexp(1.0, np.arange(255) - 127)[:, None]
        with np.errstate(over="ignore"):
            expected = np.stack([codes[byte & 15] * scales, codes[byte >> 4] * scales], axis=-1).astype(dtype)
        np.testing.assert_array_equal(
            table[: 255 * 256].view(f"u{dtype().itemsize}"), expected.reshape(-1, 2).view(f"u{dtype().itemsize}")
        )
        assert np.isnan(table[255 * 256 :]).all()


@pytest.mark.parametrize(
    "options", [GraphOptions(experts="int4"), GraphOptions(windowed_cache=True)], ids=["experts", "cache"]
)
def test_what_the_graph_cannot_do_is_refused(options: GraphOptions, config: ModelConfig) -> None:
    with pytest.raises(UnsupportedError, match="standard operators"):
        build_standard_graph(config, options)


@pytest.mark.parametrize(
    "options",
    [{"experts": "nvfp4"}, {"activations": "bf16"}, {"prefill_chunk": 0}],
    ids=lambda item: next(iter(item)),
)
def test_unknown_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        GraphOptions(**options)


def test_equal_logits_choose_the_first_experts(tmp_path: Path) -> None:
    """Router and biases of zero: all tokens go to experts 0 and 1 alike, whichever branch computes them."""
    shape = Shape(layers=1, experts=6, experts_per_token=2)
    source = open_checkpoint(write_huggingface(tmp_path / "source", shape, edge_blocks=False))
    names = [f"model.layers.0.mlp.router.{part}" for part in ("weight", "bias")]
    path = write_model(build_standard_graph(source.config, GraphOptions()), source, tmp_path / "graph")
    model = onnx.load(path)
    for item in model.graph.initializer:
        if item.name in names:
            item.raw_data = bytes(len(item.raw_data))
    [chosen] = [node.output[1] for node in model.graph.node if node.op_type == "TopK"]
    model.graph.output.append(onnx.helper.make_tensor_value_info(chosen, TensorProto.INT64, None))
    onnx.save(model, tmp_path / "tied.onnx")
    graph = Model(tmp_path / "tied.onnx")
    for length in (1, 7):
        state = graph.start()
        feeds = {
            "input_ids": np.arange(length)[None],
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length)[None],
            **state.past,
        }
        [experts] = graph.session.run([chosen], feeds)
        assert experts.tolist() == [[0, 1]] * length


_LOAD = """
import json, sys
from tests.support.onnx_models import Model
import numpy as np
def private():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = private()
model = Model(sys.argv[1], **{"session.disable_prepacking": "1"})
print(json.dumps(private() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="tells private memory from mapped files by /proc")
def test_experts_are_mapped_and_not_decoded_at_load(tmp_path: Path) -> None:
    """The experts take 107 MB, 804 MB as float32."""
    shape = Shape(layers=1, hidden=1024, intermediate=1024, experts=64)
    overrides = {"max_position_embeddings": 1024}
    folder = write_huggingface(tmp_path / "source", shape, edge_blocks=False, config_overrides=overrides)
    checkpoint = open_checkpoint(folder)
    graph = build_standard_graph(checkpoint.config, GraphOptions())
    experts = [weight for weight in graph.weights.values() if weight.encoding.name == "mxfp4"]
    assert sum(item.nbytes for weight in experts for item in weight.initialisers) > 100e6
    path = write_model(graph, checkpoint, tmp_path / "graph")
    run = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            f"import sys; sys.path.append({str(Path(__file__).parents[5])!r})\n" + _LOAD,
            path,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout) < 30
