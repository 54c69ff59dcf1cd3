"""GGUF files put together from their smallest pieces, right or wrong, without the code under test."""

import struct
from collections.abc import Sequence

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)

F32, F16, Q8_0, BF16, MXFP4 = 0, 1, 8, 30, 39
"""ggml type numbers."""


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(content: str | bytes, *, length: int | None = None) -> bytes:
    """A string; `length` lies about its size."""
    data = content.encode() if isinstance(content, str) else content
    return u64(len(data) if length is None else length) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + u32(kind) + value


def array(name: str, kind: int, count: int, items: bytes) -> bytes:
    return key(name, ARRAY, u32(kind) + u64(count) + items)


def tensor(name: str | bytes, extents: Sequence[int], kind: int = F32, offset: int = 0) -> bytes:
    """An entry of the tensor directory; `extents` begin with the row length, as ggml counts."""
    return text(name) + u32(len(extents)) + b"".join(map(u64, extents)) + u32(kind) + u64(offset)


def gguf(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; counts are those of `keys` and `tensors` unless they are to be wrong."""
    counts = u64(len(tensors) if tensor_count is None else tensor_count)
    counts += u64(len(keys) if key_count is None else key_count)
    header = magic + u32(version) + counts + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data
