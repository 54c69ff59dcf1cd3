"""Which of the equal encodings of an MXFP4 block is the canonical one.

The same values have several encodings: where all codes of a block can be doubled (no magnitude above 3), the block
with doubled codes and the scale byte one less is equal. The canonical one has the smallest scale: its largest
magnitude is 4 or 6, or its scale byte is 0. A block of zeros has the scale byte 0. So equal values mean equal
canonical bytes, and every sound quantiser returns canonical blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import Array

NOT_NAMED = 255
"""Stands for the scale of a canonical block, which its values tell."""
_LARGE = 0x4444_4444_4444_4444


def noncanonical_scales(codes: Array, scales: Array) -> NDArray[np.uint8] | None:
    """Return the scales `[rows, blocks]` of the blocks that are not canonical, 255 for the others; None if all are.

    Args:
        codes: uint8 `[rows, 16 * blocks]`, two codes a byte.
        scales: uint8 `[rows, blocks]`.
    """
    rows, blocks = scales.shape
    words = np.ascontiguousarray(codes).view("<u8").reshape(rows, blocks, 2)
    # A magnitude of 4 or 6 has both upper bits of its three set: codes 6 and 7.
    large = words & (words << np.uint64(1))
    canonical = ((large[..., 0] | large[..., 1]) & np.uint64(_LARGE)) != 0
    canonical |= scales == 0
    if canonical.all():
        return None
    return np.where(canonical, np.uint8(NOT_NAMED), scales)
