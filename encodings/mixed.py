"""Tensors whose even and odd rows are stored in two encodings, as gate and up may be in GGUF files of others."""

from __future__ import annotations

from gptoss_convert.encodings.base import Chunk, Encoding, EncodingError, Float32
from gptoss_convert.encodings.floats import F32


class Mixed(Encoding):
    """Two encodings, row by row in turn; a chunk holds the numbers of both as float32.

    Such a tensor is decoded while it is read, so its chunks say nothing about the stored bytes.
    """

    block = F32.block
    parts = F32.parts
    span = F32.span
    can_encode = False

    def __init__(self, even: Encoding, odd: Encoding) -> None:
        self.even = even
        self.odd = odd
        self.name = f"{even.name}+{odd.name}"
        self.rounds = even.rounds or odd.rounds
        self.can_decode = even.can_decode and odd.can_decode
        self.least_signal_to_noise = min(even.least_signal_to_noise, odd.least_signal_to_noise)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Return the stored bytes of a tensor of `shape`, which has an even number of rows."""
        return (self.even.nbytes(shape) + self.odd.nbytes(shape)) // 2

    def decode(self, chunk: Chunk) -> Float32:
        """Return the numbers as they are."""
        return chunk[0]

    def encode(self, values: Float32) -> Chunk:
        """Raise `EncodingError`: numbers alone do not tell which rows are even."""
        raise EncodingError(f"numbers cannot be encoded as {self.name}")
