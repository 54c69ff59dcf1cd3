"""What transformers takes on the CPU in bfloat16, with eager attention and MXFP4 decoded when it is loaded.

Constants were measured with transformers 5.23 and torch 2.13 on Linux.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gptoss_convert.checkpoint import Role, inventory
from gptoss_convert.verify.footprint.kv_cache import least_cache
from gptoss_convert.verify.footprint.parts import Conditions, Part, Phase, mapped, private
from gptoss_convert.verify.footprint.subject import Subject
from gptoss_convert.verify.footprint.weights import total

BATCH = 512
"""Positions of a prompt that are computed at once."""
KV_TYPE = "bf16"

BASE_PRIVATE = 297_000_000
"""Interpreter, torch and transformers."""
BASE_MAPPED = 124_000_000
"""Pages of programs and libraries."""
WARMTH = 150_000_000
"""What torch takes when it computes for the first time: pools of its threads, compiled kernels."""
DECODING_BYTES = 7.1
"""For each number of the largest expert tensor, while it is decoded from MXFP4."""
GPU_BASE = 600_000_000
"""A GPU's context and torch's kernels: not measured."""

_PAIR_BYTES = 12
"""Eager attention keeps scores, probabilities in float32 and a copy of the type of the model for each pair."""


def parts(subject: Subject, how: Conditions) -> Iterator[Part]:
    """Yield what transformers takes for a folder in the Hugging Face layout."""
    config = subject.config
    weights = subject.weights
    is_packed = any(group.encoding == "mxfp4" for group in weights if group.role == str(Role.EXPERTS))
    experts, embedding = total(weights, Role.EXPERTS), total(weights, Role.EMBEDDING)
    others = total(weights) - experts - embedding
    if how.device == "gpu":
        yield private("weights: experts", experts, 0.02, note="MXFP4 stays as it is with the kernels of the hub")
        yield private("weights: attention, norms, unembedding", others, 0.02)
        yield private("weights: embedding", embedding, 0.02)
    else:
        if is_packed:
            sizes = [math.prod(spec.shape) for spec in inventory(config).values() if spec.role is Role.EXPERTS]
            yield private("weights: experts, decoded to bfloat16", 2 * sum(sizes), 0.02)
            yield private("decoding of an expert tensor", DECODING_BYTES * max(sizes), 0.3, phase=Phase.LOAD)
            yield mapped("weights: experts, as in the file", 0, resident=experts, error=0.5)
        else:
            yield mapped("weights: experts", experts, phase=Phase.RUN)
        yield mapped("weights: attention, norms, unembedding", others, phase=Phase.RUN)
        rows = min(config.vocab_size, how.positions) * embedding / config.vocab_size
        yield mapped(
            "weights: embedding", rows, error=0.5, phase=Phase.RUN, note="a row for every token that occurs"
        )
    yield private("KV cache", least_cache(config, how.positions, how.kv_type).nbytes, 0.1, phase=Phase.RUN)
    pairs = config.num_attention_heads * how.batch * how.positions
    chosen = 4 * how.batch * config.num_experts_per_tok * (3 * config.intermediate_size + 2 * config.hidden_size)
    yield private("buffers: attention, experts", _PAIR_BYTES * pairs + chosen, 0.5, phase=Phase.RUN)
    if how.device == "gpu":
        yield private("runtime", GPU_BASE, 0.5, note="not measured")
    else:
        yield private("runtime", BASE_PRIVATE, 0.1)
        yield private("runtime: once it has computed", WARMTH, 0.3, phase=Phase.RUN)
        yield mapped("runtime: programs and libraries", BASE_MAPPED, error=0.1)
