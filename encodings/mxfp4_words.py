"""Codes of MXFP4 four to a 16-bit word, the lowest element in the lowest nibble: the unit that kernels work on.

In memory a little-endian word is two bytes of codes as `encodings.mxfp4_format` has them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.mxfp4_format import BLOCK

CODES_PER_WORD = 4
WORDS_PER_BLOCK = BLOCK // CODES_PER_WORD

Bits16 = NDArray[np.uint16]


def pack_words(words: Bits16, nibbles: Bits16, scratch: Bits16) -> None:
    """Set `words` `[n, lanes]` to four rows each of `nibbles` `[4 * n, lanes]`, the first row lowest.

    `scratch` is an array of the shape of `words`.
    """
    np.left_shift(nibbles[3::4], 12, out=words)
    for position in (2, 1):
        np.left_shift(nibbles[position::4], 4 * position, out=scratch)
        words |= scratch
    words |= nibbles[0::4]


def pack_upper_nibbles(words: Bits16, nibbles: Bits16, scratch: Bits16) -> None:
    """Do the same with nibbles that are the upper four bits of a word each, all other bits being 0."""
    np.right_shift(nibbles[0::4], 12, out=words)
    for position in (1, 2):
        np.right_shift(nibbles[position::4], 12 - 4 * position, out=scratch)
        words |= scratch
    words |= nibbles[3::4]
