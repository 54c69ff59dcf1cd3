"""Memory of this process, phase by phase. Imports little: what it took itself would be measured with the rest.

Linux tells resident memory by kind (proc_pid_status(5)), and forgets its record of the largest one when it is asked
to (proc_pid_clear_refs(5)). Elsewhere psutil tells what there is.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

INTERVAL = 0.005
"""Seconds between two looks at what the system keeps no record of."""

_PROC = Path("/proc/self")


class PhaseMeter:
    """Measures a phase at a time."""

    def __init__(self, artifact: str) -> None:
        """Tell pages of files apart that lie at or below the path `artifact`."""
        self._artifact = artifact
        self._peaks: dict[str, int] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="memory", daemon=True).start()

    def begin(self) -> None:
        """Begin a phase: peaks are those from now on."""
        with self._lock:
            self._peaks = {}
            self._has_record = _forget_peak()

    def end(self) -> dict[str, int | None]:
        """Return what the process has at the end of a phase, and its peaks, in bytes by name; None for unknown."""
        with self._lock:
            self._look()
            peaks = self._peaks
        if sys.platform != "linux":
            return _psutil_figures() | {f"peak_{name}": size for name, size in peaks.items()}
        status = _sizes(_PROC / "status")
        rollup = _sizes(_PROC / "smaps_rollup")
        size, resident = self._mapped_artifact()
        return {
            "resident": status["VmRSS"],
            "private": status["RssAnon"],
            "mapped": status["RssFile"] + status["RssShmem"],
            "proportional": rollup.get("Pss"),
            "swapped": status.get("VmSwap"),
            "artifact_mapped": size,
            "artifact_resident": resident,
            "committed": status["VmData"],
            "peak_resident": status["VmHWM"] if self._has_record else peaks["resident"],
            "peak_private": peaks["private"],
            "cgroup_peak": _cgroup_peak(),
        }

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(INTERVAL):
            with self._lock:
                self._look()

    def _look(self) -> None:
        if sys.platform == "linux":
            status = _sizes(_PROC / "status")
            found: dict[str, int | None] = {"resident": status["VmRSS"], "private": status["RssAnon"]}
        else:
            found = {name: size for name, size in _psutil_figures().items() if name in ("resident", "private")}
        for name, size in found.items():
            if size is not None:
                self._peaks[name] = max(self._peaks.get(name, 0), size)

    def _mapped_artifact(self) -> tuple[int, int]:
        """Return how many bytes of the artifact's files are mapped, and how many of these are in memory."""
        size = resident = 0
        inside = False
        with (_PROC / "smaps").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, rest = line.partition(":")
                if " " in name:  # a new mapping: addresses, permissions, ..., path
                    inside = self._artifact in line
                elif inside and name == "Size":
                    size += int(rest.split()[0]) * 1024
                elif inside and name == "Rss":
                    resident += int(rest.split()[0]) * 1024
        return size, resident


def _forget_peak() -> bool:
    """Make the kernel's record of the largest resident memory start anew; return whether it does."""
    try:
        (_PROC / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _sizes(path: Path) -> dict[str, int]:
    """Return the fields of a file of proc(5) that are sizes, in bytes; nothing if it cannot be read."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    sizes = {}
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            sizes[name] = int(words[0]) * 1024
    return sizes


def _cgroup_peak() -> int | None:
    """Return the largest memory that this process's control group had, other members and file cache included."""
    try:
        lines = (_PROC / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            record = Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.peak"
        elif "memory" in controllers.split(","):
            record = Path("/sys/fs/cgroup/memory") / path.lstrip("/") / "memory.max_usage_in_bytes"
        else:
            continue
        try:
            return int(record.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return None


def _psutil_figures() -> dict[str, int | None]:
    import psutil

    info = psutil.Process().memory_info()
    private = getattr(info, "private", None)  # committed memory of its own, on Windows
    return {
        "resident": info.rss,
        "private": private,
        "mapped": None,
        "committed": getattr(info, "pagefile", None),
        "peak_resident": getattr(info, "peak_wset", None),
    }
