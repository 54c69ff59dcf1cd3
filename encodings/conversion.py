"""Chunks from one encoding to another: by a kernel of their own where there is one, by float32 otherwise."""

from __future__ import annotations

from collections.abc import Callable

from gptoss_convert.encodings.base import Chunk, Encoding, Order
from gptoss_convert.encodings.int8_block import int8_to_mxfp4, mxfp4_to_int8
from gptoss_convert.encodings.mxfp4_to_bf16 import decode_to_bf16

_FLOAT32_TEMPORARIES = 8
"""Arrays of float32 values that a conversion by float32 holds at once, at most."""


def _mxfp4_to_bf16(chunk: Chunk, order: Order) -> Chunk:
    codes, scales = chunk
    return (decode_to_bf16(codes, scales, order),)


def _mxfp4_to_int8(chunk: Chunk, order: Order) -> Chunk:
    return mxfp4_to_int8(chunk)


def _int8_to_mxfp4(chunk: Chunk, order: Order) -> Chunk:
    return int8_to_mxfp4(chunk)


_DIRECT: dict[tuple[str, str], Callable[[Chunk, Order], Chunk]] = {
    ("mxfp4", "bf16"): _mxfp4_to_bf16,
    ("mxfp4", "int8-block"): _mxfp4_to_int8,
    ("int8-block", "mxfp4"): _int8_to_mxfp4,
}
"""Kernels by source and target; their temporaries are bounded, however many rows they are given."""


def convert(chunk: Chunk, source: Encoding, target: Encoding, order: Order = "C") -> Chunk:
    """Return `chunk` in another encoding; the same object when the encoding stays.

    `order` is the memory order that the caller likes best; the result may have another.

    Raises:
        EncodingError: a number of `source` is not sound, or outside the range of `target`.
    """
    if source == target:
        return chunk
    direct = _DIRECT.get((source.name, target.name))
    if direct is not None:
        return direct(chunk, order)
    return target.encode(source.decode(chunk))


def temporary_bytes(source: Encoding, target: Encoding, columns: int) -> int:
    """Return an upper estimate of the memory that converting a row takes, besides the row and the result."""
    if source == target or (source.name, target.name) in _DIRECT:
        return 0
    return _FLOAT32_TEMPORARIES * 4 * columns
