"""Checked fields of configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from gptoss_convert.checkpoint import ModelConfig
from gptoss_convert.errors import InputError

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
LayerCount = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Positive = Annotated[float, msgspec.Meta(gt=0)]

_Schema = TypeVar("_Schema", bound=msgspec.Struct)


def convert_config(raw: Mapping[str, Any], schema: type[_Schema], path: Path) -> _Schema:
    """Return `raw` as `schema`.

    Raises:
        InputError: a field is missing or does not fit; `path` is the file to name.
    """
    try:
        return msgspec.convert(raw, schema)
    except msgspec.ValidationError as error:
        raise InputError(f"configuration: {error}", file=path) from None


def refuse_conflicts(config: ModelConfig, path: Path) -> None:
    """Raise `InputError` for the first contradiction within `config`."""
    for conflict in config.conflicts():
        raise InputError(f"configuration contradicts itself: {conflict}", file=path)
