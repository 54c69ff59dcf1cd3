"""Experts for CUDA are, bit by bit, those that onnxruntime-genai's builder makes of the same checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.encodings import F16, Array
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.graph.cuda import build_cuda_graph
from gptoss_convert.formats.onnx.graph.options import GraphOptions
from gptoss_convert.formats.onnx.row_pairs import RowPairsStorage
from gptoss_convert.formats.onnx.weights import Graph
from gptoss_convert.formats.storage import FileRef, StoredArray
from tests.peers import onnxruntime_genai_builder
from tests.support.conversions import TINY
from tests.support.memory import FilesInMemory

CODES, SCALES = Path("codes"), Path("scales")
CHECKPOINT = open_checkpoint(TINY)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    folder = tmp_path_factory.mktemp("builder") / "cuda"
    onnxruntime_genai_builder.build(
        TINY, folder, precision="int4", provider="cuda", options=["moe_quant_type=mxfp4"]
    )
    return onnx.load(folder / "model.onnx")


@pytest.fixture(scope="module")
def ours() -> Graph:
    return build_cuda_graph(CHECKPOINT.config, GraphOptions(experts="mxfp4", activations="f16"))


def experts(model: ModelProto) -> Iterator[NodeProto]:
    return (node for node in model.graph.node if node.op_type == "QMoE")


def attributes(node: NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def bytes_of(graph: Graph, name: str, tensor: Tensor) -> bytes:
    """What the storage of a weight writes for one of its initialisers."""
    _, rows, columns = tensor.shape
    byte, size = np.dtype("u1"), 1 << 30
    storage = RowPairsStorage(
        StoredArray(FileRef(CODES, size), 0, byte, rows // 2),
        StoredArray(FileRef(SCALES, size), 0, byte, columns // 32),
        columns,
    )
    files = FilesInMemory()
    storage.write(files, 0, tensor.read(0, tensor.rows))
    [content] = files.runs()[CODES if name.endswith(".codes") else SCALES].values()
    return content


def test_initialisers_of_experts_are_the_same_bytes(theirs: ModelProto, ours: Graph) -> None:
    built = {item.name: item for item in theirs.graph.initializer}
    declared = {item.name: item for item in ours.model.graph.initializer}
    tensors = {item.name: weight.tensor for weight in ours.weights.values() for item in weight.initialisers}
    compared = 0
    for their_node, our_node in zip(experts(theirs), experts(ours.model), strict=True):
        for their_name, our_name in zip(their_node.input[2:], our_node.input[2:], strict=True):
            if not their_name:
                assert not our_name
                continue
            their, our = built[their_name], declared[our_name]
            assert (their.data_type, list(their.dims)) == (our.data_type, list(our.dims))
            if our_name not in tensors:
                content = onnx.numpy_helper.to_array(our).tobytes()
            elif our_name.endswith("_bias"):
                content = half_precision(CHECKPOINT.tensors[our_name]).tobytes()
            else:
                content = bytes_of(ours, our_name, CHECKPOINT.tensors[tensors[our_name]])
            assert their.raw_data == content
            compared += 1
    assert compared == 4 * 8  # layers; two matrices of codes, scales, biases and further scales


def half_precision(tensor: Tensor) -> Array:
    return F16().encode(tensor.encoding.decode(tensor.read(0, tensor.rows)))[0]


def test_experts_are_computed_as_the_builder_asks_for(theirs: ModelProto, ours: Graph) -> None:
    for their_node, our_node in zip(experts(theirs), experts(ours.model), strict=True):
        expected = attributes(their_node)
        assert expected.pop("use_sparse_mixer") == 0  # which is what it is anyway
        assert attributes(our_node) == expected


def test_attention_is_computed_as_the_builder_asks_for(theirs: ModelProto) -> None:
    options = GraphOptions(experts="mxfp4", activations="f16", windowed_cache=True)
    windowed = build_cuda_graph(CHECKPOINT.config, options).model
    attention = [
        [attributes(node) for node in model.graph.node if node.op_type == "GroupQueryAttention"]
        for model in (theirs, windowed)
    ]
    for expected, found in zip(*attention, strict=True):
        assert (expected.pop("softcap"), expected.pop("rotary_interleaved")) == (0, 0)
        assert found == expected


def test_rotations_are_the_same(theirs: ModelProto, ours: Graph) -> None:
    tables = {item.name: item for item in theirs.graph.initializer if item.name in ("cos_cache", "sin_cache")}
    for name, table in zip(("cos_cache", "sin_cache"), ours.tables.values(), strict=True):
        expected = onnx.numpy_helper.to_array(tables[name])
        assert table.dtype == expected.dtype == np.float16
        np.testing.assert_allclose(table, expected, rtol=0, atol=2.0**-10)
        assert (table == expected).mean() > 0.999


def test_onnxruntime_takes_all_of_it_but_lacks_the_kernel_of_the_experts(ours: Graph) -> None:
    model = ModelProto()
    model.CopyFrom(ours.model)
    sizes = {item.name: item.nbytes for weight in ours.weights.values() for item in weight.initialisers}
    sizes |= {name: table.nbytes for name, table in ours.tables.items()}
    for item in model.graph.initializer:
        if item.data_location == TensorProto.EXTERNAL:
            item.data_location = TensorProto.DEFAULT
            item.raw_data = bytes(sizes[item.name])
    with pytest.raises(NoKernel, match=r"types are incompatible.*\(tensor\(float8e8m0\)\)"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
