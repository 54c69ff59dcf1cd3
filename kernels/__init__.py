"""Kernels in C, for which numpy takes many passes over the memory.

`native.c` is compiled when the package is built, for the stable ABI of Python: one wheel for all versions. Where
there is no compiler, installing goes on without it, and the callers of `NATIVE` do the same work in numpy, with the
same bytes. `GPTOSS_CONVERT_KERNELS=numpy` in the environment chooses that too.
"""

from __future__ import annotations

import os
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Buffer: TypeAlias = bytes | bytearray | memoryview

VARIABLE = "GPTOSS_CONVERT_KERNELS"

Sums = tuple[float, float, float, list[float], list[float], int, int, int, int]
"""Signal, error and least error; errors by mantissa with the smaller and the larger scale; clipped values, clipped
blocks, kept blocks and odd blocks."""


class Native(Protocol):
    """The functions in C."""

    def quantise(
        self,
        values: NDArray[np.uint16] | NDArray[np.float32],
        least_raised: int,
        named: NDArray[np.uint8] | None,
        codes: NDArray[np.uint8],
        scales: NDArray[np.uint8],
        odd: NDArray[np.uint8],
        /,
    ) -> Sums | None:
        """Quantise `values` `[rows, columns]`, of whatever strides, to MXFP4; None if one is not finite.

        Args:
            values: uint16 bits of bfloat16, or float32.
            least_raised: mantissa of a block's largest number from which on it takes the larger of two scales; -1
                for the one with the least squared error.
            named: `[rows, blocks]`, C-contiguous: scales that are kept where they are as good, 255 for none.
            codes: `[rows, columns / 2]`, C-contiguous; is set.
            scales: `[rows, blocks]`, C-contiguous; is set.
            odd: `[rows, blocks]`, C-contiguous; is set to 1 for blocks that remain to be quantised.
        """

    def decode_columns(
        self,
        codes: NDArray[np.uint8],
        scales: NDArray[np.uint8],
        pairs: NDArray[np.uint32],
        stored: NDArray[np.uint16],
        /,
    ) -> bool:
        """Decode MXFP4 to the bits of bfloat16 in columns, and return whether all numbers are finite.

        Args:
            codes: `[rows, columns / 2]`, C-contiguous.
            scales: `[rows, blocks]`, C-contiguous.
            pairs: `[65536]`: two numbers for every `scale << 8 | byte`.
            stored: `[columns, rows]`, C-contiguous; is set.
        """

    def join_pairs(self, json: Buffer, /) -> bytes | None:
        r"""Return `left right\n` for each pair of a JSON array of pairs of strings, as UTF-8 if `json` is.

        None for anything else, and for strings with blanks, control characters or rare escapes.
        """

    def prefix_lengths(self, texts: Buffer, /) -> bytes:
        """Return texts, each of which ends with a zero byte, with their lengths (uint64) before them.

        Raises:
            ValueError: the last one has no end.
        """


def _load() -> Native | None:
    """Return the compiled kernels, if there are any and numpy is not asked for."""
    if os.environ.get(VARIABLE) == "numpy":
        return None
    try:
        from gptoss_convert.kernels import native
    except ImportError:
        return None
    return native


NATIVE = _load()
"""The compiled kernels, None where there are none."""
