"""Writes the nodes of a graph, and of the branches of its conditions.

A value is known by its name. Names are made from what is being built, so that messages of a runtime tell the place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from gptoss_convert.encodings import Array, Encoding
from gptoss_convert.formats.onnx.weights import Graph, Initialiser, Weight

OPSET = 20
"""`If` changed in opset 21, whose version DirectML has no kernel for; a branch would run on the processor."""
IR_VERSION = 10
PRODUCER = "gptoss-convert"

_TYPES = {
    np.dtype("u1"): TensorProto.UINT8,
    np.dtype("<u2"): TensorProto.BFLOAT16,
    np.dtype("<f2"): TensorProto.FLOAT16,
    np.dtype("<f4"): TensorProto.FLOAT,
}
"""Types of initialisers by those of the parts of encodings; numpy has no bfloat16, whose bits are uint16 there."""


class GraphWriter:
    """A graph, or a branch, that nodes are added to; a branch sees the values of the graph around it.

    Constants of a branch are its own: DirectML hands an initialiser to the one partition that uses it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._place = [name] if name else []
        self._nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initialisers: list[TensorProto] = []
        self.tables: dict[str, Array] = {}
        """Constants that lie outside of the ONNX file, by name."""
        self._used: Counter[str] = Counter()

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Name what is added in this context after `part` of the graph."""
        self._place.append(part)
        try:
            yield
        finally:
            self._place.pop()

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node of one output, and return its name: `output` if it has one outside of the graph."""
        [value] = self._add(kind, inputs, [output or self._new(kind)], attributes)
        return value

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node of several outputs, and return their names."""
        return self._add(kind, inputs, [self._new(kind) for _ in range(outputs)], attributes)

    def constant(self, array: Array) -> str:
        """Return the name of a constant; equal ones are stored once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._new("constant")
            self._initialisers.append(numpy_helper.from_array(np.asarray(array, order="C"), self._constants[key]))
        return self._constants[key]

    def table(self, name: str, array: Array) -> str:
        """Return the name of a constant of many numbers, which is stored beside the weights; not in a branch."""
        name = "/".join([*self._place, name])
        self.tables[name] = array
        self._initialisers.append(declared_outside(name, _TYPES[array.dtype], array.shape))
        return name

    def integers(self, *values: int) -> str:
        """Return the name of a constant int64 vector: axes, a shape, indices."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """Return the name of a constant float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def branch(self, name: str) -> GraphWriter:
        """Return a writer for a branch of a condition that will be added here."""
        return GraphWriter("/".join([*self._place, name]))

    def choose(self, condition: str, then: tuple[GraphWriter, str], otherwise: tuple[GraphWriter, str]) -> str:
        """Add an `If` whose two branches each give one value of float32."""
        return self.op(
            "If",
            condition,
            then_branch=then[0].as_graph([], [_float_output(then[1])]),
            else_branch=otherwise[0].as_graph([], [_float_output(otherwise[1])]),
        )

    def as_graph(
        self,
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
        weights: Sequence[TensorProto] = (),
    ) -> GraphProto:
        """Return what was written."""
        initialisers = [*self._initialisers, *weights]
        return helper.make_graph(self._nodes, self.name or PRODUCER, inputs, outputs, initialisers)

    def _add(
        self, kind: str, inputs: Sequence[str], outputs: list[str], attributes: Mapping[str, Any]
    ) -> list[str]:
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))
        return outputs

    def _new(self, kind: str) -> str:
        stem = "/".join([*self._place, kind])
        self._used[stem] += 1
        return f"{stem}_{self._used[stem]}"


def declared_outside(name: str, data_type: int, dims: Sequence[int]) -> TensorProto:
    """Return an initialiser whose numbers lie in a file of external data; the writer says where."""
    proto = TensorProto(name=name, data_type=data_type, data_location=TensorProto.EXTERNAL)
    proto.dims.extend(dims)
    return proto


class WeightDeclarations:
    """The initialisers of a graph whose numbers are in the checkpoint."""

    def __init__(self) -> None:
        self.weights: dict[str, Weight] = {}
        self._protos: list[TensorProto] = []

    def plain(self, tensor: str, encoding: Encoding, dims: Sequence[int]) -> str:
        """Declare a canonical tensor in an encoding of one part, seen as `dims`; return its initialiser's name."""
        [name] = self.parts(tensor, encoding, {tensor: dims})
        return name

    def parts(self, tensor: str, encoding: Encoding, dims: Mapping[str, Sequence[int]]) -> list[str]:
        """Declare a canonical tensor: for each part of its encoding the initialiser's name and dimensions."""
        initialisers = []
        for part, (name, shape) in zip(encoding.parts, dims.items(), strict=True):
            shape = tuple(shape)
            nbytes = part.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            initialisers.append(Initialiser(name=name, data_type=_TYPES[part.dtype], dims=shape, nbytes=nbytes))
            self._protos.append(declared_outside(name, _TYPES[part.dtype], shape))
        self.weights[tensor] = Weight(tensor=tensor, encoding=encoding, initialisers=tuple(initialisers))
        return [item.name for item in initialisers]

    def graph(
        self,
        writer: GraphWriter,
        order: Iterable[str],
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
    ) -> Graph:
        """Return the finished graph of standard operators, its weights in the `order` of their canonical names."""
        model: ModelProto = helper.make_model(
            writer.as_graph(inputs, outputs, self._protos),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name=PRODUCER,
        )
        weights = {name: self.weights[name] for name in order}
        return Graph(model=model, weights=weights, tables=writer.tables)


def _float_output(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None])
