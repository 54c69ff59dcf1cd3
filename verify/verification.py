"""Proof that artifacts are the model they claim to be: structure, weights, and what runtimes make of them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert import __version__
from gptoss_convert.canonical_hash import Progress, ignore_progress
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.encodings import LossClass, loss_class
from gptoss_convert.errors import GptossConvertError, OptionError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.tokenizer import TokenizerSource, TokenKind
from gptoss_convert.verify.baseline import make_baseline
from gptoss_convert.verify.conditions import Conditions, measured_runs, now, this_host
from gptoss_convert.verify.declaration import read_declaration
from gptoss_convert.verify.decode import DECODED_POSITIONS
from gptoss_convert.verify.execution import Execution, Kernels, execution_of, look_at_kernels
from gptoss_convert.verify.judgement import Outcome
from gptoss_convert.verify.logits import EXACT, REFERENCE, Examiner, LogitsResult, Subject
from gptoss_convert.verify.pack.reader import Pack
from gptoss_convert.verify.policy import Change, Policy, default_policy
from gptoss_convert.verify.prompts import PromptSet
from gptoss_convert.verify.reference import AtHand, Recorded, Reference
from gptoss_convert.verify.runners import RUNTIMES, Runtime
from gptoss_convert.verify.runs import Say
from gptoss_convert.verify.structure import StructureResult, compare_structure, unreadable_structure
from gptoss_convert.verify.verdict import Cause, Verdict
from gptoss_convert.verify.weights import WeightsResult

if TYPE_CHECKING:
    from gptoss_convert.verify.bisect import Bisection

SCHEMA_VERSION = 2
"""Of the JSON document that a verification becomes."""

MOST_JOBS = 4
"""Chunks of weights that are compared at a time, if nobody says how many."""

_RESERVED = "<|reserved_"
"""Begins the names of tokens that were never trained."""


@dataclass(frozen=True, kw_only=True)
class LogitsOptions:
    """How distributions are compared."""

    prompts: PromptSet
    """What runtimes are run on."""
    runtimes: tuple[str, ...] = ()
    """Names of runtimes; empty for those made for each format."""
    baselines: tuple[Path, ...] = ()
    """Files to be taken for the most exact ones, each for the runtimes that load it."""
    work: Path | None = None
    """Folder for recordings, which are large; None for the system's folder for temporary files."""
    threads: int | None = None
    """Of each runtime; None for all cores."""
    timeout: float | None = None
    """Seconds for each run."""
    provider: str | None = None
    """Execution provider of runtimes for ONNX, as in `Settings`."""
    decoded_positions: int = DECODED_POSITIONS
    """Positions that runtimes for ONNX also compute token by token, at most; 0 for none."""
    noise_floor: bool = False
    """Measure the noise floor even if nothing depends on it."""

    def __post_init__(self) -> None:
        for name in self.runtimes:
            if name not in RUNTIMES:
                raise OptionError("no such runtime", found=name, expected=" or ".join(RUNTIMES))


