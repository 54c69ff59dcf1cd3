"""Plain floating point: one item per element, little endian.

Layouts: IEEE 754-2019 binary32 and binary16; bfloat16 is the upper half of binary32.
"""

from __future__ import annotations

import numpy as np

from gptoss_convert.encodings.base import Array, Chunk, Encoding, EncodingError, Float32, Part, Span

_STEP = 1 << 15
"""Numbers that are rounded at once, so that they stay in the second-level cache."""
_FIRST_THAT_ROUNDS_TO_INFINITY = 0x7F7F_8000
"""Bits of the smallest float32 that bfloat16 has no finite number for; NaN and infinity lie above."""


class _Float(Encoding):
    """An encoding that has a code for every value within its span."""

    block = 1

    def holds(self, other: Encoding) -> bool:
        """Return whether the span of `other` lies within this one."""
        return self.span.holds(other.span)


class F32(_Float):
    """IEEE binary32."""

    name = "f32"
    parts = (Part("values", np.dtype("<f4"), 1),)
    span = Span(precision=24, lowest_bit=-149, largest=float(np.finfo(np.float32).max))
    least_signal_to_noise = 120.0

    def decode(self, chunk: Chunk) -> Float32:
        """Return the values as they are."""
        return chunk[0]

    def encode(self, values: Float32) -> Chunk:
        """Return the values as they are."""
        return (values,)


class F16(_Float):
    """IEEE binary16."""

    name = "f16"
    parts = (Part("values", np.dtype("<f2"), 1),)
    span = Span(precision=11, lowest_bit=-24, largest=float(np.finfo(np.float16).max))
    least_signal_to_noise = 45.0
    largest_block_error = 0.1

    def decode(self, chunk: Chunk) -> Float32:
        """Widen to float32, exactly."""
        return chunk[0].astype(np.float32)

    def encode(self, values: Float32) -> Chunk:
        """Round to nearest even; a finite value that would become infinite is an error."""
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        _refuse_overflow(np.isinf(halves), values, self)
        return (halves,)


class BF16(_Float):
    """bfloat16, held as its 16 bits in uint16 because numpy has no such type."""

    name = "bf16"
    parts = (Part("values", np.dtype("<u2"), 1),)
    span = Span(precision=8, lowest_bit=-133, largest=float.fromhex("0x1.fep127"))
    least_signal_to_noise = 45.0
    largest_block_error = 0.1

    def decode(self, chunk: Chunk) -> Float32:
        """Widen to float32, exactly."""
        wide = chunk[0].astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)

    def encode(self, values: Float32) -> Chunk:
        """Round to nearest even; NaN stays NaN, and a finite value that would become infinite is an error.

        Rounding as in ggml's `ggml_compute_fp32_to_bf16` (ggml-impl.h), so that results are the same bits.
        """
        values = np.ascontiguousarray(values, np.float32)
        halves = np.empty(values.shape, np.uint16)
        numbers, rounded = values.reshape(-1), halves.reshape(-1)
        scratch = np.empty(min(_STEP, numbers.size), np.uint32)
        for start in range(0, numbers.size, _STEP):
            piece = slice(start, start + _STEP)
            self._round(rounded[piece], numbers[piece], scratch)
        return (halves,)

    def _round(self, halves: Array, values: Float32, scratch: Array) -> None:
        bits = values.view(np.uint32)
        sums = scratch[: bits.size]
        np.bitwise_and(bits, 0x7FFF_FFFF, out=sums)
        special = sums.max() >= _FIRST_THAT_ROUNDS_TO_INFINITY
        np.right_shift(bits, 16, out=sums)
        sums &= 1
        sums += 0x7FFF
        sums += bits
        sums >>= 16
        np.copyto(halves, sums, casting="unsafe")
        if special:
            not_finite = (bits & 0x7F80_0000) == 0x7F80_0000
            quiet_nan = np.where((bits & 0x007F_FFFF) != 0, np.uint32(0x0040), np.uint32(0))
            halves[not_finite] = ((bits >> 16) | quiet_nan)[not_finite]
            _refuse_overflow((halves & 0x7FFF) == 0x7F80, values, self)


def _refuse_overflow(infinite: Array, values: Float32, encoding: Encoding) -> None:
    """Raise if an `infinite` result stems from a finite value."""
    if infinite.any() and (overflow := infinite & np.isfinite(values)).any():
        raise EncodingError(
            f"value {values[overflow].flat[0]:g} exceeds the largest {encoding.name} number "
            f"{encoding.span.largest:g}"
        )
