"""Time and memory of a child process, by the kernel's account."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Run:
    """One run of a command."""

    wall: float
    """Seconds."""
    cpu: float
    """User and system seconds."""
    resident: int
    """Peak resident bytes, pages of mapped files included; sampled."""
    private: int
    """Peak anonymous bytes, sampled."""


def run(command: Sequence[str | Path]) -> Run:
    """Run `command` to its end; raise `RuntimeError` with its output if it fails."""
    started = time.perf_counter()
    words = [str(part) for part in command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        peak = {"VmHWM": 0, "RssAnon": 0}
        done = threading.Event()
        sampler = threading.Thread(target=_sample, args=(child.pid, peak, done))
        sampler.start()
        assert child.stdout is not None
        output = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        sampler.join()
    if child.returncode:
        raise RuntimeError(f"{command}: exit code {child.returncode}\n{output.decode(errors='replace')}")
    return Run(wall, usage.ru_utime + usage.ru_stime, peak["VmHWM"], peak["RssAnon"])


def _sample(pid: int, peak: dict[str, int], done: threading.Event) -> None:
    """Keep the largest values in the child's status; its rusage would count the parent that it was forked from."""
    status = Path(f"/proc/{pid}/status")
    while not done.wait(POLL_SECONDS):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            return
        for line in lines:
            key, _, value = line.partition(":")
            if key in peak:
                peak[key] = max(peak[key], int(value.split()[0]) * 1024)


def prepare_machine(nbytes: int) -> None:
    """Leave nothing of earlier runs for the next one to wait for, which uses up to `nbytes` of memory.

    Called before each run, after its earlier output was removed, so that all tools find the same state.
    """
    _wait_for_disk()
    _touch_free_memory(nbytes)


def _wait_for_disk() -> None:
    """Store what earlier runs left to be stored, and wait until the disk rests; at most half a minute.

    A file system may hand the blocks of removed files back to the disk for seconds afterwards. A program that
    syncs what it wrote would wait for that too, and one that does not, such as `cp`, would not.
    """
    os.sync()
    restful, before = 0, _disk_state()
    for _ in range(300):
        time.sleep(0.1)
        now = _disk_state()
        restful = restful + 1 if now == before and now.in_flight == 0 else 0
        if restful == 5:
            return
        before = now


class _DiskState(NamedTuple):
    """Sums over all disks."""

    in_flight: int
    discarded: int
    """Sectors."""


def _disk_state() -> _DiskState:
    """Read /proc/diskstats, whose columns are those of the kernel's Documentation/admin-guide/iostats.rst."""
    disks = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
    return _DiskState(sum(int(disk[11]) for disk in disks), sum(int(disk[16]) for disk in disks))


def _touch_free_memory(nbytes: int) -> None:
    """Use up to `nbytes` of free memory for a moment, and give it back.

    A virtual machine may hand memory that has been free for two seconds back to its host, and fetching it again
    costs more than copying a file into it. This spares all tools that cost alike.
    """
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemFree:"))
    count = min(nbytes, int(free.split()[1]) * 1024 * 9 // 10) >> 26
    script = f"import numpy; blocks = [numpy.ones(1 << 26, numpy.uint8) for _ in range({count})]"
    run([sys.executable, "-P", "-c", script])


def median_wall(runs: Sequence[Run]) -> float:
    """Return the median of the wall times in seconds."""
    return statistics.median(run.wall for run in runs)


def table(tools: Mapping[str, Sequence[Run]], *, copy: Sequence[Run]) -> list[str]:
    """Return a line for each tool: medians, extremes and peaks of its runs, and the ratio to the runs of `copy`."""
    width = max(map(len, tools)) + 2
    headings = {"wall s": 9, "min": 8, "max": 8, "cpu s": 8, "RSS MB": 9, "private MB": 12, "x cp": 8}
    lines = [" " * width + "".join(heading.rjust(size) for heading, size in headings.items())]
    for name, runs in tools.items():
        if runs:
            walls = [item.wall for item in runs]
            cpu = statistics.median(item.cpu for item in runs)
            resident = max(item.resident for item in runs) / 1e6
            private = max(item.private for item in runs) / 1e6
            lines.append(
                f"{name:{width}}{statistics.median(walls):9.2f}{min(walls):8.2f}{max(walls):8.2f}"
                f"{cpu:8.2f}{resident:9.0f}{private:12.0f}{median_wall(runs) / median_wall(copy):8.2f}"
            )
    return lines


def median_ratio(runs: Sequence[Run], others: Sequence[Run]) -> float:
    """Return the median of the ratios of wall times, pair by pair."""
    return statistics.median(mine.wall / other.wall for mine, other in zip(runs, others, strict=True))
