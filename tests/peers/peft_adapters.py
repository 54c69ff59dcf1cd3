"""Adapters made by PEFT, and what PEFT makes of them: the model that it merges them into, in float32."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.peers.transformers_model import load

Values = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Merged:
    """A model into which PEFT merged an adapter, by canonical name and in canonical orientation."""

    values: Values
    magnitudes: Values
    """What `values` would be with a base of zeros and the adapter's numbers all positive: scaling * |B| @ |A|."""


def save_adapter(
    checkpoint: Path,
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    experts_lie_as_out_in: bool = False,
    **config: Any,
) -> Path:
    """Let PEFT save an adapter for `checkpoint` whose trainable numbers are all random.

    Args:
        checkpoint: the base model.
        folder: where to save.
        seed: chooses the numbers.
        dtype: of the saved numbers.
        experts_lie_as_out_in: makes PEFT take them as it does with models of transformers before 5.
        config: of `LoraConfig`.
    """
    import torch

    peft: Any = importlib.import_module("peft")
    model = peft.get_peft_model(_base(checkpoint, experts_lie_as_out_in), peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    trained = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
            trained += 1
    if not trained:
        raise ValueError("nothing is trained")
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def merge_with_peft(checkpoint: Path, adapter: Path, *, experts_lie_as_out_in: bool = False) -> Merged:
    """Return what PEFT merges of `checkpoint` and the saved `adapter`."""

    def positive(name: str, parameter: Any) -> None:
        parameter.data = parameter.data.abs() if "lora_" in name else parameter.data * 0

    return Merged(
        _merge(checkpoint, adapter, experts_lie_as_out_in, lambda name, parameter: None),
        _merge(checkpoint, adapter, experts_lie_as_out_in, positive),
    )


def _base(checkpoint: Path, experts_lie_as_out_in: bool) -> Any:
    model = load(checkpoint, "float32")
    if experts_lie_as_out_in:
        for layer in model.model.layers:
            layer.mlp.experts.is_transposed = False
    return model


def _merge(
    checkpoint: Path, adapter: Path, experts_lie_as_out_in: bool, prepare: Callable[[str, Any], None]
) -> Values:
    peft: Any = importlib.import_module("peft")
    model = peft.PeftModel.from_pretrained(_base(checkpoint, experts_lie_as_out_in), adapter)
    for name, parameter in model.named_parameters():
        prepare(name, parameter)
    state = model.merge_and_unload().state_dict()
    return {name: _canonical(value.float().numpy()) for name, value in state.items()}


def _canonical(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Experts lie as [in, out] in transformers."""
    return values.transpose(0, 2, 1) if values.ndim == 3 else values
