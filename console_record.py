"""What the command line shows of a recording: how large it is, what is in it, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptoss_convert.console import human_bytes, make_console
from gptoss_convert.errors import printable

if TYPE_CHECKING:
    from gptoss_convert.verify.record import PackPlan, PackReport


def print_pack_plan(plan: PackPlan) -> None:
    """Print what a pack will hold and how large it will be."""
    console = make_console()
    prompts, shape = plan.options.prompts, plan.shape
    kept = (
        f"all {shape.columns} tokens" if shape.is_whole else f"the {shape.columns} likeliest tokens, and their rest"
    )
    manners = "".join(f", as {name} computes" for name in plan.runs if name)
    lines = (
        f"reference  {plan.reference.path} ({plan.reference.format})",
        f"prompts    {prompts.name}: {len(prompts.prompts)} prompts, {prompts.positions} positions",
        f"           SHA-256 of their ids {prompts.sha256}",
        *(f"           {remark}" for remark in prompts.remarks),
        f"runs       as published{manners}",
        f"keeps      of each position {kept}",
        f"pack       {plan.path}: about {human_bytes(plan.nbytes)}",
    )
    for line in lines:
        console.print(printable(line))


def print_pack_report(report: PackReport) -> None:
    """Print what was recorded."""
    console = make_console()
    for run in report.runs:
        manner = f" as {run.settings.imitates} computes" if run.settings.imitates else f" in {run.settings.dtype}"
        versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
        console.print(printable(f"  ran      reference{manner}: {run.run_seconds or 0:.1f} s; {versions}"))
    console.print(f"  noise    reference in bfloat16: mean KL {report.noise_floor:.2g}")
    console.print(f"  coverage {report.coverage:.4%} of the probability is in the tokens that were kept")
    if report.coverage < report.least_coverage:
        console.print(
            f"note: verify asks for a coverage of {report.least_coverage:.0%} and proves nothing with less; "
            "record more tokens with --top-k"
        )
    console.print(f"  hash     {report.canonical_hash}")
    console.print(printable(f"wrote {report.plan.path}: {report.nbytes} bytes ({human_bytes(report.nbytes)})"))
