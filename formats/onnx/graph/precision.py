"""Types within a graph: those of the activations, and float32 for what must not be less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from gptoss_convert.encodings import Encoding, encoding
from gptoss_convert.formats.onnx.graph.builder import GraphWriter


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The type that matrices are multiplied in.

    The hidden state between layers, norms, rotation, softmax, routing, biases and the sum over experts are float32
    whatever this type is: hidden states of gpt-oss grow beyond the largest float16, and routing flips on ties.
    """

    encoding: Encoding
    """Of matrices of which the checkpoint has no blocks."""
    data_type: int
    """`onnx.TensorProto.DataType`."""
    dtype: np.dtype[Any]
    headroom: float
    """What the output of experts is divided by while it has this type; a power of two, so that it is exact."""

    def narrow(self, writer: GraphWriter, value: str) -> str:
        """Return float32 `value` in this type."""
        return value if self.data_type == TensorProto.FLOAT else writer.op("Cast", value, to=self.data_type)

    def widen(self, writer: GraphWriter, value: str) -> str:
        """Return `value` of this type in float32."""
        return value if self.data_type == TensorProto.FLOAT else writer.op("Cast", value, to=TensorProto.FLOAT)


PRECISIONS = {
    "f32": Precision(
        encoding=encoding("f32"), data_type=TensorProto.FLOAT, dtype=np.dtype(np.float32), headroom=1.0
    ),
    "f16": Precision(
        encoding=encoding("f16"), data_type=TensorProto.FLOAT16, dtype=np.dtype(np.float16), headroom=16.0
    ),
}
"""By the name of the activations in `GraphOptions`."""
EXACT = encoding("f32")
"""Encoding of norms, biases, sinks and the router."""
