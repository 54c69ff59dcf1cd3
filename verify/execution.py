"""What of an ONNX folder was executed, by which execution provider, and what was only looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import InputError, printable
from gptoss_convert.formats.onnx.container import LARGEST_MODEL
from gptoss_convert.formats.onnx.kernel_check import Miss, check_kernels, read_kernel_table
from gptoss_convert.verify.logits import LogitsResult
from gptoss_convert.verify.metrics.plain import Plain
from gptoss_convert.verify.runners.genai_config import read_genai_config
from gptoss_convert.verify.runners.launch import Run
from gptoss_convert.verify.runners.providers import PROVIDERS, provider_named

LONGEST_REASON = 200
"""Characters of an error that is not one of this project's."""

_TITLES: Mapping[str, str] = {
    PROVIDERS["cpu"]: "the processor",
    PROVIDERS["cuda"]: "CUDA",
    PROVIDERS["dml"]: "DirectML",
    PROVIDERS["webgpu"]: "WebGPU",
}
"""What people call the execution providers that graphs are made for."""
_TABLES: Mapping[str, str] = {PROVIDERS["cpu"]: "cpu", PROVIDERS["dml"]: "directml"}
"""Targets with a list of kernels, by execution provider."""


@dataclass(frozen=True, kw_only=True)
class Kernels(Plain):
    """The nodes of a graph held against the kernels that its execution provider is known to have."""

    provider: str
    """The execution provider that the folder is made for, by onnxruntime's name."""
    release: str | None
    """What the list of kernels is of; None if there is no list."""
    missing: tuple[str, ...]
    """Nodes that it does not run, each with the reason; empty if there are none, or nothing was checked."""
    unchecked: str | None
    """Why nothing was checked; None if it was."""

    @property
    def title(self) -> str:
        """What people call the execution provider."""
        return _TITLES.get(self.provider, self.provider)

    def __str__(self) -> str:
        if self.unchecked is not None:
            return f"kernels not checked: {self.unchecked}"
        if self.missing:
            return f"kernels checked statically, {self.release} lacks {len(self.missing)}: {self.missing[0]}"
        return f"kernels checked statically, {self.release} has them all"


@dataclass(frozen=True, kw_only=True)
class Executed(Plain):
    """What one runtime executed."""

    runtime: str
    provider: str
    """Execution provider, by onnxruntime's name."""
    prefill_positions: int
    """Positions that were computed together with others, in the run that all is judged by."""
    decode_positions: int
    """Positions that were computed one by one, on the KV cache."""


@dataclass(frozen=True, kw_only=True)
class Execution(Plain):
    """What was executed of a folder, and what only checked."""

    kernels: Kernels
    runs: tuple[Executed, ...]
    executed_on_target: bool
    """Whether a run was by the execution provider that the folder is made for."""
    statement: str
    """All that in a sentence."""

    @property
    def lacks_kernels(self) -> bool:
        """Whether the folder's execution provider does not run it, as far as its kernels tell."""
        return bool(self.kernels.missing) and not self.executed_on_target


def look_at_kernels(artifact: Checkpoint) -> Kernels | None:
    """Hold the graph of an ONNX folder against the kernels of the execution provider that it is made for.

    Returns:
        None for other formats, and for folders that do not say what they are made for.
    """
    if artifact.format != "onnx":
        return None
    try:
        decoder = read_genai_config(artifact.path).model.decoder
    except InputError:  # which the runtimes report
        return None
    provider = decoder.provider
    target = _TABLES.get(provider)
    if target is None:
        return Kernels(provider=provider, release=None, missing=(), unchecked="no list of them is known")
    try:
        import_module("onnx")
    except ImportError:
        return Kernels(provider=provider, release=None, missing=(), unchecked="onnx is not installed")
    table = read_kernel_table(target)
    try:
        misses = check_kernels(_graph(artifact.path / decoder.filename), table)
    except _errors() as error:
        reason = printable(f"the graph cannot be read: {error}")[:LONGEST_REASON]
        return Kernels(provider=provider, release=table.release, missing=(), unchecked=reason)
    return Kernels(provider=provider, release=table.release, missing=tuple(map(_told, misses)), unchecked=None)


def execution_of(kernels: Kernels, results: Sequence[LogitsResult]) -> Execution:
    """Return what was executed, from the runs of the artifact in all runtimes."""
    runs = tuple(_executed(results))
    on_target = any(item.provider == kernels.provider for item in runs)
    return Execution(
        kernels=kernels,
        runs=runs,
        executed_on_target=on_target,
        statement="; ".join(_sentences(kernels, runs, on_target)),
    )


def _sentences(kernels: Kernels, runs: Sequence[Executed], on_target: bool) -> Iterator[str]:
    for provider in dict.fromkeys(item.provider for item in runs):
        counts = [
            f"{item.runtime}: prefill {item.prefill_positions} positions, decode {item.decode_positions}"
            for item in runs
            if item.provider == provider
        ]
        yield f"executed on {provider} ({'; '.join(counts)})"
    if not runs:
        yield "nothing executed"
    yield f"{kernels.title}: {kernels}{'' if on_target else ', not executed here'}"


def _executed(results: Sequence[LogitsResult]) -> Iterator[Executed]:
    for result in results:
        own, *others = result.runs
        if own.provider is not None and own.prefill_positions is not None:
            yield Executed(
                runtime=result.runtime,
                provider=provider_named(own.provider),
                prefill_positions=own.prefill_positions,
                decode_positions=sum(item.decode_positions or 0 for item in others if _is_decode_of(item, own)),
            )


def _is_decode_of(run: Run, own: Run) -> bool:
    return (run.runtime, run.artifact) == (own.runtime, own.artifact) and run.settings.prefixes is not None


def _told(miss: Miss) -> str:
    return printable(f"{miss.node} is {miss.operator} with {miss.needed}, available is {miss.available}")


def _graph(path: Path) -> Any:
    import onnx

    if not path.is_file() or path.stat().st_size > LARGEST_MODEL:
        raise ValueError(f"{path.name} is missing or too large")
    return onnx.load(path, load_external_data=False)


def _errors() -> tuple[type[Exception], ...]:
    """Return what onnx raises for graphs that are none."""
    import onnx

    decode_error: type[Exception] = import_module("google.protobuf.message").DecodeError
    return (
        decode_error, onnx.shape_inference.InferenceError, onnx.defs.SchemaError, OSError, RuntimeError, TypeError,
        ValueError,
    )  # fmt: skip
