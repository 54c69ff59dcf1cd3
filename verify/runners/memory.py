"""Memory of this process and of the machine."""

from __future__ import annotations

import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

INTERVAL = 0.02
"""Seconds between two looks at the private memory where the system keeps no record of its largest value."""

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """The most memory that a process had, in bytes. The two peaks need not be of the same moment."""

    resident: int
    """In RAM, files that are mapped into memory included: weights, for many runtimes."""
    private: int | None
    """Of its own, mapped files excluded: anonymous memory in RAM on Linux, looked at every 20 ms; committed memory
    on Windows; None where the system does not tell."""


class PeakMeter:
    """Measures the peak memory of this process while the context is open."""

    def __init__(self) -> None:
        self._sampled = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)

    def __enter__(self) -> Self:
        if sys.platform == "linux":
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def peak(self) -> PeakMemory:
        """Return the peak so far."""
        private: int | None = None
        if sys.platform == "linux":
            # The kernel's ru_maxrss would count the parent before it started this process.
            status = _linux_status()
            resident = status["VmHWM"]
            private = self._sampled = max(self._sampled, status["RssAnon"])
        elif sys.platform == "win32":
            import psutil

            info = psutil.Process().memory_info()
            resident, private = info.peak_wset, info.peak_pagefile
        else:
            import resource

            largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            resident = largest if sys.platform == "darwin" else largest * 1024
        return PeakMemory(resident=resident, private=private)

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._sampled = max(self._sampled, _linux_status()["RssAnon"])


def available_memory() -> int:
    """Return the bytes that programs can have without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def _linux_status() -> dict[str, int]:
    """Return the fields of proc_pid_status(5) that are sizes, in bytes."""
    text = _STATUS.read_text(encoding="ascii", errors="replace")
    return {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
