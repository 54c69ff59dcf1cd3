"""What artifacts are compared with: a model at hand, or what was recorded of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gptoss_convert.canonical_hash import Progress
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.verify.declaration import Declaration
from gptoss_convert.verify.pack.reader import Pack
from gptoss_convert.verify.pack.runs import PackedRuns
from gptoss_convert.verify.pack.weights import verify_weights_by_pack
from gptoss_convert.verify.runs import Runs
from gptoss_convert.verify.weights import WeightsResult, verify_weights


class Reference(Protocol):
    """What artifacts are compared with."""

    @property
    def model(self) -> Checkpoint:
        """Configuration, tokenizer and tensors; numbers only if they are at hand."""

    @property
    def is_at_hand(self) -> bool:
        """Whether its numbers can be read, so that it can be run and converted."""

    @property
    def noise_floor(self) -> float | None:
        """Mean KL of the reference in bfloat16, if it was recorded."""

    def compare_weights(
        self, artifact: Checkpoint, declaration: Declaration | None, jobs: int, progress: Progress
    ) -> WeightsResult:
        """Compare the tensors of an artifact with those of the reference."""

    def runs(self, folder: Path, **options: Any) -> Runs:
        """Return runs that leave what they compute in `folder`; options are those of `Runs`."""

    def facts(self) -> Mapping[str, Any] | None:
        """What a recording says of itself, as JSON-ready data; None for a model at hand."""


@dataclass(frozen=True)
class AtHand:
    """A checkpoint on this machine."""

    model: Checkpoint
    is_at_hand: bool = True
    noise_floor: float | None = None

    def compare_weights(
        self, artifact: Checkpoint, declaration: Declaration | None, jobs: int, progress: Progress
    ) -> WeightsResult:
        """Compare every number."""
        return verify_weights(self.model, artifact, declaration=declaration, jobs=jobs, progress=progress)

    def runs(self, folder: Path, **options: Any) -> Runs:
        """Return runs of which those of the reference are made when they are needed."""
        return Runs(folder=folder, **options)

    def facts(self) -> Mapping[str, Any] | None:
        """Return None."""
        return None


@dataclass(frozen=True)
class Recorded:
    """A pack: neither the model nor torch is needed."""

    pack: Pack
    is_at_hand: bool = False

    @property
    def model(self) -> Checkpoint:
        """The reference without its numbers."""
        return self.pack.model

    @property
    def noise_floor(self) -> float | None:
        """As it was recorded."""
        return self.pack.noise_floor

    def compare_weights(
        self, artifact: Checkpoint, declaration: Declaration | None, jobs: int, progress: Progress
    ) -> WeightsResult:
        """Compare hashes, and the few numbers that the pack has."""
        return verify_weights_by_pack(self.pack, artifact, declaration=declaration, jobs=jobs, progress=progress)

    def runs(self, folder: Path, **options: Any) -> Runs:
        """Return runs of which those of the reference come from the pack."""
        return PackedRuns(folder=folder, pack=self.pack, **options)

    def facts(self) -> Mapping[str, Any] | None:
        """Return what was recorded, and how much of it."""
        run = self.pack.runs[None]
        return {
            "source": self.pack.source,
            "canonical_hash": self.pack.canonical_hash,
            "tool": self.pack.tool,
            "columns": run.columns,
            "whole": run.is_whole,
            "versions": dict(run.versions),
        }
