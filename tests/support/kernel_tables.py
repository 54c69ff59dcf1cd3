"""What the installed onnxruntime has for the CPU; `python -m tests.support.kernel_tables` writes the table anew."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

import gptoss_convert.formats.onnx as package
from gptoss_convert.formats.onnx.kernel_check import KERNEL_TABLES, Kernel, KernelTable

NO_END = 2**31 - 1
OLDEST = 18
"""Kernels that end before this version are for graphs older than any that are written."""


def table_of_the_cpu() -> KernelTable:
    """The kernels of ai.onnx and com.microsoft that the CPU provider says it has."""
    release: str = import_module("onnxruntime").__version__
    state: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    schemas = {(item.domain, item.name): item for item in state.get_all_operator_schema()}
    kernels = []
    for item in state.get_all_opkernel_def():
        first, last = item.version_range
        if item.provider != "CPUExecutionProvider" or item.domain not in ("", "com.microsoft") or last < OLDEST:
            continue
        schema = schemas.get((item.domain, item.op_name))
        inputs, outputs = _parameters(schema, first)
        kernels.append(
            Kernel(
                operator=item.op_name,
                domain=item.domain,
                first=first,
                last=None if last == NO_END else last,
                types={name: " ".join(kinds) for name, kinds in sorted(_tensors(item.type_constraints).items())},
                inputs=inputs,
                outputs=outputs,
            )
        )
    version = ".".join(release.split(".")[:2])
    return KernelTable(
        provider="CPUExecutionProvider",
        release=f"onnxruntime {version}",
        source=f"the package onnxruntime {release} (get_all_opkernel_def)",
        kernels=sorted(
            kernels, key=lambda item: (item.domain, item.operator, -item.first, sorted(item.types.items()))
        ),
    )


def _parameters(schema: Any, first: int) -> tuple[list[str], list[str]]:
    """Type parameters of inputs and outputs, of operators that may be onnxruntime's own."""
    if schema is None or not (schema.domain or schema.since_version == first == 1):
        return [], []
    return [item.typeStr for item in schema.inputs], [item.typeStr for item in schema.outputs]


def _tensors(constraints: dict[str, list[str]]) -> dict[str, list[str]]:
    """Names of element types, of type parameters that allow tensors."""
    found = {
        name: sorted(kind[len("tensor(") : -1] for kind in kinds if kind.startswith("tensor("))
        for name, kinds in constraints.items()
    }
    return {name: kinds for name, kinds in found.items() if kinds}


def write(table: KernelTable, path: Path) -> None:
    """Write a table, a line for each kernel."""
    rows = [_without_defaults(kernel) for kernel in table.kernels]
    head = {
        key: value for key, value in msgspec.to_builtins(table).items() if key != "kernels" and value is not None
    }
    text = json.dumps(head, indent=1)[:-2] + ',\n "kernels": [\n  '
    path.write_text(text + ",\n  ".join(map(json.dumps, rows)) + "\n ]\n}\n", encoding="utf-8")


def _without_defaults(kernel: Kernel) -> dict[str, Any]:
    return {key: value for key, value in msgspec.to_builtins(kernel).items() if value not in ("", None, [])}


if __name__ == "__main__":
    write(table_of_the_cpu(), Path(package.__file__).parent / "kernels" / KERNEL_TABLES["cpu"])
