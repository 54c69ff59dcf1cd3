"""The command line: parse, call, print. Everything that it does can be imported from elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gptoss_convert import __version__, console
from gptoss_convert.assets import is_utf8
from gptoss_convert.errors import OptionError
from gptoss_convert.options import (
    AS_IN_SOURCE,
    DENSE_ENCODINGS,
    EXPERT_ENCODINGS,
    FOLDER_ENCODINGS,
    GRAPH_ACTIVATIONS,
    GRAPH_EXPERTS,
    GRAPH_TARGETS,
    LAYOUTS,
    SCALE_RULES,
    Override,
    RunOptions,
    SectionedCommand,
    Size,
    common_options,
    conversion_options,
    split_options,
)
from gptoss_convert.process import CHECK_FAILED, run_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gptoss-convert")
def cli() -> None:
    """Convert gpt-oss checkpoints between formats, and verify what was written.

    \b
    Exit codes: 0 done; 1 a check failed; 2 wrong usage; 3 bad input file; 4 not supported;
    5 output cannot be written; 6 over budget; 70 internal error; 130 interrupted.
    """


@cli.command(cls=SectionedCommand)
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.option(
    "--hash", "with_hash", is_flag=True,
    help="[reporting] Read all tensors and show the canonical hash, which is the same in every exact format.",
)  # fmt: skip
@common_options
def inspect(source: Path, *, with_hash: bool, as_json: bool, quiet: bool) -> None:
    """Show what SRC is: format, configuration, tensors, tokenizer, problems.

    SRC is a checkpoint folder (Hugging Face or OpenAI layout, or ONNX that to-onnx wrote) or a GGUF file. No tensor
    data is read without --hash. The exit code is 1 if there are problems.

    \b
    Examples:
      gptoss-convert inspect gpt-oss-20b
      gptoss-convert inspect gpt-oss-20b.gguf --hash
    """
    from gptoss_convert.formats import open_checkpoint
    from gptoss_convert.inspection import inspect_checkpoint

    checkpoint = open_checkpoint(source)
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


@cli.command(cls=SectionedCommand)
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
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
    source: Path,
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

    Experts in MXFP4 keep every bit, and by default nothing else is rounded either.

    \b
    Examples:
      gptoss-convert to-gguf gpt-oss-20b -o gpt-oss-20b.gguf
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
    _convert(plan, run, checkpoint, tokenizer)


@cli.command(cls=SectionedCommand)
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="[output] The new folder."
)
@click.option(
    "--max-shard-size", type=Size(), metavar="SIZE",
    help="[output] Bytes of tensor data per file (default: 5GB).",
)  # fmt: skip
@conversion_options
@common_options
def to_bf16(source: Path, *, output: Path, max_shard_size: int | None, **options: Any) -> None:
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
    _convert(plan_bf16(checkpoint, output, bf16_options, tokenizer=tokenizer), run, checkpoint, tokenizer)


@cli.command(cls=SectionedCommand)
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
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
    source: Path,
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
    _convert(plan, run, checkpoint, tokenizer)


@cli.command(cls=SectionedCommand)
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
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
    "--max-shard-size", type=Size(), metavar="SIZE",
    help="[output] Bytes of a file of external data (default: one file).",
)  # fmt: skip
@conversion_options
@common_options
def to_onnx(
    source: Path,
    *,
    output: Path,
    target: str,
    experts: str | None,
    activations: str | None,
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
        max_shard_size=max_shard_size,
        allow_lossy_source=run.allow_lossy_source,
    )
    checkpoint, tokenizer = run.open_source(source), run.open_tokenizer()
    _convert(plan_onnx(checkpoint, output, onnx_options, tokenizer=tokenizer), run, checkpoint, tokenizer)


def _convert(plan: Any, run: RunOptions, source: Any, tokenizer: Any) -> None:
    """Print a plan; or execute it, and compare what was written if that is wanted."""
    from gptoss_convert.converters.execute import execute

    if run.manifest:
        plan = plan.with_manifest()
    if run.dry_run:
        if run.as_json:
            console.print_json(plan.as_dict())
        elif not run.quiet:
            console.print_plan(plan, every_tensor=True)
            if run.verify:
                console.say("note: the output would then be compared with the source")
        return
    started = time.monotonic()
    wanted = console.progress_is_wanted(quiet=run.quiet or run.as_json, no_progress=run.no_progress)
    with console.progress_bar(plan.data_nbytes, shown=wanted) as progress:
        report = execute(plan, resources=run.resources(), replace=run.force, progress=progress)
    seconds = time.monotonic() - started
    if not run.quiet and not run.as_json:
        console.print_plan(plan, every_tensor=False)
        console.print_report(report)
        console.say(f"done in {seconds:.1f} s, {console.human_bytes(plan.nbytes / max(seconds, 1e-9))}/s")
    compared = _compared(plan, run, source, tokenizer) if run.verify else None
    if run.as_json:
        document = plan.as_dict() | {"report": report.as_dict(), "seconds": round(seconds, 3)}
        console.print_json(document | ({} if compared is None else {"verification": compared.as_dict()}))
    if compared is not None and not compared.passed:
        console.say(f"verification failed; what was written is still there: {plan.output}")
        sys.exit(CHECK_FAILED)


def _compared(plan: Any, run: RunOptions, source: Any, tokenizer: Any) -> Any:
    """Compare what was written with its source, and print what was found."""
    from gptoss_convert.console_verification import print_artifact
    from gptoss_convert.verify.verification import verify_written

    total = sum(tensor.nbytes for tensor in source.tensors.values())
    wanted = console.progress_is_wanted(quiet=run.quiet or run.as_json, no_progress=run.no_progress)
    with console.progress_bar(total, shown=wanted) as progress:
        result = verify_written(source, plan.output, tokenizer=tokenizer, jobs=run.jobs, progress=progress)
    if not run.quiet and not run.as_json:
        print_artifact(result)
    return result


@cli.command(cls=SectionedCommand)
@click.argument("reference", metavar="REFERENCE", type=click.Path(path_type=Path))
@click.argument("artifacts", metavar="ARTIFACT...", type=click.Path(path_type=Path), nargs=-1, required=True)
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
    "--prompts", default="quick", show_default=True, metavar="NAME|FILE",
    help="[distributions] quick, full, long, or a file with a JSON object per line (docs/prompts.md).",
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
    "name (default: of onnxruntime, the best that is installed; of onnxruntime-genai, that of the model).",
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
@common_options
def verify(
    reference: Path,
    artifacts: Sequence[Path],
    *,
    only_weights: bool,
    only_logits: bool,
    with_bisection: bool,
    prompts: str,
    max_tokens: int | None,
    policy: Path | None,
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
      gptoss-convert verify gpt-oss-20b small.gguf --prompts full --json > verdict.json
    """
    from gptoss_convert.console_verification import print_verification
    from gptoss_convert.formats import open_checkpoint
    from gptoss_convert.verify.judgement import Outcome
    from gptoss_convert.verify.policy import read_policy
    from gptoss_convert.verify.prompts import PRESETS, load_prompts
    from gptoss_convert.verify.verification import LogitsOptions, VerifyOptions, verify_artifacts

    if only_weights and only_logits:
        raise OptionError("--weights and --logits exclude each other; without them, both are compared")
    checkpoint = open_checkpoint(reference)
    logits = loaded = None
    if with_bisection or not only_weights:
        source = prompts if prompts in PRESETS else Path(prompts)
        loaded = load_prompts(source, checkpoint.tokenizer, checkpoint.config, max_tokens=max_tokens)
    if loaded is not None and not only_weights:
        logits = LogitsOptions(
            prompts=loaded,
            runtimes=tuple(options["runtimes"]),
            baselines=tuple(options["baselines"]),
            work=options["work"],
            threads=options["threads"],
            timeout=options["timeout"],
            provider=options["provider"],
            noise_floor=options["noise_floor"],
        )
    verify_options = VerifyOptions(
        weights=not only_logits,
        logits=logits,
        bisection_prompts=loaded if with_bisection else None,
        policy=None if policy is None else read_policy(policy),
        jobs=options["jobs"],
    )
    silent = options["quiet"] or options["as_json"]
    wanted = console.progress_is_wanted(quiet=silent, no_progress=options["no_progress"])
    total = 0 if only_logits else len(artifacts) * sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    with console.progress_bar(total, shown=wanted and not only_logits) as progress:
        say = console.say if wanted else lambda line: None
        result = verify_artifacts(checkpoint, artifacts, verify_options, progress=progress, say=say)
    if options["as_json"]:
        console.print_json(result.as_dict())
    elif not options["quiet"]:
        print_verification(result)
    if result.outcome is Outcome.FAIL or (result.outcome is Outcome.INCONCLUSIVE and not allow_inconclusive):
        sys.exit(CHECK_FAILED)


@cli.command(cls=SectionedCommand)
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


def run(arguments: Sequence[str]) -> int:
    """Run the command line with `arguments` and return its exit code."""
    return run_command(cli, arguments)
