"""What the command line shows of a footprint: parts, phases, differences and verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptoss_convert.console import human_bytes, make_console, make_table
from gptoss_convert.errors import printable
from gptoss_convert.verify.footprint.measurement import Ending

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_convert.verify.footprint.comparison import Comparison
    from gptoss_convert.verify.footprint.fit import Proposal
    from gptoss_convert.verify.footprint.footprint import Footprint
    from gptoss_convert.verify.footprint.measurement import Measurement
    from gptoss_convert.verify.footprint.prediction import Prediction
    from gptoss_convert.verify.footprint.verdict import Verdict

NOTHING = "-"


def print_footprint(footprint: Footprint) -> None:
    """Print prediction, measurement, difference and verdicts, as far as they are there."""
    console = make_console()
    subject = footprint.subject
    form = f" as {subject.form}" if subject.form else ""
    console.print(printable(f"{subject.path}{form} ({subject.format}), weights {human_bytes(subject.nbytes)}"))
    _print_prediction(console, footprint.prediction)
    if footprint.measurement is not None:
        _print_measurement(console, footprint.measurement)
    if footprint.comparison is not None:
        _print_comparison(console, footprint.comparison)
    if footprint.verdicts:
        _print_verdicts(console, footprint.verdicts)
    if footprint.failure is not None:
        console.print(printable(f"FAIL: {footprint.failure}"), style="bold")


def print_proposal(proposal: Proposal) -> None:
    """Print all forms that suit a device, the most exact one first, and what to do."""
    console = make_console()
    budget = proposal.budget
    table = make_table(
        f"{printable(budget.name)} ({budget.device}): {human_bytes(budget.available)} available; "
        f"context {proposal.context:,}",
        ("form", "left"), ("runtime", "left"), ("loss", "left"), ("weights", "right"), ("needed", "right"),
        ("verdict", "left"), ("largest context", "right"),
    )  # fmt: skip
    for item in proposal.candidates:
        table.add_row(
            item.form, item.runtime, str(item.loss), human_bytes(item.weight_bytes), human_bytes(item.needed),
            "FITS" if item.fits else "OVER BUDGET", _context(item.largest_context),
        )  # fmt: skip
    console.print(table)
    best = proposal.best
    if best is not None:
        console.print(f"proposed: {best.form}, {best.loss}, with a context of {proposal.best_context:,}")
        console.print(printable(f"  {best.command}"))
    elif proposal.roomiest is None:
        console.print("nothing fits, with any context", style="bold")
    else:
        other = proposal.roomiest
        console.print(
            f"nothing fits with this context; {other.form} has room for {_context(other.largest_context)}",
            style="bold",
        )


def _context(tokens: int | None) -> str:
    return "none" if tokens is None else f"{tokens:,}"


def _print_prediction(console: Console, prediction: Prediction) -> None:
    how = prediction.conditions
    table = make_table(
        f"predicted for {prediction.runtime} on the {how.device}: context {how.context}, batch {how.batch}, "
        f"KV cache in {how.kv_type}, {how.threads} threads",
        ("memory for", "left"), ("kind", "left"), ("when", "left"), ("needed", "right"), ("resident", "right"),
        ("error", "right"), ("note", "left"),
    )  # fmt: skip
    for part in prediction.parts:
        place = " (host)" if part.on_host and how.device == "gpu" else ""
        table.add_row(
            part.name + place, str(part.kind), str(part.phase), human_bytes(part.needed),
            human_bytes(part.resident), f"{part.error:.0%}" if part.error else NOTHING, part.note or "",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"needed {human_bytes(prediction.needed)}; resident where nothing presses "
        f"{human_bytes(prediction.resident)} +- {human_bytes(prediction.error)}, of them private "
        f"{human_bytes(prediction.private)}; until it is loaded {human_bytes(prediction.load_peak)}"
    )
    if prediction.on_host:
        console.print(f"on the host besides: {human_bytes(prediction.on_host)}")


def _print_measurement(console: Console, measurement: Measurement) -> None:
    setting = "; ".join(f"{name}: {value}" for name, value in measurement.setting.items())
    table = make_table(
        f"measured with a prompt of {measurement.prompt} tokens and an answer of {measurement.answer} ({setting})",
        ("phase", "left"), ("resident", "right"), ("private", "right"), ("mapped", "right"),
        ("of the artifact", "right"), ("peak", "right"), ("private peak", "right"), ("reserved", "right"),
        ("control group", "right"), ("s", "right"),
    )  # fmt: skip
    for phase in measurement.phases:
        sizes = (
            phase.resident, phase.private, phase.mapped, phase.artifact_resident, phase.peak_resident,
            phase.peak_private, phase.committed, phase.cgroup_peak,
        )  # fmt: skip
        table.add_row(phase.phase, *(_size(size) for size in sizes), f"{phase.seconds:.1f}")
    console.print(table)
    for phase in measurement.phases:
        for device in phase.gpu or ():
            console.print(
                f"{phase.phase}: GPU {device['device']} {human_bytes(device['used'])} used, "
                f"{_size(device['process'])} by the process"
            )
    if measurement.ending is not Ending.COMPLETED:
        failed = "FAIL: " if measurement.ending is Ending.OUT_OF_MEMORY else ""
        console.print(
            printable(f"{failed}{measurement.ending} in phase {measurement.died_in}: {measurement.reason}"),
            style="bold",
        )


def _print_comparison(console: Console, comparison: Comparison) -> None:
    table = make_table(
        "predicted and measured",
        ("figure", "left"), ("predicted", "right"), ("measured", "right"), ("difference", "right"), ("of", "left"),
    )  # fmt: skip
    for figure in (comparison.peak, *comparison.causes):
        sign = "-" if figure.bytes < 0 else "+"
        difference = sign + human_bytes(abs(figure.bytes))
        table.add_row(
            figure.name, human_bytes(figure.predicted), human_bytes(figure.measured), difference, figure.source
        )
    console.print(table)
    console.print(printable(f"off by {comparison.error:+.1%}; most of it: {comparison.explanation}"))


def _print_verdicts(console: Console, verdicts: tuple[Verdict, ...]) -> None:
    table = make_table(
        "verdicts",
        ("budget", "left"), ("device", "left"), ("available", "right"), ("needed", "right"), ("verdict", "left"),
        ("largest context", "right"), ("reason", "left"),
    )  # fmt: skip
    for verdict in verdicts:
        context = _context(verdict.largest_context)
        table.add_row(
            verdict.budget.name, verdict.budget.device, human_bytes(verdict.budget.available),
            human_bytes(verdict.prediction.needed), verdict.fit.upper(), context, printable(verdict.reason),
        )  # fmt: skip
    console.print(table)


def _size(size: int | None) -> str:
    return NOTHING if size is None else human_bytes(size)
