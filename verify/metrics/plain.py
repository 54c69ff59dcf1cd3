"""Results as JSON can hold them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A result whose fields are numbers, texts, tuples of them, None, and other results."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields under their names, nested; numbers that JSON does not have become None."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def _plain(value: object) -> object:
    if isinstance(value, Plain):
        return value.as_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
