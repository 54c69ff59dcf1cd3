"""Q8_0: blocks of 32 signed bytes that share one float16 scale.

Source: ggml, `block_q8_0` (ggml-common.h) and `quantize_row_q8_0_ref` (ggml-quants.c).
"""

from __future__ import annotations

import numpy as np

from gptoss_convert.encodings.base import Chunk, Encoding, EncodingError, Float32, Part, Span, split_blocks

BLOCK = 32
LARGEST_CODE = 127


class Q8_0(Encoding):  # noqa: N801 - ggml's name for it
    """Codec of Q8_0; parts are `codes` int8 `[rows, columns]` and `scales` float16 `[rows, columns / 32]`."""

    name = "q8_0"
    block = BLOCK
    parts = (Part("codes", np.dtype("i1"), BLOCK), Part("scales", np.dtype("<f2"), 1))
    # An 8-bit code times an 11-bit scale.
    span = Span(precision=19, lowest_bit=-24, largest=128 * 65504.0)
    least_signal_to_noise = 30.0
    largest_block_error = 0.1
    rounds = True

    def decode(self, chunk: Chunk) -> Float32:
        """Return `code * scale` as float32 `[rows, columns]`, exactly."""
        codes, scales = chunk
        blocks = codes.reshape(codes.shape[0], codes.shape[1] // BLOCK, BLOCK).astype(np.float32)
        blocks *= scales.astype(np.float32)[..., None]
        return blocks.reshape(codes.shape)

    def encode(self, values: Float32) -> Chunk:
        """Quantise as ggml does, to the same bytes: scale `max / 127`, codes rounded half away from zero.

        Raises:
            EncodingError: a value is not finite, or so large that the scale overflows float16.
        """
        blocks = split_blocks(np.ascontiguousarray(values, np.float32), BLOCK)
        scales = np.abs(blocks).max(axis=-1) / np.float32(LARGEST_CODE)
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.float32(1) / scales
            halves = scales.astype(np.float16)
        if not np.isfinite(halves).all():
            raise EncodingError("a value is not finite, or exceeds the largest q8_0 number 8.3e6")
        # A block of zeros, or of numbers so small that the scale rounds to zero, decodes to zero anyway.
        inverse[~np.isfinite(inverse)] = 0
        scaled = blocks * inverse[..., None]
        size = np.abs(scaled)
        # ggml rounds halves away from zero, numpy to even.
        rounded = np.floor(size)
        rounded += np.floor(2 * (size - rounded))
        codes = np.copysign(rounded, scaled).astype(np.int8)
        return codes.reshape(values.shape), halves
