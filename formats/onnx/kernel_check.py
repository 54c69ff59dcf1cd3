"""Whether an execution provider of onnxruntime has a kernel for every node of a graph, found without running it.

onnxruntime gives nodes without a kernel to the CPU provider, and copies what goes in and out; or, where the CPU has
none either, refuses the graph. What providers have is data (`kernels/`): a kernel is for a domain, an operator, a
range of its versions, and element types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from gptoss_convert.errors import OptionError, UnsupportedError

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

KERNEL_TABLES: Mapping[str, str] = {"directml": "directml-1.24.json", "cpu": "cpu-1.31.json"}
"""Files in `kernels/` by target. For other targets it is not known what their providers have."""

_ANY = "any"
"""Element type of what a node gives that is missed already."""
_NEUTRAL = (0, -1)
"""Values of attributes that ask for nothing."""


class Kernel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a provider has for some versions of an operator."""

    operator: str
    domain: str = ""
    first: int
    """First version of the operator that it is for."""
    last: int | None = None
    """Last version; None: no version after the first, until somebody looked at it.

    That is how onnxruntime matches kernels without an end (KernelRegistry::VerifyKernelDef).
    """
    types: dict[str, str]
    """Element types by type parameter of the operator, spaces between; a parameter that is not here is free."""
    inputs: list[str] = []
    """Type parameters of the inputs, for operators that ONNX does not define."""
    outputs: list[str] = []
    """Type parameters of the outputs, likewise."""
    ignored_inputs: list[int] = []
    """Inputs that are not looked at: a graph that uses them gets other numbers."""
    ignored_attributes: list[str] = []
    """Attributes that are not looked at, likewise."""

    def is_for(self, version: int) -> bool:
        """Return whether it matches a node of this version of the operator."""
        return version == self.first or (self.last is not None and self.first <= version <= self.last)


class KernelTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an execution provider has."""

    provider: str
    """onnxruntime's name of it."""
    release: str
    source: str
    max_rank: int | None = None
    """Most dimensions that every operator takes; None for no bound."""
    kernels: list[Kernel]

    def by_operator(self) -> dict[tuple[str, str], list[Kernel]]:
        """Return the kernels for each domain and operator."""
        found: dict[tuple[str, str], list[Kernel]] = {}
        for kernel in self.kernels:
            found.setdefault((kernel.domain, kernel.operator), []).append(kernel)
        return found


@dataclass(frozen=True, kw_only=True)
class Miss:
    """A node that the provider does not run, or not as it is meant."""

    node: str
    """Its name, after those of the nodes whose branches it is in."""
    operator: str
    """With domain and version."""
    needed: str
    available: str
    """What the provider has instead."""


def read_kernel_table(target: str) -> KernelTable:
    """Return what the execution provider of a target has.

    Raises:
        OptionError: that is not known.
    """
    if target not in KERNEL_TABLES:
        raise OptionError("no table of kernels", found=target, expected=" or ".join(KERNEL_TABLES))
    data = files("gptoss_convert.formats.onnx").joinpath("kernels", KERNEL_TABLES[target]).read_bytes()
    return msgspec.json.decode(data, type=KernelTable)


def require_kernels(model: ModelProto, table: KernelTable) -> None:
    """Raise `UnsupportedError` for the first node that the provider does not run, and count the others."""
    misses = check_kernels(model, table)
    if misses:
        first = misses[0]
        more = f", nor {len(misses) - 1} others" if len(misses) > 1 else ""
        raise UnsupportedError(
            f"{table.provider} of {table.release} does not run node {first.node}{more}",
            found=f"{first.operator} with {first.needed}",
            expected=first.available,
        )


def check_kernels(model: ModelProto, table: KernelTable) -> tuple[Miss, ...]:
    """Return the nodes of a graph and its branches that the provider does not run.

    Element types and ranks are those that ONNX infers. Behind operators that ONNX does not define, element types
    follow from the type parameters, and ranks stay unknown and unchecked.
    """
    from onnx.shape_inference import infer_shapes

    opsets = {item.domain: item.version for item in model.opset_import}
    checker = _Checker(kernels=table.by_operator(), max_rank=table.max_rank, opset=opsets.get("", 1))
    return tuple(checker.misses(infer_shapes(model).graph, {}, ""))


@dataclass(frozen=True)
class _Value:
    """What is known of a value."""

    kind: str | None = None
    """Element type."""
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Parameter:
    """An input or output of a node."""

    label: str
    variable: str
    """Type parameter, or the type itself."""
    value: str
    """Name of the value."""


