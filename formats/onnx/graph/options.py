"""What can be chosen about a graph."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_convert.errors import OptionError

EXPERTS = ("mxfp4", "int8", "int4", "f16")
ACTIVATIONS = ("f32", "f16")
EMBEDDINGS = ("f32", "bf16")
DEFAULT_PREFILL_CHUNK = 256
"""Enough to decode every expert of gpt-oss-20b for 32 tokens each; activations and logits of more take memory."""


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """Choices that the configuration of a model does not make."""

    experts: str = "mxfp4"
    """One of `EXPERTS`: how expert matrices are stored."""
    activations: str = "f32"
    """One of `ACTIVATIONS`: type of the cache, the logits and what matrices are multiplied with."""
    embedding: str = "f32"
    """One of `EMBEDDINGS`: how the embedding is stored where activations are float32 and the provider widens it."""
    prefill_chunk: int = DEFAULT_PREFILL_CHUNK
    """Positions that a runtime should compute at once."""
    windowed_cache: bool = False
    """Whether layers with a sliding window keep the positions of one window only."""

    def __post_init__(self) -> None:
        for name, found, known in (
            ("experts", self.experts, EXPERTS),
            ("activations", self.activations, ACTIVATIONS),
            ("embedding", self.embedding, EMBEDDINGS),
        ):
            if found not in known:
                raise OptionError(f"unknown {name} of a graph", found=found, expected="one of " + ", ".join(known))
        if self.prefill_chunk < 1:
            raise OptionError("no positions at once", found=self.prefill_chunk, expected="1 or more")
