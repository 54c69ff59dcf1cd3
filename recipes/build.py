"""Building: every artifact of a recipe is converted, verified, and listed in one manifest."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gptoss_convert.assets import MANIFEST, read_small_file
from gptoss_convert.converters.destination import check_destination
from gptoss_convert.converters.execute import Progress, Report, Resources, execute, ignore_progress
from gptoss_convert.converters.manifest import hash_file
from gptoss_convert.converters.output import new_files
from gptoss_convert.converters.plan import Plan, PlannedFile
from gptoss_convert.description import Description, model_name
from gptoss_convert.errors import GptossConvertError, OutputError, UnsupportedError
from gptoss_convert.recipes.bom import bill_of_materials
from gptoss_convert.recipes.cards import FOLDER, CardFacts, card_name, model_card
from gptoss_convert.recipes.footprint import footprint_of
from gptoss_convert.recipes.manifest import (
    artifact_facts,
    build_manifest,
    serialise_manifest,
    sha256_of_recipe,
)
from gptoss_convert.recipes.provenance import provenance
from gptoss_convert.recipes.recipe import ArtifactRecipe, Recipe, VerifyRecipe
from gptoss_convert.recipes.signing import SIGNATURE, require_signing, sign_folder
from gptoss_convert.recipes.source import OpenSource, open_source
from gptoss_convert.recipes.state import (
    STATE,
    BuildState,
    Built,
    artifact_key,
    hashed_sources,
    read_state,
    written_files,
)
from gptoss_convert.report.memory import memory_entries
from gptoss_convert.verify.conditions import Conditions, measured_runs, now, this_host
from gptoss_convert.verify.declaration import LARGEST_MANIFEST
from gptoss_convert.verify.footprint.footprint import Footprint
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

PROVENANCE = "provenance.json"
BILL_OF_MATERIALS = "bom.json"

VERIFICATION_FAILED = 1
"""Exit code of an artifact that was written and is not what it should be."""


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


@dataclass(frozen=True, kw_only=True)
class Papers:
    """What is written beside the manifest."""

    builder: str | None = None
    """URI of who runs the build, for a statement of provenance; None for no statement."""
    bill_of_materials: bool = False
    signing_key: Path | None = None
    """Private key to sign the folder with; None for no signature."""

    def require_possible(self) -> None:
        """Refuse what would fail after hours of work.

        Raises:
            InputError: there is no such key.
            UnsupportedError: a library is not installed.
        """
        if self.bill_of_materials:
            bill_of_materials({"artifacts": [], "source": {}, "tool": {"name": "", "version": ""}, "libraries": {}})
        if self.signing_key is not None:
            require_signing(self.signing_key)


@dataclass(frozen=True, kw_only=True)
class _Written:
    """An artifact that was just written and is not judged yet."""

    recipe: ArtifactRecipe
    plan: Plan
    key: str
    report: Report
    files: tuple[tuple[str, int, str], ...]
    """Names relative to the folder, sizes and SHA-256."""
    seconds: float


def build(
    recipe: Recipe,
    folder: Path,
    *,
    resources: Resources | None = None,
    replace_others: bool = False,
    papers: Papers | None = None,
    progress: Progress = ignore_progress,
    say: Say = lambda line: None,
) -> BuildResult:
    """Make every artifact of `recipe` that is not up to date, and verify what was made.

    An artifact that cannot be made does not stop the others. The manifest is written last, also if some failed.

    Args:
        recipe: what to make.
        folder: where artifacts and manifest go; it is made if it does not exist.
        resources: how many pieces at once, and memory for them.
        replace_others: whether outputs that no earlier build made may be replaced.
        papers: what else is written; by default nothing but the manifest.
        progress: is told the tensors and bytes that were written.
        say: is told what is being done.

    Raises:
        InputError: the source, prompts, policy, or the state of an earlier build are damaged.
        OptionError: the recipe asks for verification that cannot be done.
        OutputError: the folder, the manifest or the state cannot be written.
        UnsupportedError: a library for the papers is not installed.
    """
    papers = papers or Papers()
    papers.require_possible()
    with _reported(folder):
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
    started, created = time.monotonic(), now()
    state = read_state(folder)
    source = open_source(recipe.source)
    judge = _Judge.of(recipe.verify, source)
    _require_own_cards(recipe, folder, state, replace_others=replace_others)
    done: dict[str, BuiltArtifact] = {}
    logits: dict[str, tuple[LogitsResult, ...]] = {}
    written: list[_Written] = []
    for artifact in recipe.artifacts:
        output = folder / artifact.output
        try:
            plan = _with_manifest(source.plan(artifact, folder))
            key = artifact_key(plan, artifact, recipe.verify, recipe.footprint)
            known = state.built.get(artifact.name)
            if known is not None and known.is_current(key, folder):
                say(f"{artifact.name} is up to date")
                done[artifact.name] = BuiltArtifact(name=artifact.name, output=output, built=known)
                continue
            say(f"making {artifact.name}")
            mine = artifact.output in state.outputs
            if not mine:  # from now on, whatever happens to this build
                check_destination(plan, replace=replace_others)
                state = state.with_output(artifact.output)
                _save(folder / STATE, state.serialise())
            written.append(_write(artifact, plan, key, folder, resources, mine or replace_others, progress))
        except GptossConvertError as error:
            say(f"{artifact.name} could not be made: {error}")
            done[artifact.name] = BuiltArtifact(name=artifact.name, output=output, built=None, error=error)
    for item, result in judge.judged(written, say):
        made = _built(item, result, footprint_of(item.plan.output, recipe.footprint), folder)
        logits[item.recipe.name] = result.logits
        done[item.recipe.name] = BuiltArtifact(
            name=item.recipe.name, output=item.plan.output, built=made, is_new=True, seconds=item.seconds
        )
        state = state.with_built(item.recipe.name, made)
    artifacts = tuple(done[artifact.name] for artifact in recipe.artifacts)
    say("hashing the source")
    state = state.with_sources(hashed_sources(source.checkpoint.files, state.sources))
    cards = _cards(recipe, source, judge.prompts, artifacts, say)
    for name in cards:
        state = state.with_output(name)
    _save(folder / STATE, state.serialise())
    _write_cards(folder, artifacts, cards)
    facts = [_facts(item) for item in artifacts]
    manifest = build_manifest(recipe, source.checkpoint, state.sources, facts, cards)
    _save(folder / MANIFEST, serialise_manifest(manifest))
    _write_papers(folder, papers, manifest)
    conditions = Conditions(created=created, seconds=round(time.monotonic() - started, 3), host=this_host())
    return BuildResult(
        folder=folder,
        manifest=folder / MANIFEST,
        artifacts=artifacts,
        document=judge.document(artifacts, logits, conditions),
    )


def _require_own_cards(recipe: Recipe, folder: Path, state: BuildState, *, replace_others: bool) -> None:
    """Refuse to replace a card that no build wrote, before hours are spent on artifacts.

    Raises:
        OutputError: there is one.
    """
    for artifact in recipe.artifacts:
        name = card_name(artifact.name)
        if name not in state.outputs and (folder / name).exists() and not replace_others:
            raise OutputError("output exists", file=folder / name, hint="use --force to replace it")


def _cards(
    recipe: Recipe, source: OpenSource, prompts: PromptSet | None, artifacts: Sequence[BuiltArtifact], say: Say
) -> dict[str, bytes]:
    """Return the model cards of the artifacts that are there, by their names in the folder."""
    try:
        description = source.checkpoint.describe()
    except GptossConvertError as error:  # artifacts that need it were not made
        say(f"model cards say nothing of the source: {error}")
        description = Description()
    common = CardFacts(
        recipe=recipe,
        recipe_sha256=sha256_of_recipe(recipe),
        source=model_name(source.checkpoint.path),
        description=description,
        prompts=prompts,
    )
    return {
        card_name(item.name): model_card(item.built.facts, item.built.verification, common)
        for item in artifacts
        if item.built is not None
    }


def _write_cards(folder: Path, artifacts: Sequence[BuiltArtifact], cards: Mapping[str, bytes]) -> None:
    """Write the cards, and remove those of artifacts that are not there any more."""
    with _reported(folder / FOLDER):
        (folder / FOLDER).mkdir(exist_ok=True)
    for name in (card_name(item.name) for item in artifacts):
        if name in cards:
            _save(folder / name, cards[name])
        else:
            with _reported(folder / name):
                (folder / name).unlink(missing_ok=True)


def _write_papers(folder: Path, papers: Papers, manifest: Mapping[str, Any]) -> None:
    """Write the papers, and remove those of an earlier build, which may say what is not true any more."""
    for name in (PROVENANCE, BILL_OF_MATERIALS, SIGNATURE):
        with _reported(folder / name):
            (folder / name).unlink(missing_ok=True)
    if papers.builder is not None:
        _save(folder / PROVENANCE, provenance(manifest, papers.builder))
    if papers.bill_of_materials:
        _save(folder / BILL_OF_MATERIALS, bill_of_materials(manifest))
    if papers.signing_key is not None:
        sign_folder(folder, papers.signing_key)


def _with_manifest(plan: Plan) -> Plan:
    """Return the plan with a manifest of its own, if its values can be hashed on the way."""
    try:
        return plan.with_manifest()
    except UnsupportedError:
        return plan


def _write(
    artifact: ArtifactRecipe,
    plan: Plan,
    key: str,
    folder: Path,
    resources: Resources | None,
    replace_output: bool,
    progress: Progress,
) -> _Written:
    started = time.monotonic()
    report = execute(plan, resources=resources, replace=replace_output, progress=progress)
    seconds = time.monotonic() - started
    files = tuple(_hashed_files(plan, folder))
    return _Written(recipe=artifact, plan=plan, key=key, report=report, files=files, seconds=seconds)


class _HashedFile(msgspec.Struct, frozen=True):
    name: str
    nbytes: int
    sha256: str


class _Hashes(msgspec.Struct, frozen=True):
    """What is looked at in the manifest that was just written."""

    files: list[_HashedFile]


def _hashed_files(plan: Plan, folder: Path) -> Iterator[tuple[str, int, str]]:
    """Yield names relative to `folder`, sizes and SHA-256 of what was written."""
    if plan.manifest is None:
        paths = [path for path in (*(file.path for file in plan.files), plan.scale_sidecar) if path is not None]
        for path in paths:
            if path.exists():
                yield (path.relative_to(folder).as_posix(), *hash_file(path))
        return
    place = plan.manifest.parent.relative_to(folder)
    hashes = msgspec.json.decode(read_small_file(plan.manifest, largest=LARGEST_MANIFEST), type=_Hashes)
    for file in hashes.files:
        yield (place / file.name).as_posix(), file.nbytes, file.sha256
    yield (plan.manifest.relative_to(folder).as_posix(), *hash_file(plan.manifest))


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """Verifies what was written, as the recipe says."""

    source: OpenSource
    verify: VerifyRecipe
    prompts: PromptSet | None
    policy: Policy | None

    @classmethod
    def of(cls, verify: VerifyRecipe, source: OpenSource) -> _Judge:
        """Load prompts and policy before anything is written."""
        prompts = None
        if verify.prompts is not None:
            reference = source.reference
            prompts = load_prompts(
                verify.prompts, reference.tokenizer, reference.config, max_tokens=verify.max_tokens
            )
        policy = None if verify.policy is None else read_policy(verify.policy)
        return cls(source=source, verify=verify, prompts=prompts, policy=policy)

    def judged(self, written: Sequence[_Written], say: Say) -> Iterator[tuple[_Written, ArtifactResult]]:
        """Yield artifacts with their results; those that are run in the same runtimes share the reference's run."""

        def runtimes(item: _Written) -> tuple[str, ...]:
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


def _built(item: _Written, result: ArtifactResult, footprint: Footprint | None, folder: Path) -> Built:
    files = written_files(folder, item.files)
    facts = artifact_facts(item.recipe, item.plan, item.report, files, result, footprint)
    return Built(
        key=item.key,
        files=files,
        facts=facts,
        verification=result.as_dict(),
        memory=() if footprint is None else tuple(memory_entries(footprint)),
    )


def _facts(item: BuiltArtifact) -> dict[str, Any]:
    if item.built is not None:
        return dict(item.built.facts)
    return {"name": item.name, "output": item.output.name, "error": None if item.error is None else str(item.error)}


def _save(path: Path, content: bytes) -> None:
    with new_files([PlannedFile(path, len(content), content)]):
        pass


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn an `OSError` into an `OutputError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror or error}", file=path) from error
