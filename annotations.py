"""Annotations that CI systems show beside a run.

GitHub's workflow commands: https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_convert.recipes.artifacts import BuildResult


def github_annotation(level: str, message: str, *, title: str, file: str | None = None) -> str:
    """Return a workflow command, one line.

    Args:
        level: `error`, `warning` or `notice`.
        message: what happened; any text.
        title: any text.
        file: path in the repository that it belongs to.
    """
    place = "" if file is None else f"file={_property(file)},"
    return f"::{level} {place}title={_property(title)}::{_data(message)}"


def build_annotations(result: BuildResult, recipe: str) -> Iterator[str]:
    """Yield one annotation for each artifact that could not be made or did not pass."""
    for item in result.artifacts:
        if item.error is not None:
            yield github_annotation("error", str(item.error), title=f"{item.name} could not be made", file=recipe)
        elif item.exit_code and item.built is not None:
            reason = item.built.facts["verification"]["verdict"]["reason"]
            yield github_annotation("error", reason, title=f"{item.name}: {item.outcome}", file=recipe)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
