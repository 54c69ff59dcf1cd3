"""An artifact in one runtime: how far its distributions are from the reference's, and because of what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import InputError, VerificationError
from gptoss_convert.verify.decode import DECODED_POSITIONS, Decoding, choose_decoding
from gptoss_convert.verify.judgement import Judgement, Outcome, judge
from gptoss_convert.verify.metrics.plain import Plain
from gptoss_convert.verify.metrics.positions import position_figures
from gptoss_convert.verify.metrics.routing import RoutingSummary, summarise_by_routing
from gptoss_convert.verify.metrics.spread import Spread, spread_of
from gptoss_convert.verify.metrics.summary import Summary, summarise
from gptoss_convert.verify.parts import (
    ARITHMETIC,
    ARTIFACT,
    CACHE,
    CONVERSION,
    DECODE,
    DEPARTURES,
    FILE,
    RUNTIME,
    TOTAL,
)
from gptoss_convert.verify.policy import Policy
from gptoss_convert.verify.runners import Runtime
from gptoss_convert.verify.runners.launch import Run, Status
from gptoss_convert.verify.runs import Runs
from gptoss_convert.verify.verdict import Cause, Verdict

NOISE_DTYPE = "bfloat16"
"""Arithmetic of the reference against itself: what gpt-oss was trained in and is served in."""

REFERENCE = "reference"
"""Name of the runtime that is our own."""
EXACT = "exact"
IN_RUNTIME = "exact-in-runtime"
IN_ALL = "in-all"
"""Names of limits."""


@dataclass(frozen=True, kw_only=True)
class Comparison(Plain):
    """Two runs on the same prompts."""

    part: str
    """One of `parts`: what lies between the two runs."""
    reference: str
    """The runs, in words."""
    test: str
    summary: Summary
    spread: Spread
    routing: RoutingSummary | None
    judgement: Judgement | None
    """None for what is only reported."""

    @property
    def mean_kl(self) -> float | None:
        """Mean KL divergence in nats; None if no position could be compared."""
        return None if self.summary.divergence is None else self.summary.divergence.mean.mean


@dataclass(frozen=True, kw_only=True)
class LogitsResult:
    """What one runtime made of an artifact."""

    runtime: str
    runs: tuple[Run, ...]
    """All that were compared; the artifact's own run first."""
    comparisons: tuple[Comparison, ...]
    noise_floor: float | None
    """Mean KL of the reference against itself in other arithmetic; None if it was not needed."""
    verdict: Verdict

    def comparison(self, part: str) -> Comparison | None:
        """Return the comparison of this part, if it was made."""
        return next((item for item in self.comparisons if item.part == part), None)

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        return {
            "runtime": self.runtime,
            "verdict": self.verdict.as_dict(),
            "noise_floor": self.noise_floor,
            "comparisons": [item.as_dict() for item in self.comparisons],
            "runs": [run_as_dict(run) for run in self.runs],
        }


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An artifact, and what the weights have told about it."""

    reference: Checkpoint
    artifact: Checkpoint
    is_exact: bool
    """Its numbers and its configuration were compared and are those of the reference."""
    profile: str
    """Name of the limits for what its encodings lose."""
    baseline: Path | None
    """The most exact file for the same runtime."""


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Compares artifacts in runtimes; a noise floor is measured when limits do not hold without it, or at once."""

    runs: Runs
    policy: Policy
    named_tokens: NDArray[np.bool_] | None
    noise_floor_wanted: bool = False
    recorded_noise_floor: float | None = None
    """That of a reference which was recorded, and cannot be run again."""
    artifacts_are_computed: bool = True
    """Artifacts are also run in our own arithmetic, which tells the file from the runtime."""
    decoded_positions: int = DECODED_POSITIONS
    """Positions that runtimes which can are made to compute token by token, at most; 0 for none."""

    def examine(self, subject: Subject, runtime: Runtime) -> LogitsResult:
        """Run the artifact in the runtime and find out what its deviation is made of.

        Raises:
            BudgetError: recordings do not fit on the disk.
            InputError: the reference computes no distributions.
        """
        run = self.runs.of(runtime, subject.artifact.path)
        try:
            parts = list(self._parts(subject, runtime, _completed(run)))
            floor = self._noise_floor(subject) if self.noise_floor_wanted else None
            comparisons = tuple(self._compared(part, floor) for part in parts)
            if floor is None and any(_could_be_noise(item) for item in comparisons):
                floor = self._noise_floor(subject)
                comparisons = tuple(self._compared(part, floor) for part in parts)
        except _UnfinishedError as unfinished:
            return _unfinished(runtime, run, unfinished.run)
        except _IncomparableError as incomparable:
            return _incomparable(runtime, subject, run, incomparable)
        runs = {id(item): item for part in parts for item in (part.test, part.reference)}
        return LogitsResult(
            runtime=runtime.name,
            runs=(run, *(item for item in runs.values() if item is not run)),
            comparisons=comparisons,
            noise_floor=floor,
            verdict=_verdict(runtime, subject, {item.part: item for item in comparisons}),
        )

    def _parts(self, subject: Subject, runtime: Runtime, run: Run) -> Iterator[_Part]:
        """Yield what is to be compared, the runs having been made.

        Raises:
            _UnfinishedError: one of the runs was not completed.
        """
        model, artifact = subject.reference.path, subject.artifact.path
        exact = _completed(self.runs.reference(model))
        yield _Part(TOTAL, "reference", exact, f"artifact in {runtime.name}", run, IN_ALL)
        if runtime.name == REFERENCE or (self.artifacts_are_computed and not subject.is_exact):
            held = _completed(self.runs.reference(artifact))
            yield _Part(FILE, "reference", exact, "artifact, computed exactly", held, subject.profile)
        if runtime.name == REFERENCE:
            return
        imitates, manner = None, ""
        if runtime.computed_config(subject.reference.config) != subject.reference.config:
            imitates, manner = runtime.name, f" as {runtime.name} computes"
            departed = _completed(self.runs.reference(model, imitates=imitates))
            yield _Part(DEPARTURES, "reference", exact, f"reference{manner}", departed, IN_RUNTIME)
        lossless = IN_RUNTIME if subject.profile == EXACT else subject.profile
        if subject.is_exact or self.artifacts_are_computed:
            right = _completed(self.runs.reference(model if subject.is_exact else artifact, imitates=imitates))
            right_name, right_limits = f"artifact, computed exactly{manner}", IN_RUNTIME
            yield _Part(RUNTIME, right_name, right, f"artifact in {runtime.name}", run, right_limits)
        else:
            right = _completed(self.runs.reference(model, imitates=imitates))
            right_name, right_limits = f"reference{manner}", lossless
            yield _Part(ARTIFACT, right_name, right, f"artifact in {runtime.name}", run, right_limits)
        best = None if subject.baseline is None else self.runs.of(runtime, subject.baseline)
        if best is not None and best is not run and best.status is Status.COMPLETED:
            name = f"most exact file in {runtime.name}"
            published = self.runs.reference(model, imitates=imitates)
            yield _Part(ARITHMETIC, f"reference{manner}", published, name, best, None)
            yield _Part(CONVERSION, name, best, f"artifact in {runtime.name}", run, lossless, router=published)
        decoding = self._decoding(subject, runtime)
        if decoding is not None:
            decoded = _completed(self.runs.decoded(runtime, artifact, decoding))
            name = f"artifact in {runtime.name}, token by token"
            yield _Part(DECODE, right_name, right, name, decoded, right_limits, decoding=decoding)
            at_once = f"artifact in {runtime.name}, many positions at once"
            yield _Part(CACHE, at_once, run, name, decoded, IN_RUNTIME, router=right, decoding=decoding)

    def _decoding(self, subject: Subject, runtime: Runtime) -> Decoding | None:
        if not runtime.decodes or not self.decoded_positions:
            return None
        return choose_decoding(self.runs.prompts, subject.reference.config.sliding_window, self.decoded_positions)

    def _compared(self, part: _Part, noise_floor: float | None) -> Comparison:
        prompts, reference, test, chosen = (
            self.runs.prompts,
            part.reference.recording(),
            part.test.recording(),
            None,
        )
        router = part.routed_by.recording()
        if part.decoding is not None:
            decoding = part.decoding
            prompts, chosen = decoding.prompts, test.decoded()
            reference, router = (side.excerpt(decoding.indices, decoding.lengths) for side in (reference, router))
        near_tie, fragile = self.policy.near_ties.margin, self.policy.routing.fragile_margin
        try:
            figures = position_figures(reference, test, prompts, named_tokens=self.named_tokens, chosen=chosen)
            routing = summarise_by_routing(figures, router, test, near_tie=near_tie, fragile_margin=fragile)
        except (InputError, VerificationError) as error:
            raise _IncomparableError(part, error) from error
        summary = summarise(figures, near_tie=near_tie)
        judgement = None
        if part.profile is not None:
            judgement = judge(
                part.profile,
                self.policy,
                summary,
                routing,
                prompt_set=prompts.name,
                noise_floor=noise_floor,
            )
        return Comparison(
            part=part.name,
            reference=part.reference_name,
            test=part.test_name,
            summary=summary,
            spread=spread_of(figures),
            routing=routing,
            judgement=judgement,
        )

    def _noise_floor(self, subject: Subject) -> float | None:
        if self.recorded_noise_floor is not None:
            return self.recorded_noise_floor
        path = subject.reference.path
        other = self.runs.reference(path, dtype=NOISE_DTYPE)
        if other.status is not Status.COMPLETED:
            return None
        figures = position_figures(self.runs.reference(path).recording(), other.recording(), self.runs.prompts)
        divergence = summarise(figures).divergence
        return None if divergence is None else divergence.mean.mean


