"""`report`: a verification's document as Markdown, JUnit's XML and a page with pictures."""

from __future__ import annotations

from pathlib import Path

import click

from gptoss_convert import console
from gptoss_convert.options import SectionedCommand, common_options


@click.command(cls=SectionedCommand)
@click.argument("document", metavar="VERDICT.json", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", required=True,
    help="[output] Folder for report.json, report.md, report.xml and report.html.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="[output] Replace files of an older report.")
@common_options
def report(document: Path, *, output: Path, force: bool, as_json: bool, quiet: bool) -> None:
    """Make a report of VERDICT.json, which verify --json or verify --report wrote.

    The report has a Markdown summary, JUnit's XML for CI services, and one HTML page with pictures that needs no
    network. It tells of nothing but what is in the document.

    \b
    Examples:
      gptoss-convert verify gpt-oss-20b gpt-oss-20b.gguf --json > verdict.json
      gptoss-convert report verdict.json -o report
    """
    from gptoss_convert.report.document import read_document
    from gptoss_convert.report.writing import ReportFolder

    folder = ReportFolder(folder=output, replace=force, inputs=(document,))
    folder.check()
    paths = folder.write(read_document(document))
    if as_json:
        console.print_json({"files": [str(path) for path in paths]})
    elif not quiet:
        for path in paths:
            console.say(f"wrote {path}")
