"""`to-gguf`: convert for llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gptoss_convert.assets import is_utf8
from gptoss_convert.commands.conversion import convert
from gptoss_convert.errors import OptionError
from gptoss_convert.hub.reference import HubReference
from gptoss_convert.options import (
    DENSE_ENCODINGS,
    EXPERT_ENCODINGS,
    Override,
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
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="[output] The GGUF file."
)
@click.option(
    "--dense", type=click.Choice(DENSE_ENCODINGS),
    help="[encoding] Embedding, unembedding and attention matrices (default: as in SRC, which loses nothing).",
)  # fmt: skip
@click.option(
    "--experts", type=click.Choice(EXPERT_ENCODINGS),
    help="[encoding] Expert matrices (default: as in SRC; MXFP4 keeps every bit).",
)  # fmt: skip
@click.option(
    "--tensor-type", "overrides", type=Override(), multiple=True, metavar="PATTERN=ENCODING",
    help="[encoding] Encoding of the tensors whose GGUF name matches, e.g. 'blk.*.attn_q.weight=q8_0'. Repeatable.",
)  # fmt: skip
@click.option(
    "--split-max-size", type=Size(), metavar="SIZE",
    help="[output] Write several files with at most SIZE of tensor data each, as llama.cpp splits them.",
)  # fmt: skip
@click.option("--name", help="[description] Name of the model (default: model card, then folder name).")
@click.option("--author", help="[description] Author of the model.")
@click.option("--organization", help="[description] Organization that made the model.")
@click.option("--model-version", "version", help="[description] Version of the model.")
@click.option("--description", help="[description] A sentence about the model.")
@click.option("--quantized-by", help="[description] Who made this file.")
@click.option("--license", help="[description] SPDX id of the licence (default: model card, then LICENSE).")
@click.option("--license-name", help="[description] Name of a licence without SPDX id.")
@click.option("--license-link", help="[description] Where the licence can be read.")
@click.option("--url", help="[description] Home page of the model.")
@click.option("--repo-url", help="[description] Repository of this model.")
@click.option("--source-url", help="[description] Home page of the source.")
@click.option("--source-repo-url", help="[description] Repository of the source.")
@click.option("--source-revision", help="[description] Commit of the source repository.")
@click.option(
    "--base-model", "base_models", multiple=True, metavar="OWNER/NAME", help="[description] Base model. Repeatable."
)
@conversion_options
@common_options
def to_gguf(
    source: HubReference | Path,
    *,
    output: Path,
    dense: str | None,
    experts: str | None,
    overrides: Sequence[tuple[str, str]],
    split_max_size: int | None,
    base_models: Sequence[str],
    **options: Any,
) -> None:
    """Convert SRC to a GGUF file for llama.cpp.

    SRC is a folder, a GGUF file, or a model on the Hugging Face Hub: OWNER/NAME or hf://OWNER/NAME@REVISION/PATH.
    Experts in MXFP4 keep every bit, and by default nothing else is rounded either.

    \b
    Examples:
      gptoss-convert to-gguf gpt-oss-20b -o gpt-oss-20b.gguf
      gptoss-convert to-gguf openai/gpt-oss-20b -o gpt-oss-20b.gguf --stream
      gptoss-convert to-gguf gpt-oss-20b -o small.gguf --dense q8_0
      gptoss-convert to-gguf gpt-oss-120b -o big.gguf --split-max-size 20GB --dry-run
    """
    from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
    from gptoss_convert.description import Description
    from gptoss_convert.formats.model_card import hub_reference

    run, description = split_options(options)
    stated = [("base_model", text) for text in base_models] + [
        (key, text or "") for key, text in description.items()
    ]
    for option, text in stated:
        if not is_utf8(text):
            raise OptionError(f"--{option.replace('_', '-')} is not UTF-8")
    checkpoint, tokenizer = run.open_source(source), run.open_tokenizer()
    plan = plan_gguf(
        checkpoint,
        output,
        GgufOptions(
            dense=dense,
            experts=experts,
            overrides=overrides,
            split_max_size=split_max_size,
            allow_lossy_source=run.allow_lossy_source,
            description=Description(**description, base_models=tuple(map(hub_reference, base_models))),
        ),
        tokenizer=tokenizer,
    )
    convert(plan, run, checkpoint, tokenizer, source)
