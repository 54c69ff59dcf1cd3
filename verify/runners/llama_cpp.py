"""llama.cpp on the CPU, through the binding that is installed: llama-cpp-python, or else xllamacpp.

Both run with a KV cache in float32 and without flash attention, which round least. llama.cpp itself rounds
activations to the type that goes with the weights: 8 bits for MXFP4 and Q8_0, BF16 for BF16.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from gptoss_convert.checkpoint import ModelConfig
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.runners import llama_cpp_python, llama_cpp_server
from gptoss_convert.verify.runners.protocol import Session, Settings

CONTEXT = 4096
"""Positions for which memory is counted."""
WORKING_MEMORY = 512 << 20
"""Bytes for the vocabulary, activations, and the log-probabilities of a batch over the real vocabulary."""


class Binding(Protocol):
    """What the module of a binding offers."""

    DISTRIBUTION: str

    def open_session(
        self, artifact: Path, config: ModelConfig, settings: Settings
    ) -> AbstractContextManager[Session]:
        """Load a GGUF file.

        Raises:
            InputError: llama.cpp refuses it.
        """


class LlamaCppRunner:
    """Loads GGUF files; of a split file, the first shard is named."""

    def __init__(self, binding: Binding | None = None) -> None:
        """Use `binding`, or else the better one that is installed."""
        self._binding = binding or _installed()

    def versions(self) -> Mapping[str, str]:
        """Return the versions of the programs that compute, by name."""
        return {self._binding.DISTRIBUTION: version(self._binding.DISTRIBUTION)}

    def memory_needed(self, artifact: Path, settings: Settings) -> int:
        """Return the bytes of the files, which are mapped into memory, of the KV cache, and some more."""
        checkpoint = open_checkpoint(artifact)
        weights = sum(path.stat().st_size for path in checkpoint.files)
        return weights + CONTEXT * _cache_bytes_per_position(checkpoint.config) + WORKING_MEMORY

    def open(self, artifact: Path, settings: Settings) -> AbstractContextManager[Session]:
        """Load the model.

        Raises:
            InputError: the file is damaged, or llama.cpp refuses it.
        """
        checkpoint = open_checkpoint(artifact)
        checkpoint.require_sound()
        return self._binding.open_session(artifact, checkpoint.config, settings)


def _installed() -> Binding:
    return llama_cpp_python if find_spec("llama_cpp") is not None else llama_cpp_server


RUNNER = LlamaCppRunner()


def _cache_bytes_per_position(config: ModelConfig) -> int:
    return config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 4
