"""In which type the model is computed, and how its weights get there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gptoss_convert.encodings import Array, Encoding, encoding
from gptoss_convert.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Type of activations and weights. What has to be exact (norms, rotation tables) is float32 at least."""

    name: str
    dtype: torch.dtype
    encoding: Encoding
    """What weights are converted to while they are read."""

    @property
    def at_least_float32(self) -> torch.dtype:
        """The type of what must not be computed in less than float32."""
        return torch.promote_types(self.dtype, torch.float32)


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision(name="float32", dtype=torch.float32, encoding=encoding("f32")),
        Precision(name="bfloat16", dtype=torch.bfloat16, encoding=encoding("bf16")),
        Precision(name="float64", dtype=torch.float64, encoding=encoding("f32")),
    )
}
"""By name."""


def precision_named(name: str) -> Precision:
    """Return the precision called `name`.

    Raises:
        OptionError: there is none.
    """
    try:
        return PRECISIONS[name]
    except KeyError:
        raise OptionError("unknown type", found=name, expected="one of " + ", ".join(PRECISIONS)) from None


def stored_numbers(tensor: torch.Tensor) -> Array:
    """Return the memory of `tensor` as numpy array; bfloat16, which numpy has not, as uint16."""
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.view(torch.int16).numpy().view(np.uint16)
        return bits
    numbers: Array = tensor.numpy()
    return numbers
