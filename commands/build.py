"""`build`: make and verify every artifact of a recipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from gptoss_convert import console
from gptoss_convert.options import SectionedCommand, Size, common_options
from gptoss_convert.source_options import paths_among


@click.command(cls=SectionedCommand)
@click.argument("recipe", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
    help="[output] Folder for the artifacts and manifest.json (default: dist, beside the recipe).",
)  # fmt: skip
@click.option("--only", "names", multiple=True, metavar="NAME", help="[input] Make this artifact only. Repeatable.")
@click.option(
    "--matrix", is_flag=True,
    help="[output] Print one job per artifact as JSON, for the matrix of a CI workflow, and write nothing.",
)  # fmt: skip
@click.option(
    "--builder", metavar="URI",
    help="[output] Also write provenance.json, an in-toto statement that says that this builder, for example the "
    "address of a CI workflow, made the artifacts.",
)  # fmt: skip
@click.option("--bom", is_flag=True, help="[output] Also write bom.json, a bill of materials in CycloneDX.")
@click.option(
    "--sign", "signing_key", type=click.Path(path_type=Path), metavar="KEY",
    help="[output] Also write model.sig, a signature of all files by this private key (elliptic curve, PEM).",
)  # fmt: skip
@click.option("--force", is_flag=True, help="[output] Replace outputs that no earlier build made.")
@click.option(
    "--jobs", type=click.IntRange(1, 64), metavar="N",
    help="[resources] Chunks at a time (default: cores, up to 4).",
)  # fmt: skip
@click.option(
    "--max-memory", type=Size(), metavar="SIZE", help="[resources] Memory for data in flight (default: 192MiB)."
)
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="DIR",
    help="[reporting] Write report.json, report.md, report.xml and report.html to this folder (docs/reports.md).",
)  # fmt: skip
@click.option(
    "--annotate", type=click.Choice(["github"]),
    help="[reporting] Also print annotations, as this CI system shows them, for what failed.",
)  # fmt: skip
@click.option("--no-progress", is_flag=True, help="[reporting] Show no progress.")
@common_options
def build(
    recipe: Path,
    *,
    output: Path | None,
    names: Sequence[str],
    matrix: bool,
    builder: str | None,
    bom: bool,
    signing_key: Path | None,
    force: bool,
    jobs: int | None,
    max_memory: int | None,
    report: Path | None,
    annotate: str | None,
    no_progress: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make every artifact that RECIPE names, and verify it.

    RECIPE is a TOML file (docs/recipes.md). What is up to date is not made again. An artifact that cannot be made,
    or does not pass, does not stop the others; the exit code is 0 only if all are there and pass.

    \b
    Examples:
      gptoss-convert build release.toml -o dist
      gptoss-convert build release.toml --matrix
      gptoss-convert build release.toml -o dist --only gpt-oss-20b.gguf
    """
    from gptoss_convert.annotations import build_annotations
    from gptoss_convert.commands.reporting import check_report, write_report
    from gptoss_convert.console_recipes import print_build
    from gptoss_convert.converters.execute import Resources
    from gptoss_convert.recipes.build import build as make
    from gptoss_convert.recipes.matrix import build_matrix
    from gptoss_convert.recipes.papers import Papers
    from gptoss_convert.recipes.recipe import read_recipe

    stated = read_recipe(recipe)
    if names:
        stated = stated.only(tuple(names))
    if matrix:
        console.print_json(build_matrix(stated))
        return
    if report is not None:
        # That of an earlier build is replaced, as its manifest is.
        check_report(report, (recipe, *paths_among(stated.source.path)), replace=True)
    limits = {"jobs": jobs, "memory": max_memory}
    wanted = console.progress_is_wanted(quiet=quiet or as_json, no_progress=no_progress)
    result = make(
        stated,
        recipe.parent / "dist" if output is None else output,
        resources=Resources(**{key: value for key, value in limits.items() if value is not None}),
        replace_others=force,
        papers=Papers(builder=builder, bill_of_materials=bom, signing_key=signing_key),
        progress=partial(console.progress_bar, shown=wanted),
        say=console.say if wanted else lambda line: None,
    )
    if report is not None:
        write_report(report, result.document, (recipe, *paths_among(stated.source.path)), replace=True)
    if as_json:
        console.print_json(result.as_dict())
    elif not quiet:
        print_build(result)
    if annotate is not None:
        for line in build_annotations(result, str(recipe)):
            console.say(line)
    if result.exit_code:
        sys.exit(result.exit_code)
