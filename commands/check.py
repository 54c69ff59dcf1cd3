"""`check`: whether files are those that a manifest names."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gptoss_convert import console
from gptoss_convert.options import SectionedCommand, common_options
from gptoss_convert.process import CHECK_FAILED


@click.command(cls=SectionedCommand)
@click.argument("manifest", metavar="MANIFEST", type=click.Path(path_type=Path))
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=2, show_default=True, metavar="N",
    help="[resources] Files at a time.",
)  # fmt: skip
@click.option(
    "--signed-by", type=click.Path(path_type=Path), metavar="KEY",
    help="[input] Also check the signature of the folder with this public key (PEM).",
)  # fmt: skip
@common_options
def check(manifest: Path, *, jobs: int, signed_by: Path | None, as_json: bool, quiet: bool) -> None:
    """Check that files are those that MANIFEST names, for example on the machine they were copied to.

    MANIFEST is what `build` or a conversion with --manifest wrote, or the folder that it lies in. Neither the
    source nor a runtime is needed. The exit code is 1 if a file is missing or another one.

    \b
    Examples:
      gptoss-convert check dist/manifest.json
      gptoss-convert check gpt-oss-20b.gguf.manifest.json
    """
    from gptoss_convert.console_recipes import print_check
    from gptoss_convert.recipes.check import check_manifest
    from gptoss_convert.recipes.signing import require_signature

    result = check_manifest(manifest, jobs=jobs)
    if signed_by is not None:
        require_signature(result.manifest.parent, signed_by)
    if as_json:
        console.print_json(result.as_dict())
    elif not quiet:
        print_check(result)
    if not result.passed:
        sys.exit(CHECK_FAILED)