@dataclass(frozen=True)
class _Part:
    """Two runs to be compared."""

    name: str
    reference_name: str
    reference: Run
    test_name: str
    test: Run
    profile: str | None
    """Limits that the comparison is held against."""
    router: Run | None = None
    """Tells the routing of the reference, if its run does not."""
    decoding: Decoding | None = None
    """What of the prompts the test is a run of; None for all, at once."""

    @property
    def routed_by(self) -> Run:
        """The run that tells the routing of the reference."""
        return self.router or self.reference


class _UnfinishedError(Exception):
    """A run that is needed was not completed."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.reason)
        self.run = run


class _IncomparableError(Exception):
    """Two runs of which one computed no distributions, or those of a model of another shape."""

    def __init__(self, part: _Part, error: InputError | VerificationError) -> None:
        super().__init__(str(error))
        self.error = error
        self.run = part.reference if error.file == str(part.reference.folder) else part.test


def _completed(run: Run) -> Run:
    if run.status is not Status.COMPLETED:
        raise _UnfinishedError(run)
    return run


_NOT_THE_FILES_FAULT = (Status.MISSING, Status.TOO_LARGE, Status.TIMED_OUT, Status.KILLED)


def _unfinished(runtime: Runtime, run: Run, failed: Run) -> LogitsResult:
    """Return the result where a run was not completed: a failure only if it is the artifact that does not run."""
    decodes = failed.settings.prefixes is not None
    manner = f" as {failed.settings.imitates} computes" if failed.settings.imitates else ""
    manner += ", decode (token by token)" if decodes else ""
    what = f"{failed.artifact} in {failed.runtime}{manner}: {failed.status}, {failed.reason}"
    if (failed is run or decodes) and failed.status not in _NOT_THE_FILES_FAULT:
        verdict = Verdict(outcome=Outcome.FAIL, cause=None, reason=f"{runtime.name} does not run it: {what}")
    else:
        verdict = Verdict(outcome=Outcome.INCONCLUSIVE, cause=Cause.EVIDENCE, reason=f"a run is missing: {what}")
    runs = (run,) if failed is run else (run, failed)
    return LogitsResult(runtime=runtime.name, runs=runs, comparisons=(), noise_floor=None, verdict=verdict)


def _incomparable(runtime: Runtime, subject: Subject, run: Run, what: _IncomparableError) -> LogitsResult:
    """Return the result where runs cannot be compared: a failure if it is the artifact's that is no distribution.

    Raises:
        InputError: it is that of the reference, which then cannot judge.
    """
    error, failed = what.error, what.run
    if failed.artifact == subject.reference.path and failed.runtime == REFERENCE:
        raise error
    facts = f": {error.found}, expected {error.expected}" if error.expected else ""
    reason = f"{failed.artifact} in {failed.runtime} cannot be compared: {error.what}{facts}"
    if failed.artifact == subject.artifact.path:
        cause = Cause.FILE if failed.runtime == REFERENCE else None
        verdict = Verdict(outcome=Outcome.FAIL, cause=cause, reason=reason)
    else:
        verdict = Verdict(outcome=Outcome.INCONCLUSIVE, cause=Cause.EVIDENCE, reason=reason)
    runs = (run,) if failed is run else (run, failed)
    return LogitsResult(runtime=runtime.name, runs=runs, comparisons=(), noise_floor=None, verdict=verdict)


def _could_be_noise(comparison: Comparison) -> bool:
    """Return whether a noise floor may turn the judgement: the profile asks for one, and it has not passed."""
    judgement = comparison.judgement
    return judgement is not None and judgement.outcome is not Outcome.PASS and judgement.profile != EXACT


def _verdict(runtime: Runtime, subject: Subject, parts: dict[str, Comparison]) -> Verdict:
    """Say who is to blame: the file before the runtime, failures before doubts, and doubts before passes."""
    held = {name: item.judgement for name, item in parts.items() if item.judgement is not None}
    departures = held.pop(DEPARTURES, None)
    blame: dict[str, Cause | None] = {
        FILE: Cause.FILE,
        RUNTIME: Cause.RUNTIME,
        ARTIFACT: None,
        CONVERSION: Cause.RUNTIME,
        TOTAL: Cause.RUNTIME,
        DECODE: Cause.RUNTIME,
        CACHE: Cause.RUNTIME,
    }
    other = "something else than the file says"
    if runtime.has_providers:  # a graph is a program of its own, in which a fault may be
        other = "with the graph something else than the weights say"
    told = {
        FILE: "the numbers in the file already depart, computed exactly",
        RUNTIME: f"{runtime.name} computes {other}",
        ARTIFACT: f"what {runtime.name} makes of the file departs, by the file or by {runtime.name}",
        CONVERSION: f"{runtime.name} computes something else than with the most exact file",
        TOTAL: f"what {runtime.name} makes of the file is too far from the reference, all together",
        DECODE: f"decode: token by token, {runtime.name} computes {other}",
        CACHE: f"decode: token by token, {runtime.name} computes something else than many positions at once",
    }
    for name in blame:
        if name in held and held[name].outcome is Outcome.FAIL:
            return Verdict(outcome=Outcome.FAIL, cause=blame[name], reason=f"{told[name]}: {held[name].reason}")
    for name in blame:
        if name in held and held[name].outcome is Outcome.INCONCLUSIVE:
            reason = f"{_WHAT[name]} cannot be judged: {held[name].reason}"
            return Verdict(outcome=Outcome.INCONCLUSIVE, cause=Cause.EVIDENCE, reason=reason)
    right = (
        "the file holds the reference's numbers" if subject.is_exact else "the file loses what its encodings may"
    )
    if ARTIFACT in held:
        right = "the file in its runtime is as near as its encodings allow"
    if departures is not None and (departures.outcome is not Outcome.PASS or departures.routing_excused):
        names = " and ".join(departure.name for departure in runtime.departures)
        reason = (
            f"{right} and {runtime.name} computes it rightly but for its own {names}, which alone makes "
            f"mean KL {parts[DEPARTURES].mean_kl or 0.0:.2g} (total {parts[TOTAL].mean_kl or 0.0:.2g})"
        )
        return Verdict(outcome=Outcome.PASS, cause=Cause.RUNTIME, reason=reason)
    excused = [name for name, judgement in held.items() if judgement.routing_excused and name != TOTAL]
    if excused:
        routing = parts[excused[0]].routing
        share = 0.0 if routing is None or routing.steady_share is None else 1 - routing.steady_share
        reason = (
            f"{right} and {runtime.name} agrees where the same experts are chosen; at {share:.1%} of the "
            "positions close router scores let it choose others"
        )
        return Verdict(outcome=Outcome.PASS, cause=Cause.ROUTING, reason=reason)
    reason = f"{right} and {runtime.name} agrees, mean KL {parts[TOTAL].mean_kl or 0.0:.2g}"
    if DECODE in parts:
        reason += f"; token by token as well, {parts[DECODE].mean_kl or 0.0:.2g}"
    return Verdict(outcome=Outcome.PASS, cause=None, reason=reason)


_WHAT = {
    FILE: "the file",
    RUNTIME: "the runtime",
    ARTIFACT: "the file in the runtime",
    CONVERSION: "the conversion within the runtime",
    TOTAL: "what all makes together",
    DECODE: "decode, token by token,",
    CACHE: "decode, token by token, beside many positions at once,",
}


def run_as_dict(run: Run) -> dict[str, Any]:
    """Return what was run, and whether it was completed, as JSON-ready data; `conditions` has what it took."""
    return {
        "runtime": run.runtime,
        "artifact": str(run.artifact),
        "dtype": run.settings.dtype,
        "imitates": run.settings.imitates,
        "threads": run.settings.threads,
        "provider": run.provider,
        "status": str(run.status),
        "reason": run.reason,
        "versions": dict(run.versions),
        "prefill_positions": run.prefill_positions,
        "decode_positions": run.decode_positions,
    }
