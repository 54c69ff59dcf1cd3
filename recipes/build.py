"""Building: every artifact of a recipe is converted, verified, and listed in one manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from gptoss_convert.assets import MANIFEST, read_small_file
from gptoss_convert.converters.destination import check_destination
from gptoss_convert.converters.execute import Progress, Resources, execute, ignore_progress
from gptoss_convert.converters.manifest import hash_file
from gptoss_convert.converters.output import write_file
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.session import can_be_resumed
from gptoss_convert.description import Description, model_name
from gptoss_convert.errors import GptossConvertError, OutputError, UnsupportedError, as_output_error
from gptoss_convert.recipes.artifacts import BuildResult, BuiltArtifact, WrittenArtifact
from gptoss_convert.recipes.cards import FOLDER, CardFacts, card_name, model_card
from gptoss_convert.recipes.footprint import footprint_of
from gptoss_convert.recipes.judging import Judge
from gptoss_convert.recipes.manifest import (
    artifact_facts,
    build_manifest,
    serialise_manifest,
    sha256_of_recipe,
)
from gptoss_convert.recipes.papers import Papers, write_papers
from gptoss_convert.recipes.recipe import ArtifactRecipe, Recipe
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
from gptoss_convert.verify.conditions import Conditions, now, this_host
from gptoss_convert.verify.declaration import LARGEST_MANIFEST
from gptoss_convert.verify.footprint.footprint import Footprint
from gptoss_convert.verify.logits import LogitsResult
from gptoss_convert.verify.prompts import PromptSet
from gptoss_convert.verify.runs import Say
from gptoss_convert.verify.verification import ArtifactResult

ProgressOf = Callable[[int], AbstractContextManager[Progress]]
"""Opens, for so many bytes, what is told of those that were written."""


def no_progress(nbytes: int) -> AbstractContextManager[Progress]:
    """Return one that tells nobody."""
    return nullcontext(ignore_progress)


def build(
    recipe: Recipe,
    folder: Path,
    *,
    resources: Resources | None = None,
    replace_others: bool = False,
    papers: Papers | None = None,
    progress: ProgressOf = no_progress,
    say: Say = lambda line: None,
) -> BuildResult:
    """Make every artifact of `recipe` that is not up to date, and verify what was made.

    An artifact that cannot be made does not stop the others; one that a stopped build left unfinished is gone on
    with. The manifest is written last, also if some failed.

    Args:
        recipe: what to make.
        folder: where artifacts and manifest go; it is made if it does not exist.
        resources: how many pieces at once, and memory for them.
        replace_others: whether outputs that no earlier build made may be replaced.
        papers: what else is written; by default nothing but the manifest.
        progress: opens, for the bytes of each artifact, what is told of those that were written.
        say: is told what is being done.

    Raises:
        InputError: the source, prompts, policy, or the state of an earlier build are damaged.
        OptionError: the recipe asks for verification that cannot be done.
        OutputError: the folder, the manifest or the state cannot be written.
        UnsupportedError: a library for the papers is not installed.
    """
    papers = papers or Papers()
    papers.require_possible()
    with as_output_error(folder):
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
    started, created = time.monotonic(), now()
    state = read_state(folder)
    source = open_source(recipe.source)
    judge = Judge.of(recipe.verify, source)
    _require_own_cards(recipe, folder, state, replace_others=replace_others)
    done: dict[str, BuiltArtifact] = {}
    logits: dict[str, tuple[LogitsResult, ...]] = {}
    written: list[WrittenArtifact] = []
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
                write_file(folder / STATE, state.serialise())
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
    write_file(folder / STATE, state.serialise())
    _write_cards(folder, artifacts, cards)
    facts = [_facts(item) for item in artifacts]
    manifest = build_manifest(recipe, source.checkpoint, state.sources, facts, cards)
    write_file(folder / MANIFEST, serialise_manifest(manifest))
    write_papers(folder, papers, manifest)
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
    with as_output_error(folder / FOLDER):
        (folder / FOLDER).mkdir(exist_ok=True)
    for name in (card_name(item.name) for item in artifacts):
        if name in cards:
            write_file(folder / name, cards[name])
        else:
            with as_output_error(folder / name):
                (folder / name).unlink(missing_ok=True)


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
    progress: ProgressOf,
) -> WrittenArtifact:
    started = time.monotonic()
    resources = resources or Resources()
    resume = can_be_resumed(plan, resources.memory)
    with progress(plan.data_nbytes) as told:
        report = execute(plan, resources=resources, replace=replace_output, resume=resume, progress=told)
    seconds = time.monotonic() - started
    files = tuple(_hashed_files(plan, folder))
    return WrittenArtifact(recipe=artifact, plan=plan, key=key, report=report, files=files, seconds=seconds)


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


def _built(item: WrittenArtifact, result: ArtifactResult, footprint: Footprint | None, folder: Path) -> Built:
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
