"""What onnxruntime and onnxruntime-genai take for the graphs that `to-onnx` makes.

Weights and rotary tables are external data, mapped from their file and read where a node looks at them. The graph
itself is parsed into memory. Constants were measured with onnxruntime 1.31.1 and onnxruntime-genai 0.18.0
on Linux.
"""

from __future__ import annotations

from collections.abc import Iterator

from gptoss_convert.checkpoint import ModelConfig, Role
from gptoss_convert.verify.footprint.kv_cache import KvCache, least_cache, whole_cache
from gptoss_convert.verify.footprint.parts import Conditions, Part, Phase, mapped, private
from gptoss_convert.verify.footprint.subject import GraphFacts, Subject
from gptoss_convert.verify.footprint.weights import number_type, total

BATCH = 64
"""Positions at once where the folder does not say less: their logits are whole."""
GENAI_BATCH = 256

BASE_PRIVATE = 24_500_000
"""Interpreter, numpy and onnxruntime, with a session."""
BASE_MAPPED = 35_000_000
"""Pages of programs and libraries."""
TABLE_PAGES = 1_750_000
"""Pages of a rotary table that the system maps around the first row that is looked up."""
GPU_BASE = 500_000_000
"""A GPU's context and the kernels of an execution provider: not measured."""
PARSED_COPY = 0.5
"""Share of the graph's file that is there once more while it is parsed."""
ARENA_SHARE = 0.85
"""Middle of what the arena of onnxruntime-genai was found to take of the sum of all stages: from 0.52 to 1.18. It
grows by doubling, and uses memory of one stage for the next where it happens to fit."""
ARENA_ERROR = 0.4
"""Share of that middle by which it may be off."""
PREPACKED_SHARE = 1.05
"""Weights that the runtime packs anew grow by padding."""

_DECODED_AT_ONCE = 4
"""Experts that a graph of standard operators decodes together."""
_INDEX_BYTES = 4
"""Each code that is looked up becomes an int32 first."""


def session_parts(subject: Subject, how: Conditions) -> Iterator[Part]:
    """Yield what plain onnxruntime takes, whose cache is an output of one step and an input of the next."""
    yield from _weights(subject, how)
    past = _cache(subject, how, how.positions)
    yield private("KV cache", past.nbytes, 0.02, phase=Phase.RUN, note="what the last step put out")
    yield private(
        "KV cache: its successor", past.nbytes, 0.05, phase=Phase.RUN, note="the output of a step beside its input"
    )
    stages = _stages(subject, how)
    name = max(stages, key=lambda stage: stages[stage])
    yield private(
        f"buffers: {name}", stages[name], 0.15, phase=Phase.RUN, note="the stage of a step that takes most"
    )


def genai_parts(subject: Subject, how: Conditions) -> Iterator[Part]:
    """Yield what onnxruntime-genai takes, which keeps one cache for the whole context, and an arena."""
    yield from _weights(subject, how)
    yield private("KV cache", _cache(subject, how, how.context).nbytes, 0.02, note="shared by input and output")
    stages = _stages(subject, how)
    taken = sum(stages.values())
    yield private(
        "buffers: " + ", ".join(stages), taken, ARENA_ERROR, resident=ARENA_SHARE * taken, phase=Phase.RUN,
        note="the arena keeps what each stage once took",
    )  # fmt: skip


def _weights(subject: Subject, how: Conditions) -> Iterator[Part]:
    graph = subject.graph or GraphFacts()
    config, weights = subject.config, subject.weights
    experts, embedding = total(weights, Role.EXPERTS), total(weights, Role.EMBEDDING)
    others = total(weights) - experts - embedding
    touched = 1 - (1 - config.num_experts_per_tok / config.num_local_experts) ** how.positions
    rows = min(config.vocab_size, how.positions) * embedding / config.vocab_size
    if how.device == "gpu":
        for name, nbytes in (
            ("experts", experts),
            ("attention, norms, unembedding", others),
            ("embedding", embedding),
        ):
            yield private(f"weights: {name}", nbytes, 0.0)
    elif graph.prepacks:
        yield private("weights: packed anew", PREPACKED_SHARE * (experts + others), 0.1)
        yield mapped("weights: as in the file", 0, resident=experts + others, phase=Phase.LOAD)
    else:
        # Nothing is read before a node looks at it.
        yield mapped("weights: experts", experts, resident=experts * touched, error=0.02, phase=Phase.RUN)
        yield mapped("weights: attention, norms, unembedding", others, phase=Phase.RUN)
    if how.device == "cpu":
        yield mapped(
            "weights: embedding", rows, error=0.5, phase=Phase.RUN, note="a row for every token that occurs"
        )
    yield _rotary_tables(subject, how)
    yield private("graph", graph.file_bytes, 0.1, on_host=True, note="nodes")
    yield private("graph: while it is parsed", PARSED_COPY * graph.file_bytes, 0.5, phase=Phase.LOAD, on_host=True)
    if how.device == "gpu":
        yield private("runtime", GPU_BASE, 0.5, note="not measured")
    else:
        yield private("runtime", BASE_PRIVATE, 0.25)
        yield mapped("runtime: programs and libraries", BASE_MAPPED, error=0.15)


def _rotary_tables(subject: Subject, how: Conditions) -> Part:
    """Return the sines and cosines: a row for every position that there may be, and for each pair of numbers."""
    config = subject.config
    row = 2 * (config.head_dim // 2) * (4 if number_type(subject.weights) == "f32" else 2)
    size = row * config.max_position_embeddings
    if how.device == "gpu":
        return private("rotary tables", size, 0.0)
    rows = min(row * how.positions, size)
    seen = min(max(rows, 2 * TABLE_PAGES), size)
    return mapped(
        "rotary tables", rows, resident=seen, error=0.5, phase=Phase.RUN, note="rows, and pages around them"
    )


def _cache(subject: Subject, how: Conditions, positions: int) -> KvCache:
    windowed = subject.graph is not None and subject.graph.window_cells is not None
    make = least_cache if windowed else whole_cache
    return make(subject.config, positions, how.kv_type)


def _stages(subject: Subject, how: Conditions) -> dict[str, int]:
    """Return the bytes that the stages of one step take beside weights and cache, by name."""
    config = subject.config
    number = 4 if number_type(subject.weights) == "f32" else 2
    graph = subject.graph or GraphFacts()
    decodes = graph.provider in ("dml", "webgpu")
    stages = {
        # A graph's output cannot be the memory of the array that it is reshaped from.
        "logits": 2 * how.batch * config.vocab_size * number,
        "experts": _decoded(config, number) if decodes else _experts(config, how),
    }
    if graph.provider != "cuda":  # whose kernel never holds the scores of all pairs
        stages["attention"] = how.batch * config.num_attention_heads * how.positions * number
    return stages


def _decoded(config: ModelConfig, number: int) -> int:
    return _DECODED_AT_ONCE * 2 * config.intermediate_size * config.hidden_size * (_INDEX_BYTES + number)


def _experts(config: ModelConfig, how: Conditions) -> int:
    """Return what QMoE takes: on the CPU each thread decodes an expert to float32; every choice has its rows."""
    inner, hidden = config.intermediate_size, config.hidden_size
    decoded = 3 * inner * hidden * 4 * how.threads if how.device == "cpu" else 0
    return decoded + 4 * how.batch * config.num_experts_per_tok * (3 * inner + 2 * hidden)


def kv_type_of(subject: Subject) -> str:
    """Return the type of a graph's cache: that of all it computes with."""
    return number_type(subject.weights)
