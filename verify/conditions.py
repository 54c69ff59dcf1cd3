"""When, where and how long something was measured: what makes two results differ that say the same."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from gptoss_convert.verify.metrics.plain import Plain

if TYPE_CHECKING:
    from gptoss_convert.verify.logits import LogitsResult

_CPU_FACTS = Path("/proc/cpuinfo")
"""Where Linux tells the name of the processor, which the standard library does not know there."""


@dataclass(frozen=True, kw_only=True)
class Host(Plain):
    """The machine, without its name."""

    system: str
    """Operating system with its release."""
    machine: str
    """Architecture, such as x86_64."""
    processor: str | None
    cores: int | None
    memory: int
    """Bytes."""
    python: str


@dataclass(frozen=True, kw_only=True)
class Conditions(Plain):
    """What a verification ran under."""

    created: str
    """When it was begun: ISO 8601, UTC."""
    seconds: float
    host: Host


def this_host() -> Host:
    """Return the facts about this machine."""
    return Host(
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        processor=_processor(),
        cores=os.cpu_count(),
        memory=psutil.virtual_memory().total,
        python=platform.python_version(),
    )


def now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def measured_runs(logits_of_artifacts: Sequence[Sequence[LogitsResult]]) -> list[dict[str, Any]]:
    """Return how long all runs took, and their memory, as JSON-ready data; indices say which runs they are."""
    return [
        {
            "artifact": artifact,
            "runtime": result.runtime,
            "run": index,
            "load_seconds": run.load_seconds,
            "run_seconds": run.run_seconds,
            "peak_memory": None if run.memory is None else asdict(run.memory),
        }
        for artifact, results in enumerate(logits_of_artifacts)
        for result in results
        for index, run in enumerate(result.runs)
    ]


def _processor() -> str | None:
    try:
        lines = _CPU_FACTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None
