"""The parts that a prediction is the sum of, and the conditions that it is for."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass

from gptoss_convert.verify.footprint.profiles import Device


class Kind(enum.StrEnum):
    """Whose the memory is."""

    PRIVATE = "private"
    """The program's own: written by it, and kept until it ends or frees it."""
    MAPPED = "mapped"
    """Pages of a file. The system may drop those that are not looked at, and read them again."""


class Phase(enum.StrEnum):
    """When a part is there."""

    ALWAYS = "always"
    """From loading on."""
    LOAD = "load"
    """While the model is loaded only."""
    RUN = "run"
    """While tokens are computed only."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How a model is to be run."""

    context: int
    """Positions that there has to be room for."""
    positions: int
    """Positions that are computed, prompt and answer; `context` at most."""
    batch: int
    """Positions that are computed at once."""
    kv_type: str
    threads: int
    device: Device = "cpu"
    logits_for_all: bool = False
    """Whether a program asks llama.cpp for the logits of every position of a batch, not of the last one only."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Memory for one purpose."""

    name: str
    kind: Kind
    needed: int
    """Bytes that have to be in memory for full speed."""
    resident: int
    """Bytes that a run is seen to have in memory where nothing presses: without pages that it never touches, with
    those that it touches once."""
    error: float
    """Share of `resident` by which it may be off, as was found by measuring."""
    phase: Phase = Phase.ALWAYS
    on_host: bool = False
    """Stays in the memory of the host where a GPU computes."""
    note: str | None = None
    """Where the figure comes from, if that is not a sum over tensors."""


def private(name: str, nbytes: float, error: float, *, resident: float | None = None, **options: object) -> Part:
    """Return memory of the program's own; it is all touched unless `resident` says otherwise."""
    seen = nbytes if resident is None else resident
    return Part(
        name=name, kind=Kind.PRIVATE, needed=round(nbytes), resident=round(seen), error=error, **options  # type: ignore[arg-type]
    )  # fmt: skip


def mapped(
    name: str, nbytes: float, *, resident: float | None = None, error: float = 0.0, **options: object
) -> Part:
    """Return pages of a file; all are touched unless `resident` says otherwise."""
    seen = nbytes if resident is None else resident
    return Part(
        name=name, kind=Kind.MAPPED, needed=round(nbytes), resident=round(seen), error=error, **options  # type: ignore[arg-type]
    )  # fmt: skip


def usual_threads() -> int:
    """Return how many threads runtimes take by themselves."""
    return os.cpu_count() or 1
