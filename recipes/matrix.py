"""The jobs of a recipe, for CI systems that run each on a machine of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptoss_convert.recipes.recipe import Recipe
from gptoss_convert.recipes.source import open_source


def build_matrix(recipe: Recipe) -> dict[str, Any]:
    """Return one job per artifact, as the matrix of a GitHub workflow takes it.

    Each has the artifact's `name`, what it is converted `to`, its `output`, and the `disk` that a machine needs for
    the tensors of the source and the artifact together, in bytes, from the plan.

    Raises:
        GptossConvertError: the source cannot be opened, or an artifact cannot be planned.
    """
    source = open_source(recipe.source, only_headers=True)
    held = sum(tensor.nbytes for tensor in source.checkpoint.tensors.values())
    return {
        "include": [
            {
                "name": artifact.name,
                "to": artifact.conversion.name,
                "output": artifact.output,
                "disk": held + source.plan(artifact, Path()).nbytes,
            }
            for artifact in recipe.artifacts
        ]
    }
