"""Chunks from one encoding to another: by a kernel of their own where there is one, by float32 otherwise."""

from __future__ import annotations

from gptoss_convert.encodings.base import Chunk, Encoding, Order

_FLOAT32_TEMPORARIES = 8
"""Arrays of float32 values that a conversion by float32 holds at once, at most."""


def convert(chunk: Chunk, source: Encoding, target: Encoding, order: Order = "C") -> Chunk:
    """Return `chunk` in another encoding; the same object when the encoding stays.

    `order` is the memory order that the caller likes best; the result may have another.

    Raises:
        EncodingError: a number of `source` is not sound, or outside the range of `target`.
    """
    if source == target:
        return chunk
    return target.encode(source.decode(chunk))


def temporary_bytes(source: Encoding, target: Encoding, columns: int) -> int:
    """Return an upper estimate of the memory that converting a row takes, besides the row and the result."""
    return 0 if source == target else _FLOAT32_TEMPORARIES * 4 * columns
