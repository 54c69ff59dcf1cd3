"""Verification of what a build wrote, as its recipe says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_convert.recipes.artifacts import BuiltArtifact, WrittenArtifact
from gptoss_convert.recipes.recipe import VerifyRecipe
from gptoss_convert.recipes.source import OpenSource
from gptoss_convert.verify.conditions import Conditions, measured_runs
from gptoss_convert.verify.judgement import Outcome
from gptoss_convert.verify.logits import LogitsResult
from gptoss_convert.verify.policy import Policy, default_policy, read_policy
from gptoss_convert.verify.prompts import PromptSet, load_prompts
from gptoss_convert.verify.runs import Say
from gptoss_convert.verify.structure import unreadable_structure
from gptoss_convert.verify.verdict import Verdict
from gptoss_convert.verify.verification import (
    ArtifactResult,
    LogitsOptions,
    Verification,
    VerifyOptions,
    verify_artifacts,
)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Verifies what was written, as the recipe says."""

    source: OpenSource
    verify: VerifyRecipe
    prompts: PromptSet | None
    policy: Policy | None

    @classmethod
    def of(cls, verify: VerifyRecipe, source: OpenSource) -> Judge:
        """Load prompts and policy before anything is written."""
        prompts = None
        if verify.prompts is not None:
            reference = source.reference
            prompts = load_prompts(
                verify.prompts, reference.tokenizer, reference.config, max_tokens=verify.max_tokens
            )
        policy = None if verify.policy is None else read_policy(verify.policy)
        return cls(source=source, verify=verify, prompts=prompts, policy=policy)

    def judged(
        self, written: Sequence[WrittenArtifact], say: Say
    ) -> Iterator[tuple[WrittenArtifact, ArtifactResult]]:
        """Yield artifacts with their results; those that are run in the same runtimes share the reference's run."""

        def runtimes(item: WrittenArtifact) -> tuple[str, ...]:
            return item.recipe.runtimes

        for names, group in itertools.groupby(sorted(written, key=runtimes), key=runtimes):
            items = list(group)
            options = VerifyOptions(logits=self._logits(names), policy=self.policy)
            paths = [item.plan.output for item in items]
            verification = verify_artifacts(self.source.reference, paths, options, say=say)
            yield from zip(items, verification.artifacts, strict=True)

    def document(
        self,
        artifacts: Sequence[BuiltArtifact],
        logits: Mapping[str, tuple[LogitsResult, ...]],
        conditions: Conditions,
    ) -> dict[str, Any]:
        """Return a verification of all artifacts: of those that were made now, earlier, and not at all.

        Args:
            artifacts: all of them.
            logits: what runtimes made of those that were made now, by name.
            conditions: of this build.
        """
        reference, policy = self.source.reference, self.policy or default_policy()
        frame = Verification(
            reference=reference.path,
            reference_format=reference.format,
            pack=None,
            prompts=self.prompts,
            policy=policy,
            changes=policy.changes(),
            artifacts=(),
            conditions=conditions,
        ).as_dict()
        measured = measured_runs([logits.get(item.name, ()) for item in artifacts])
        return frame | {
            "outcome": str(Outcome.worst(item.outcome for item in artifacts)),
            "artifacts": [_judged(item) for item in artifacts],
            "memory": [dict(entry) for item in artifacts if item.built for entry in item.built.memory],
            "conditions": conditions.as_dict() | {"runs": measured},
        }

    def _logits(self, runtimes: tuple[str, ...]) -> LogitsOptions | None:
        if self.prompts is None:
            return None
        return LogitsOptions(
            prompts=self.prompts,
            runtimes=runtimes,
            provider=self.verify.provider,
            threads=self.verify.threads,
            timeout=self.verify.timeout,
        )


def _judged(item: BuiltArtifact) -> dict[str, Any]:
    """Return what a document says of an artifact; one that was not made is one that cannot be read."""
    if item.built is not None:
        return dict(item.built.verification)
    assert item.error is not None
    verdict = Verdict(outcome=Outcome.FAIL, cause=None, reason=f"it could not be made: {item.error}")
    structure = unreadable_structure(item.error)
    return ArtifactResult(
        path=item.output,
        format=None,
        profile=None,
        structure=structure,
        weights=None,
        logits=(),
        execution=None,
        bisection=None,
        verdict=verdict,
    ).as_dict()
