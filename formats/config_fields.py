"""Checked fields of configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from gptoss_convert.checkpoint import LARGEST_LAYER_COUNT
from gptoss_convert.errors import InputError

Count = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
LayerCount = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_LAYER_COUNT)]
Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e30)]
"""Bounded so that it, and products of a few of them, are finite in float32."""

_Schema = TypeVar("_Schema", bound=msgspec.Struct)


def convert_config(raw: Mapping[str, Any], schema: type[_Schema], path: Path) -> _Schema:
    """Return `raw` as `schema`.

    Raises:
        InputError: a field is missing or does not fit; `path` is the file to name.
    """
    try:
        return msgspec.convert(raw, schema)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise InputError(f"configuration: {error}", file=path) from None
