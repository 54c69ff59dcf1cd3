"""The command line: parse, call, print. Everything that it does can be imported from elsewhere."""

from __future__ import annotations

import functools
import io
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from gptoss_convert import __version__, console
from gptoss_convert.assets import is_utf8
from gptoss_convert.errors import GptossConvertError, InputError, OptionError

INTERNAL_ERROR = 70
INTERRUPTED = 130
CHECK_FAILED = 1
OUTPUT_FAILED = 5

Command = TypeVar("Command", bound=Callable[..., Any])

DENSE_ENCODINGS = ("bf16", "f16", "f32", "q8_0")
FOLDER_ENCODINGS = ("bf16", "f16", "f32")
AS_IN_SOURCE = "source"
LAYOUTS = ("hf", "openai")
SCALE_RULES = ("mse", "even", "floor", "rceil", "ceil")
EXPERT_ENCODINGS = ("mxfp4", *DENSE_ENCODINGS)
"""Named here too, because importing the places that define them would slow down `--help`; a test compares them."""

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY_UNITS = {"KI": 1024, "MI": 1024**2, "GI": 1024**3, "TI": 1024**4}


class Size(click.ParamType[int]):
    """A number of bytes: 500, 60M, 4GB, 4GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", str(value).strip().upper())
        factor = (_UNITS | _BINARY_UNITS).get(match[2]) if match else None
        if match is None or factor is None:
            self.fail(f"{value!r} is no size; write for example 500M, 4GB or 4GiB", param, ctx)
        number = float(match[1]) * factor
        if not 1 <= number < 1 << 63:
            self.fail(f"{value!r} is no size from one byte on", param, ctx)
        return int(number)


class Override(click.ParamType[tuple[str, str]]):
    """PATTERN=ENCODING for single tensors."""

    name = "pattern=encoding"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return pattern and encoding."""
        pattern, separator, encoding = str(value).rpartition("=")
        if not separator or not pattern or encoding not in EXPERT_ENCODINGS:
            self.fail(f"{value!r}: write for example 'blk.*.attn_q.weight=q8_0'", param, ctx)
        return pattern, encoding


SECTIONS = ("Input", "Output", "Encoding", "Description", "Resources", "Reporting", "Other")


class SectionedCommand(click.Command):
    """A command whose help lists its options by the section that `[section]` at the start of their help names."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each section under a heading of their own."""
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in SECTIONS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if isinstance(param, click.Option) and record is not None:
                match = re.match(r"\[(\w+)] (.*)", record[1], re.DOTALL)
                heading, text = (match[1].capitalize(), match[2]) if match else ("Other", record[1])
                sections[heading].append((record[0], text))
        for heading, records in sections.items():
            if records:
                with formatter.section(f"{heading} options"):
                    formatter.write_dl(records)


def _common(command: Command) -> Command:
    """Add the options that every command has, and turn errors into one line and an exit code."""

    @functools.wraps(command)
    def reporting(*args: Any, as_json: bool, quiet: bool, debug: bool, **kwargs: Any) -> None:
        try:
            command(*args, as_json=as_json, quiet=quiet, **kwargs)
        except GptossConvertError as error:
            if debug:
                traceback.print_exc()
            if as_json:
                console.print_json(error.as_dict())
            console.print_error(error)
            sys.exit(error.exit_code)
        except OSError as error:
            if error.filename is None:  # writing to a stream failed; errors of files name the file
                raise _OutputStreamError from error
            console.print_error(InputError(f"cannot access: {error.strerror}", file=error.filename))
            sys.exit(InputError.exit_code)
        except (KeyboardInterrupt, click.ClickException, click.exceptions.Exit, SystemExit):
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            print(f"error: internal error: {error!r}; run again with --debug and report it", file=sys.stderr)
            sys.exit(INTERNAL_ERROR)

    for option in (
        click.option("--debug", is_flag=True, help="[reporting] Show the traceback of an error."),
        click.option("-q", "--quiet", is_flag=True, help="[reporting] Print nothing but errors."),
        click.option(
            "--json", "as_json", is_flag=True, help="[reporting] Print one JSON document on standard output."
        ),
    ):
        reporting = option(reporting)
    return reporting  # type: ignore[return-value]


