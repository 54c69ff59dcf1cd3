"""ggml's own quantisation code, called in the library that the wheel of xllamacpp brings.

Functions and signatures are those of ggml.h (`ggml_quantize_chunk`) and ggml-quants.h (`dequantize_row_*`).
"""

import ctypes
import functools
import importlib.util
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

_NAMES = {"Q2_K": "q2_K", "Q3_K": "q3_K", "Q4_K": "q4_K", "Q5_K": "q5_K", "Q6_K": "q6_K"}


def quantise(values: NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> NDArray[np.uint8]:
    """Rows [rows, columns] as llama-quantize stores them when every column is equally important."""
    rows, columns = values.shape
    values = np.ascontiguousarray(values, np.float32)
    packed = np.zeros(gguf.quant_shape_to_byte_shape((rows, columns), kind), np.uint8)
    importance = np.ones(columns, np.float32)
    _library().ggml_quantize_chunk.restype = ctypes.c_size_t
    written = _library().ggml_quantize_chunk(
        ctypes.c_int(kind),
        ctypes.c_void_p(values.ctypes.data),
        ctypes.c_void_p(packed.ctypes.data),
        ctypes.c_int64(0),
        ctypes.c_int64(rows),
        ctypes.c_int64(columns),
        ctypes.c_void_p(importance.ctypes.data),
    )
    assert written == packed.nbytes
    return packed


def dequantise(packed: NDArray[np.uint8], kind: gguf.GGMLQuantizationType) -> NDArray[np.float32]:
    """The numbers of packed rows, [rows, columns]."""
    packed = np.ascontiguousarray(packed)
    values = np.empty(gguf.quant_shape_from_byte_shape(packed.shape, kind), np.float32)
    function = getattr(_library(), f"dequantize_row_{_NAMES.get(kind.name, kind.name.lower())}")
    function.restype = None
    function(ctypes.c_void_p(packed.ctypes.data), ctypes.c_void_p(values.ctypes.data), ctypes.c_int64(values.size))
    return values


@functools.cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("xllamacpp.abi3.*")
    return ctypes.CDLL(str(path))