@dataclass(frozen=True, kw_only=True)
class ArtifactResult:
    """What was found out about one artifact."""

    path: Path
    format: str | None
    """None if it cannot be opened."""
    profile: str | None
    """Name of the limits for what its encodings lose."""
    structure: StructureResult
    weights: WeightsResult | None
    """None if they were not asked for, or cannot be read."""
    logits: tuple[LogitsResult, ...]
    """By runtime; empty if they were not asked for, or the file already failed."""
    execution: Execution | None
    """What was executed, and what only checked; None for formats other than ONNX."""
    bisection: Bisection | None
    """None unless it was asked for, and something failed in a file that can be computed."""
    verdict: Verdict

    @property
    def passed(self) -> bool:
        """Whether nothing was found that should not be."""
        return self.verdict.outcome is Outcome.PASS

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        return {
            "path": str(self.path),
            "format": self.format,
            "profile": self.profile,
            "verdict": self.verdict.as_dict(),
            "structure": self.structure.as_dict(),
            "weights": None if self.weights is None else self.weights.as_dict(),
            "logits": [result.as_dict() for result in self.logits],
            "execution": None if self.execution is None else self.execution.as_dict(),
            "bisection": None if self.bisection is None else self.bisection.as_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Verification:
    """All that was found out."""

    reference: Path
    reference_format: str
    pack: Mapping[str, Any] | None
    """What the reference's recording says of itself; None for a model at hand."""
    prompts: PromptSet | None
    policy: Policy
    changes: tuple[Change, ...]
    """Where the policy departs from the built-in one."""
    artifacts: tuple[ArtifactResult, ...]
    conditions: Conditions

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of all artifacts."""
        return Outcome.worst(item.verdict.outcome for item in self.artifacts)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data, of the version `SCHEMA_VERSION`."""
        prompts = self.prompts
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "gptoss-convert", "version": __version__},
            "reference": {
                "path": str(self.reference),
                "format": self.reference_format,
                "pack": None if self.pack is None else dict(self.pack),
            },
            "outcome": str(self.outcome),
            "policy": {
                "version": self.policy.version,
                "changes": [
                    {"name": item.name, "value": item.value, "default": item.default} for item in self.changes
                ],
            },
            "prompts": None
            if prompts is None
            else {
                "name": prompts.name,
                "prompts": len(prompts.prompts),
                "positions": prompts.positions,
                "ids_sha256": prompts.sha256,
                "remarks": list(prompts.remarks),
            },
            "artifacts": [item.as_dict() for item in self.artifacts],
            "memory": [],
            "conditions": self.conditions.as_dict()
            | {"runs": measured_runs([item.logits for item in self.artifacts])},
        }


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What is to be compared."""

    weights: bool = True
    """Whether every number is compared."""
    logits: LogitsOptions | None = None
    """None: no model is run."""
    bisection_prompts: PromptSet | None = None
    """What a file that fails is searched with for the first stage that departs; None: it is not searched."""
    policy: Policy | None = None
    """None for the built-in one."""
    jobs: int | None = None
    """Chunks of weights at a time."""

    def __post_init__(self) -> None:
        if not self.weights and self.logits is None:
            raise OptionError("there is nothing to verify", expected="weights, logits or both")


def verify_artifacts(
    reference: Checkpoint,
    artifacts: Sequence[Path],
    options: VerifyOptions,
    *,
    progress: Progress = ignore_progress,
    say: Say = lambda line: None,
) -> Verification:
    """Compare artifacts with the model that they were made from.

    A file that is wrong already is not run, unless its weights are not compared at all.

    Args:
        reference: the model; its own file is run as it is.
        artifacts: paths of the models to be judged.
        options: what is to be compared.
        progress: told how many bytes of weights were compared.
        say: told what is being done.

    Raises:
        BudgetError: recordings do not fit on the disk.
        InputError: the reference is damaged.
        OptionError: there is no such runtime, or none of those named for an artifact, or none that has execution
            providers.
        UnsupportedError: the search for what is wrong needs a program that is not installed.
    """
    return _verified(AtHand(reference), artifacts, options, progress, say)


def verify_against(
    pack: Pack,
    artifacts: Sequence[Path],
    options: VerifyOptions,
    *,
    progress: Progress = ignore_progress,
    say: Say = lambda line: None,
) -> Verification:
    """Compare artifacts with what was recorded of the model that they were made from.

    Neither the model nor torch is needed. Artifacts are not run in our own arithmetic, unless that is named as a
    runtime, so of one whose weights were rounded the file and the runtime are judged together.

    Args:
        pack: from `read_pack`.
        artifacts: paths of the models to be judged.
        options: what is to be compared, on the prompts of the pack.
        progress: told how many bytes of weights were compared.
        say: told what is being done.

    Raises:
        BudgetError: recordings do not fit on the disk.
        InputError: the pack is damaged.
        OptionError: as `verify_artifacts`, or something needs the model itself.
    """
    if options.bisection_prompts is not None:
        raise OptionError("the search for the first stage needs the reference itself", file=pack.path)
    if options.logits is not None and options.logits.prompts != pack.prompts:
        raise OptionError("a recorded reference is compared on its own prompts only", file=pack.path)
    return _verified(Recorded(pack), artifacts, options, progress, say)


def _verified(
    reference: Reference, artifacts: Sequence[Path], options: VerifyOptions, progress: Progress, say: Say
) -> Verification:
    created, started = now(), time.monotonic()
    model = reference.model
    model.require_sound()
    _require_possible(model, artifacts, options)
    policy = options.policy or default_policy()
    examined = [_compared(reference, path, options, progress) for path in artifacts]
    if options.logits is not None:
        with tempfile.TemporaryDirectory(dir=options.logits.work, prefix="gptoss-verify-") as folder:
            examination = _Examination(reference, policy, options.logits, Path(folder), say)
            examined = [examination.examined(item) for item in examined]
    if options.bisection_prompts is not None:
        examined = [_searched(model, item, options.bisection_prompts, say) for item in examined]
    return Verification(
        reference=model.path,
        reference_format=model.format,
        pack=reference.facts(),
        prompts=None if options.logits is None else options.logits.prompts,
        policy=policy,
        changes=policy.changes(),
        artifacts=tuple(item.result() for item in examined),
        conditions=Conditions(created=created, seconds=round(time.monotonic() - started, 3), host=this_host()),
    )


def verify_written(
    reference: Checkpoint,
    output: Path,
    *,
    tokenizer: TokenizerSource | None = None,
    jobs: int | None = None,
    progress: Progress = ignore_progress,
) -> ArtifactResult:
    """Compare a file or folder that was just written with what it was written from: structure and weights.

    Args:
        reference: the source, with the adapter that was merged into it.
        output: what to open.
        tokenizer: took the place of the source's own when it was converted, and so does here.
        jobs: chunks of weights at a time.
        progress: told how many bytes of the reference were compared.

    Raises:
        InputError: the reference is damaged, or changed since it was opened.
    """
    if tokenizer is not None:
        reference = replace(reference, tokenizer=tokenizer)
    return _compared(AtHand(reference), output, VerifyOptions(jobs=jobs), progress).result()


def _require_baselines(reference: Checkpoint, paths: Sequence[Path]) -> None:
    """Refuse files that cannot be the most exact ones: a wrong one would put the blame on the runtime.

    Raises:
        InputError: one cannot be opened.
        OptionError: one is another model, or there are two of a format.
    """
    formats: set[str] = set()
    for path in paths:
        baseline = open_checkpoint(path)
        if baseline.format in formats:
            raise OptionError("two baselines of one format", file=path, found=baseline.format)
        formats.add(baseline.format)
        structure = compare_structure(reference, baseline)
        if not structure.passed:
            raise OptionError(f"baseline is another model: {structure.reason}", file=path)


def _require_possible(reference: Checkpoint, artifacts: Sequence[Path], options: VerifyOptions) -> None:
    """Refuse what cannot be done before hours are spent on the rest of it."""
    own = RUNTIMES[REFERENCE]
    if options.bisection_prompts is not None and not own.is_installed:
        raise UnsupportedError("the search for the first stage needs torch", hint=f"install it with: {own.install}")
    if options.logits is None:
        return
    _require_baselines(reference, options.logits.baselines)
    _require_providers(artifacts, options.logits.provider)
    if options.logits.runtimes:
        for path in artifacts:
            try:
                format_name = open_checkpoint(path).format
            except GptossConvertError:  # it will not be run
                continue
            _chosen_runtimes(options.logits.runtimes, path, format_name)


def _chosen_runtimes(names: Sequence[str], path: Path, format_name: str) -> list[Runtime]:
    """Return the runtimes to be used: those named, or all foreign ones for the format, or our own.

    Raises:
        OptionError: none of those named loads the format.
    """
    able = [runtime for runtime in RUNTIMES.values() if format_name in runtime.formats]
    chosen = [runtime for runtime in able if runtime.name in names]
    if names and not chosen:
        raise OptionError(
            "none of the runtimes that were named loads this",
            file=path,
            found=", ".join(names),
            expected=" or ".join(runtime.name for runtime in able),
        )
    return chosen or [runtime for runtime in able if runtime.name != REFERENCE] or able


@dataclass(frozen=True, kw_only=True)
class _Examined:
    """What is known of an artifact so far."""

    path: Path
    artifact: Checkpoint | None
    """None if it cannot be opened."""
    profile: str | None
    structure: StructureResult
    weights: WeightsResult | None
    kernels: Kernels | None = None
    logits: tuple[LogitsResult, ...] = ()
    bisection: Bisection | None = None

    @property
    def execution(self) -> Execution | None:
        """What was executed so far, and what only checked; None for formats other than ONNX."""
        return None if self.kernels is None else execution_of(self.kernels, self.logits)

    @property
    def is_exact(self) -> bool:
        """Whether it is known to hold the numbers of the reference."""
        weights = self.weights
        return self.passed and weights is not None and weights.loss is not LossClass.LOSSY

    @property
    def passed(self) -> bool:
        """Whether what was compared without running it passed."""
        return self.structure.passed and (self.weights is None or self.weights.passed)

    def result(self) -> ArtifactResult:
        """Return the result, with the verdict of all."""
        return ArtifactResult(
            path=self.path,
            format=None if self.artifact is None else self.artifact.format,
            profile=self.profile,
            structure=self.structure,
            weights=self.weights,
            logits=self.logits,
            execution=self.execution,
            bisection=self.bisection,
            verdict=self.verdict,
        )

    @property
    def verdict(self) -> Verdict:
        """What is known so far, put together."""
        return Verdict.of_all(list(self._verdicts()))

    def _verdicts(self) -> Iterator[Verdict]:
        for logits in self.logits:
            yield logits.verdict
        checked = [result for result in (self.structure, self.weights) if result is not None]
        for result in checked:
            if not result.passed:
                yield Verdict(outcome=Outcome.FAIL, cause=Cause.FILE, reason=result.reason)
        if self.execution is not None and self.execution.lacks_kernels:
            reason = f"{self.execution.kernels.title} does not run the graph: {self.execution.kernels}"
            yield Verdict(outcome=Outcome.FAIL, cause=Cause.FILE, reason=reason)
        if self.passed and not self.logits:
            reason = "; ".join(result.reason for result in reversed(checked))
            yield Verdict(outcome=Outcome.PASS, cause=None, reason=reason)


def _compared(reference: Reference, path: Path, options: VerifyOptions, progress: Progress) -> _Examined:
    """Open an artifact and compare what can be compared without running it."""
    try:
        artifact = open_checkpoint(path)
    except GptossConvertError as error:
        return _Examined(
            path=path, artifact=None, profile=None, structure=unreadable_structure(error), weights=None
        )
    model = reference.model
    structure = compare_structure(model, artifact)
    weights = None
    if options.weights:
        jobs = options.jobs or min(os.cpu_count() or 1, MOST_JOBS)
        declaration = read_declaration(artifact, jobs=jobs)
        weights = reference.compare_weights(artifact, declaration, jobs, progress)
    return _Examined(
        path=path,
        artifact=artifact,
        profile=_profile(model, artifact),
        structure=structure,
        weights=weights,
        kernels=look_at_kernels(artifact),
    )


def _searched(reference: Checkpoint, item: _Examined, prompts: PromptSet, say: Say) -> _Examined:
    """Return what is known of an artifact after the search for what is wrong with it, if something is."""
    artifact = item.artifact
    if artifact is None or item.verdict.outcome is not Outcome.FAIL:
        return item
    if not _can_be_run_beside(reference, artifact):
        return item
    from gptoss_convert.verify.bisect import bisect, have_same_stages  # imports torch

    if not have_same_stages(reference, artifact):
        say(f"{artifact.path} is a model of another shape, which has no stages to compare")
        return item
    say(f"searching {artifact.path} for the first stage that departs")
    return replace(item, bisection=bisect(reference, artifact, prompts))


def _can_be_run_beside(reference: Checkpoint, artifact: Checkpoint) -> bool:
    """Return whether what the two compute can be compared: sound files, the same tensors, as many experts."""
    expected, found = (
        {name: tensor.shape for name, tensor in side.tensors.items()} for side in (reference, artifact)
    )
    chosen = [side.config.num_experts_per_tok for side in (reference, artifact)]
    return not artifact.problems and expected == found and chosen[0] == chosen[1]


def _profile(reference: Checkpoint, artifact: Checkpoint) -> str:
    """Return the name of the limits for what the encodings of an artifact lose: the coarsest one that rounds."""
    bits = [
        tensor.encoding.bits_per_weight
        for name, tensor in artifact.tensors.items()
        if name in reference.tensors
        and loss_class(reference.tensors[name].encoding, tensor.encoding) is LossClass.LOSSY
    ]
    if not bits:
        return EXACT
    return "lossy-8bit" if min(bits) >= 8 else "lossy-4bit"


class _Examination:
    """Runs artifacts and compares their distributions."""

    def __init__(
        self, reference: Reference, policy: Policy, options: LogitsOptions, folder: Path, say: Say
    ) -> None:
        self._reference = model = reference.model
        self._is_at_hand = reference.is_at_hand
        self._options = options
        self._folder = folder
        self._say = say
        self._examiner = Examiner(
            runs=reference.runs(
                folder,
                prompts=options.prompts,
                vocab_size=model.config.vocab_size,
                threads=options.threads,
                timeout=options.timeout,
                provider=options.provider,
                say=say,
            ),
            policy=policy,
            named_tokens=_named_tokens(model),
            noise_floor_wanted=options.noise_floor,
            recorded_noise_floor=reference.noise_floor,
            artifacts_are_computed=reference.is_at_hand,
            decoded_positions=options.decoded_positions,
        )
        self._baselines: dict[str, Path | None] = {_format(path): path for path in options.baselines}

    def examined(self, item: _Examined) -> _Examined:
        """Return what is known of an artifact after it was run, if it is worth it."""
        artifact = item.artifact
        if artifact is None or (item.weights is not None and not item.passed):
            return item
        if not _can_be_run_beside(self._reference, artifact):
            return item
        runtimes = _chosen_runtimes(self._options.runtimes, artifact.path, artifact.format)
        is_foreign = any(runtime.name != REFERENCE and runtime.is_installed for runtime in runtimes)
        subject = Subject(
            reference=self._reference,
            artifact=artifact,
            is_exact=item.is_exact,
            profile=item.profile or EXACT,
            baseline=self._baseline(artifact.format) if is_foreign else None,
        )
        results = [self._examiner.examine(subject, runtime) for runtime in runtimes]
        if artifact.path.absolute() != self._reference.path.absolute():
            self._examiner.runs.forget(artifact.path)
        return replace(item, logits=tuple(self._without_folder(result) for result in results))

    def _without_folder(self, result: LogitsResult) -> LogitsResult:
        """Name files that were made for the runs without their folder, which is another one each time, and gone."""
        runs = tuple(
            replace(run, artifact=Path(run.artifact.name)) if run.artifact.is_relative_to(self._folder) else run
            for run in result.runs
        )
        return replace(result, runs=runs)

    def _baseline(self, format_name: str) -> Path | None:
        if format_name not in self._baselines:
            if not self._is_at_hand:
                return None
            try:
                made = make_baseline(self._reference, format_name, self._folder)
            except GptossConvertError as error:  # it would have told more, and nothing depends on it
                self._say(f"no most exact file is made: {error}")
                made = None
            self._baselines[format_name] = made
        return self._baselines[format_name]


def _require_providers(artifacts: Sequence[Path], provider: str | None) -> None:
    """Raise `OptionError` if a provider was chosen, and nothing is run that has providers."""

    def has_none(path: Path) -> bool:
        try:
            return _format(path) != "onnx"
        except GptossConvertError:  # which is a result
            return False

    if provider is not None and all(map(has_none, artifacts)):
        raise OptionError("only ONNX models are run on execution providers", found=provider)


def _format(path: Path) -> str:
    return open_checkpoint(path).format


def _named_tokens(reference: Checkpoint) -> NDArray[np.bool_] | None:
    """Return which ids of the vocabulary were trained, [vocabulary]; None if the reference has no tokenizer."""
    if reference.tokenizer is None:
        return None
    vocabulary = reference.tokenizer.vocabulary()
    named = np.zeros(reference.config.vocab_size, np.bool_)
    for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        if token is not None and kind is not TokenKind.UNUSED and not token.startswith(_RESERVED):
            named[index] = True
    return named
