"""Block encodings of ggml that can be decoded but are never made here: q4_0, q4_k, iq4_nl and the like.

What their bytes mean is left to gguf-py, whose decoders follow `dequantize_row_*` in ggml's ggml-quants.c number by
number. Only files with such tensors import it.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from gptoss_convert.encodings.base import Chunk, Encoding, EncodingError, Float32, Part
from gptoss_convert.encodings.floats import F32
from gptoss_convert.encodings.opaque import Opaque


class GgmlQuantised(Encoding):
    """A quantised type of ggml; its one part is the raw bytes of a row."""

    # The numbers are by definition what ggml computes for them in float32.
    span = F32.span
    rounds = True
    can_encode = False

    def __init__(self, name: str, block: int, bytes_per_block: int) -> None:
        self.name = name
        self.block = block
        self.parts = (Part("blocks", np.dtype("u1"), bytes_per_block),)
        # Of numbers with heavy tails, types of two bits keep next to nothing; those of four bits keep 18 dB.
        self.least_signal_to_noise = 12.0 if self.bits_per_weight >= 4 else 0.0

    def decode(self, chunk: Chunk) -> Float32:
        """Return the numbers as float32 `[rows, columns]`, as gguf-py decodes them.

        Raises:
            EncodingError: a block stands for numbers that are not finite.
        """
        import gguf

        rows = np.ascontiguousarray(chunk[0])
        if not len(rows):  # gguf-py cannot tell how long such rows are
            return np.empty((0, rows.shape[1] // self.bytes_per_block * self.block), np.float32)
        with np.errstate(all="ignore"):
            values: Float32 = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[self.name.upper()])
        if not np.isfinite(values).all():
            raise EncodingError(f"a block of {self.name} stands for numbers that are not finite")
        return values

    def encode(self, values: Float32) -> Chunk:
        """Raise `EncodingError`: such blocks are copied, never made."""
        raise EncodingError(f"numbers cannot be encoded as {self.name}")


@cache
def ggml_encoding(number: int) -> Encoding | None:
    """Return the encoding of a ggml type number (`ggml_type` in ggml.h); None if gguf-py does not know the number.

    Types that gguf-py cannot decode are known by their size only.
    """
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError:
        return None
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    name = kind.name.lower()
    try:
        gguf.quants.dequantize(np.zeros((1, nbytes), np.uint8), kind)
    except NotImplementedError:
        return Opaque(name, block, nbytes)
    return GgmlQuantised(name, block, nbytes)
