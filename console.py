"""What the command line shows: tables, progress and errors.

Facts that a program may want go to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

from gptoss_convert.errors import GptossConvertError, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gptoss_convert.converters.execute import Progress
    from gptoss_convert.converters.plan import Plan
    from gptoss_convert.inspection import Inspection
    from gptoss_convert.verify.weights import TensorComparison

SECONDS_BETWEEN_LINES = 10.0
"""Without a terminal, progress is a line at most so often."""


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    class PipeAwareConsole(Console):
        """A console that leaves it to the command line what a closed pipe means."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    # Without colour there are no escape sequences at all, bold ones included.
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else 140
    return PipeAwareConsole(
        stderr=stderr, highlight=False, markup=False, soft_wrap=True, width=width, color_system=colours
    )


def _table(title: str, *columns: tuple[str, str]) -> Table:
    """Return an empty table; a column is (heading, "left" or "right")."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading, side in columns:
        table.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    return table


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False))


def print_error(error: GptossConvertError) -> None:
    """Print an error as one line."""
    print(f"error: {error}", file=sys.stderr)


def say(text: str) -> None:
    """Print a line for people."""
    print(printable(text), file=sys.stderr)


def human_bytes(count: float) -> str:
    """Return a byte count in decimal units, as disks and downloads are measured."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def human_count(count: int) -> str:
    """Return a parameter count in the field's units."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return str(count)


def print_plan(plan: Plan, *, every_tensor: bool) -> None:
    """Print what a conversion will write: a line per file and a row per encoding, or per tensor."""
    console = _console()
    for file in plan.files:
        console.print(printable(f"{file.path}  {file.nbytes} bytes ({human_bytes(file.nbytes)})"))
    if every_tensor:
        table = _table(
            "Tensors", ("tensor", "left"), ("shape", "left"), ("from", "left"), ("to", "left"), ("loss", "left"),
            ("offset", "right"), ("bytes", "right"), ("note", "left"),
        )  # fmt: skip
        for row in plan.as_dict()["tensors"]:
            shape = " x ".join(map(str, row["shape"]))
            cells = (row["name"], shape, row["source_encoding"], row["encoding"], row["loss"])
            table.add_row(*map(printable, cells), str(row["offset"]), str(row["nbytes"]), row["note"] or "")
    else:
        table = _plan_summary(plan)
    console.print(table)
    console.print(f"loss: {plan.loss}")
    for note in plan.notes:
        console.print(printable(f"note: {note}"))


def _plan_summary(plan: Plan) -> Table:
    table = _table(
        "Tensors", ("from", "left"), ("to", "left"), ("loss", "left"), ("tensors", "right"), ("bytes", "right")
    )
    counts: Counter[tuple[str, str, str]] = Counter()
    nbytes: Counter[tuple[str, str, str]] = Counter()
    for row in plan.as_dict()["tensors"]:
        key = (row["source_encoding"], row["encoding"], row["loss"])
        counts[key] += 1
        nbytes[key] += row["nbytes"]
    for key in sorted(counts, key=lambda key: -nbytes[key]):
        table.add_row(*key, str(counts[key]), human_bytes(nbytes[key]))
    return table


def print_inspection(inspection: Inspection) -> None:
    """Print the facts about a checkpoint."""
    console = _console()
    config = inspection.config
    console.print(
        printable(f"{inspection.path}: {inspection.title}, {inspection.files} file(s) with tensors"), style="bold"
    )
    facts = _table("", ("fact", "left"), ("value", "left"))
    facts.show_header = False
    rope = config.rope
    sliding = sum(kind == "sliding_attention" for kind in config.layer_types)
    rows = {
        "parameters": f"{human_count(inspection.parameters)}, {human_count(inspection.active_parameters)} active",
        "layers": f"{config.num_hidden_layers} ({sliding} with a window of {config.sliding_window})",
        "width": f"hidden {config.hidden_size}, experts {config.intermediate_size}",
        "experts": f"{config.num_local_experts}, {config.num_experts_per_tok} per token",
        "attention": f"{config.num_attention_heads} heads of {config.head_dim}, KV: {config.num_key_value_heads}",
        "context": f"{config.max_position_embeddings} (YaRN {rope.factor:g} x {rope.original_context_length})",
        "vocabulary": str(config.vocab_size),
    }
    if inspection.tokenizer is not None:
        tokenizer = inspection.tokenizer
        rows["tokenizer"] = (
            f"{tokenizer.tokens} tokens ({tokenizer.control_tokens} control), {tokenizer.merges} merges, "
            f"{tokenizer.padding_rows} padding rows"
        )
        rows["special tokens"] = ", ".join(f"{key} {value}" for key, value in tokenizer.special.items()) or "none"
        rows["chat template"] = (
            ", ".join(f"{name}: sha256 {digest[:16]}..." for name, digest in tokenizer.chat_templates.items())
            or "none"
        )
    said = inspection.description
    for key in ("name", "author", "organization", "license", "source_revision"):
        if said is not None and (value := getattr(said, key)):
            rows[key.replace("_", " ")] = value
    if inspection.hash is not None:
        rows["canonical hash"] = inspection.hash.model
    for key, value in (rows | dict(inspection.details)).items():
        facts.add_row(printable(key), printable(value))
    console.print(facts)
    table = _table(
        "Tensors",
        ("role", "left"),
        ("encoding", "left"),
        ("tensors", "right"),
        ("parameters", "right"),
        ("bytes", "right"),
    )
    for group in inspection.groups:
        table.add_row(
            group.role, group.encoding, str(group.tensors), human_count(group.parameters), human_bytes(group.nbytes)
        )
    table.add_row(
        "all", "", str(sum(group.tensors for group in inspection.groups)), human_count(inspection.parameters),
        human_bytes(inspection.nbytes),
    )  # fmt: skip
    console.print(table)
    for remark in inspection.remarks:
        console.print(printable(f"remark: {remark}"))
    for problem in inspection.problems:
        console.print(f"problem: {problem}", style="red")
    if not inspection.problems:
        console.print("no problems found", style="green")


def print_comparisons(comparisons: Sequence[TensorComparison]) -> None:
    """Print how an artifact compares with its source, a row per kind of tensor and result."""
    table = _table(
        "Weights against the source", ("from", "left"), ("to", "left"), ("promised", "left"), ("found", "left"),
        ("tensors", "right"), ("values", "right"), ("different", "right"), ("largest error", "right"), ("", "left"),
    )  # fmt: skip
    groups: dict[tuple[str, str, str, str], list[TensorComparison]] = {}
    for item in comparisons:
        key = (item.reference, item.artifact, str(item.expected), str(item.found))
        groups.setdefault(key, []).append(item)
    for key, items in groups.items():
        table.add_row(
            *key,
            str(len(items)),
            human_count(sum(item.values for item in items)),
            str(sum(item.different for item in items)),
            f"{max(item.largest_error for item in items):.3g}",
            "ok" if all(item.passed for item in items) else "FAILED",
        )
    _console().print(table)


@contextmanager
def progress_bar(total: int, *, shown: bool) -> Iterator[Progress]:
    """Yield a function that is told what was written: a bar on a terminal, a line now and then otherwise."""
    if not shown:
        yield lambda tensor, nbytes: None
    elif sys.stderr.isatty():
        with _bar(total) as update:
            yield update
    else:
        update = _lines(total)

        def quietly(tensor: str, nbytes: int) -> None:
            with suppress(OSError):  # nobody reads the log any more; the conversion goes on
                update(tensor, nbytes)

        yield quietly


@contextmanager
def _bar(total: int) -> Iterator[Progress]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=_console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda tensor, nbytes: progress.update(task, advance=nbytes, description=printable(tensor))


def _lines(total: int) -> Progress:
    started = last = time.monotonic()
    done = 0

    def update(tensor: str, nbytes: int) -> None:
        nonlocal done, last
        done += nbytes
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            rate = done / (now - started)
            remaining = (total - done) / rate
            say(
                f"{100 * done / total:.0f} %  {human_bytes(done)} of {human_bytes(total)}  "
                f"{human_bytes(rate)}/s  {remaining:.0f} s left  {tensor}"
            )

    return update


def progress_is_wanted(*, quiet: bool, no_progress: bool) -> bool:
    """Return whether progress is shown: not when unwanted, and not in CI logs unless at a terminal."""
    return not (quiet or no_progress) and (sys.stderr.isatty() or not os.environ.get("CI"))
