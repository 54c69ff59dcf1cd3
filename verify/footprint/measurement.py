"""Runs an artifact in a child process and reads what it really takes, phase by phase."""

from __future__ import annotations

import enum
import json
import platform
import re
import shutil
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import OptionError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.footprint.child import DECODE, IMPORT, LOAD, PHASES, PREFILL, REQUEST, START
from gptoss_convert.verify.footprint.parts import Conditions
from gptoss_convert.verify.footprint.subject import Subject, graph_facts
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runners.genai_config import read_genai_config
from gptoss_convert.verify.runners.launch import LOG, end_of_child, log_tail, reason_of_end
from gptoss_convert.verify.runners.providers import provider_named

DEFAULT_PROMPT = 1024
DEFAULT_ANSWER = 16
PHASE_NAMES = (START, IMPORT, LOAD, PREFILL, DECODE)

_CHILD = "gptoss_convert.verify.footprint.child"
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "1048576"}
"""Makes glibc give freed memory back, as by mallopt(3): what the heap keeps for later is no need of the model."""
_DISTRIBUTIONS = {
    "llama.cpp": "xllamacpp",
    "onnxruntime": "onnxruntime",
    "onnxruntime-genai": "onnxruntime-genai",
    "transformers": "transformers",
}
_OUT_OF_MEMORY = re.compile(
    r"MemoryError|bad_?alloc|out of memory|not enough memory|(failed|unable|cannot) to allocate|cannot allocate"
    r"|can't start new thread|failed to map segment|failed to mmap|allocat\w* .*failed",
    re.IGNORECASE,
)


class Ending(enum.StrEnum):
    """How a measurement ended."""

    COMPLETED = "completed"
    OUT_OF_MEMORY = "out of memory"
    REFUSED = "refused"
    """The runtime said why it does not run the model."""
    CRASHED = "crashed"
    TIMED_OUT = "timed out"


@dataclass(frozen=True, kw_only=True)
class PhaseMemory:
    """What the process had at the end of a phase, and its peaks in that phase, in bytes; None where unknown."""

    phase: str
    resident: int | None = None
    """In RAM, mapped files included."""
    private: int | None = None
    """Anonymous memory in RAM on Linux, committed private memory on Windows."""
    mapped: int | None = None
    """Pages of files, and shared memory, in RAM."""
    proportional: int | None = None
    """Resident memory with pages that others share divided by their number (Pss)."""
    swapped: int | None = None
    artifact_mapped: int | None = None
    """Address space that maps files of the artifact."""
    artifact_resident: int | None = None
    """Of these, what is in RAM."""
    committed: int | None = None
    """Private memory that is reserved, touched or not."""
    peak_resident: int | None = None
    """Largest resident memory within the phase."""
    peak_private: int | None = None
    """Largest private memory within the phase, looked at every 5 ms."""
    cgroup_peak: int | None = None
    """Largest memory of the control group so far, with its other members and file cache."""
    gpu: list[dict[str, Any]] | None = None
    """By device, where NVML or DXGI tells."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What came of running an artifact to measure it."""

    ending: Ending
    conditions: Conditions
    prompt: int
    answer: int
    phases: tuple[PhaseMemory, ...] = ()
    """Those that were completed."""
    died_in: str | None = None
    """The phase that was not completed."""
    reason: str | None = None
    """Why it was not: one line."""
    limit: int | None = None
    """Bytes of private memory that the process was allowed to reserve."""
    setting: Mapping[str, str] = field(default_factory=dict)
    """Versions and switches that figures depend on."""

    @property
    def peak_resident(self) -> int | None:
        """Largest resident memory of all phases."""
        return max((phase.peak_resident or 0 for phase in self.phases), default=0) or None

    @property
    def peak_private(self) -> int | None:
        """Largest private memory of all phases."""
        return max((phase.peak_private or 0 for phase in self.phases), default=0) or None

    @property
    def mapped(self) -> int | None:
        """Most pages of files that were in RAM at the end of a phase of computing."""
        return (
            max((phase.mapped or 0 for phase in self.phases if phase.phase in (PREFILL, DECODE)), default=0) or None
        )

    @property
    def peak_on_gpu(self) -> int | None:
        """Most bytes of all GPUs at the end of a phase: of the process, or else beyond those at the start."""
        figures = [phase.gpu for phase in self.phases if phase.gpu]
        if not figures:
            return None
        own: list[list[int | None]] = [[device["process"] for device in devices] for devices in figures]
        if all(size is not None for sizes in own for size in sizes):
            return max(sum(size or 0 for size in sizes) for sizes in own)
        used: list[int] = [sum(device["used"] for device in devices) for devices in figures]
        return max(used) - used[0]

    def phase(self, name: str) -> PhaseMemory | None:
        """Return a phase; None if it was not completed."""
        return next((phase for phase in self.phases if phase.phase == name), None)

    def as_dict(self) -> dict[str, Any]:
        """Return the measurement as JSON-ready data."""
        return {
            "ending": str(self.ending),
            "died_in": self.died_in,
            "reason": self.reason,
            "prompt": self.prompt,
            "answer": self.answer,
            "limit": self.limit,
            "peak_resident": self.peak_resident,
            "peak_private": self.peak_private,
            "mapped": self.mapped,
            "peak_on_gpu": self.peak_on_gpu,
            "phases": [asdict(phase) for phase in self.phases],
            "setting": dict(self.setting),
        }


