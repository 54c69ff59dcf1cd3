"""`bundle`: everything that a device needs to verify and run an artifact."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from gptoss_convert import console
from gptoss_convert.errors import OptionError
from gptoss_convert.options import SectionedCommand, common_options


@click.command(cls=SectionedCommand)
@click.argument("artifact", metavar="ARTIFACT", type=click.Path(path_type=Path))
@click.option(
    "--device", required=True, metavar="NAME|SIZE",
    help="[input] What it is for: a device of docs/footprint.md such as laptop-16gb, or its memory.",
)  # fmt: skip
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="[output] The new folder."
)
@click.option(
    "--pack", type=click.Path(path_type=Path), metavar="PACK",
    help="[input] What `record` wrote of the model that ARTIFACT was made from.",
)  # fmt: skip
@click.option(
    "--reference", type=click.Path(path_type=Path), metavar="REFERENCE",
    help="[input] That model itself, to be recorded now; needs torch.",
)  # fmt: skip
@click.option(
    "--prompts", metavar="NAME|FILE",
    help="[input] What REFERENCE is recorded with: quick, full, long or a file (default: quick).",
)  # fmt: skip
@click.option(
    "--max-tokens", type=click.IntRange(1), metavar="N", help="[input] Cut each prompt to N tokens for that."
)
@click.option(
    "--context", type=click.IntRange(1), metavar="N",
    help="[memory] Tokens that the start script asks for (default: 8192, or as many as fit).",
)  # fmt: skip
@click.option(
    "--computes", type=click.Choice(("cpu", "gpu")), default="cpu", show_default=True,
    help="[memory] Whose memory a size is; a device by name knows it itself.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N",
    help="[memory] Of the runtime on the device (default: cores of this machine).",
)  # fmt: skip
@click.option(
    "--allow-over-budget", is_flag=True, help="[output] Make it also if the device has too little memory for it."
)
@click.option(
    "--dry-run", is_flag=True, help="[output] Print what would be written, and write nothing; needs a pack."
)
@click.option("--no-progress", is_flag=True, help="[reporting] Show no progress.")
@common_options
def bundle(
    artifact: Path,
    *,
    device: str,
    output: Path,
    pack: Path | None,
    reference: Path | None,
    prompts: str | None,
    max_tokens: int | None,
    computes: Any,
    dry_run: bool,
    no_progress: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Put ARTIFACT in a folder with everything that a device needs: a recorded reference, instructions, a lock file
    for the runtime, scripts that verify and start it on Linux and Windows, and a Modelfile for Ollama.

    ARTIFACT is a GGUF file or an ONNX folder. The exit code is 6 if it needs more memory than the device has.

    \b
    Examples:
      gptoss-convert bundle gpt-oss-20b.gguf --device laptop-16gb --pack gpt-oss-20b.pack -o laptop
      gptoss-convert bundle gpt-oss-20b-cuda --device gpu-24gb --reference gpt-oss-20b -o workstation
    """
    from gptoss_convert.bundle.bundle import plan_bundle, write_bundle
    from gptoss_convert.console_bundle import print_bundle_plan
    from gptoss_convert.verify.footprint.profiles import find_budget

    if (pack is None) == (reference is None):
        raise OptionError("name one of --pack and --reference, against which the artifact is verified there")
    if reference is None and (prompts is not None or max_tokens is not None):
        raise OptionError("--prompts and --max-tokens are for --reference")
    if reference is not None and dry_run:
        raise OptionError("--dry-run needs --pack: recording the reference is most of the work")
    budget = find_budget(device, computes)
    wanted = console.progress_is_wanted(quiet=quiet or as_json, no_progress=no_progress)
    with _pack(pack, reference, prompts or "quick", max_tokens, shown=wanted) as recorded:
        plan = plan_bundle(artifact, output, budget, recorded, **options)
        if not dry_run:
            with console.progress_bar(plan.nbytes, shown=wanted) as progress:
                write_bundle(plan, progress=progress)
    if as_json:
        console.print_json(plan.as_dict())
    elif not quiet:
        print_bundle_plan(plan)
        if not dry_run:
            next_step = "copy it to the device and follow its README.md"
            console.say(f"next: {next_step}; or verify it here: sh {shlex.quote(str(output / 'verify.sh'))}")


@contextmanager
def _pack(
    pack: Path | None, reference: Path | None, prompts: str, max_tokens: int | None, *, shown: bool
) -> Iterator[Path]:
    """Yield the pack that was named, or one that is recorded for as long as it is needed."""
    if pack is not None:
        yield pack
        return
    from gptoss_convert.formats import open_checkpoint
    from gptoss_convert.verify.prompts import PRESETS, load_prompts
    from gptoss_convert.verify.record import RecordOptions, plan_pack, record

    assert reference is not None
    checkpoint = open_checkpoint(reference)
    source = prompts if prompts in PRESETS else Path(prompts)
    loaded = load_prompts(source, checkpoint.tokenizer, checkpoint.config, max_tokens=max_tokens)
    with tempfile.TemporaryDirectory(prefix="gptoss-bundle-") as folder:
        path = Path(folder) / "reference.pack"
        total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        with console.progress_bar(total, shown=shown) as progress:
            say = console.say if shown else lambda line: None
            record(plan_pack(checkpoint, path, RecordOptions(prompts=loaded)), progress=progress, say=say)
        yield path
