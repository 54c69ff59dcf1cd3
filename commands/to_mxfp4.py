"""`to-mxfp4`: convert to a folder with experts in MXFP4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptoss_convert.commands.conversion import convert
from gptoss_convert.hub.reference import HubReference
from gptoss_convert.options import (
    AS_IN_SOURCE,
    FOLDER_ENCODINGS,
    LAYOUTS,
    SCALE_RULES,
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
    "--layout", type=click.Choice(LAYOUTS), default=LAYOUTS[0], show_default=True,
    help="[output] That of the Hugging Face repositories, or of their folder original/.",
)  # fmt: skip
@click.option(
    "--max-shard-size", type=Size(), metavar="SIZE",
    help="[output] Bytes of tensor data per file (default: as published).",
)  # fmt: skip
@click.option(
    "--rule", type=click.Choice(SCALE_RULES), default=SCALE_RULES[0], show_default=True,
    help="[encoding] How the scale of a block is chosen (docs/quantisation.md).",
)  # fmt: skip
@click.option(
    "--scales-from", type=click.Path(path_type=Path), metavar="CHECKPOINT",
    help="[encoding] Model in MXFP4 that SRC was decoded or tuned from: blocks keep its scales where they are as "
    "good, and the report says how much of the tuning is left.",
)  # fmt: skip
@click.option(
    "--dense", type=click.Choice((*FOLDER_ENCODINGS, AS_IN_SOURCE)), default=FOLDER_ENCODINGS[0], show_default=True,
    help="[encoding] Everything but the expert matrices.",
)  # fmt: skip
@conversion_options
@common_options
def to_mxfp4(
    source: HubReference | Path,
    *,
    output: Path,
    layout: Any,
    max_shard_size: int | None,
    rule: str,
    scales_from: Path | None,
    dense: str,
    **options: Any,
) -> None:
    """Convert SRC to a folder with experts in MXFP4, in the Hugging Face or in OpenAI's layout.

    Experts that are in MXFP4 keep every bit. Others are quantised; weights that came from MXFP4 return exactly.

    \b
    Examples:
      gptoss-convert to-mxfp4 my-finetune-bf16 -o my-finetune --scales-from gpt-oss-20b
      gptoss-convert to-mxfp4 gpt-oss-20b.gguf -o gpt-oss-20b
      gptoss-convert to-mxfp4 gpt-oss-20b -o original --layout openai
    """
    from gptoss_convert.converters.to_mxfp4 import Mxfp4Options, plan_mxfp4
    from gptoss_convert.encodings.mxfp4_quantiser import ScaleRule
    from gptoss_convert.formats import open_checkpoint

    run, _ = split_options(options)
    mxfp4_options = Mxfp4Options(
        layout=layout,
        rule=ScaleRule(rule),
        dense=None if dense == AS_IN_SOURCE else dense,
        max_shard_size=max_shard_size,
        allow_lossy_source=run.allow_lossy_source,
    )
    checkpoint, tokenizer = run.open_source(source), run.open_tokenizer()
    plan = plan_mxfp4(
        checkpoint,
        output,
        mxfp4_options,
        base=None if scales_from is None else open_checkpoint(scales_from),
        tokenizer=tokenizer,
    )
    convert(plan, run, checkpoint, tokenizer, source)