@dataclass(frozen=True, kw_only=True)
class _Checker:
    kernels: Mapping[tuple[str, str], Sequence[Kernel]]
    max_rank: int | None
    opset: int

    def misses(self, graph: GraphProto, outer: Mapping[str, _Value], path: str) -> Iterator[Miss]:
        values = {**outer, **_declared(graph)}
        for index, node in enumerate(graph.node):
            name = path + (node.name or f"#{index}")
            for attribute in node.attribute:
                for branch in _graphs(attribute):
                    yield from self.misses(branch, values, f"{name}/{attribute.name}/")
            if (node.domain, node.op_type) != ("", "Constant"):  # onnxruntime turns them into initialisers
                yield from self._misses_of(node, name, values)

    def _misses_of(self, node: NodeProto, name: str, values: dict[str, _Value]) -> Iterator[Miss]:
        """Yield what is missing for a node, and add to `values` what is known of its outputs."""
        schema = _schema(node, self.opset)
        version = 1 if schema is None else schema.since_version
        kernels = self.kernels.get((node.domain, node.op_type), ())
        matching = [kernel for kernel in kernels if kernel.is_for(version)]
        outline = Miss(
            node=name, operator=f"{node.domain or 'ai.onnx'}.{node.op_type}-{version}", needed="", available=""
        )
        if not kernels:
            yield replace(outline, needed="any inputs", available="another operator")
        elif not matching:
            versions = " or ".join(str(item.first) for item in kernels)
            yield replace(outline, needed=f"version {version}", available=f"version {versions}")
        inputs, outputs = _parameters(node, schema, matching)
        if matching:
            _bind_outputs(inputs, outputs, values, schema)
            yield from self._misfits(outline, node, matching, [*inputs, *outputs], values)
        else:
            for value in node.output:
                known = values.get(value, _Value())
                values[value] = replace(known, kind=known.kind or _ANY)

    def _misfits(
        self,
        outline: Miss,
        node: NodeProto,
        kernels: Sequence[Kernel],
        parameters: Sequence[_Parameter],
        values: Mapping[str, _Value],
    ) -> Iterator[Miss]:
        unfit = [_unfit(kernel, parameters, values) for kernel in kernels]
        if all(unfit):
            label, kind, _ = unfit[0][0]
            allowed = " or ".join(dict.fromkeys(kinds for (_, _, kinds), *_ in unfit))
            yield replace(outline, needed=f"{label} of type {kind}", available=allowed)
        ignored = [_ignored(kernel, node) for kernel in kernels]
        if all(ignored):
            yield replace(outline, needed=", ".join(ignored[0]), available="a kernel that does not look at it")
        most = self.max_rank
        for parameter in parameters:
            rank = values.get(parameter.value, _Value()).rank
            if most is not None and rank is not None and rank > most:
                yield replace(
                    outline, needed=f"{parameter.label} of {rank} dimensions", available=f"up to {most} dimensions"
                )
                break


def _schema(node: NodeProto, opset: int) -> Any:
    """Return ONNX's definition of an operator; None if it has none."""
    from onnx import defs

    if node.domain or not defs.has(node.op_type):
        return None
    return defs.get_schema(node.op_type, max_inclusive_version=opset)


def _parameters(
    node: NodeProto, schema: Any, kernels: Sequence[Kernel]
) -> tuple[list[_Parameter], list[_Parameter]]:
    if schema is not None:
        sides = ([item.type_str for item in schema.inputs], [item.type_str for item in schema.outputs])
    elif kernels:
        sides = (kernels[0].inputs, kernels[0].outputs)
    else:
        sides = ([], [])
    return (_side("input", node.input, sides[0]), _side("output", node.output, sides[1]))


def _side(label: str, values: Sequence[str], variables: Sequence[str]) -> list[_Parameter]:
    """Return what stands on one side of a node; the last parameter may stand for any number of values."""
    return [
        _Parameter(label=f"{label} {value}", variable=variables[min(index, len(variables) - 1)], value=value)
        for index, value in enumerate(values)
        if value and variables
    ]


def _bind_outputs(
    inputs: Sequence[_Parameter], outputs: Sequence[_Parameter], values: dict[str, _Value], schema: Any
) -> None:
    """Give outputs without a known type that of an input with the same parameter, or the only one there is."""
    bound = {item.variable: values.get(item.value, _Value()).kind for item in reversed(inputs)}
    if schema is not None:
        for constraint in schema.type_constraints:
            if len(constraint.allowed_type_strs) == 1:
                bound.setdefault(constraint.type_param_str, _element_type(constraint.allowed_type_strs[0]))
    for item in outputs:
        known = values.get(item.value, _Value())
        if known.kind is None:
            values[item.value] = replace(known, kind=bound.get(item.variable) or _element_type(item.variable))


def _element_type(text: str) -> str | None:
    return text[len("tensor(") : -1] if text.startswith("tensor(") else None


def _unfit(
    kernel: Kernel, parameters: Sequence[_Parameter], values: Mapping[str, _Value]
) -> list[tuple[str, str, str]]:
    """Return label, type, and types that the kernel takes, of each parameter that has another type."""
    found = []
    for item in parameters:
        if item.variable in kernel.types:
            kind = values.get(item.value, _Value()).kind
            if kind != _ANY and kind not in kernel.types[item.variable].split():
                found.append((item.label, kind or "unknown", kernel.types[item.variable]))
    return found


def _ignored(kernel: Kernel, node: NodeProto) -> list[str]:
    """Return the inputs and attributes that a node uses and the kernel does not look at."""
    from onnx.helper import get_attribute_value

    inputs = [f"input {node.input[i]}" for i in kernel.ignored_inputs if i < len(node.input) and node.input[i]]
    attributes = [
        f"attribute {item.name}"
        for item in node.attribute
        if item.name in kernel.ignored_attributes and get_attribute_value(item) not in _NEUTRAL
    ]
    return inputs + attributes


def _declared(graph: GraphProto) -> dict[str, _Value]:
    """Return what a graph says of its values."""
    from onnx import TensorProto

    def name(code: int) -> str | None:
        return TensorProto.DataType.Name(code).lower() if code else None

    values: dict[str, _Value] = {}
    for item in (*graph.input, *graph.value_info, *graph.output):
        tensor = item.type.tensor_type
        rank = len(tensor.shape.dim) if tensor.HasField("shape") else None
        values[item.name] = _Value(name(tensor.elem_type), rank)
    for initialiser in graph.initializer:
        values[initialiser.name] = _Value(name(initialiser.data_type), len(initialiser.dims))
    return values


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
