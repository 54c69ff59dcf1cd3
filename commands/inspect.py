"""`inspect`: what a checkpoint is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from gptoss_convert import console
from gptoss_convert.hub.reference import HubReference
from gptoss_convert.options import (
    SectionedCommand,
    common_options,
)
from gptoss_convert.process import CHECK_FAILED
from gptoss_convert.source_options import Source, hub_options, locate


@click.command(cls=SectionedCommand)
@click.argument("source", metavar="SRC", type=Source())
@click.option(
    "--hash", "with_hash", is_flag=True,
    help="[reporting] Read all tensors and show the canonical hash, which is the same in every exact format.",
)  # fmt: skip
@hub_options
@common_options
def inspect(
    source: HubReference | Path, *, with_hash: bool, revision: str | None, offline: bool, as_json: bool, quiet: bool
) -> None:
    """Show what SRC is: format, configuration, tensors, tokenizer, problems.

    SRC is a checkpoint folder (Hugging Face or OpenAI layout, or ONNX that to-onnx wrote), a GGUF file, or a model
    on the Hugging Face Hub, which is looked at where it lies. No tensor data is read without --hash. The exit code
    is 1 if there are problems.

    \b
    Examples:
      gptoss-convert inspect gpt-oss-20b
      gptoss-convert inspect gpt-oss-20b.gguf --hash
    """
    from gptoss_convert.formats import open_checkpoint
    from gptoss_convert.inspection import inspect_checkpoint

    on_the_hub = isinstance(source, HubReference)
    checkpoint = open_checkpoint(
        locate(source, revision=revision, offline=offline, stream=on_the_hub and not offline, progress=not quiet)
    )
    inspection = inspect_checkpoint(checkpoint)
    if with_hash and not checkpoint.problems:
        inspection = _with_hash(checkpoint, inspection, quiet=quiet or as_json)
    if as_json:
        console.print_json(inspection.as_dict())
    elif not quiet:
        console.print_inspection(inspection)
    if inspection.problems:
        sys.exit(CHECK_FAILED)


def _with_hash(checkpoint: Any, inspection: Any, *, quiet: bool) -> Any:
    """Return `inspection` with the canonical hash of `checkpoint`."""
    from dataclasses import replace

    from gptoss_convert.canonical_hash import hash_checkpoint
    from gptoss_convert.converters.execute import Resources

    wanted = console.progress_is_wanted(quiet=quiet, no_progress=False)
    with console.progress_bar(inspection.nbytes, shown=wanted) as progress:
        return replace(inspection, hash=hash_checkpoint(checkpoint, jobs=Resources().jobs, progress=progress))
