"""Which layer and part of the model a tensor is in, by its canonical name, and the errors of weights by these."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptoss_convert.verify.metrics.plain import Plain

if TYPE_CHECKING:
    from gptoss_convert.verify.weights import TensorComparison

_IN_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.(self_attn|mlp\.router|mlp\.experts|)")
_GROUPS = {"self_attn": "attention", "mlp.router": "router", "mlp.experts": "experts", "": "norms"}
OUTSIDE = "outside the layers"
GROUPS = ("attention", "router", "experts", "norms", OUTSIDE)


@dataclass(frozen=True, kw_only=True)
class LayerError(Plain):
    """Tensors of one group in one layer."""

    layer: int | None
    """None for embedding, final norm and unembedding."""
    group: str
    """One of `GROUPS`."""
    tensors: int
    different: int
    """Tensors with a value that is not equal."""
    relative_error: float
    """The largest of all these tensors; 0 if every value is equal."""
    tensor: str
    """Which has it; the first, if all are equal."""


def errors_by_layer(tensors: Iterable[TensorComparison]) -> tuple[LayerError, ...]:
    """Return the largest relative error for each layer and group, in the order of the model."""
    groups: dict[tuple[int | None, str], list[TensorComparison]] = {}
    for item in tensors:
        groups.setdefault(_place(item.name), []).append(item)
    order = sorted(groups, key=lambda key: (key[0] is None, key[0] or 0, GROUPS.index(key[1])))
    return tuple(_error(layer, group, groups[layer, group]) for layer, group in order)


def _place(name: str) -> tuple[int | None, str]:
    match = _IN_LAYER.match(name)
    return (int(match[1]), _GROUPS[match[2]]) if match else (None, OUTSIDE)


def _error(layer: int | None, group: str, items: list[TensorComparison]) -> LayerError:
    worst = max(items, key=lambda item: item.relative_error)
    return LayerError(
        layer=layer,
        group=group,
        tensors=len(items),
        different=sum(item.different > 0 for item in items),
        relative_error=worst.relative_error,
        tensor=worst.name,
    )
