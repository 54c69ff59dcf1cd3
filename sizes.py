"""Sizes as people write them: 500, 60M, 4GB, 4GiB."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY_UNITS = {"KI": 1024, "MI": 1024**2, "GI": 1024**3, "TI": 1024**4}


def parse_size(text: str) -> int:
    """Return the number of bytes that `text` means.

    Raises:
        ValueError: it is no size from one byte on; the message says so.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.strip().upper())
    factor = (_UNITS | _BINARY_UNITS).get(match[2]) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is no size; write for example 500M, 4GB or 4GiB")
    number = float(match[1]) * factor
    if not 1 <= number < 1 << 63:
        raise ValueError(f"{text!r} is no size from one byte on")
    return int(number)
