"""`to-bf16`: convert to a folder in BF16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptoss_convert.commands.conversion import convert
from gptoss_convert.hub.reference import HubReference
from gptoss_convert.options import (
    SectionedCommand,
    Size,
    common_options,
    conversion_options,
    split_options,
)
from gptoss_convert.source_options import Source


@click.command(cls=SectionedCommand)
@click.argument("source", metavar="SRC", type=Source())
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="[output] The new folder."
)
@click.option(
    "--max-shard-size", type=Size(), metavar="SIZE",
    help="[output] Bytes of tensor data per file (default: 5GB).",
)  # fmt: skip
@conversion_options
@common_options
def to_bf16(source: HubReference | Path, *, output: Path, max_shard_size: int | None, **options: Any) -> None:
    """Convert SRC to a Hugging Face folder in BF16, as transformers loads and writes it.

    Every value of an MXFP4 checkpoint is kept. Scales that the values do not tell are named in mxfp4-scales.zip, so
    that to-mxfp4 restores every byte.

    \b
    Examples:
      gptoss-convert to-bf16 gpt-oss-20b -o gpt-oss-20b-bf16
      gptoss-convert to-bf16 gpt-oss-20b.gguf -o gpt-oss-20b-bf16
    """
    from gptoss_convert.converters.to_bf16 import Bf16Options, plan_bf16

    run, _ = split_options(options)
    sizes = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    bf16_options = Bf16Options(**sizes, allow_lossy_source=run.allow_lossy_source)
    checkpoint, tokenizer = run.open_source(source), run.open_tokenizer()
    convert(plan_bf16(checkpoint, output, bf16_options, tokenizer=tokenizer), run, checkpoint, tokenizer, source)
