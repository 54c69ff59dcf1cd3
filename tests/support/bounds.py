"""Bounds on what reading a file may take: memory beyond the file's own size, and time of the processor."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = 64 << 20
"""Bytes of address space that a reader may take besides as many as the file has."""
SECONDS = 1.0
"""Of the processor, whatever else runs on the machine."""


class TooSlowError(AssertionError):
    """Something took longer than it may."""


@contextmanager
def bounded(nbytes: int, *, memory: int = MEMORY, seconds: float = SECONDS) -> Iterator[None]:
    """Let nothing within the block take more than `nbytes` and `memory` bytes, nor more than `seconds`.

    The system refuses a larger allocation, whether it would be used or not.

    Raises:
        MemoryError: in the block, where it asks for more.
        TooSlowError: after the block.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + memory + nbytes, hard))
    start = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        taken = time.process_time() - start
    if taken > seconds:
        raise TooSlowError(f"{taken:.2f} seconds, more than {seconds:g}")


def _address_space() -> int:
    """Return the bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
