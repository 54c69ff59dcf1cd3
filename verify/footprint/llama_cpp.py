"""What llama.cpp takes: mapped weights, KV cache, compute buffer, vocabulary.

Formulas are those of llama.cpp's source as of October 2026; constants were measured with xllamacpp 2026.10 on
Linux. Flash attention is on, as llama.cpp decides by itself for gpt-oss.
"""

from __future__ import annotations

from collections.abc import Iterator

from gptoss_convert.checkpoint import ModelConfig, Role
from gptoss_convert.verify.footprint.kv_cache import llama_cpp_cache
from gptoss_convert.verify.footprint.parts import Conditions, Part, Phase, mapped, private
from gptoss_convert.verify.footprint.subject import Subject
from gptoss_convert.verify.footprint.weights import total

BATCH = 512
"""`n_ubatch`, unless it is chosen."""

BASE_PRIVATE = 11_500_000
"""The program with the library, its threads and what it says of itself."""
BASE_MAPPED = 20_900_000
"""Pages of programs and libraries."""
GPU_BASE = 450_000_000
"""Context of a GPU's driver and kernels of ggml: not measured here, as llama.cpp's users report for CUDA."""
VOCABULARY_ENTRY = 212
"""Bytes for a token or merge: two hash tables and the texts."""
CELL_INDEX = 52
"""Bytes for the position and the sequences of a cell, once for all layers of a kind (`llama_kv_cells`)."""
TOUCHED_SHARE = 0.85
"""Of a compute buffer, that a run touches; the rest is for masks of a whole context and for alignment."""

_REPACKED = "mxfp4"
"""Encoding of experts that the CPU backend lays out anew (`ggml_repack_get_optimal_repack_type` in repack.cpp)."""
_MASK_BYTES = 2
"""Masks of flash attention are float16."""
_INPUT_NUMBERS = 13
"""Token, position, chosen experts and their weights: numbers for each position in the graph's inputs."""


def parts(subject: Subject, how: Conditions) -> Iterator[Part]:
    """Yield what llama.cpp takes for a GGUF file."""
    config = subject.config
    experts = total(subject.weights, Role.EXPERTS)
    embedding = total(subject.weights, Role.EMBEDDING)
    others = subject.nbytes - experts - embedding
    repacked = how.device == "cpu" and any(
        group.encoding == _REPACKED for group in subject.weights if group.role == str(Role.EXPERTS)
    )
    if how.device == "gpu":
        yield private("weights: experts", experts, 0.0)
        yield private("weights: attention, norms, unembedding", others, 0.0)
    else:
        if repacked:
            yield private(
                "weights: experts, laid out anew",
                experts,
                0.0,
                note="processors with AVX2 or Arm's dot product get MXFP4 in an order of their own",
            )
            # Nobody reads these pages again.
            yield mapped("weights: experts, as in the file", 0, resident=experts)
        else:
            yield mapped("weights: experts", experts)
        yield mapped("weights: attention, norms, unembedding", others)
    # The embedding stays with the CPU in any case; a file is read as a whole when it is mapped.
    rows = min(config.vocab_size, how.positions) * embedding / config.vocab_size
    yield mapped(
        "weights: embedding",
        rows,
        resident=embedding,
        on_host=True,
        note="needed: a row for every token that occurs",
    )
    yield mapped("header of the file", 0, resident=subject.header_bytes, phase=Phase.LOAD, on_host=True)
    cache = llama_cpp_cache(config, how.context, how.batch, how.kv_type)
    yield private(
        "KV cache", cache.nbytes, 0.0,
        note=f"{cache.full_cells} cells in {cache.full_layers} layers, "
        f"{cache.window_cells} in {cache.window_layers} with a window",
    )  # fmt: skip
    yield private(
        "KV cache: positions of its cells", CELL_INDEX * (cache.full_cells + cache.window_cells), 0.1, on_host=True
    )
    reserved = compute_buffer(config, how, window_cells=cache.window_cells, cells=cache.full_cells)
    touched = reserved if how.device == "gpu" else TOUCHED_SHARE * reserved
    yield private(
        "compute buffer", reserved, 0.15, resident=touched, phase=Phase.RUN,
        note="largest set of tensors that live at once, in the experts of a layer; taken when it is loaded",
    )  # fmt: skip
    outputs = how.batch if how.logits_for_all else 1
    yield private("logits", 4 * outputs * config.vocab_size, 0.0, on_host=True)
    yield private("vocabulary", VOCABULARY_ENTRY * subject.vocabulary_entries, 0.1, on_host=True)
    if how.device == "gpu":
        yield private("runtime", GPU_BASE, 0.5, note="not measured: reported for CUDA")
    else:
        yield private("runtime", BASE_PRIVATE, 0.25)
        yield mapped("runtime: programs and libraries", BASE_MAPPED, error=0.15)


def compute_buffer(config: ModelConfig, how: Conditions, *, window_cells: int, cells: int) -> int:
    """Return the bytes that llama.cpp reserves for the graph of one batch.

    While experts are computed, the residual stream, two inputs of the down projection's scale and three arrays of
    the inner width live for every position (`build_moe_ffn` in llama-graph.cpp), besides the masks of both kinds of
    layers. If all logits are wanted, they and the last hidden states may be more.
    """
    chosen = config.num_experts_per_tok
    experts = 3 * chosen * config.intermediate_size + chosen * config.hidden_size + config.hidden_size
    numbers = how.batch * (experts + _INPUT_NUMBERS)
    if how.logits_for_all:
        numbers = max(numbers, how.batch * (config.vocab_size + config.hidden_size))
    return 4 * numbers + _MASK_BYTES * how.batch * (cells + window_cells)
