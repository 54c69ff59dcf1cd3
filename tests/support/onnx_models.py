"""Graphs with numbers from a checkpoint, in files that onnxruntime can load, and runs of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.encodings import convert
from gptoss_convert.formats.onnx.weights import Graph

_ALIGNMENT = 1 << 16
_ROWS = 4096
"""Rows that are converted at once."""
_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def write_model(graph: Graph, checkpoint: Checkpoint, folder: Path) -> Path:
    """Write model.onnx and model.onnx.data, and return the former; `graph` is given its locations."""
    put_tables_inside(graph)
    protos = {proto.name: proto for proto in graph.model.graph.initializer}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "model.onnx.data").open("wb") as file:
        for weight in graph.weights.values():
            tensor = checkpoint.tensors[weight.tensor]
            offsets = []
            for initialiser in weight.initialisers:
                offsets.append(-(-file.seek(0, 2) // _ALIGNMENT) * _ALIGNMENT)
                file.truncate(offsets[-1] + initialiser.nbytes)
                place = {"location": "model.onnx.data", "offset": offsets[-1], "length": initialiser.nbytes}
                for key, value in place.items():
                    protos[initialiser.name].external_data.add(key=key, value=str(value))
            for start in range(0, tensor.rows, _ROWS):
                chunk = tensor.read(start, min(start + _ROWS, tensor.rows))
                for index, part in enumerate(convert(chunk, tensor.encoding, weight.encoding)):
                    file.seek(offsets[index])
                    offsets[index] += file.write(np.ascontiguousarray(part).tobytes())
    path = folder / "model.onnx"
    path.write_bytes(graph.model.SerializeToString())
    return path


def put_tables_inside(graph: Graph) -> None:
    """Put the tables of a graph into the initialisers themselves."""
    for proto in graph.model.graph.initializer:
        if proto.name in graph.tables:
            proto.CopyFrom(numpy_helper.from_array(graph.tables[proto.name], proto.name))


@dataclass(frozen=True, eq=False)
class State:
    """What a run goes on from."""

    mask: NDArray[np.int64]
    """[batch, positions so far]: 0 for padding."""
    past: dict[str, NDArray[Any]]


class Model:
    """A loaded graph of GenAI's names, on the processor."""

    def __init__(self, path: Path, **settings: str) -> None:
        onnxruntime: Any = import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        for key, value in settings.items():
            options.add_session_config_entry(key, value)
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.types = {item.name: _NUMPY[item.type] for item in self.session.get_inputs()}
        self.shapes = {item.name: item.shape for item in self.session.get_inputs()}
        self.outputs = [item.name for item in self.session.get_outputs()]

    def start(self, batch: int = 1) -> State:
        past = {
            name: np.zeros((batch, shape[1], 0, shape[3]), self.types[name])
            for name, shape in self.shapes.items()
            if name.startswith("past")
        }
        return State(np.zeros((batch, 0), np.int64), past)

    def step(
        self,
        ids: NDArray[np.int64],
        state: State,
        mask: NDArray[np.int64] | None = None,
        places: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.float64], State]:
        """Return logits [batch, sequence, vocab] of `ids` [batch, sequence], and the state after them.

        `places` are their positions, which the mask tells unless they are given.
        """
        mask = np.concatenate([state.mask, np.ones_like(ids) if mask is None else mask], axis=1)
        if places is None:
            places = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
        values = dict(zip(self.outputs, self.session.run(None, {**feeds, **state.past}), strict=True))
        past = {name: values[name.replace("past_key_values", "present")] for name in state.past}
        return values["logits"].astype(np.float64), State(mask, past)

    def logits(self, ids: Sequence[int], cuts: Sequence[int] = ()) -> NDArray[np.float64]:
        """Return logits [positions, vocab] of one prompt, computed in pieces that end at `cuts`."""
        state, found = self.start(), []
        for piece in np.split(np.array([ids], np.int64), list(cuts), axis=1):
            logits, state = self.step(piece, state)
            found.append(logits[0])
        return np.concatenate(found)
