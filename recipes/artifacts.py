"""What became of the artifacts of a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_convert.converters.execute import Report
from gptoss_convert.converters.plan import Plan
from gptoss_convert.errors import GptossConvertError
from gptoss_convert.recipes.recipe import ArtifactRecipe
from gptoss_convert.recipes.state import Built
from gptoss_convert.verify.judgement import Outcome

VERIFICATION_FAILED = 1
"""Exit code of an artifact that was written and is not what it should be."""


@dataclass(frozen=True, kw_only=True)
class WrittenArtifact:
    """An artifact that was just written and is not judged yet."""

    recipe: ArtifactRecipe
    plan: Plan
    key: str
    report: Report
    files: tuple[tuple[str, int, str], ...]
    """Names relative to the folder, sizes and SHA-256."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BuiltArtifact:
    """What became of one artifact."""

    name: str
    output: Path
    built: Built | None
    """None if it could not be made."""
    is_new: bool = False
    """False for one that was up to date."""
    error: GptossConvertError | None = None
    """Why it could not be made."""
    seconds: float = 0.0

    @property
    def outcome(self) -> Outcome:
        """What its verification came to; one that was not made has failed."""
        if self.built is None:
            return Outcome.FAIL
        return Outcome(self.built.facts["verification"]["verdict"]["outcome"])

    @property
    def exit_code(self) -> int:
        """0 for one that is there and passed."""
        if self.error is not None:
            return self.error.exit_code
        return 0 if self.outcome is Outcome.PASS else VERIFICATION_FAILED

    @property
    def status(self) -> str:
        """What was done, in a word or three."""
        return "not made" if self.built is None else "built" if self.is_new else "up to date"

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        return {
            "name": self.name,
            "output": str(self.output),
            "status": self.status,
            "outcome": str(self.outcome),
            "exit_code": self.exit_code,
            "error": None if self.error is None else self.error.as_dict(),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What became of all."""

    folder: Path
    manifest: Path
    artifacts: tuple[BuiltArtifact, ...]
    document: Mapping[str, Any]
    """What reports are made of: a verification of all artifacts, as docs/verification.schema.json describes it."""

    @property
    def exit_code(self) -> int:
        """0 if every artifact passed; otherwise that of the first which could not be made, or did not pass."""
        return next((item.exit_code for item in self.artifacts if item.exit_code), 0)

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        return {
            "folder": str(self.folder),
            "manifest": str(self.manifest),
            "exit_code": self.exit_code,
            "artifacts": [item.as_dict() for item in self.artifacts],
        }
