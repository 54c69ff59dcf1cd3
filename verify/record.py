"""Records a reference: what artifacts are compared with, in one file that needs neither the model nor torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from gptoss_convert import __version__
from gptoss_convert.assets import GENERATION_CONFIG
from gptoss_convert.canonical_hash import Progress, ignore_progress, model_digest
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.destination import check_files
from gptoss_convert.encodings import Float32
from gptoss_convert.errors import BudgetError, InputError, UnsupportedError
from gptoss_convert.formats.stored_config import StoredConfig
from gptoss_convert.verify.logits import NOISE_DTYPE
from gptoss_convert.verify.metrics.positions import position_figures
from gptoss_convert.verify.metrics.summary import summarise
from gptoss_convert.verify.pack import layout
from gptoss_convert.verify.pack.fingerprint import Fingerprint, fingerprints, sampled_numbers
from gptoss_convert.verify.pack.writer import PackShape, columns_kept, compressed_vocabulary, write_pack
from gptoss_convert.verify.policy import default_policy
from gptoss_convert.verify.prompts import PromptSet
from gptoss_convert.verify.runners import RUNTIMES, departing_runtimes
from gptoss_convert.verify.runners.launch import Run, Status
from gptoss_convert.verify.runs import Runs, Say
from gptoss_convert.verify.structure import GENERATION_IDS

TOP = 1024
"""Tokens of a position that are kept of a large vocabulary, if nobody says how many."""
_NO_DIGEST = "0" * 64


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """How a reference is recorded."""

    prompts: PromptSet
    top: int = TOP
    """Tokens of a position that are kept; all of them are where the vocabulary has no more than twice as many."""
    work: Path | None = None
    """Folder for what runs leave; None for the system's folder for temporary files."""
    threads: int | None = None
    timeout: float | None = None
    """Seconds for each run."""
    jobs: int = 1
    """Tensors that are hashed at a time."""


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """A pack that is yet to be made."""

    reference: Checkpoint
    path: Path
    options: RecordOptions
    shape: PackShape
    runs: tuple[str | None, ...]
    """Runtimes that the reference runner imitates; None for the model as published."""
    vocabulary: bytes | None
    nbytes: int
    """Of the file; versions and seconds of runs may make it a few hundred bytes larger."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        prompts = self.options.prompts
        return {
            "source": str(self.reference.path),
            "source_format": self.reference.format,
            "path": str(self.path),
            "nbytes": self.nbytes,
            "prompts": {
                "name": prompts.name,
                "prompts": len(prompts.prompts),
                "positions": prompts.positions,
                "ids_sha256": prompts.sha256,
                "remarks": list(prompts.remarks),
            },
            "columns": self.shape.columns,
            "whole": self.shape.is_whole,
            "runs": [{"imitates": name} for name in self.runs],
        }


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """A pack that was made."""

    plan: PackPlan
    nbytes: int
    canonical_hash: str
    coverage: float
    """Mean probability that the kept tokens of a position have together."""
    least_coverage: float
    """What the built-in policy asks for; with less, a verification is inconclusive."""
    noise_floor: float
    """Mean KL of the reference in bfloat16, in nats."""
    runs: tuple[Run, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        return self.plan.as_dict() | {
            "nbytes": self.nbytes,
            "canonical_hash": self.canonical_hash,
            "coverage": self.coverage,
            "least_coverage": self.least_coverage,
            "noise_floor": self.noise_floor,
            "runs": [
                {
                    "imitates": run.settings.imitates,
                    "dtype": run.settings.dtype,
                    "versions": dict(run.versions),
                    "seconds": run.run_seconds,
                }
                for run in self.runs
            ],
        }


def plan_pack(reference: Checkpoint, path: Path, options: RecordOptions) -> PackPlan:
    """Return what `record` would write.

    Raises:
        GptossConvertError: the reference is not sound.
    """
    reference.require_sound()
    config = reference.config
    columns, is_whole = columns_kept(config.vocab_size, options.top)
    vocabulary = None
    if reference.tokenizer is not None:
        vocabulary = compressed_vocabulary(
            reference.tokenizer.vocabulary(), config.vocab_size, reference.tokenizer.path
        )
    shape = PackShape(
        positions=options.prompts.positions,
        columns=columns,
        is_whole=is_whole,
        layers=config.num_hidden_layers,
        chosen=config.num_experts_per_tok,
        samples=sum(sampled_numbers(tensor.shape) for tensor in reference.tensors.values()),
    )
    runs = (None, *departing_runtimes(config))
    unknown = Fingerprint(encoding="mxfp4", sha256=_NO_DIGEST, sha256_of_positive_zeros=_NO_DIGEST)
    facts = msgspec.json.encode(
        _facts(reference, options.prompts, dict.fromkeys(reference.tensors, unknown), dict.fromkeys(runs), 0.1)
    )
    names = [name or layout.REFERENCE_RUN for name in runs]
    return PackPlan(
        reference=reference,
        path=path,
        options=options,
        shape=shape,
        runs=runs,
        vocabulary=vocabulary,
        nbytes=shape.nbytes(names, len(facts), None if vocabulary is None else len(vocabulary)),
    )


def record(
    plan: PackPlan,
    *,
    replace: bool = False,
    progress: Progress = ignore_progress,
    say: Say = lambda line: None,
) -> PackReport:
    """Hash and run the reference, and write the pack.

    Args:
        plan: from `plan_pack`.
        replace: whether a file of that name may be replaced.
        progress: told how many bytes of weights were hashed.
        say: told what is being done.

    Raises:
        BudgetError: the model does not fit in memory, or what runs leave on the disk.
        InputError: the reference is damaged, or computes no distributions.
        OutputError: the pack cannot be written.
        UnsupportedError: torch is missing, or numbers are in an encoding that a pack cannot name.
    """
    reference, options = plan.reference, plan.options
    check_files([plan.path], reference.files, plan.nbytes, replace=replace)
    _require_torch()
    known: dict[str, Fingerprint] = {}
    samples: list[Float32] = []
    for tensor, fingerprint, numbers in fingerprints(reference, jobs=options.jobs, progress=progress):
        known[tensor.name] = fingerprint
        samples.append(numbers)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="gptoss-record-") as folder:
        runs = Runs(
            prompts=options.prompts,
            vocab_size=reference.config.vocab_size,
            folder=Path(folder),
            threads=options.threads,
            timeout=options.timeout,
            say=say,
        )
        made: dict[str | None, Run] = {None: _completed(runs.reference(reference.path))}
        rough = _completed(runs.reference(reference.path, dtype=NOISE_DTYPE))
        noise_floor = _noise_floor(made[None], rough, options.prompts)
        shutil.rmtree(rough.folder)  # as large as the others, which are still to come
        made |= {name: _completed(runs.reference(reference.path, imitates=name)) for name in plan.runs if name}
        facts = _facts(reference, options.prompts, known, made, noise_floor)
        say(f"writing {plan.path}")
        nbytes, coverage = write_pack(
            plan.path,
            facts,
            plan.shape,
            options.prompts,
            plan.vocabulary,
            samples,
            {name or layout.REFERENCE_RUN: run.recording() for name, run in made.items()},
        )
    return PackReport(
        plan=plan,
        nbytes=nbytes,
        canonical_hash=facts.canonical_hash,
        coverage=coverage,
        least_coverage=default_policy().evidence_for(options.prompts.name).coverage,
        noise_floor=noise_floor,
        runs=(*made.values(), rough),
    )


def _require_torch() -> None:
    own = RUNTIMES["reference"]
    if not own.is_installed:
        raise UnsupportedError(
            "recording a reference needs torch",
            hint=f"install it with: {own.install}; comparing artifacts with what was recorded needs it no more",
        )


def _completed(run: Run) -> Run:
    if run.status is Status.COMPLETED:
        return run
    kinds = {Status.MISSING: UnsupportedError, Status.TOO_LARGE: BudgetError}
    raise kinds.get(run.status, InputError)(
        f"reference cannot be run: {run.status}, {run.reason}", file=run.artifact
    )


def _noise_floor(run: Run, other: Run, prompts: PromptSet) -> float:
    divergence = summarise(position_figures(run.recording(), other.recording(), prompts)).divergence
    if divergence is None:
        raise InputError(
            "prompts are too short: of each, the first positions are not scored",
            found=f"{prompts.positions} positions in {len(prompts.prompts)} prompts",
        )
    return divergence.mean.mean


def _facts(
    reference: Checkpoint,
    prompts: PromptSet,
    known: Mapping[str, Fingerprint],
    runs: Mapping[str | None, Run | None],
    noise_floor: float,
) -> layout.Facts:
    generation = reference.assets.read_json_object(GENERATION_CONFIG)
    return layout.Facts(
        pack_version=layout.VERSION,
        tool=__version__,
        source=reference.path.absolute().name,
        source_format=reference.format,
        config=msgspec.convert(asdict(reference.config), StoredConfig),
        canonical_hash=model_digest({name: item.sha256 for name, item in known.items()}),
        tensors={
            name: layout.StoredFingerprint(
                encoding=item.encoding,
                sha256=item.sha256,
                sha256_of_positive_zeros=item.sha256_of_positive_zeros,
            )
            for name, item in known.items()
        },
        prompts=layout.StoredPrompts(
            name=prompts.name,
            sha256=prompts.sha256,
            prompts=[
                layout.StoredPrompt(name=prompt.name, kind=prompt.kind, tokens=len(prompt.ids))
                for prompt in prompts.prompts
            ],
            remarks=list(prompts.remarks),
        ),
        generation=None
        if generation is None
        else {key: generation[key] for key in GENERATION_IDS if key in generation},
        noise_floor=noise_floor,
        runs=[
            layout.StoredRun(imitates=name, versions={}, seconds=0.0)
            if run is None
            else layout.StoredRun(imitates=name, versions=dict(run.versions), seconds=run.run_seconds)
            for name, run in runs.items()
        ],
    )
