"""Encodings that are known by name and size only, so that a file which holds them can be described."""

from __future__ import annotations

import numpy as np

from gptoss_convert.encodings.base import Chunk, Encoding, EncodingError, Float32, Part, Span


class Opaque(Encoding):
    """An encoding without codec; its one part is the raw bytes of a row. It may or may not round."""

    span = Span(precision=64, lowest_bit=-1 << 16, largest=float("inf"))
    least_signal_to_noise = 0.0
    rounds = True
    can_decode = False
    can_encode = False

    def __init__(self, name: str, block: int, bytes_per_block: int) -> None:
        self.name = name
        self.block = block
        self.parts = (Part("bytes", np.dtype("u1"), bytes_per_block),)

    def decode(self, chunk: Chunk) -> Float32:
        """Raise `EncodingError`."""
        raise EncodingError(f"{self.name} numbers cannot be decoded")

    def encode(self, values: Float32) -> Chunk:
        """Raise `EncodingError`."""
        raise EncodingError(f"numbers cannot be encoded as {self.name}")
