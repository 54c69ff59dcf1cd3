"""Int8 blocks: 32 unsigned bytes with zero point 128 that share one float32 scale.

Source: operators QMoE and MatMulNBits of onnxruntime (docs/ContribOperators.md) with 8 bits and blocks of 32, and
DequantizeLinear of ONNX. A byte b stands for `(b - 128) * scale`.

Every MXFP4 number is a whole number from -12 to 12 times `2**(scale byte - 128)`, so MXFP4 is kept exactly, but for
the sign of zero: there is one zero only. A float16 scale would take half a bit less a weight, but has no number for
scale bytes below 104, and which ones there are is known only when all were read; so scales are float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.encodings.base import (
    Array,
    Chunk,
    Encoding,
    EncodingError,
    Float32,
    Part,
    Span,
    split_blocks,
)
from gptoss_convert.encodings.integer_scales import BLOCK, SIGNIFICANT_BITS, products, require_short, shortened
from gptoss_convert.encodings.mxfp4 import MXFP4
from gptoss_convert.encodings.mxfp4_format import (
    CODE_VALUES,
    LARGEST_EXACT_SCALE,
    NOT_NAMED,
    SCALE_BIAS,
    SCALE_NAN,
)
from gptoss_convert.encodings.mxfp4_quantiser import quantise

ZERO = 128
"""The byte that stands for 0."""
LARGEST_CODE = 127


class Int8Block(Encoding):
    """Codec of int8 blocks.

    Parts are `values` uint8 `[rows, columns]` and `scales` float32 `[rows, columns / 32]`.
    """

    name = "int8-block"
    block = BLOCK
    parts = (Part("values", np.dtype("u1"), BLOCK), Part("scales", np.dtype("<f4"), 1))
    span = Span(precision=8 + SIGNIFICANT_BITS, lowest_bit=-149, largest=float(np.finfo(np.float32).max))
    least_signal_to_noise = 30.0
    signed_zeros = False

    def holds(self, other: Encoding) -> bool:
        """Return whether `other` is this encoding, or MXFP4."""
        return self == other or other == MXFP4()

    def check(self, chunk: Chunk) -> None:
        """Raise `EncodingError` for scales that are not finite, or too long for exact products."""
        require_short(chunk[1])

    def decode(self, chunk: Chunk) -> Float32:
        """Return `(byte - 128) * scale` as float32 `[rows, columns]`, exactly."""
        values, scales = chunk
        integers = values.astype(np.float32)
        integers -= ZERO
        return products(integers, scales)

    def encode(self, values: Float32) -> Chunk:
        """Quantise: scale `largest magnitude / 127`, rounded to 16 bits; codes rounded to nearest even.

        Blocks whose numbers are all whole multiples of a power of two that makes the largest one less than 128,
        such as those that came from MXFP4, get that power as scale and are kept exactly.

        Raises:
            EncodingError: a value is not finite, or so large that its block has no finite scale.
        """
        blocks = split_blocks(np.ascontiguousarray(values, np.float32), BLOCK)
        largest = np.abs(blocks).max(axis=-1)
        scales = shortened(largest / np.float32(LARGEST_CODE))
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(scales * np.float32(LARGEST_CODE)).all():
                raise EncodingError(f"a value is not finite, or too close to the largest {self.name} number")
        powers = np.ldexp(np.float32(1), np.maximum(np.frexp(largest)[1] - 7, -149)).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            fitting = blocks / powers[..., None]
            whole = (fitting == np.rint(fitting)).all(axis=-1)
            scales = np.where(whole & (largest > 0), powers, scales)
            codes = np.rint(np.where(scales[..., None] != 0, blocks / scales[..., None], np.float32(0)))
        codes = np.clip(codes, -LARGEST_CODE, LARGEST_CODE) + ZERO
        return codes.astype(np.uint8).reshape(values.shape), scales


_DOUBLED = (np.rint(2 * CODE_VALUES) + ZERO).astype(np.uint32)
_BYTE = np.arange(256)
_PAIRS = _DOUBLED[_BYTE & 15] | _DOUBLED[_BYTE >> 4] << 8
_QUADS = (_PAIRS[None, :] | _PAIRS[:, None] << 16).reshape(-1)
"""The four bytes, of the lowest nibble first, for two packed bytes of MXFP4 as a little-endian word."""
_WORDS_AT_ONCE = 1 << 15
_SCALES = np.ldexp(np.float32(1), _BYTE - SCALE_BIAS - 1).astype(np.float32)
"""By scale byte."""
_ROWS_AT_ONCE = 64
_EIGHTS, _ONES = np.uint64(0x8888_8888_8888_8888), np.uint64(0x1111_1111_1111_1111)
_NIBBLES = 16
"""Of a word of 64 bits."""


def mxfp4_to_int8(chunk: Chunk) -> Chunk:
    """Return an MXFP4 chunk in int8 blocks, exactly, but for the sign of zero.

    Raises:
        EncodingError: a scale byte is 255, or is above 252 with a code beyond the largest float32 number.
    """
    codes, scales = chunk
    largest = scales.max(initial=0)
    if largest == SCALE_NAN or largest > LARGEST_EXACT_SCALE:
        MXFP4().decode(chunk)
    values = np.empty((codes.shape[0], 2 * codes.shape[1]), np.uint8)
    words = np.ascontiguousarray(codes).view(np.uint16).reshape(-1)
    quads = values.view(np.uint32).reshape(-1)
    for start in range(0, words.size, _WORDS_AT_ONCE):
        piece = slice(start, start + _WORDS_AT_ONCE)
        np.take(_QUADS, words[piece], out=quads[piece], mode="wrap")  # "wrap" saves numpy from buffering the output
    return values, _SCALES[scales]


def int8_to_mxfp4(chunk: Chunk) -> Chunk:
    """Return a chunk of int8 blocks quantised to MXFP4; blocks that came from it get their codes and scales back.

    Raises:
        EncodingError: a product is beyond the largest float32 number.
    """
    values, scales = chunk
    codes = np.empty((values.shape[0], values.shape[1] // 2), np.uint8)
    found = np.empty(scales.shape, np.uint8)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        few = values[rows], scales[rows]
        quantised = quantise(Int8Block().decode(few), named=mxfp4_scales(few[1]))
        codes[rows], found[rows] = quantised.codes, quantised.scales
    return codes, found


def mxfp4_scales(scales: Float32) -> NDArray[np.uint8]:
    """Return the MXFP4 scale byte that each block had if it came from MXFP4, `NOT_NAMED` where it did not."""
    mantissas, exponents = np.frexp(scales)
    exponents += SCALE_BIAS
    came_from = (mantissas == 0.5) & (exponents >= 0) & (exponents <= LARGEST_EXACT_SCALE)
    return np.where(came_from, exponents, NOT_NAMED).astype(np.uint8)


def minus_zeros(codes: Array) -> int:
    """Return how many codes of packed MXFP4 bytes stand for a zero with a minus sign, which is code 8."""
    words = np.ascontiguousarray(codes).view(np.uint64).reshape(-1)
    scratch = np.empty((2, min(_WORDS_AT_ONCE, words.size)), np.uint64)
    count = 0
    for start in range(0, words.size, _WORDS_AT_ONCE):
        piece = words[start : start + _WORDS_AT_ONCE]
        others, shifted = scratch[:, : piece.size]
        np.bitwise_xor(piece, _EIGHTS, out=others)
        for bits in (np.uint64(1), np.uint64(2)):
            others |= np.right_shift(others, bits, out=shifted)
        others &= _ONES
        count += _NIBBLES * piece.size - int(np.bitwise_count(others).sum(dtype=np.int64))
    return count
