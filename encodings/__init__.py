"""How numbers are stored: codecs, independent of files.

Adding an encoding means adding one module here and one entry to `ENCODINGS`.
"""

from __future__ import annotations

from gptoss_convert.encodings.base import (
    Array,
    Chunk,
    Encoding,
    EncodingError,
    Float32,
    LossClass,
    Order,
    Part,
    Span,
    loss_class,
)
from gptoss_convert.encodings.conversion import convert
from gptoss_convert.encodings.floats import BF16, F16, F32
from gptoss_convert.encodings.int4_block import Int4Block
from gptoss_convert.encodings.int8_block import Int8Block
from gptoss_convert.encodings.mxfp4 import MXFP4
from gptoss_convert.encodings.q8_0 import Q8_0
from gptoss_convert.errors import OptionError

ENCODINGS: dict[str, Encoding] = {
    codec.name: codec for codec in (F32(), F16(), BF16(), MXFP4(), Q8_0(), Int8Block(), Int4Block())
}


def encoding(name: str) -> Encoding:
    """Return the encoding called `name`.

    Raises:
        OptionError: there is none.
    """
    try:
        return ENCODINGS[name]
    except KeyError:
        raise OptionError("unknown encoding", found=name, expected="one of " + ", ".join(ENCODINGS)) from None


__all__ = [
    "ENCODINGS",
    "Array",
    "Chunk",
    "Encoding",
    "EncodingError",
    "Float32",
    "LossClass",
    "Order",
    "Part",
    "Span",
    "convert",
    "encoding",
    "loss_class",
]
