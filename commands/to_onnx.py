"""`to-onnx`: convert for onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptoss_convert.commands.conversion import convert
from gptoss_convert.hub.reference import HubReference
from gptoss_convert.options import (
    GRAPH_ACTIVATIONS,
    GRAPH_EXPERTS,
    GRAPH_TARGETS,
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
    "--target", required=True, type=click.Choice(GRAPH_TARGETS),
    help="[output] The execution provider that the graph is made for.",
)  # fmt: skip
@click.option(
    "--experts", type=click.Choice(GRAPH_EXPERTS),
    help="[encoding] Expert matrices (default: as suits the target; MXFP4 keeps every bit, int8 every value).",
)  # fmt: skip
@click.option(
    "--activations", type=click.Choice(GRAPH_ACTIVATIONS),
    help="[encoding] Type to compute with, and of all other matrices (default: as suits the target).",
)  # fmt: skip
@click.option(
    "--prefill-chunk", type=click.IntRange(min=1), default=256, metavar="N", show_default=True,
    help="[output] Positions of a prompt that a runtime is told to compute at once.",
)  # fmt: skip
@click.option(
    "--windowed-cache", is_flag=True,
    help="[output] Keep no more than the window in layers that have one (targets cpu and cuda).",
)  # fmt: skip
@click.option(
    "--max-shard-size", type=Size(), metavar="SIZE",
    help="[output] Bytes of a file of external data (default: one file).",
)  # fmt: skip
@conversion_options
@common_options
def to_onnx(
    source: HubReference | Path,
    *,
    output: Path,
    target: str,
    experts: str | None,
    activations: str | None,
    prefill_chunk: int,
    windowed_cache: bool,
    max_shard_size: int | None,
    **options: Any,
) -> None:
    """Convert SRC to an ONNX folder for onnxruntime and onnxruntime-genai.

    Experts in MXFP4 keep every bit, or every value as int8. All else becomes f32, which loses nothing, or f16: the
    report says which tensors that changed.

    \b
    Examples:
      gptoss-convert to-onnx gpt-oss-20b -o gpt-oss-20b-directml --target directml
      gptoss-convert to-onnx gpt-oss-20b.gguf -o gpt-oss-20b-cpu --target cpu
    """
    from gptoss_convert.converters.to_onnx import OnnxOptions, plan_onnx

    run, _ = split_options(options)
    onnx_options = OnnxOptions(
        target=target,
        experts=experts,
        activations=activations,
        prefill_chunk=prefill_chunk,
        windowed_cache=windowed_cache,
        max_shard_size=max_shard_size,
        allow_lossy_source=run.allow_lossy_source,
    )
    checkpoint, tokenizer = run.open_source(source), run.open_tokenizer()
    convert(plan_onnx(checkpoint, output, onnx_options, tokenizer=tokenizer), run, checkpoint, tokenizer, source)
