"""A graph that hands out the weights of a model and computes nothing."""

import math
from collections.abc import Mapping
from dataclasses import replace

from onnx import ModelProto, TensorProto, helper

from gptoss_convert.checkpoint import ModelConfig, Role, inventory
from gptoss_convert.encodings import ENCODINGS
from gptoss_convert.formats.onnx.data_types import data_types_of, row_items
from gptoss_convert.formats.onnx.graph.options import GraphOptions
from gptoss_convert.formats.onnx.weights import Graph, Initialiser, Layout, Weight

BUILDER = f"{__name__}:build"
ENCODING_OF_EXPERTS = {"mxfp4": "mxfp4", "int8": "int8-block", "int4": "int4-block", "f16": "f16"}


def build(config: ModelConfig, options: GraphOptions) -> Graph:
    """Experts as asked for, everything else in the type of the activations."""
    experts = ENCODING_OF_EXPERTS[options.experts]
    return build_with(
        config,
        {
            name: experts if spec.role is Role.EXPERTS else options.activations
            for name, spec in inventory(config).items()
        },
    )


def in_row_pairs(graph: Graph) -> Graph:
    """The same graph with experts as onnxruntime's CUDA provider takes them."""
    weights = {}
    for name, weight in graph.weights.items():
        pairs = weight.encoding.name == "mxfp4"
        weights[name] = replace(weight, layout=Layout.ROW_PAIRS) if pairs else weight
    return replace(graph, weights=weights)


def build_in_row_pairs(config: ModelConfig, options: GraphOptions) -> Graph:
    return in_row_pairs(build(config, options))


def build_with(config: ModelConfig, encodings: Mapping[str, str]) -> Graph:
    weights: dict[str, Weight] = {}
    for name, spec in inventory(config).items():
        encoding = ENCODINGS[encodings[name]]
        parts = []
        for part in encoding.parts:
            items = row_items(part, encoding, spec.shape[-1])
            suffix = "" if len(encoding.parts) == 1 else f".{part.name}"
            data_type = data_types_of(encoding, part)[0]
            dims = (*spec.shape[:-1], items)
            parts.append(
                Initialiser(
                    name=name + suffix,
                    data_type=data_type,
                    dims=dims,
                    nbytes=math.prod(dims) * part.dtype.itemsize,
                )
            )
        weights[name] = Weight(tensor=name, encoding=encoding, initialisers=tuple(parts))
    model = _model([item for weight in weights.values() for item in weight.initialisers])
    return Graph(model=model, weights=weights)


def _model(initialisers: list[Initialiser]) -> ModelProto:
    tensors, nodes, outputs = [], [], []
    for item in initialisers:
        tensors.append(
            TensorProto(
                name=item.name, data_type=item.data_type, dims=item.dims, data_location=TensorProto.EXTERNAL
            )
        )
        nodes.append(helper.make_node("Identity", [item.name], [f"{item.name}:out"]))
        outputs.append(helper.make_tensor_value_info(f"{item.name}:out", item.data_type, item.dims))
    graph = helper.make_graph(nodes, "weights", [], outputs, initializer=tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
