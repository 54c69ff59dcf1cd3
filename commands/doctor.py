"""`doctor`: what this machine offers."""

from __future__ import annotations

from pathlib import Path

import click

from gptoss_convert import console
from gptoss_convert.options import SectionedCommand, common_options


@click.command(cls=SectionedCommand)
@click.argument(
    "folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@common_options
def doctor(folder: Path, *, as_json: bool, quiet: bool) -> None:
    """Show what this machine offers: runtimes, execution providers, memory, and disk space in DIR.

    \b
    Examples:
      gptoss-convert doctor
      gptoss-convert doctor /data --json
    """
    from gptoss_convert.console_diagnosis import print_diagnosis
    from gptoss_convert.diagnosis import diagnose

    found = diagnose(folder)
    if as_json:
        console.print_json(found.as_dict())
    elif not quiet:
        print_diagnosis(found)