def measure(
    subject: Subject,
    runtime: str,
    how: Conditions,
    *,
    prompt: int | None = None,
    answer: int | None = None,
    limit: int | None = None,
    timeout: float | None = None,
) -> Measurement:
    """Run `subject` in a child process that ends with this call.

    Args:
        subject: an artifact that is there.
        runtime: what runs it.
        how: conditions; `positions` is replaced by those that are computed.
        prompt: tokens that are computed `how.batch` at a time; None for `DEFAULT_PROMPT`, or what the context has
            room for.
        answer: tokens that are computed one by one; None for `DEFAULT_ANSWER`.
        limit: bytes of private memory that the child may reserve (RLIMIT_DATA); None for no limit.
        timeout: seconds; None for no limit.

    Raises:
        OptionError: only a form was asked for, or prompt and answer do not fit the context.
        UnsupportedError: the runtime is not installed, or limits cannot be set on this system.
    """
    if subject.form is not None:
        raise OptionError(
            "a form that is not there cannot be measured", found=subject.form, hint="convert it first"
        )
    if not RUNTIMES[runtime].is_installed:
        raise UnsupportedError(f"{runtime} is not installed", hint=RUNTIMES[runtime].install)
    if limit is not None and platform.system() != "Linux":
        raise UnsupportedError("memory can be limited on Linux only", found=platform.system())
    answer = min(DEFAULT_ANSWER, max(how.context // 4, 1)) if answer is None else answer
    # llama.cpp generates one token more than it is asked to compute.
    room = how.context - answer - 1
    prompt = min(DEFAULT_PROMPT, room) if prompt is None else prompt
    if not 1 <= prompt <= room:
        raise OptionError(
            "prompt and answer do not fit the context", found=prompt + answer, expected=how.context - 1
        )
    how = replace(how, positions=prompt + answer, batch=min(how.batch, prompt))
    outline = Measurement(
        ending=Ending.CRASHED,
        conditions=how,
        prompt=prompt,
        answer=answer,
        limit=limit,
        setting=_setting(runtime),
    )
    folder = Path(tempfile.mkdtemp(prefix="gptoss-convert-footprint-"))
    try:
        request = _request(open_checkpoint(subject.path), runtime, outline)
        (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        code = end_of_child(_CHILD, folder, timeout, _ENVIRONMENT)
        return _told(outline, folder, code, timeout)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _setting(runtime: str) -> dict[str, str]:
    try:
        found = version(_DISTRIBUTIONS[runtime])
    except PackageNotFoundError:  # another distribution of the same module
        found = "unknown"
    setting = {
        "runtime": f"{_DISTRIBUTIONS[runtime]} {found}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "heap": "freed memory goes back to the system",
    }
    if runtime == "onnxruntime":
        setting["arena"] = "off"
    if runtime == "onnxruntime-genai":
        setting["arena"] = "on"
    return setting


def _request(checkpoint: Checkpoint, runtime: str, outline: Measurement) -> dict[str, Any]:
    how = outline.conditions
    return {
        "runtime": runtime,
        "artifact": str(checkpoint.path.resolve()),
        "context": how.context,
        "batch": how.batch,
        "kv_type": how.kv_type,
        "threads": how.threads,
        "prompt": outline.prompt,
        "answer": outline.answer,
        "vocab": checkpoint.config.vocab_size,
        "limit": outline.limit,
        "device": how.device,
        "provider": _provider(checkpoint, how),
        "graph": _graph(checkpoint.path) if checkpoint.format == "onnx" else None,
    }


def _provider(checkpoint: Checkpoint, how: Conditions) -> str | None:
    """Return onnxruntime's name of the execution provider that a graph is run with; None for other formats."""
    if checkpoint.format != "onnx":
        return None
    return provider_named("cpu" if how.device == "cpu" else graph_facts(checkpoint.path).provider)


def _graph(folder: Path) -> dict[str, Any]:
    """Return what plain onnxruntime has to know about a graph."""
    decoder = read_genai_config(folder).model.decoder
    pairs = (
        (decoder.inputs.past_key_names, decoder.outputs.present_key_names),
        (decoder.inputs.past_value_names, decoder.outputs.present_value_names),
    )
    return {
        "file": decoder.filename,
        "heads": decoder.num_key_value_heads,
        "head_size": decoder.head_size,
        "disable_prepacking": decoder.session_options.disable_prepacking,
        "input_ids": decoder.inputs.input_ids,
        "attention_mask": decoder.inputs.attention_mask,
        "position_ids": decoder.inputs.position_ids,
        "cache": [
            {
                "past": past.replace("%d", str(layer)),
                "present": present.replace("%d", str(layer)),
                "cells": decoder.cache_capacity(layer),
            }
            for layer in range(decoder.num_hidden_layers)
            for past, present in pairs
        ],
    }


def _told(outline: Measurement, folder: Path, code: int | None, timeout: float | None) -> Measurement:
    """Return what the child said until it ended with `code`."""
    lines = _lines(folder / PHASES)
    phases = tuple(PhaseMemory(**line) for line in lines if "phase" in line)
    begun = [line["begins"] for line in lines if "begins" in line]
    tail = log_tail(folder / LOG)
    outline = replace(outline, phases=phases)
    if len(phases) == len(PHASE_NAMES):
        return replace(outline, ending=Ending.COMPLETED)
    died_in = begun[-1] if begun else START
    outline = replace(outline, died_in=died_in)
    if code is None:
        return replace(outline, ending=Ending.TIMED_OUT, reason=f"not finished after {timeout:g} seconds")
    said = next((line for line in lines if "error" in line), None)
    reason = reason_of_end(code, tail) if said is None else said["error"]
    killed = said is None and code == -getattr(signal, "SIGKILL", 0)
    # Libraries go on with memory that they did not get: under a limit, that is what a crash is taken for.
    starved = said is None and code < 0 and outline.limit is not None
    if killed or starved or _OUT_OF_MEMORY.search(reason) or _OUT_OF_MEMORY.search(tail):
        return replace(outline, ending=Ending.OUT_OF_MEMORY, reason=reason)
    return replace(outline, ending=Ending.CRASHED if said is None else Ending.REFUSED, reason=reason)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON objects; the last one may have been cut by the end of its writer."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
