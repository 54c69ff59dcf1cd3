"""One writer at a time: an advisory lock beside the output, with the name of its holder."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from gptoss_convert.errors import OutputError, as_output_error

fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None
"""The locks of POSIX systems; None on Windows."""

_LARGEST = 4096
"""Bytes of a lock file that are read."""
_SAME_TIME = 2.0
"""Seconds by which the start of a process may seem to move, since clocks are set."""
_SECONDS_TO_SIGN = 10.0
"""A lock file without a name is one that its holder has just made, unless it is older."""


@contextlib.contextmanager
def locked(path: Path, output: Path) -> Iterator[None]:
    """Hold the lock file `path` of the output while the block runs, and remove it afterwards.

    Where the system has locks, they decide: they end with their process, however it ends. Where it has none, as on
    Windows and some network disks, the file itself is the lock. It is stale if it names a process of this machine
    that is gone; whether one of another machine is gone cannot be told from here.

    Raises:
        OutputError: another process holds it, or the system refused.
    """
    with as_output_error(output):
        descriptor = _acquired(path, output)
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(_this_process()).encode())
        except OSError:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        # While the lock is held, so that nobody removes the file of the next holder; Windows keeps open files.
        with contextlib.suppress(OSError):
            if fcntl is not None:
                path.unlink()
        os.close(descriptor)
        with contextlib.suppress(OSError):
            if fcntl is None:
                path.unlink()


def _acquired(path: Path, output: Path) -> int:
    """Return the open lock file."""
    while True:
        descriptor, is_new = _opened(path)
        try:
            taken = _system_lock(descriptor)
            is_held = not is_new and _is_alive(descriptor) if taken is None else not taken
            if is_held:
                holder = _holder(descriptor)
                pid, host = holder.get("pid", "of unknown number"), holder.get("host", "this machine")
                raise OutputError(
                    "another process is writing this output",
                    file=output,
                    found=f"process {pid} on {host}",
                    hint=f"wait for it; if it is gone, remove {path.name}",
                )
            if (taken or is_new) and _is_still(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it in the meantime, or it is stale
        if taken is None:
            path.unlink(missing_ok=True)


def _opened(path: Path) -> tuple[int, bool]:
    """Open the lock file; also return whether it was made for that."""
    flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        with contextlib.suppress(FileExistsError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags), False


def _system_lock(descriptor: int) -> bool | None:
    """Lock the open file; return whether that succeeded, None if the system has no locks for it."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_still(descriptor: int, path: Path) -> bool:
    """Return whether the open file is the one that has the name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node(), "started": psutil.Process().create_time()}


def _holder(descriptor: int) -> dict[str, Any]:
    """Return what a lock file says; nothing if it is empty or damaged."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        said = json.loads(os.read(descriptor, _LARGEST))
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _is_alive(descriptor: int) -> bool:
    """Return whether the process that a lock file names may still run."""
    holder = _holder(descriptor)
    pid, said = holder.get("pid"), holder.get("started")
    if not isinstance(pid, int) or not isinstance(said, float):
        return time.time() - os.fstat(descriptor).st_mtime < _SECONDS_TO_SIGN
    if holder.get("host") != platform.node():
        return True
    try:
        return bool(abs(psutil.Process(pid).create_time() - said) < _SAME_TIME)
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # a number that no process has
        return False
    except psutil.Error:
        return True
