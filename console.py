"""What the command line shows: tables, progress and errors.

Facts that a program may want go to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import os
import re
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

    from gptoss_convert.converters.execute import Progress, Report, TensorReport
    from gptoss_convert.converters.plan import Plan
    from gptoss_convert.inspection import Inspection

SECONDS_BETWEEN_LINES = 10.0
"""Without a terminal, progress is a line at most so often."""


def make_console(*, stderr: bool = False) -> Console:
    """Return a console for standard output, or standard error, that leaves closed pipes to the caller."""
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


def make_table(title: str, *columns: tuple[str, str]) -> Table:
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
    console = make_console()
    for file in plan.files:
        console.print(printable(f"{file.path}  {file.nbytes} bytes ({human_bytes(file.nbytes)})"))
    if every_tensor:
        table = make_table(
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
    if every_tensor:
        console.print(f"loss: {plan.loss}")
    for note in plan.notes:
        console.print(printable(f"note: {note}"))


def print_report(report: Report) -> None:
    """Print what a conversion did: what was rounded by kind of tensor, what is left of a fine-tune, and hashes."""
    console = make_console()
    _print_rounding(console, [item for item in report.tensors if item.findings.deviation.different])
    quantised = [item for item in report.tensors if item.findings.quantisation.values]
    _print_quantisation(console, [item for item in quantised if item.findings.changed])
    _print_survival(console, [item for item in quantised if item.findings.survival.values])
    _print_halves(console, report)
    console.print(f"loss: {report.loss}{_what_was_lost(report)}")
    if signs := sum(item.findings.signs_of_zero for item in report.tensors):
        console.print(f"zeros that lost their minus sign: {human_count(signs)}; the canonical hash is another one")
    if rounded := sum(item.findings.rounded_in_graph for item in report.tensors):
        console.print(f"numbers of experts that f16 activations round: {human_count(rounded)}; the file keeps them")
    if report.named_scales:
        console.print(f"scales named beside the weights: {report.named_scales}")
    if report.hash is not None:
        console.print(f"canonical hash: {report.hash.model}")


def _print_halves(console: Console, report: Report) -> None:
    """Say how many numbers are below the normal range of float16."""
    figures = [item.findings.halves for item in report.tensors if item.findings.halves.values]
    total = sum(figures[1:], figures[0]) if figures else None
    if total is not None and (total.subnormal or total.vanished):
        console.print(
            f"below the normal range of f16: {human_count(total.subnormal)} of {human_count(total.values)} numbers "
            f"became subnormal, {human_count(total.vanished)} became zero"
        )


def _what_was_lost(report: Report) -> str:
    rounded = [item for item in report.tensors if item.findings.changed]
    if not rounded:
        return ""
    worst = max(item.findings.relative_error for item in rounded)
    return f", {len(rounded)} of {len(report.tensors)} tensors were rounded, by {worst:.2%} of their size at most"


def _by_kind(tensors: Sequence[TensorReport]) -> dict[str, list[TensorReport]]:
    """Return tensors by their names without the number of the layer."""
    kinds: dict[str, list[TensorReport]] = {}
    for item in tensors:
        kind = re.sub(r"\.[0-9]+\.", ".*.", item.transfer.source.name)
        kinds.setdefault(kind, []).append(item)
    return kinds


def _print_rounding(console: Console, tensors: Sequence[TensorReport]) -> None:
    if not tensors:
        return
    table = make_table(
        "Rounded", ("tensors", "left"), ("count", "right"), ("from", "left"), ("to", "left"), ("values", "right"),
        ("different", "right"), ("relative error", "right"), ("largest error", "right"),
    )  # fmt: skip
    for kind, items in _by_kind(tensors).items():
        total = sum((item.findings.deviation for item in items), type(items[0].findings.deviation)())
        transfer = items[0].transfer
        table.add_row(
            printable(kind), str(len(items)), transfer.source.encoding.name, transfer.target.encoding.name,
            human_count(total.values), human_count(total.different), f"{total.relative_error:.2e}",
            f"{total.largest_error:.3g}",
        )  # fmt: skip
    console.print(table)


def _print_quantisation(console: Console, tensors: Sequence[TensorReport]) -> None:
    """Print the errors of quantised tensors, and those that each rule would have made of the blocks compared."""
    if not tensors:
        return
    rules = list(tensors[0].findings.quantisation.comparison.squared_error)
    sampled = any(
        item.findings.quantisation.comparison.blocks < item.findings.quantisation.blocks for item in tensors
    )
    table = make_table(
        "Quantised to MXFP4: relative error, and by rule" + (" in a sample of blocks" if sampled else ""),
        ("tensors", "left"), ("count", "right"),
        ("SQNR dB", "right"), ("error", "right"), ("worst", "right"), ("clipped", "right"), ("kept", "right"),
        *((str(rule), "right") for rule in rules),
    )  # fmt: skip
    for kind, items in _by_kind(tensors).items():
        figures = [item.findings.quantisation for item in items]
        total = sum(figures[1:], figures[0])
        table.add_row(
            printable(kind), str(len(items)), f"{total.signal_to_noise:.2f}", f"{total.relative_error:.2%}",
            f"{max(item.relative_error for item in figures):.2%}", f"{total.clipped_blocks / total.blocks:.1%}",
            f"{total.kept_blocks / total.blocks:.1%}",
            *(f"{total.comparison.relative_error[rule]:.2%}" for rule in rules),
        )  # fmt: skip
    console.print(table)


def _print_survival(console: Console, tensors: Sequence[TensorReport]) -> None:
    """Print what is left of a fine-tune, and warn if it was rounded away."""
    if not tensors:
        return
    tuned = [item for item in tensors if item.findings.survival.tuned]
    console.print(f"fine-tune: {len(tuned)} of {len(tensors)} expert tensors differ from the base")
    if not tuned:
        return
    table = make_table(
        "Fine-tune", ("tensors", "left"), ("count", "right"), ("change", "right"), ("values tuned", "right"),
        ("values moved", "right"), ("change that is left", "right"),
    )  # fmt: skip
    for kind, items in _by_kind(tuned).items():
        parts = [item.findings.survival for item in items]
        total = sum(parts[1:], parts[0])
        change = "of zeros" if total.relative_change is None else f"{total.relative_change:.2%}"
        table.add_row(
            printable(kind), str(len(items)), change, f"{total.share_tuned:.2%}", f"{total.share_moved:.2%}",
            f"{total.share_kept or 0:.1%}",
        )  # fmt: skip
    console.print(table)
    lost = [item for item in tuned if item.findings.survival.rounded_away]
    if lost:
        console.print(
            f"warning: the fine-tune of {len(lost)} expert tensor(s) was rounded away: the change is smaller than "
            "the steps of MXFP4. Keep them in BF16 (to-gguf --experts bf16), or tune with quantisation in the loop",
            style="yellow",
        )


def _plan_summary(plan: Plan) -> Table:
    table = make_table(
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
    console = make_console()
    config = inspection.config
    console.print(
        printable(f"{inspection.path}: {inspection.title}, {inspection.files} file(s) with tensors"), style="bold"
    )
    facts = make_table("", ("fact", "left"), ("value", "left"))
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
    table = make_table(
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
    with Progress(*columns, console=make_console(stderr=True), transient=True) as progress:
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
