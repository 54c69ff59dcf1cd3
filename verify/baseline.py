"""The most exact file for a runtime: what a conversion is compared with in the same runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from gptoss_convert.checkpoint import Checkpoint, parameter_count
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.to_bf16 import Bf16Options, plan_bf16
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf

LARGEST = 1 << 30
"""Bytes in float32 of a model for which such a file is made without being asked."""


def _all_float32(checkpoint: Checkpoint, folder: Path) -> Plan:
    options = GgufOptions(dense="f32", experts="f32", allow_lossy_source=True)
    return plan_gguf(checkpoint, folder / "baseline.gguf", options)


def _bfloat16(checkpoint: Checkpoint, folder: Path) -> Plan:
    return plan_bf16(checkpoint, folder / "baseline", Bf16Options(allow_lossy_source=True))


PLANS: Mapping[str, Callable[[Checkpoint, Path], Plan]] = {"gguf": _all_float32, "huggingface": _bfloat16}
"""By format: how to store a model most exactly, in encodings that runtimes compute with most exactly."""


def make_baseline(checkpoint: Checkpoint, format_name: str, folder: Path) -> Path | None:
    """Store the model most exactly in a format, in the existing `folder`; None if it is too large for that.

    Raises:
        InputError: the checkpoint is damaged.
        OutputError: the file cannot be written.
    """
    plan = PLANS.get(format_name)
    if plan is None or 4 * parameter_count(checkpoint.config) > LARGEST:
        return None
    made = plan(checkpoint, folder)
    execute(made, recheck=False)  # it is read by the next step, and thrown away
    return made.output
