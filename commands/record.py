"""`record`: keep of a reference what artifacts are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptoss_convert import console
from gptoss_convert.options import SectionedCommand, common_options


@click.command(cls=SectionedCommand)
@click.argument("reference", metavar="REFERENCE", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="PACK", help="[output] The new file."
)
@click.option("--dry-run", is_flag=True, help="[output] Print how large it would be, and write nothing.")
@click.option("--force", is_flag=True, help="[output] Replace an existing output.")
@click.option(
    "--prompts", default="quick", show_default=True, metavar="NAME|FILE",
    help="[distributions] quick, full, long, or a file with a JSON object per line (docs/prompts.md).",
)  # fmt: skip
@click.option(
    "--max-tokens", type=click.IntRange(1), metavar="N", help="[distributions] Cut each prompt to N tokens."
)
@click.option(
    "--top-k", "top", type=click.IntRange(10, 1 << 20), default=1024, show_default=True, metavar="N",
    help="[distributions] Tokens that are kept of each position, and the probability of all others together; a "
    "vocabulary of no more than twice as many is kept whole.",
)  # fmt: skip
@click.option("--no-progress", is_flag=True, help="[reporting] Show no progress.")
@click.option(
    "--work", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
    help="[resources] Folder for what runs leave, 0.8 MB per position and run (default: that for temporary files).",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="[resources] Of each run (default: cores)."
)
@click.option(
    "--timeout", type=click.FloatRange(1), metavar="SECONDS", help="[resources] For each run (default: none)."
)
@click.option(
    "--jobs", type=click.IntRange(1, 64), metavar="N",
    help="[resources] Tensors that are hashed at a time (default: cores, up to 4).",
)  # fmt: skip
@common_options
def record(
    reference: Path,
    *,
    output: Path,
    dry_run: bool,
    force: bool,
    prompts: str,
    max_tokens: int | None,
    jobs: int | None,
    no_progress: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Record what verify needs of REFERENCE in one file, for machines that cannot hold it.

    The file has the prompts as token ids, what the model makes of them in float32, as published and as llama.cpp is
    known to compute it, hashes and a few numbers of all tensors, configuration and tokenizer. It needs torch;
    comparing with it does not.

    \b
    Examples:
      gptoss-convert record gpt-oss-20b -o gpt-oss-20b.pack
      gptoss-convert verify --against gpt-oss-20b.pack gpt-oss-20b.gguf
    """
    from gptoss_convert.console_record import print_pack_plan, print_pack_report
    from gptoss_convert.converters.execute import Resources
    from gptoss_convert.formats import open_checkpoint
    from gptoss_convert.verify.prompts import PRESETS, load_prompts
    from gptoss_convert.verify.record import RecordOptions, plan_pack
    from gptoss_convert.verify.record import record as record_pack

    checkpoint = open_checkpoint(reference)
    loaded = load_prompts(
        prompts if prompts in PRESETS else Path(prompts),
        checkpoint.tokenizer,
        checkpoint.config,
        max_tokens=max_tokens,
    )
    plan = plan_pack(checkpoint, output, RecordOptions(prompts=loaded, jobs=jobs or Resources().jobs, **options))
    if not quiet and not as_json:
        print_pack_plan(plan)
    if dry_run:
        if as_json:
            console.print_json(plan.as_dict())
        return
    wanted = console.progress_is_wanted(quiet=quiet or as_json, no_progress=no_progress)
    total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    with console.progress_bar(total, shown=wanted) as progress:
        say = console.say if wanted else lambda line: None
        report = record_pack(plan, replace=force, progress=progress, say=say)
    if as_json:
        console.print_json(report.as_dict())
    elif not quiet:
        print_pack_report(report)
