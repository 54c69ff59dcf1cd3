"""Writes graphs with operators that only onnxruntime has, in its domain `com.microsoft`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from onnx import GraphProto, TensorProto, ValueInfoProto, helper

from gptoss_convert.checkpoint import ModelConfig, inventory
from gptoss_convert.formats.onnx.graph.builder import IR_VERSION, PRODUCER, GraphWriter, declared_outside
from gptoss_convert.formats.onnx.weights import Graph, Weight

DOMAIN = "com.microsoft"
DOMAIN_VERSION = 1

Dims = Sequence[int | str]
"""A number for each dimension, or a name where it depends on what the graph is fed."""


class FusedWriter(GraphWriter):
    """A graph whose nodes may be of onnxruntime's domain.

    No schema in ONNX tells the type of what they give, so it is said at each of them: without it, the types of all
    that follows would be unknown, too.
    """

    def __init__(self, data_type: int) -> None:
        super().__init__("")
        self.data_type = data_type
        """`onnx.TensorProto.DataType` of the activations."""
        self._typed: list[ValueInfoProto] = []

    def fused(self, kind: str, *inputs: str, dims: Dims, further: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node of onnxruntime's domain and return the name of its first output.

        Args:
            kind: the operator.
            inputs: "" stands for an optional input that is not used.
            dims: of the first output, which has the type of the activations.
            further: names of the other outputs.
            attributes: of the node.
        """
        [value, *_] = self._add(kind, inputs, [self._new(kind), *further], {"domain": DOMAIN, **attributes})
        self._typed.append(helper.make_tensor_value_info(value, self.data_type, dims))
        return value

    def as_graph(
        self,
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
        weights: Sequence[TensorProto] = (),
    ) -> GraphProto:
        """Return what was written, with the types of values that no schema tells."""
        graph = super().as_graph(inputs, outputs, weights)
        graph.value_info.extend(self._typed)
        return graph

    def finish(
        self,
        config: ModelConfig,
        weights: Iterable[Weight],
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
        *,
        opset: int,
    ) -> Graph:
        """Return the graph of a model with all its `weights`."""
        by_name = {weight.tensor: weight for weight in weights}
        ordered = {name: by_name[name] for name in inventory(config)}
        declared = [
            declared_outside(item.name, item.data_type, item.dims)
            for weight in ordered.values()
            for item in weight.initialisers
        ]
        model = helper.make_model(
            self.as_graph(inputs, outputs, declared),
            opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
            ir_version=IR_VERSION,
            producer_name=PRODUCER,
        )
        return Graph(model=model, weights=ordered, tables=self.tables)
