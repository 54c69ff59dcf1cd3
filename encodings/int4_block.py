"""Int4 blocks: 32 integers of four bits with zero point 8 that share one float32 scale.

Source: operators QMoE and MatMulNBits of onnxruntime (docs/ContribOperators.md) with 4 bits and blocks of 32, and
its quantiser `MlasQuantizeBlockwise`: the scale is the number of largest magnitude over -8, with its sign, so that
this number is kept, and all others are rounded to the nearest of 16 steps. Byte j of a block holds element 2j in
its low nibble and element 2j + 1 in its high nibble; a nibble n stands for `(n - 8) * scale`.

The steps are even, those of MXFP4 are not: this encoding loses about 7 % of either.
"""

from __future__ import annotations

import numpy as np

from gptoss_convert.encodings.base import Chunk, Encoding, EncodingError, Float32, Part, Span, split_blocks
from gptoss_convert.encodings.integer_scales import BLOCK, SIGNIFICANT_BITS, products, require_short, shortened

ZERO = 8
"""The nibble that stands for 0."""

_BYTE = np.arange(256)
_PAIRS = np.ascontiguousarray(np.stack([_BYTE & 15, _BYTE >> 4], axis=-1).astype(np.float32) - np.float32(ZERO))
_PAIR_WORDS = _PAIRS.view(np.uint64)[:, 0]
"""Two integers as float32 for every packed byte."""


class Int4Block(Encoding):
    """Codec of int4 blocks.

    Parts are `codes` uint8 `[rows, columns / 2]` and `scales` float32 `[rows, columns / 32]`.
    """

    name = "int4-block"
    block = BLOCK
    parts = (Part("codes", np.dtype("u1"), BLOCK // 2), Part("scales", np.dtype("<f4"), 1))
    span = Span(precision=4 + SIGNIFICANT_BITS, lowest_bit=-149, largest=float(np.finfo(np.float32).max))
    # The largest number of a block at -8 and all others half a step off.
    least_signal_to_noise = 9.0
    rounds = True
    signed_zeros = False

    def check(self, chunk: Chunk) -> None:
        """Raise `EncodingError` for scales that are not finite, or too long for exact products."""
        require_short(chunk[1])

    def decode(self, chunk: Chunk) -> Float32:
        """Return `(nibble - 8) * scale` as float32 `[rows, columns]`, exactly."""
        codes, scales = chunk
        integers = np.take(_PAIR_WORDS, codes).view(np.float32)
        return products(integers, scales) + np.float32(0)  # 0 times a negative scale is -0

    def encode(self, values: Float32) -> Chunk:
        """Quantise: scale `number of largest magnitude / -8`, rounded to 16 bits; codes rounded to nearest even.

        Raises:
            EncodingError: a value is not finite, or so large that its block has no finite scale.
        """
        blocks = split_blocks(np.ascontiguousarray(values, np.float32), BLOCK)
        highest, lowest = blocks.max(axis=-1), blocks.min(axis=-1)
        scales = shortened(np.where(highest > -lowest, highest, lowest) / np.float32(-ZERO))
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(scales * np.float32(ZERO)).all():
                raise EncodingError(f"a value is not finite, or too close to the largest {self.name} number")
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.rint(np.where(scales[..., None] != 0, blocks / scales[..., None], np.float32(0)))
        nibbles = (np.clip(codes, -ZERO, ZERO - 1) + ZERO).astype(np.uint8).reshape(values.shape)
        return nibbles[:, 0::2] | nibbles[:, 1::2] << 4, scales
