"""`verify`: compare artifacts with their reference."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from gptoss_convert import console
from gptoss_convert.errors import InputError, OptionError
from gptoss_convert.hub.reference import HubReference
from gptoss_convert.options import (
    SectionedCommand,
    common_options,
)
from gptoss_convert.process import CHECK_FAILED
from gptoss_convert.source_options import Source, hub_options, locate, paths_among


@click.command(cls=SectionedCommand)
@click.argument("named", metavar="REFERENCE ARTIFACT...", type=Source(), nargs=-1)
@click.option(
    "--against", "pack", type=click.Path(path_type=Path), metavar="PACK",
    help="[input] Take the place of REFERENCE by what `record` wrote of it: needs neither REFERENCE nor torch.",
)  # fmt: skip
@click.option(
    "--weights", "only_weights", is_flag=True,
    help="[tiers] Compare structure and weights only; nothing is run.",
)  # fmt: skip
@click.option(
    "--logits", "only_logits", is_flag=True,
    help="[tiers] Compare structure and distributions only, also of a file whose weights would fail.",
)  # fmt: skip
@click.option(
    "--bisect", "with_bisection", is_flag=True,
    help="[tiers] If something fails, find the first layer and tensor where the artifact departs.",
)  # fmt: skip
@click.option(
    "--prompts", metavar="NAME|FILE",
    help="[distributions] quick, full, long, or a file with a JSON object per line (docs/prompts.md; default: "
    "quick, or those of PACK).",
)  # fmt: skip
@click.option(
    "--max-tokens", type=click.IntRange(1), metavar="N", help="[distributions] Cut each prompt to N tokens."
)
@click.option(
    "--runtime", "runtimes", multiple=True, metavar="NAME",
    help="[distributions] Run artifacts in this runtime: reference, transformers, llama.cpp, onnxruntime, "
    "onnxruntime-genai (default: all foreign ones for the format). Repeatable.",
)  # fmt: skip
@click.option(
    "--provider", metavar="NAME",
    help="[distributions] Run ONNX models on this execution provider: cpu, cuda, dml, webgpu, or its full "
    "name (default: that of the model; of onnxruntime, the best that is installed if that is not).",
)  # fmt: skip
@click.option(
    "--decode", type=click.IntRange(0), default=128, show_default=True, metavar="N",
    help="[distributions] Also compute N positions of ONNX models token by token, on the KV cache; 0 for none.",
)  # fmt: skip
@click.option(
    "--baseline", "baselines", multiple=True, type=click.Path(path_type=Path), metavar="PATH",
    help="[distributions] The most exact file for a runtime, to tell its arithmetic from the conversion "
    "(default: made of models up to 1 GiB). Repeatable.",
)  # fmt: skip
@click.option(
    "--noise-floor", is_flag=True,
    help="[distributions] Measure how far the reference is from itself in bfloat16, even if no limit needs it.",
)  # fmt: skip
@click.option(
    "--policy", type=click.Path(path_type=Path), metavar="FILE",
    help="[distributions] TOML file with limits that replace the built-in ones (docs/verification.md).",
)  # fmt: skip
@click.option(
    "--allow-inconclusive", is_flag=True, help="[reporting] Exit with 0 also if there is too little evidence."
)
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="DIR",
    help="[reporting] Write report.json, report.md, report.xml and report.html to this folder (docs/reports.md).",
)  # fmt: skip
@click.option("--force", is_flag=True, help="[reporting] Replace files of an older report.")
@click.option("--no-progress", is_flag=True, help="[reporting] Show no progress.")
@click.option(
    "--work", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
    help="[resources] Folder for what runs leave, 0.8 MB per position and run (default: that for temporary files).",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="[resources] Of each runtime (default: cores)."
)
@click.option(
    "--timeout", type=click.FloatRange(1), metavar="SECONDS", help="[resources] For each run (default: none)."
)
@click.option(
    "--jobs", type=click.IntRange(1, 64), metavar="N",
    help="[resources] Chunks of weights at a time (default: cores, up to 4).",
)  # fmt: skip
@hub_options
@common_options
def verify(
    named: Sequence[HubReference | Path],
    *,
    revision: str | None,
    offline: bool,
    pack: Path | None,
    only_weights: bool,
    only_logits: bool,
    with_bisection: bool,
    prompts: str | None,
    max_tokens: int | None,
    policy: Path | None,
    report: Path | None,
    force: bool,
    allow_inconclusive: bool,
    **options: Any,
) -> None:
    """Prove that each ARTIFACT is the model REFERENCE, or say what was lost, where, and who is to blame.

    Compares configuration and tokenizer, then the weights number by number, then what runtimes make of the same
    prompts. The exit code is 0 if all artifacts pass, and 1 if one fails or cannot be judged.

    \b
    Examples:
      gptoss-convert verify gpt-oss-20b gpt-oss-20b.gguf
      gptoss-convert verify gpt-oss-20b gpt-oss-20b.gguf gpt-oss-20b-bf16 --weights
      gptoss-convert verify gpt-oss-20b small.gguf --prompts full --report report
      gptoss-convert verify --against gpt-oss-20b.pack small.gguf
    """
    from gptoss_convert.commands.reporting import check_report, write_report
    from gptoss_convert.console_verification import print_verification
    from gptoss_convert.formats import open_checkpoint
    from gptoss_convert.verify.judgement import Outcome
    from gptoss_convert.verify.pack.reader import read_pack
    from gptoss_convert.verify.policy import read_policy
    from gptoss_convert.verify.prompts import PRESETS, load_prompts
    from gptoss_convert.verify.verification import (
        LogitsOptions,
        VerifyOptions,
        verify_against,
        verify_artifacts,
    )

    if only_weights and only_logits:
        raise OptionError("--weights and --logits exclude each other; without them, both are compared")
    silent = options["quiet"] or options["as_json"]
    wanted = console.progress_is_wanted(quiet=silent, no_progress=options["no_progress"])
    loaded = None
    if pack is not None:
        reference, artifacts = pack, list(map(_as_path, _required(named, "ARTIFACT...")))
        _require_what_a_pack_allows(prompts, max_tokens, with_bisection=with_bisection)
        if report is not None:
            check_report(report, (pack, *artifacts), replace=force)
        packed = read_pack(pack)
        checkpoint, loaded = packed.model, packed.prompts
        compare = partial(verify_against, packed)
    else:
        stated, *rest = _required(named, "REFERENCE")
        artifacts = list(map(_as_path, _required(rest, "ARTIFACT...")))
        if report is not None:
            check_report(report, (*paths_among(stated), *artifacts), replace=force)
        reference = locate(stated, revision=revision, offline=offline, progress=wanted)
        checkpoint = open_checkpoint(reference)
        compare = partial(verify_artifacts, checkpoint)
        if with_bisection or not only_weights:
            name = prompts or "quick"
            source = name if name in PRESETS else Path(name)
            loaded = load_prompts(source, checkpoint.tokenizer, checkpoint.config, max_tokens=max_tokens)
    logits = None
    if loaded is not None and not only_weights:
        logits = LogitsOptions(
            prompts=loaded,
            runtimes=tuple(options["runtimes"]),
            baselines=tuple(options["baselines"]),
            work=options["work"],
            threads=options["threads"],
            timeout=options["timeout"],
            provider=options["provider"],
            decoded_positions=options["decode"],
            noise_floor=options["noise_floor"],
        )
    verify_options = VerifyOptions(
        weights=not only_logits,
        logits=logits,
        bisection_prompts=loaded if with_bisection else None,
        policy=None if policy is None else read_policy(policy),
        jobs=options["jobs"],
    )
    total = 0 if only_logits else len(artifacts) * sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    with console.progress_bar(total, shown=wanted and not only_logits) as progress:
        say = console.say if wanted else lambda line: None
        result = compare(artifacts, verify_options, progress=progress, say=say)
    if report is not None:
        write_report(report, result.as_dict(), (reference, *artifacts), replace=force)
    if options["as_json"]:
        console.print_json(result.as_dict())
    elif not options["quiet"]:
        print_verification(result)
    if result.outcome is Outcome.FAIL or (result.outcome is Outcome.INCONCLUSIVE and not allow_inconclusive):
        sys.exit(CHECK_FAILED)


def _as_path(artifact: HubReference | Path) -> Path:
    """Return the path of an artifact, which is what was made here."""
    if isinstance(artifact, HubReference):
        raise InputError("nothing is there", file=str(artifact), hint="artifacts are files and folders")
    return artifact


def _required(paths: Sequence[HubReference | Path], name: str) -> Sequence[HubReference | Path]:
    """Return `paths`, of which there has to be one."""
    if not paths:
        raise click.UsageError(f"Missing argument '{name}'.", click.get_current_context())
    return paths


def _require_what_a_pack_allows(prompts: str | None, max_tokens: int | None, *, with_bisection: bool) -> None:
    """Refuse options that need the model itself."""
    for name, is_given in (("--prompts", prompts), ("--max-tokens", max_tokens), ("--bisect", with_bisection)):
        if is_given:
            raise OptionError(
                f"{name} needs the reference itself: a pack has the prompts that it was recorded with",
                hint="leave it out, or record the reference with other prompts",
            )
