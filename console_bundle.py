"""What the command line shows of a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptoss_convert.console import human_bytes, make_console, make_table
from gptoss_convert.errors import printable

if TYPE_CHECKING:
    from gptoss_convert.bundle.bundle import BundlePlan


def print_bundle_plan(plan: BundlePlan) -> None:
    """Print every file of a bundle, and whether the device has room for the model."""
    console = make_console()
    table = make_table(
        printable(f"{plan.folder}  {human_bytes(plan.nbytes)}"), ("file", "left"), ("bytes", "right")
    )
    for name, file in plan.copies.items():
        table.add_row(printable(name), str(file.size))
    for name, content in plan.written.items():
        table.add_row(printable(name), str(len(content)))
    console.print(table)
    if plan.left_out:
        console.print(printable(f"note: left out, for no model needs them: {', '.join(plan.left_out)}"))
    facts = plan.facts
    console.print(
        printable(
            f"{facts.runtime.title} on {facts.verdict.budget.name}, context {facts.context:,}: "
            f"{str(facts.verdict.fit).upper()}, {facts.verdict.reason}"
        )
    )
