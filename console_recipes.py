"""What the command line shows of builds and of manifests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptoss_convert.console import human_bytes, make_console, make_table
from gptoss_convert.errors import printable
from gptoss_convert.recipes.check import FileState

if TYPE_CHECKING:
    from gptoss_convert.recipes.artifacts import BuildResult, BuiltArtifact
    from gptoss_convert.recipes.check import ManifestCheck


def print_build(result: BuildResult) -> None:
    """Print a line per artifact, and what to do next."""
    console = make_console()
    table = make_table("artifacts", ("name", "left"), ("status", "left"), ("size", "right"), ("numbers", "left"),
                       ("verdict", "left"))  # fmt: skip
    for item in result.artifacts:
        facts = {} if item.built is None else item.built.facts
        table.add_row(
            printable(item.name),
            item.status,
            human_bytes(facts["nbytes"]) if facts else "-",
            facts.get("loss", "-"),
            printable(_verdict(item)),
        )
    console.print(table)
    console.print(printable(f"manifest: {result.manifest}"))
    if not result.exit_code:
        console.print(printable(f"check it elsewhere with: gptoss-convert check {result.manifest}"))


def _verdict(item: BuiltArtifact) -> str:
    if item.built is None:
        return f"error: {item.error}"
    verdict = item.built.facts["verification"]["verdict"]
    return f"{verdict['outcome'].upper()}: {verdict['reason']}"


def print_check(result: ManifestCheck) -> None:
    """Print every file that is not what it should be, and the sum."""
    console = make_console()
    for file in result.files:
        if file.state is not FileState.SAME:
            console.print(printable(f"{file.name}: {file.state}"), style="red")
    for name in result.not_made:
        console.print(printable(f"{name}: the build could not make it"), style="red")
    same = [file for file in result.files if file.state is FileState.SAME]
    console.print(
        printable(
            f"{len(same)} of {len(result.files)} files are those of {result.manifest}, "
            f"{human_bytes(sum(file.nbytes for file in same))}"
        ),
        style="bold",
    )
