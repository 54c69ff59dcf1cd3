"""The manifest of a build: what was made of what, with which options, and how that was judged."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec

from gptoss_convert import __version__
from gptoss_convert.converters.manifest import TOOL
from gptoss_convert.description import model_name
from gptoss_convert.hub.reference import cached_commit

if TYPE_CHECKING:
    from gptoss_convert.checkpoint import Checkpoint
    from gptoss_convert.converters.execute import Report
    from gptoss_convert.converters.plan import Plan
    from gptoss_convert.recipes.recipe import ArtifactRecipe, Recipe
    from gptoss_convert.recipes.state import HashedFile
    from gptoss_convert.verify.footprint.footprint import Footprint
    from gptoss_convert.verify.footprint.verdict import Verdict
    from gptoss_convert.verify.verification import ArtifactResult

VERSION = 1
"""Of the manifest's own format."""
KIND = "build"
"""Tells it from the manifest of a single artifact."""


def artifact_facts(
    artifact: ArtifactRecipe,
    plan: Plan,
    report: Report,
    files: Sequence[HashedFile],
    result: ArtifactResult,
    footprint: Footprint | None,
) -> dict[str, Any]:
    """Return what the manifest says of an artifact that was made and judged."""
    return {
        "name": artifact.name,
        "output": artifact.output,
        "to": artifact.conversion.name,
        "format": plan.format,
        "options": stated_options(artifact),
        "loss": str(report.loss),
        "canonical_hash": None if report.hash is None else report.hash.model,
        "nbytes": sum(file.nbytes for file in files),
        "files": [_named(file) for file in files],
        "verification": {
            "verdict": result.verdict.as_dict(),
            "limits": result.profile,
            "structure": result.structure.passed,
            "weights": None if result.weights is None else result.weights.passed,
            "runtimes": {item.runtime: item.verdict.as_dict() for item in result.logits},
        },
        "footprint": [] if footprint is None else [_fit(footprint, verdict) for verdict in footprint.verdicts],
    }


def _fit(footprint: Footprint, verdict: Verdict) -> dict[str, Any]:
    prediction = verdict.prediction
    return {
        "device": verdict.budget.name,
        "runtime": footprint.prediction.runtime,
        "context": prediction.conditions.context,
        "needed": prediction.needed,
        "available": verdict.budget.available,
        "verdict": str(verdict.fit),
        "largest_context": verdict.largest_context,
    }


def stated_options(artifact: ArtifactRecipe) -> dict[str, Any]:
    """Return the options of an artifact as JSON-ready data, without those that say nothing."""
    options = msgspec.to_builtins(asdict(artifact.options))
    return dict(_without_nothing(options))


def _without_nothing(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        stated = dict(_without_nothing(value)) if isinstance(value, Mapping) else value
        if stated not in (None, [], {}, ()):
            yield key, stated


def build_manifest(
    recipe: Recipe,
    checkpoint: Checkpoint,
    sources: Sequence[HashedFile],
    artifacts: Sequence[Mapping[str, Any]],
    cards: Mapping[str, bytes],
) -> dict[str, Any]:
    """Return what the file says: the same for the same recipe, source, program and libraries.

    Args:
        recipe: what was to be made.
        checkpoint: the source.
        sources: its files with tensors.
        artifacts: what is said of each.
        cards: contents of model cards by their names in the folder.
    """
    commit = cached_commit(checkpoint.path)
    return {
        "kind": KIND,
        "manifest_version": VERSION,
        "tool": {"name": TOOL, "version": __version__},
        "libraries": installed_libraries(),
        "recipe": {"name": recipe.path.name, "sha256": sha256_of_recipe(recipe)},
        "source": {
            "name": model_name(checkpoint.path),
            **({} if commit is None else {"revision": commit}),
            "format": checkpoint.format,
            "files": [_named(file) for file in sources],
        },
        "artifacts": list(artifacts),
        "files": [
            {"name": name, "nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in cards.items()
        ],
    }


def sha256_of_recipe(recipe: Recipe) -> str:
    """Return the digest of the file that a recipe was read from."""
    return hashlib.sha256(recipe.path.read_bytes()).hexdigest()


def serialise_manifest(manifest: Mapping[str, Any]) -> bytes:
    """Return the contents of the file."""
    return (json.dumps(manifest, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode()


def _named(file: HashedFile) -> dict[str, Any]:
    return {"name": file.name, "nbytes": file.nbytes, "sha256": file.sha256}


def installed_libraries() -> dict[str, str]:
    """Return the versions of the libraries that this program can use and that are installed, by name."""
    found = {}
    for requirement in metadata.requires("gptoss-convert") or []:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if name is None or name[0] == "gptoss-convert" or re.search(r"extra == .(peers|test|release)", requirement):
            continue
        try:
            found[name[0]] = metadata.version(name[0])
        except metadata.PackageNotFoundError:
            continue
    return dict(sorted(found.items()))
