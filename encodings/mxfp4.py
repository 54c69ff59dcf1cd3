"""The codec of MXFP4; `encodings.mxfp4_format` has the format."""

from __future__ import annotations

import numpy as np

from gptoss_convert.encodings.base import Array, Chunk, Encoding, EncodingError, Float32, Part, Span
from gptoss_convert.encodings.mxfp4_format import (
    BLOCK,
    CODE_VALUES,
    LARGEST_EXACT_SCALE,
    SCALE_BIAS,
    SCALE_NAN,
)
from gptoss_convert.encodings.mxfp4_quantiser import quantise

_LOOK_UP_BYTES = 256 << 10
"""Indices that are made and used at once, so that they stay in the cache."""


def _pair_values() -> Float32:
    """Return two numbers for every index `scale << 8 | byte`, `[65536, 2]`; those beyond float32 are infinite."""
    with np.errstate(over="ignore"):
        values = np.ldexp(CODE_VALUES, np.arange(256)[:, None] - SCALE_BIAS)
    byte = np.arange(256)
    return np.stack([values[:, byte & 15], values[:, byte >> 4]], axis=-1).reshape(-1, 2)


PAIR_VALUES = _pair_values()


def look_up_pairs(table: Array, codes: Array, scales: Array, out: Array) -> None:
    """Fill `out` `[rows, columns / 2]` with the item `scale << 8 | byte` of `table` for every packed byte."""
    step = max(_LOOK_UP_BYTES // max(2 * codes.shape[1], 1), 1)
    for start in range(0, len(codes), step):
        rows = slice(start, start + step)
        high = scales[rows].astype(np.uint16)
        high <<= 8
        few = codes[rows]
        index = few.reshape(*high.shape, BLOCK // 2) | high[..., None]
        # No index is out of range; "wrap" saves numpy from buffering the output.
        np.take(table, index.reshape(few.shape), out=out[rows], mode="wrap")


class MXFP4(Encoding):
    """Codec of MXFP4; parts are `codes` uint8 `[rows, columns / 2]` and `scales` uint8 `[rows, columns / 32]`."""

    name = "mxfp4"
    block = BLOCK
    parts = (Part("codes", np.dtype("u1"), BLOCK // 2), Part("scales", np.dtype("u1"), 1))
    # 6 = 110b and 3 = 11b need two bits; the smallest step is half of 2**-127.
    span = Span(precision=2, lowest_bit=-128, largest=float.fromhex("0x1.8p127"))
    least_signal_to_noise = 12.0
    largest_block_error = 0.5

    def check(self, chunk: Chunk) -> None:
        """Raise `EncodingError` for scale byte 255, which stands for NaN."""
        if (chunk[1] == SCALE_NAN).any():
            raise EncodingError("scale byte 255 (NaN) in an MXFP4 block")

    def decode(self, chunk: Chunk) -> Float32:
        """Return the values as float32 `[rows, columns]`, exact for every code; the sign of zero is kept."""
        codes, scales = chunk
        self.check(chunk)
        values = np.empty((codes.shape[0], 2 * codes.shape[1]), np.float32)
        look_up_pairs(PAIR_VALUES.view(np.uint64)[:, 0], codes, scales, values.view(np.uint64))
        if (scales > LARGEST_EXACT_SCALE).any() and not np.isfinite(values).all():
            raise EncodingError(f"scale byte {scales.max()} with a code beyond the largest float32 number")
        return values

    def encode(self, values: Float32) -> Chunk:
        """Quantise with, block by block, the scale of the smaller squared error (`ScaleRule.MSE`).

        Values that came from MXFP4 return exactly.

        Raises:
            EncodingError: a value is not finite.
        """
        quantised = quantise(np.ascontiguousarray(values, np.float32))
        return quantised.codes, quantised.scales
