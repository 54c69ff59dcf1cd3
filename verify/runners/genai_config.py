"""`genai_config.json`: what onnxruntime-genai has to know about a graph, and others who run it too.

Fields are those of onnxruntime-genai's config.cpp; all others are left to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from gptoss_convert.assets import read_small_file
from gptoss_convert.checkpoint import LARGEST_LAYER_COUNT
from gptoss_convert.errors import InputError
from gptoss_convert.verify.runners.providers import provider_named

GENAI_CONFIG = "genai_config.json"

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
_LayerCount = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_LAYER_COUNT)]
_FileName = Annotated[str, msgspec.Meta(pattern=r"^[^/\\:]+$")]


class Inputs(msgspec.Struct, frozen=True):
    """Names of inputs; %d stands for the number of a layer."""

    input_ids: str = "input_ids"
    attention_mask: str = "attention_mask"
    position_ids: str = "position_ids"
    past_key_names: str = "past_key_values.%d.key"
    past_value_names: str = "past_key_values.%d.value"


class Outputs(msgspec.Struct, frozen=True):
    """Names of outputs; %d stands for the number of a layer."""

    logits: str = "logits"
    present_key_names: str = "present.%d.key"
    present_value_names: str = "present.%d.value"


class SlidingWindow(msgspec.Struct, frozen=True):
    """Layers whose cache has room for a window only; it is full of zeros at first."""

    window_size: _Count
    layers: list[int] = []


class SessionOptions(msgspec.Struct, frozen=True):
    """How the graph is to be run."""

    disable_prepacking: str = msgspec.field(name="session.disable_prepacking", default="0")
    """"1" where packed weights would be another model: QMoE on the CPU rounds activations to 8 bits with them."""
    provider_options: list[dict[str, dict[str, Any]]] = []
    """Execution providers by onnxruntime-genai's names, and their options."""


class Decoder(msgspec.Struct, frozen=True):
    """The graph."""

    num_hidden_layers: _LayerCount
    num_key_value_heads: _Count
    head_size: _Count
    filename: _FileName = "model.onnx"
    inputs: Inputs = Inputs()
    outputs: Outputs = Outputs()
    sliding_window: SlidingWindow | None = None
    session_options: SessionOptions = SessionOptions()

    def cache_capacity(self, layer: int) -> int:
        """Return for how many positions the cache of a layer has room before the first."""
        window = self.sliding_window
        return window.window_size if window is not None and layer in window.layers else 0

    @property
    def provider(self) -> str:
        """The execution provider that the folder is made for, by onnxruntime's name."""
        names = [name for options in self.session_options.provider_options for name in options]
        return provider_named(names[0] if names else "cpu")


class Model(msgspec.Struct, frozen=True):
    """The model."""

    vocab_size: _Count
    decoder: Decoder


class Search(msgspec.Struct, frozen=True):
    """How prompts are taken."""

    chunk_size: _Count | None = None
    """Positions that are computed at once, where the memory of the graph grows with them."""


class GenaiConfig(msgspec.Struct, frozen=True):
    """The whole file."""

    model: Model
    search: Search = Search()

    def positions_at_once(self, most: int) -> int:
        """Return how many positions are to be computed at once, `most` at most."""
        return min(self.search.chunk_size or most, most)


def read_genai_config(folder: Path) -> GenaiConfig:
    """Read the file in `folder`.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / GENAI_CONFIG
    try:
        return msgspec.json.decode(read_small_file(path), type=GenaiConfig)
    except msgspec.MsgspecError as error:
        raise InputError(f"cannot be understood: {error}", file=path) from None


def bytes_of_folder(folder: Path) -> int:
    """Return the size of all files in `folder`: the graph, and the weights that lie beside it.

    Raises:
        InputError: it is no folder.
    """
    if not folder.is_dir():
        raise InputError("not a folder with a graph", file=folder)
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
