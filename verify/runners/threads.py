"""Threads that a runtime gets."""

from __future__ import annotations

import os

from gptoss_convert.verify.runners.protocol import Settings


def thread_count(settings: Settings) -> int:
    """Return the number of threads that the settings ask for."""
    return settings.threads or os.cpu_count() or 1
