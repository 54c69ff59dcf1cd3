"""What this machine offers: runtimes, execution providers, libraries, memory, disk. Nothing is changed or sent."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from gptoss_convert import __version__
from gptoss_convert.verify.runners import RUNTIMES, Runtime

_SECONDS = 60
"""For a runtime to say what it has; one that hangs is reported and left alone."""
_ASK_ONNXRUNTIME = (
    "import json, onnxruntime; print(json.dumps([onnxruntime.__version__, onnxruntime.get_available_providers()]))"
)


@dataclass(frozen=True, kw_only=True)
class RuntimeState:
    """Whether a runtime can be used."""

    name: str
    formats: tuple[str, ...]
    versions: Mapping[str, str]
    """Of the distributions that were found; empty if it is not installed."""
    install: str | None
    """The command that installs it; None if it is there."""
    providers: tuple[str, ...] = ()
    """Execution providers, of runtimes that have them."""
    problem: str | None = None
    """Why it cannot be used although it is installed."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A place for outputs."""

    path: Path
    free: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found."""

    version: str
    python: str
    system: str
    cores: int
    """That this process may use."""
    memory: int
    """Bytes of this machine, or what the control group allows if that is less."""
    memory_available: int
    runtimes: tuple[RuntimeState, ...]
    extras: Mapping[str, bool]
    """Whether everything that an extra of this package asks for is installed."""
    disks: tuple[Disk, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        facts = asdict(self)
        facts["disks"] = [{"path": str(disk.path), "free": disk.free} for disk in self.disks]
        return facts


def diagnose(folder: Path) -> Diagnosis:
    """Look at this machine, with `folder` as the place for outputs."""
    memory = psutil.virtual_memory()
    allowed = _allowed_memory()
    places = {folder.absolute(), Path(tempfile.gettempdir())}
    return Diagnosis(
        version=__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        system=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=memory.total if allowed is None else min(memory.total, allowed),
        memory_available=memory.available if allowed is None else min(memory.available, allowed),
        runtimes=tuple(map(_state, RUNTIMES.values())),
        extras=_extras(),
        disks=tuple(Disk(path=path, free=shutil.disk_usage(path).free) for path in sorted(places)),
    )


def _allowed_memory() -> int | None:
    """Return the limit of the control group, as Linux has it in containers."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):
            continue
    return None


def _state(runtime: Runtime) -> RuntimeState:
    if not runtime.is_installed:
        return RuntimeState(name=runtime.name, formats=runtime.formats, versions={}, install=runtime.install)
    distributions = metadata.packages_distributions()
    names = sorted({name for group in runtime.needs for module in group for name in distributions.get(module, ())})
    providers, problem = _providers() if runtime.name == "onnxruntime" else ((), None)
    return RuntimeState(
        name=runtime.name,
        formats=runtime.formats,
        versions={name: metadata.version(name) for name in names},
        install=None,
        providers=providers,
        problem=problem,
    )


def _providers() -> tuple[tuple[str, ...], str | None]:
    """Ask onnxruntime, in a process of its own: a broken installation can end the process that imports it."""
    command = [sys.executable, "-P", "-c", _ASK_ONNXRUNTIME]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        _, providers = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        return (), lines[-1]
    except (subprocess.TimeoutExpired, ValueError) as error:
        return (), str(error)
    return tuple(providers), None


def _extras() -> dict[str, bool]:
    """Return the extras of this package, and whether all that each one asks for is installed."""
    complete: dict[str, bool] = {}
    for requirement in metadata.requires("gptoss-convert") or []:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra == [\"']([^\"']+)[\"']", requirement)
        if name is None or extra is None or extra[1] in ("peers", "test"):
            continue
        complete[extra[1]] = complete.get(extra[1], True) and (
            name[0] == "gptoss-convert" or _is_installed(name[0])
        )
    return complete


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
