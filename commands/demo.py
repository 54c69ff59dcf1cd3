"""`demo`: the whole story on a built-in model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gptoss_convert import console
from gptoss_convert.options import (
    SectionedCommand,
    common_options,
)
from gptoss_convert.process import CHECK_FAILED


@click.command(cls=SectionedCommand)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="[output] Keep the artifact in this folder.",
)
@common_options
def demo(output: Path | None, *, as_json: bool, quiet: bool) -> None:
    """Tell the whole story on a built-in tiny model.

    Converts a trained gpt-oss of 7.8 MB to GGUF, inspects the file, and verifies it: every tensor, and, if the
    extra `verify` is installed, what llama.cpp makes of some prompts.
    """
    from tempfile import TemporaryDirectory

    from gptoss_convert.console_verification import print_verification
    from gptoss_convert.demo import run_demo, runs_models
    from gptoss_convert.verify.judgement import Outcome

    say = (
        console.say if console.progress_is_wanted(quiet=quiet or as_json, no_progress=False) else lambda line: None
    )
    if output is not None:
        result = run_demo(output, say)
    else:
        with TemporaryDirectory() as folder:
            result = run_demo(Path(folder), say)
    if as_json:
        console.print_json(
            {
                "source": result.source.as_dict(),
                "artifact": result.artifact.as_dict(),
                "plan": result.plan.as_dict(),
                "verification": result.verification.as_dict(),
            }
        )
    elif not quiet:
        console.print_inspection(result.source)
        console.print_plan(result.plan, every_tensor=False)
        console.print_inspection(result.artifact)
        print_verification(result.verification)
        if not runs_models():
            console.say("no model was run; that takes: pip install 'gptoss-convert[verify]'")
    if result.verification.outcome is not Outcome.PASS:
        sys.exit(CHECK_FAILED)
