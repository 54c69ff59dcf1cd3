"""What the command line shows of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptoss_convert.console import human_bytes, make_console, make_table
from gptoss_convert.errors import printable

if TYPE_CHECKING:
    from gptoss_convert.diagnosis import Diagnosis, RuntimeState

CHECKPOINT_20B = 13_800_000_000
"""Bytes of gpt-oss-20b as it is published, for comparison."""


def print_diagnosis(found: Diagnosis) -> None:
    """Print what there is, and the commands that install what there is not."""
    console = make_console()
    facts = make_table(f"gptoss-convert {found.version}", ("", "left"), ("", "left"))
    facts.show_header = False
    facts.add_row("python", printable(found.python))
    facts.add_row("system", printable(f"{found.system}, {found.cores} cores"))
    facts.add_row("memory", f"{human_bytes(found.memory)}, {human_bytes(found.memory_available)} available")
    for disk in found.disks:
        enough = "" if disk.free >= CHECKPOINT_20B else ", less than gpt-oss-20b takes"
        facts.add_row("free disk", printable(f"{human_bytes(disk.free)} in {disk.path}{enough}"))
    for extra, complete in found.extras.items():
        facts.add_row(f"extra {extra}", "installed" if complete else f"pip install 'gptoss-convert[{extra}]'")
    console.print(facts)
    table = make_table("runtimes", ("name", "left"), ("runs", "left"), ("state", "left"))
    for runtime in found.runtimes:
        table.add_row(runtime.name, ", ".join(runtime.formats), printable(_state(runtime)))
    console.print(table)


def _state(runtime: RuntimeState) -> str:
    if runtime.install is not None:
        return f"not installed: {runtime.install}"
    if runtime.problem is not None:
        return f"installed, but cannot be used: {runtime.problem}"
    versions = ", ".join(f"{name} {version}" for name, version in runtime.versions.items())
    return f"{versions}; {', '.join(runtime.providers)}" if runtime.providers else versions
