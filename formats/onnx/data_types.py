"""Types of ONNX tensors, and which of them the parts of an encoding may have.

Source: `TensorProto.DataType` in onnx.proto, and the section on packed four-bit types there. Numbers are named here
so that files can be read without the library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gptoss_convert.encodings import Encoding, Part

FLOAT, UINT8, FLOAT16, BFLOAT16 = 1, 2, 10, 16
UINT4, FLOAT4E2M1, FLOAT8E8M0 = 21, 23, 24

_BITS = {FLOAT: 32, UINT8: 8, FLOAT16: 16, BFLOAT16: 16, UINT4: 4, FLOAT4E2M1: 4, FLOAT8E8M0: 8}
_ALLOWED = {
    ("f32", "values"): (FLOAT,),
    ("f16", "values"): (FLOAT16,),
    ("bf16", "values"): (BFLOAT16,),
    ("mxfp4", "codes"): (UINT8, FLOAT4E2M1),
    ("mxfp4", "scales"): (UINT8, FLOAT8E8M0),
    ("int8-block", "values"): (UINT8,),
    ("int8-block", "scales"): (FLOAT,),
    ("int4-block", "codes"): (UINT8, UINT4),
    ("int4-block", "scales"): (FLOAT,),
}
ENCODING_NAMES = tuple(dict.fromkeys(encoding for encoding, _ in _ALLOWED))
"""Encodings that a graph can hold."""


def data_types_of(encoding: Encoding, part: Part) -> tuple[int, ...]:
    """Return the types in which `part` of `encoding` may be declared; none if a graph cannot hold it."""
    return _ALLOWED.get((encoding.name, part.name), ())


def stored_nbytes(data_type: int, dims: Sequence[int]) -> int:
    """Return the bytes of an array of one of the types that `data_types_of` returns."""
    return -(-math.prod(dims) * _BITS[data_type] // 8)


def row_items(part: Part, encoding: Encoding, columns: int) -> int:
    """Return the items of `part` in a row of `columns` elements."""
    return columns // encoding.block * part.per_block
