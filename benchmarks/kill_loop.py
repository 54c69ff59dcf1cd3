"""Conversions that are killed at random moments and resumed: `tests.support.kill_loop`, for many rounds."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.kill_loop import KillLoop


def measure(folder: Path, rounds: int, seed: int) -> list[str]:
    """Do `rounds` rounds in `folder`, and return what came of them as lines of text."""
    started = time.monotonic()
    outcome = KillLoop(folder, seed).run(rounds)
    return [*outcome.lines(), f"{time.monotonic() - started:.0f} s, seed {seed}"]