def _conversion(command: Command) -> Command:
    """Add the options that every conversion has."""
    for option in (
        click.option("--no-progress", is_flag=True, help="[reporting] Show no progress."),
        click.option(
            "--max-memory",
            type=Size(),
            metavar="SIZE",
            help="[resources] Memory for data in flight (default: 192MiB).",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(1, 64),
            metavar="N",
            help="[resources] Chunks at a time (default: cores, up to 4).",
        ),
        click.option(
            "--manifest",
            is_flag=True,
            help="[output] Also write a manifest: SHA-256 of every file, canonical hash of every tensor.",
        ),
        click.option("--dry-run", is_flag=True, help="[output] Print what would be written, and write nothing."),
        click.option("--force", is_flag=True, help="[output] Replace an existing output."),
        click.option(
            "--allow-lossy-source",
            is_flag=True,
            help="[input] Decode numbers that were rounded when SRC was stored (q8_0, q4_k, ...).",
        ),
        click.option(
            "--adapter",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="[input] Folder of a LoRA adapter in PEFT's format, to be merged into SRC.",
        ),
        click.option(
            "--tokenizer",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="[input] Folder of the tokenizer, if not SRC.",
        ),
    ):
        command = option(command)
    return command


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
@_common
def inspect(source: Path, *, with_hash: bool, as_json: bool, quiet: bool) -> None:
    """Show what SRC is: format, configuration, tensors, tokenizer, problems.

    SRC is a checkpoint folder (Hugging Face or OpenAI layout) or a GGUF file. No tensor data is read without
    --hash. The exit code is 1 if there are problems.

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
@_conversion
@_common
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

    run, description = _split_options(options)
    stated = [("base_model", text) for text in base_models] + [
        (key, text or "") for key, text in description.items()
    ]
    for option, text in stated:
        if not is_utf8(text):
            raise OptionError(f"--{option.replace('_', '-')} is not UTF-8")
    plan = plan_gguf(
        run.open_source(source),
        output,
        GgufOptions(
            dense=dense,
            experts=experts,
            overrides=overrides,
            split_max_size=split_max_size,
            allow_lossy_source=run.allow_lossy_source,
            description=Description(**description, base_models=tuple(map(hub_reference, base_models))),
        ),
        tokenizer=run.open_tokenizer(),
    )
    _convert(plan, run)


@cli.command(cls=SectionedCommand)
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="[output] The new folder."
)
@click.option(
    "--max-shard-size", type=Size(), metavar="SIZE",
    help="[output] Bytes of tensor data per file (default: 5GB).",
)  # fmt: skip
@_conversion
@_common
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

    run, _ = _split_options(options)
    sizes = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    bf16_options = Bf16Options(**sizes, allow_lossy_source=run.allow_lossy_source)
    _convert(plan_bf16(run.open_source(source), output, bf16_options, tokenizer=run.open_tokenizer()), run)


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
@_conversion
@_common
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

    run, _ = _split_options(options)
    mxfp4_options = Mxfp4Options(
        layout=layout,
        rule=ScaleRule(rule),
        dense=None if dense == AS_IN_SOURCE else dense,
        max_shard_size=max_shard_size,
        allow_lossy_source=run.allow_lossy_source,
    )
    plan = plan_mxfp4(
        run.open_source(source),
        output,
        mxfp4_options,
        base=None if scales_from is None else open_checkpoint(scales_from),
        tokenizer=run.open_tokenizer(),
    )
    _convert(plan, run)


@dataclass(frozen=True, kw_only=True)
class _RunOptions:
    """What every conversion takes."""

    adapter: Path | None
    tokenizer: Path | None
    allow_lossy_source: bool
    force: bool
    dry_run: bool
    manifest: bool
    jobs: int | None
    max_memory: int | None
    no_progress: bool
    as_json: bool
    quiet: bool

    def open_source(self, path: Path) -> Any:
        """Return the checkpoint at `path`, with the adapter that was named merged into it."""
        from gptoss_convert.converters.adapter import with_adapter
        from gptoss_convert.formats import open_checkpoint
        from gptoss_convert.formats.peft import open_adapter

        checkpoint = open_checkpoint(path)
        return checkpoint if self.adapter is None else with_adapter(checkpoint, open_adapter(self.adapter))

    def open_tokenizer(self) -> Any:
        """Return the tokenizer that was named, if one was."""
        from gptoss_convert.formats import open_tokenizer

        return None if self.tokenizer is None else open_tokenizer(self.tokenizer)

    def resources(self) -> Any:
        """Return what the run may use."""
        from gptoss_convert.converters.execute import Resources

        limits = {"jobs": self.jobs, "memory": self.max_memory}
        return Resources(**{key: value for key, value in limits.items() if value is not None})


def _split_options(options: Mapping[str, Any]) -> tuple[_RunOptions, dict[str, Any]]:
    """Return the options that every conversion takes, and the others."""
    names = {item.name for item in fields(_RunOptions)}
    rest = {name: value for name, value in options.items() if name not in names}
    return _RunOptions(**{name: value for name, value in options.items() if name in names}), rest


def _convert(plan: Any, run: _RunOptions) -> None:
    """Print or execute a plan."""
    from gptoss_convert.converters.execute import execute

    if run.manifest:
        plan = plan.with_manifest()
    if run.dry_run:
        if run.as_json:
            console.print_json(plan.as_dict())
        elif not run.quiet:
            console.print_plan(plan, every_tensor=True)
        return
    started = time.monotonic()
    wanted = console.progress_is_wanted(quiet=run.quiet or run.as_json, no_progress=run.no_progress)
    with console.progress_bar(plan.data_nbytes, shown=wanted) as progress:
        report = execute(plan, resources=run.resources(), replace=run.force, progress=progress)
    seconds = time.monotonic() - started
    if run.as_json:
        console.print_json(plan.as_dict() | {"report": report.as_dict(), "seconds": round(seconds, 3)})
    elif not run.quiet:
        console.print_plan(plan, every_tensor=False)
        console.print_report(report)
        console.say(f"done in {seconds:.1f} s, {console.human_bytes(plan.nbytes / max(seconds, 1e-9))}/s")


@cli.command(cls=SectionedCommand)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="[output] Keep the artifact in this folder.",
)
@_common
def demo(output: Path | None, *, as_json: bool, quiet: bool) -> None:
    """Tell the whole story on a built-in tiny model.

    Converts a trained gpt-oss of 7.8 MB to GGUF, inspects the file, and compares every tensor with the source.
    """
    from tempfile import TemporaryDirectory

    from gptoss_convert.demo import run_demo

    if output is not None:
        result = run_demo(output)
    else:
        with TemporaryDirectory() as folder:
            result = run_demo(Path(folder))
    if as_json:
        console.print_json(
            {
                "source": result.source.as_dict(),
                "artifact": result.artifact.as_dict(),
                "plan": result.plan.as_dict(),
                "comparisons": [item.as_dict() for item in result.comparisons],
            }
        )
    elif not quiet:
        console.print_inspection(result.source)
        console.print_plan(result.plan, every_tensor=False)
        console.print_inspection(result.artifact)
        console.print_comparisons(result.comparisons)
    if not all(item.passed for item in result.comparisons):
        sys.exit(CHECK_FAILED)


def run(arguments: Sequence[str]) -> int:
    """Run the command line with `arguments` and return its exit code."""
    _stop_on_signals()
    _prepare_standard_output()
    try:
        return _run(arguments)
    except (OSError, _OutputStreamError) as error:
        return _give_up_standard_output(error.__cause__ or error)


def _run(arguments: Sequence[str]) -> int:
    try:
        cli.main(args=list(arguments), prog_name="gptoss-convert", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (click.exceptions.Exit, SystemExit) as leave:
        code = leave.exit_code if isinstance(leave, click.exceptions.Exit) else leave.code
        return code if isinstance(code, int) else INTERNAL_ERROR
    return 0


class _OutputStreamError(Exception):
    """Standard output cannot be written; not an `OSError`, which click would take for its own."""


def _prepare_standard_output() -> None:
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - takes the place of the closed stream
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console may not know every character


def _give_up_standard_output(error: BaseException) -> int:
    """Return the exit code for a standard output that failed, and keep the interpreter from failing at it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # whoever read it has seen enough
        return 0
    print(f"error: cannot write to standard output: {error}", file=sys.stderr)
    return OUTPUT_FAILED


def _stop_on_signals() -> None:
    """Let a polite end of the process remove unfinished files, as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), stop)
