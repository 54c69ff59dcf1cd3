"""Options that commands share, and how their help is laid out."""

from __future__ import annotations

import functools
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from gptoss_convert import console
from gptoss_convert.errors import BudgetError, GptossConvertError, InputError, was_interrupted
from gptoss_convert.hub.reference import HubReference
from gptoss_convert.process import INTERNAL_ERROR, OutputStreamError
from gptoss_convert.sizes import parse_size
from gptoss_convert.source_options import STREAM_JOBS, STREAM_MEMORY_PER_JOB, hub_options, locate, stream_option

Command = TypeVar("Command", bound=Callable[..., Any])

DENSE_ENCODINGS = ("bf16", "f16", "f32", "q8_0")
FOLDER_ENCODINGS = ("bf16", "f16", "f32")
AS_IN_SOURCE = "source"
LAYOUTS = ("hf", "openai")
SCALE_RULES = ("mse", "even", "floor", "rceil", "ceil")
EXPERT_ENCODINGS = ("mxfp4", *DENSE_ENCODINGS)
GRAPH_TARGETS = ("directml", "webgpu", "cpu", "cuda")
GRAPH_EXPERTS = ("mxfp4", "int8", "int4", "f16")
GRAPH_ACTIVATIONS = ("f32", "f16")
"""Named here too, because importing the places that define them would slow down `--help`; a test compares them."""


class Size(click.ParamType[int]):
    """A number of bytes: 500, 60M, 4GB, 4GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Override(click.ParamType[tuple[str, str]]):
    """PATTERN=ENCODING for single tensors."""

    name = "pattern=encoding"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return pattern and encoding."""
        pattern, separator, encoding = str(value).rpartition("=")
        if not separator or not pattern or encoding not in EXPERT_ENCODINGS:
            self.fail(f"{value!r}: write for example 'blk.*.attn_q.weight=q8_0'", param, ctx)
        return pattern, encoding


SECTIONS = (
    "Input", "Output", "Encoding", "Tiers", "Distributions", "Memory", "Measurement", "Description", "Resources",
    "Reporting", "Other",
)  # fmt: skip


class SectionedCommand(click.Command):
    """A command whose help lists its options by the section that `[section]` at the start of their help names."""

    def options_by_section(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """Return (option as it is written, what it does) by heading, without sections that have none."""
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in SECTIONS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if isinstance(param, click.Option) and record is not None:
                match = re.match(r"\[(\w+)] (.*)", record[1], re.DOTALL)
                heading, text = (match[1].capitalize(), match[2]) if match else ("Other", record[1])
                sections[heading].append((record[0], text))
        return {heading: records for heading, records in sections.items() if records}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each section under a heading of their own."""
        for heading, records in self.options_by_section(ctx).items():
            with formatter.section(f"{heading} options"):
                formatter.write_dl(records)


def common_options(command: Command) -> Command:
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
                raise OutputStreamError from error
            console.print_error(InputError(f"cannot access: {error.strerror}", file=error.filename))
            sys.exit(InputError.exit_code)
        except (KeyboardInterrupt, click.ClickException, click.exceptions.Exit, SystemExit):
            raise
        except MemoryError:
            if debug:
                traceback.print_exc()
            console.print_error(BudgetError("memory is not enough", hint="allow less with --max-memory or --jobs"))
            sys.exit(BudgetError.exit_code)
        except Exception as error:
            if debug:
                traceback.print_exc()
            if was_interrupted(error):
                raise KeyboardInterrupt from error
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


def conversion_options(command: Command) -> Command:
    """Add the options that every conversion has."""
    for option in (
        click.option("--no-progress", is_flag=True, help="[reporting] Show no progress."),
        click.option(
            "--max-memory",
            type=Size(),
            metavar="SIZE",
            help="[resources] Memory for data in flight (default: 192MiB, with --stream twice as much).",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(1, 64),
            metavar="N",
            help="[resources] Chunks at a time (default: cores, up to 4; with --stream 8).",
        ),
        click.option(
            "--executor",
            metavar="dask://HOST:PORT",
            help="[resources] Convert on the workers of a Dask cluster that share a file system "
            "(default: threads of this process).",
        ),
        click.option(
            "--manifest",
            is_flag=True,
            help="[output] Also write a manifest: SHA-256 of every file, canonical hash of every tensor.",
        ),
        click.option(
            "--verify",
            is_flag=True,
            help="[output] Then compare structure and weights of what was written with SRC, as verify --weights "
            "does. If they differ, the exit code is 1, and the output stays.",
        ),
        click.option(
            "--resume",
            is_flag=True,
            help="[output] Go on where a run with the same options was stopped, if one was.",
        ),
        click.option(
            "--no-recheck",
            is_flag=True,
            help="[output] Do not read the output again before it gets its name.",
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
        stream_option,
        hub_options,
    ):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every conversion takes."""

    adapter: Path | None
    tokenizer: Path | None
    allow_lossy_source: bool
    revision: str | None
    offline: bool
    stream: bool
    force: bool
    resume: bool
    no_recheck: bool
    dry_run: bool
    manifest: bool
    verify: bool
    jobs: int | None
    max_memory: int | None
    executor: str | None
    no_progress: bool
    as_json: bool
    quiet: bool

    @property
    def shows_progress(self) -> bool:
        """Whether progress is shown to a reader."""
        return console.progress_is_wanted(quiet=self.quiet or self.as_json, no_progress=self.no_progress)

    def open_source(self, source: HubReference | Path) -> Any:
        """Return the checkpoint that is named, with the adapter that was named merged into it."""
        from gptoss_convert.converters.adapter import with_adapter
        from gptoss_convert.formats import open_checkpoint
        from gptoss_convert.formats.peft import open_adapter

        checkpoint = open_checkpoint(
            locate(
                source,
                revision=self.revision,
                offline=self.offline,
                stream=self.stream,
                progress=self.shows_progress,
            )
        )
        return checkpoint if self.adapter is None else with_adapter(checkpoint, open_adapter(self.adapter))

    def open_tokenizer(self) -> Any:
        """Return the tokenizer that was named, if one was."""
        from gptoss_convert.formats import open_tokenizer

        return None if self.tokenizer is None else open_tokenizer(self.tokenizer)

    def resources(self) -> Any:
        """Return what the run may use."""
        from gptoss_convert.converters.execute import Resources

        jobs, memory = self.jobs, self.max_memory
        if self.stream:
            jobs = jobs or STREAM_JOBS
            memory = memory or jobs * STREAM_MEMORY_PER_JOB
        limits = {"jobs": jobs, "memory": memory}
        return Resources(**{key: value for key, value in limits.items() if value is not None})


def split_options(options: Mapping[str, Any]) -> tuple[RunOptions, dict[str, Any]]:
    """Return the options that every conversion takes, and the others."""
    names = {item.name for item in fields(RunOptions)}
    rest = {name: value for name, value in options.items() if name not in names}
    return RunOptions(**{name: value for name, value in options.items() if name in names}), rest
