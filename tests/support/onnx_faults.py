"""Faults of ONNX graphs that show only where a single token is computed on the KV cache."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, helper, numpy_helper

SINGLE = "fault.single"
"""Name of the value that tells whether a single token is computed."""


def rotate_keys(graph: GraphProto) -> None:
    """Let the keys of the first layer come out of the graph one place further on than their values."""
    name = "present.0.key"
    producer = next(node for node in graph.node if name in node.output)
    producer.output[list(producer.output).index(name)] = "fault.keys"
    graph.initializer.append(numpy_helper.from_array(np.array([0, 1, 1 << 40, 2]), "fault.places"))
    places = ["fault.zero", "fault.one", "fault.end", "fault.axis"]
    rotated = helper.make_graph(
        [
            helper.make_node("Slice", ["fault.keys", "fault.one", "fault.end", "fault.axis"], ["fault.rest"]),
            helper.make_node("Slice", ["fault.keys", "fault.zero", "fault.one", "fault.axis"], ["fault.first"]),
            helper.make_node("Concat", ["fault.rest", "fault.first"], ["fault.rotated"], axis=2),
        ],
        "rotated",
        [],
        [helper.make_empty_tensor_value_info("fault.rotated")],
    )
    right = helper.make_graph(
        [helper.make_node("Identity", ["fault.keys"], ["fault.right"])],
        "right",
        [],
        [helper.make_empty_tensor_value_info("fault.right")],
    )
    graph.node.extend(
        [
            helper.make_node("Split", ["fault.places"], places, axis=0, num_outputs=4),
            *single_token(),
            helper.make_node("If", [SINGLE], [name], then_branch=rotated, else_branch=right),
        ]
    )


def narrow_window(graph: GraphProto, window: int = 128, narrow: int = 32) -> None:
    """Let sliding layers see no more than `narrow` positions of a window."""
    numbers = {item.name: item for item in graph.initializer}
    (node,) = (
        node
        for node in graph.node
        if node.op_type == "LessOrEqual"
        and node.input[1] in numbers
        and numpy_helper.to_array(numbers[node.input[1]]).ravel().tolist() == [window - 1]
    )
    graph.initializer.append(numpy_helper.from_array(np.array([narrow - 1]), "fault.narrow"))
    choice = helper.make_node("Where", [SINGLE, "fault.narrow", node.input[1]], ["fault.window"])
    node.input[1] = "fault.window"
    nodes = [*single_token(), choice, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def single_token() -> list[NodeProto]:
    """Nodes that tell whether `input_ids` [batch, positions] has one position."""
    constants = {"fault.position": np.array(1), "fault.number": np.array(1)}
    return [
        *(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
            for name, value in constants.items()
        ),
        helper.make_node("Shape", ["input_ids"], ["fault.shape"]),
        helper.make_node("Gather", ["fault.shape", "fault.position"], ["fault.count"], axis=0),
        helper.make_node("Equal", ["fault.count", "fault.number"], [SINGLE]),
    ]


DECODE_FAULTS: Mapping[str, tuple[str, Callable[[GraphProto], None]]] = {
    "keys rotated": ("cpu", rotate_keys),
    "window of 32": ("directml", narrow_window),
}
"""Target of the folder, and what is done to its graph, by name."""


def plant(folder: Path, fault: Callable[[GraphProto], None]) -> None:
    """Change the graph of a folder in place, and leave its weights alone."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    fault(model.graph)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
