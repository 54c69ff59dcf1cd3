"""Small gpt-oss models as GGUF files, written by gguf-py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

HIDDEN, INNER, EXPERTS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 64, 32, 2, 4, 2, 8, 24
SHAPES = {
    "token_embd.weight": (VOCAB, HIDDEN),
    "blk.0.attn_norm.weight": (HIDDEN,),
    "blk.0.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_q.bias": (HEADS * HEAD_DIM,),
    "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_k.bias": (KV_HEADS * HEAD_DIM,),
    "blk.0.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_v.bias": (KV_HEADS * HEAD_DIM,),
    "blk.0.attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
    "blk.0.attn_output.bias": (HIDDEN,),
    "blk.0.attn_sinks.weight": (HEADS,),
    "blk.0.post_attention_norm.weight": (HIDDEN,),
    "blk.0.ffn_gate_inp.weight": (EXPERTS, HIDDEN),
    "blk.0.ffn_gate_inp.bias": (EXPERTS,),
    "blk.0.ffn_gate_exps.weight": (EXPERTS, INNER, HIDDEN),
    "blk.0.ffn_gate_exps.bias": (EXPERTS, INNER),
    "blk.0.ffn_up_exps.weight": (EXPERTS, INNER, HIDDEN),
    "blk.0.ffn_up_exps.bias": (EXPERTS, INNER),
    "blk.0.ffn_down_exps.weight": (EXPERTS, HIDDEN, INNER),
    "blk.0.ffn_down_exps.bias": (EXPERTS, HIDDEN),
    "output_norm.weight": (HIDDEN,),
    "output.weight": (VOCAB, HIDDEN),
}
"""A model of one layer."""

KEYS: dict[str, Any] = {
    "gpt-oss.block_count": 1,
    "gpt-oss.context_length": 131072,
    "gpt-oss.embedding_length": HIDDEN,
    "gpt-oss.attention.head_count": HEADS,
    "gpt-oss.attention.head_count_kv": KV_HEADS,
    "gpt-oss.attention.key_length": HEAD_DIM,
    "gpt-oss.attention.value_length": HEAD_DIM,
    "gpt-oss.attention.sliding_window": 128,
    "gpt-oss.attention.layer_norm_rms_epsilon": 1e-5,
    "gpt-oss.rope.freq_base": 150000.0,
    "gpt-oss.rope.scaling.type": "yarn",
    "gpt-oss.rope.scaling.factor": 32.0,
    "gpt-oss.rope.scaling.original_context_length": 4096,
    "gpt-oss.expert_count": EXPERTS,
    "gpt-oss.expert_used_count": 2,
    "gpt-oss.expert_feed_forward_length": INNER,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-4o",
    "tokenizer.ggml.tokens": [f"t{index}" for index in range(VOCAB)],
    "tokenizer.ggml.token_type": [1] * VOCAB,
    "tokenizer.ggml.merges": ["t 1"],
}
"""Metadata of that model."""

Values = dict[str, NDArray[np.float32]]


def random_values() -> Values:
    """A number for every element of the model."""
    rng = np.random.default_rng(6)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def write(
    path: Path,
    values: Values,
    *,
    encodings: Mapping[str, str] | None = None,
    change: Mapping[str, Any] | None = None,
    architecture: str = "gpt-oss",
) -> Path:
    """Write a model.

    Args:
        path: of the file.
        values: by GGUF name; all tensors of `SHAPES` make a sound model.
        encodings: other than f32, by GGUF name.
        change: keys that are added or replaced: integers are stored as uint32, None leaves the key out.
        architecture: `general.architecture`.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (KEYS | dict(change or {})).items():
        add(writer, key, value)
    for name, array in values.items():
        kind = gguf.GGMLQuantizationType[(encodings or {}).get(name, "f32").upper()]
        data = array if kind.name == "F32" else gguf.quants.quantize(array, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a key, if it has a value."""
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif value is not None:
        writer.add_uint32(key, value)
