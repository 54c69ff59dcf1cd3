"""MXFP4: blocks of 32 four-bit floats (E2M1) that share one power-of-two scale (E8M0).

Source: OCP Microscaling Formats (MX) Specification v1.0, sections 5.3.3 (E2M1), 5.4.1 (E8M0) and 6.3
(conversion). Part layout is that of OpenAI's checkpoints (`gpt_oss/torch/weights.py`): byte j of a block
holds element 2j in its low nibble and element 2j+1 in its high nibble.

A code is `sign << 3 | magnitude`; its value is `(-1)**sign * MAGNITUDES[magnitude] * 2**(scale - 127)`.
Zero has two codes, 0 and 8, and both are kept. Scale byte 255 is NaN in the specification; no sound
checkpoint contains it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import Array, Chunk, Encoding, EncodingError, Float32, Part, Span, split_blocks

BLOCK = 32
SCALE_BIAS = 127
SCALE_NAN = 255
LARGEST_EXACT_SCALE = 252
"""Up to this scale byte every code is a finite float32 (and bfloat16): 6 * 2**125 < 2**128.

Larger ones add nothing: the largest value that they can mean in float32 is 6 * 2**125 too.
"""

MAGNITUDES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
CODE_VALUES = np.concatenate([MAGNITUDES, -MAGNITUDES])
EMAX_ELEMENT = 2
"""Exponent of the largest E2M1 magnitude, 6 = 1.5 * 2**2."""

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
        """Quantise with, block by block, the scale of the smaller squared error.

        Candidates are the scale of the specification, `floor(log2(max)) - 2`, and the next larger one; a wider
        search finds nothing better. Elements round to nearest, ties to even, and keep the sign of zero. Values
        that came from MXFP4 return exactly. A tie between the two scales takes the smaller scale.

        Raises:
            EncodingError: a value is not finite.
        """
        blocks = split_blocks(np.ascontiguousarray(values, np.float32), BLOCK)
        largest = np.abs(blocks).max(axis=-1)
        if not np.isfinite(largest).all():
            raise EncodingError("a value that is not finite cannot be stored as MXFP4")
        mantissa_exponent = np.frexp(largest)[1]  # largest = m * 2**e with m in [0.5, 1)
        floor_scale = np.where(largest > 0, mantissa_exponent - 1 - EMAX_ELEMENT + SCALE_BIAS, 0)
        candidates = [
            np.clip(floor_scale + step, 0, LARGEST_EXACT_SCALE).astype(np.uint8) * (largest > 0) for step in (0, 1)
        ]
        codes, errors = zip(*(_round_to_codes(blocks, scales) for scales in candidates), strict=True)
        larger_wins = errors[1] < errors[0]
        best_codes = np.where(larger_wins[..., None], codes[1], codes[0])
        best_scales = np.where(larger_wins, candidates[1], candidates[0])
        packed = best_codes[..., 0::2] | (best_codes[..., 1::2] << 4)
        return packed.reshape(values.shape[0], values.shape[1] // 2), best_scales


def _round_to_codes(blocks: Float32, scales: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return codes `[rows, blocks, 32]` for given scales, and the squared error per block `[rows, blocks]`."""
    exponents = scales.astype(np.int32)[..., None] - SCALE_BIAS
    scaled = np.ldexp(blocks, -exponents)
    size = np.abs(scaled)
    # Midpoints between neighbouring magnitudes; a tie goes to the neighbour whose mantissa bit is 0.
    magnitude = (size > 0.25).astype(np.uint8)
    magnitude += size >= 0.75
    magnitude += size > 1.25
    magnitude += size >= 1.75
    magnitude += size > 2.5
    magnitude += size >= 3.5
    magnitude += size > 5.0
    codes = magnitude | (np.signbit(scaled).view(np.uint8) << np.uint8(3))
    # In units of the block's scale, so that the comparison between two scales needs their ratio only.
    error = (size - MAGNITUDES[magnitude]).astype(np.float64)
    return codes, (error * error).sum(axis=-1) * np.exp2(2.0 * exponents[..., 0])
