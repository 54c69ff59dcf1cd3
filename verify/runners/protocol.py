"""What a runner is: fixed token ids in, next-token log-probabilities at every position out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is to be run."""

    threads: int | None = None
    """None for as many as the machine has cores."""
    dtype: str = "float32"
    """Type of activations, where the runtime can choose: float32, bfloat16 or float64."""
    imitates: str | None = None
    """The reference runner computes as the runtime of this name is known to."""
    provider: str | None = None
    """Execution provider of ONNX runtimes, by onnxruntime's name or as cpu, cuda, dml, webgpu; None for what the
    runtime takes by itself."""
    prefixes: tuple[int, ...] | None = None
    """Of each prompt, how many positions are computed together; the others are decoded: computed one by one, on the
    KV cache of those before. None for all together. Runtimes with `decodes` can."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What a model says at successive positions of one prompt."""

    prompt: int
    """Index of the prompt."""
    start: int
    """The first of the positions in the prompt."""
    logprobs: NDArray[np.float32]
    """[positions, columns]: natural log-probabilities of the token that comes after each position."""
    tokens: NDArray[np.int32] | None = None
    """[positions, columns]: the token of each column, all different in a row, where only the likeliest are known;
    None if column i is token i."""
    rest: NDArray[np.float32] | None = None
    """[positions]: natural log of the probability of all tokens that are not listed together; None if it is not
    known exactly, or all tokens are."""
    routing: NDArray[np.int16] | None = None
    """[positions, layers, experts per token]: the chosen experts, the one of most weight first; None if the
    runtime does not tell."""
    router_margins: NDArray[np.float32] | None = None
    """[positions, layers]: router logit of the last expert that was chosen minus that of the best one that was
    not; None if the runtime does not tell."""
    decoded: bool = False
    """The positions were computed one by one, on the KV cache of those before."""


class Session(Protocol):
    """A model that has been loaded."""

    def run(self, prompts: Sequence[Sequence[int]]) -> Iterator[Scores]:
        """Yield the scores of all positions of all prompts, prompt by prompt, positions in order.

        Raises:
            InputError: the file is damaged, or the runtime refuses it.
        """


@runtime_checkable
class KnowsItsProvider(Protocol):
    """A session that can tell what it is computed with."""

    @property
    def provider(self) -> str:
        """The execution provider that nodes are given to first, by the name that the runtime has for it."""


class Runner(Protocol):
    """What a module in this package offers as `RUNNER`. It runs in a process of its own."""

    def versions(self) -> Mapping[str, str]:
        """Return the versions of the programs that compute, by name."""

    def open(self, artifact: Path, settings: Settings) -> AbstractContextManager[Session]:
        """Load a model.

        Raises:
            InputError: the file is damaged, or the runtime refuses it.
        """


@runtime_checkable
class KnowsItsMemory(Protocol):
    """A runner that can tell how much memory a model will take. Where it does not fit, it is not loaded."""

    def memory_needed(self, artifact: Path, settings: Settings) -> int:
        """Return the bytes that loading and running take at least, mapped weights included.

        Raises:
            InputError: the file is damaged.
        """
