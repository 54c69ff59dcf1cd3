"""Scales of blocks of integers: float32 numbers so short that every product with an integer is a float32 too."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import EncodingError, Float32

BLOCK = 32
SIGNIFICANT_BITS = 16
"""An integer of 8 bits times a scale of 16 has at most the 24 bits of a float32."""

_DROPPED = np.uint32((1 << 24 - SIGNIFICANT_BITS) - 1)
_INFINITE = 0x7F80_0000
_MAGNITUDE = 0x7FFF_FFFF
_SMALL = 1 << SIGNIFICANT_BITS
"""Subnormal numbers below this multiple of the smallest one are as short, whichever bits they have."""


def shortened(scales: Float32) -> Float32:
    """Return `scales` rounded to `SIGNIFICANT_BITS`, halves away from zero."""
    bits: NDArray[np.uint32] = np.ascontiguousarray(scales).view(np.uint32) + (
        _DROPPED + np.uint32(1)
    ) // np.uint32(2)
    bits &= ~_DROPPED
    return bits.view(np.float32)


def require_short(scales: Float32) -> None:
    """Refuse scales by which products would be rounded.

    Raises:
        EncodingError: one is not finite, or has more than `SIGNIFICANT_BITS`.
    """
    bits = np.ascontiguousarray(scales).view(np.uint32)
    if ((bits & _MAGNITUDE) >= _INFINITE).any():
        raise EncodingError("scale of a block that is not finite")
    if (((bits & _DROPPED) != 0) & ((bits & _MAGNITUDE) >= _SMALL)).any():
        raise EncodingError(f"scale of a block with more than {SIGNIFICANT_BITS} significant bits")


def products(integers: Float32, scales: Float32) -> Float32:
    """Return `integers` `[rows, columns]` times `scales` `[rows, columns / 32]`, computed in place.

    Raises:
        EncodingError: a product is beyond the largest float32 number.
    """
    rows, columns = integers.shape
    blocks = integers.reshape(rows, columns // BLOCK, BLOCK)
    with np.errstate(over="ignore"):
        blocks *= scales[..., None]
    if not np.isfinite(blocks).all():
        raise EncodingError("scale of a block with a code beyond the largest float32 number")
    return integers
