"""What torch needs before its first cosine."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ELEMENTS = 1024
"""Fewer than torch shares out among threads: 2048, `aten/src/ATen/cpu/vml.h`."""


def use_vector_functions_alone() -> None:
    """Call torch's vector functions once in a single thread, so that all later calls are exact.

    torch takes cosines, sines and the like from the vector functions of Intel's MKL. If several threads use these
    at once for the first time in a process, one of them may get results of low accuracy: of 450 processes on two
    cores, 4 had half of their rotary table off by 1.5e-4 (torch 2.13.0), and of 550 that had called this, none.
    """
    torch: Any = import_module("torch")
    torch.zeros(_ELEMENTS).cos()
