"""How much memory a model will take, from headers alone, and the largest context that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptoss_convert.errors import OptionError, UnsupportedError
from gptoss_convert.verify.footprint import llama_cpp, onnx_graph, transformers
from gptoss_convert.verify.footprint.kv_cache import cell_bytes, least_cache
from gptoss_convert.verify.footprint.parts import Conditions, Kind, Part, Phase, usual_threads
from gptoss_convert.verify.footprint.profiles import Device
from gptoss_convert.verify.footprint.subject import Subject

DEFAULT_CONTEXT = 8192
CONTEXT_STEP = 256
"""The largest context that fits is a multiple of this."""


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """How the memory of one runtime is predicted."""

    runtime: str
    """Name in `gptoss_convert.verify.runners.RUNTIMES`."""
    formats: tuple[str, ...]
    parts: Callable[[Subject, Conditions], Iterator[Part]]
    batch: Callable[[Subject], int]
    """Positions at once unless the user chooses."""
    kv_types: Callable[[Subject], tuple[str, ...]]
    """Types that the cache can have, the usual one first."""


def _graph_batch(most: int) -> Callable[[Subject], int]:
    def batch(subject: Subject) -> int:
        said = None if subject.graph is None else subject.graph.positions_at_once
        return min(said or most, most)

    return batch


MODELS: Mapping[str, MemoryModel] = {
    model.runtime: model
    for model in (
        MemoryModel(
            runtime="llama.cpp",
            formats=("gguf",),
            parts=llama_cpp.parts,
            batch=lambda subject: llama_cpp.BATCH,
            kv_types=lambda subject: ("f16", "f32", "bf16", "q8_0", "q4_0"),
        ),
        MemoryModel(
            runtime="onnxruntime",
            formats=("onnx",),
            parts=onnx_graph.session_parts,
            batch=_graph_batch(onnx_graph.BATCH),
            kv_types=lambda subject: (onnx_graph.kv_type_of(subject),),
        ),
        MemoryModel(
            runtime="onnxruntime-genai",
            formats=("onnx",),
            parts=onnx_graph.genai_parts,
            batch=_graph_batch(onnx_graph.GENAI_BATCH),
            kv_types=lambda subject: (onnx_graph.kv_type_of(subject),),
        ),
        MemoryModel(
            runtime="transformers",
            formats=("huggingface",),
            parts=transformers.parts,
            batch=lambda subject: transformers.BATCH,
            kv_types=lambda subject: (transformers.KV_TYPE,),
        ),
    )
}
"""By name of the runtime; the first that takes a format is its usual one."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Memory of a model in a runtime, part by part; totals are of the device that computes."""

    runtime: str
    conditions: Conditions
    parts: tuple[Part, ...]
    least_cache: int
    """Bytes that attention cannot do without at the full context; what runtimes take is a part."""
    cell_bytes: int
    """Of one position in one layer of the cache."""

    @property
    def needed(self) -> int:
        """Bytes that have to be in memory at full speed: the larger one of loading and running."""
        return max(self._sum("needed", phase) for phase in (Phase.LOAD, Phase.RUN))

    @property
    def parts_at_peak(self) -> list[Part]:
        """The parts that make up `needed`."""
        return self._parts_at(max((Phase.RUN, Phase.LOAD), key=lambda phase: self._sum("needed", phase)))

    @property
    def resident(self) -> int:
        """Bytes that the process is seen to have at its peak where nothing presses."""
        return max(self._sum("resident", phase) for phase in (Phase.LOAD, Phase.RUN))

    @property
    def load_peak(self) -> int:
        """Bytes that the process is seen to have at its peak until it is loaded."""
        return self._sum("resident", Phase.LOAD)

    @property
    def private(self) -> int:
        """Bytes of its own that the process is seen to have at its peak."""
        return max(self._sum("resident", phase, Kind.PRIVATE) for phase in (Phase.LOAD, Phase.RUN))

    @property
    def mapped(self) -> int:
        """Bytes of files that the process is seen to have in memory when tokens have been computed."""
        return self._sum("resident", Phase.RUN, Kind.MAPPED)

    @property
    def on_host(self) -> int:
        """Bytes in the host's memory beside those of a GPU that computes; 0 if the host computes."""
        if self.conditions.device == "cpu":
            return 0
        return sum(part.needed for part in self.parts if part.on_host)

    @property
    def error(self) -> int:
        """Bytes by which `resident` may be off: the sum of what the parts may be."""
        return round(sum(part.error * part.resident for part in self._parts_at(Phase.RUN)))

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON-ready data."""
        how = self.conditions
        return {
            "runtime": self.runtime,
            "device": how.device,
            "context": how.context,
            "positions": how.positions,
            "batch": how.batch,
            "kv_type": how.kv_type,
            "threads": how.threads,
            "needed": self.needed,
            "resident": self.resident,
            "error": self.error,
            "private": self.private,
            "mapped": self.mapped,
            "load_peak": self.load_peak,
            "on_host": self.on_host,
            "least_cache": self.least_cache,
            "cache_bytes_per_position_and_layer": self.cell_bytes,
            "parts": [
                {
                    "name": part.name,
                    "kind": str(part.kind),
                    "phase": str(part.phase),
                    "on_host": part.on_host,
                    "needed": part.needed,
                    "resident": part.resident,
                    "error": part.error,
                    "note": part.note,
                }
                for part in self.parts
            ],
        }

    def _parts_at(self, phase: Phase) -> list[Part]:
        computed = self.conditions.device == "cpu"
        return [
            part for part in self.parts if part.phase in (Phase.ALWAYS, phase) and (computed or not part.on_host)
        ]

    def _sum(self, what: str, phase: Phase, kind: Kind | None = None) -> int:
        return sum(getattr(part, what) for part in self._parts_at(phase) if kind in (None, part.kind))


def model_for(subject: Subject, runtime: str | None = None) -> MemoryModel:
    """Return how the memory of `runtime` is predicted, or of the usual one for the format.

    Raises:
        OptionError: there is no prediction for such a runtime.
        UnsupportedError: the runtime does not load this format, or none is known that does.
    """
    if runtime is not None:
        if runtime not in MODELS:
            raise OptionError(
                "memory of this runtime cannot be predicted", found=runtime, expected=" or ".join(MODELS)
            )
        if subject.format not in MODELS[runtime].formats:
            raise UnsupportedError(
                f"{runtime} does not load this format",
                file=subject.path,
                found=subject.format,
                expected=" or ".join(MODELS[runtime].formats),
            )
        return MODELS[runtime]
    for model in MODELS.values():
        if subject.format in model.formats:
            return model
    raise UnsupportedError(
        "no runtime is known that loads it as it is",
        file=subject.path,
        found=subject.format,
        hint="say with --as what it is to be converted to",
    )


def conditions_for(
    subject: Subject,
    model: MemoryModel,
    *,
    context: int | None = None,
    batch: int | None = None,
    kv_type: str | None = None,
    threads: int | None = None,
    device: Device = "cpu",
) -> Conditions:
    """Return how a model is run, with what the runtime takes by itself where nothing is chosen.

    Raises:
        OptionError: the context is longer than the model's, or the cache cannot have this type.
    """
    longest = subject.config.max_position_embeddings
    context = min(DEFAULT_CONTEXT, longest) if context is None else context
    if context > longest:
        raise OptionError("the model has no such context", found=context, expected=f"up to {longest} tokens")
    types = model.kv_types(subject)
    if kv_type is not None and kv_type not in types:
        raise OptionError(
            f"{model.runtime} has no KV cache of this type here", found=kv_type, expected=" or ".join(types)
        )
    return Conditions(
        context=context,
        positions=context,
        batch=min(batch or model.batch(subject), context),
        kv_type=kv_type or types[0],
        threads=threads or usual_threads(),
        device=device,
    )


def predict(subject: Subject, model: MemoryModel, how: Conditions) -> Prediction:
    """Return the memory that `subject` takes in the runtime of `model`."""
    return Prediction(
        runtime=model.runtime,
        conditions=how,
        parts=tuple(model.parts(subject, how)),
        least_cache=least_cache(subject.config, how.context, how.kv_type).nbytes,
        cell_bytes=cell_bytes(subject.config, how.kv_type),
    )


def largest_context(subject: Subject, model: MemoryModel, how: Conditions, available: int) -> int | None:
    """Return the largest multiple of `CONTEXT_STEP` whose prediction is within `available` bytes; None if none is.

    A model whose own context is no multiple is asked about that one, too.
    """

    def fits(context: int) -> bool:
        tried = replace(how, context=context, positions=context, batch=min(how.batch, context))
        return predict(subject, model, tried).needed <= available

    longest = subject.config.max_position_embeddings
    if fits(longest):
        return longest
    low, high = 0, -(-longest // CONTEXT_STEP)
    while high - low > 1:  # fits at `low`, unless that is 0; does not fit at `high`
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * CONTEXT_STEP) else (low, middle)
    return low * CONTEXT_STEP or None
