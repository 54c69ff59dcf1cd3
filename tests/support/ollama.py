"""GGUF files as Ollama made them of gpt-oss while its architecture was called `gptoss`, put together byte by byte.

Layout: convert/convert_gptoss.go and fs/ggml/gguf.go of Ollama; the type number 4 and its order of nibbles:
ml/backend/ggml/ggml.go, which turns such tensors into ggml's when it loads them.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import deserialize

F32, F16, RAW_MXFP4, BF16, MXFP4 = 0, 1, 4, 30, 39
"""Type numbers; 4 is Ollama's own."""
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9

_FROM_HUGGINGFACE = {
    "model.embed_tokens": "token_embd",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_out",
    "self_attn.sinks": "attn_sinks",
    "post_attention_layernorm": "ffn_norm",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_up_proj_": "ffn_gate_up_exps.",
    "mlp.experts.down_proj_": "ffn_down_exps.",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_FROM_ORIGINAL = {
    ".blocks": ".blocks",
    ".scales": ".scales",
    "block": "blk",
    "attn.norm": "attn_norm",
    "attn.qkv": "attn_qkv",
    "attn.sinks": "attn_sinks",
    "attn.out": "attn_out",
    "mlp.norm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.mlp1_": "ffn_gate_up_exps.",
    "mlp.mlp2_": "ffn_down_exps.",
    "unembedding": "output",
    "embedding": "token_embd",
    "norm": "output_norm",
    "scale": "weight",
}


@dataclass(frozen=True, kw_only=True)
class Style:
    """What differed from version to version."""

    mxfp4: int = RAW_MXFP4
    """Type number; with `MXFP4` the nibbles are in ggml's order."""
    divided: bool = False
    """Whether gate and up are two tensors."""
    expert_bias: int = BF16
    dense: int = BF16


LIBRARY = Style()
"""The first release, as in Ollama's own library."""
LATER = Style(mxfp4=MXFP4, divided=True, expert_bias=F32, dense=F16)
"""After the experts were written in ggml's order."""


def write_ollama(
    output: Path, checkpoint: Path, style: Style = LIBRARY, change: Mapping[str, Any] | None = None
) -> Path:
    """Write `output` from a checkpoint in the Hugging Face or in OpenAI's layout, with the tokenizer beside it.

    `change` adds or replaces metadata; None leaves a key out.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    metadata = {**_configuration(config), **_tokenizer(checkpoint, config["vocab_size"]), **(change or {})}
    pieces, data, end = [], [], 0
    tensors = list(_tensors(checkpoint, "model_type" in config, style))
    for name, shape, number, content in tensors:
        pieces.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), number, end))
        data.append(content + bytes(-len(content) % 32))
        end += len(data[-1])
    keys = [_string(key) + _value(value) for key, value in metadata.items() if value is not None]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(pieces)
    output.write_bytes(header + bytes(-len(header) % 32) + b"".join(data))
    return output


def _configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    factor = config.get("rope_scaling_factor") or config["rope_scaling"]["factor"]
    return {
        "general.architecture": "gptoss",
        "general.file_type": 4,
        "general.quantization_version": 2,
        "gptoss.attention.head_count": config["num_attention_heads"],
        "gptoss.attention.head_count_kv": config["num_key_value_heads"],
        "gptoss.attention.key_length": config["head_dim"],
        "gptoss.attention.layer_norm_rms_epsilon": 1e-5,
        "gptoss.attention.sliding_window": config["sliding_window"],
        "gptoss.attention.value_length": config["head_dim"],
        "gptoss.block_count": config["num_hidden_layers"],
        "gptoss.context_length": 131072,
        "gptoss.embedding_length": config["hidden_size"],
        "gptoss.expert_count": config.get("num_experts") or config["num_local_experts"],
        "gptoss.expert_used_count": config["experts_per_token"],
        "gptoss.feed_forward_length": config["intermediate_size"],
        "gptoss.rope.freq_base": float(config["rope_theta"]),
        "gptoss.rope.scaling.factor": float(factor),
        "gptoss.rope.scaling.original_context_length": config["initial_context_length"],
    }


def _tokenizer(checkpoint: Path, vocab_size: int) -> dict[str, Any]:
    """The vocabulary; Ollama counts its padding tokens from 0 and calls them defined by the user."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    ids = {index: token for token, index in (tokenizer["model"]["vocab"] | special).items()}
    tokens = [ids[index] for index in range(len(ids))]
    padding = vocab_size - len(tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens + [f"[PAD{index}]" for index in range(padding)],
        "tokenizer.ggml.scores": [float(index) for index in range(len(tokens))] + [-1.0] * padding,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens] + [4] * padding,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": special["<|startoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": special["<|endoftext|>"],
        "tokenizer.ggml.eos_token_ids": [special[text] for text in ("<|endoftext|>", "<|return|>", "<|call|>")],
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": (checkpoint / "chat_template.jinja").read_text(encoding="utf-8"),
    }


def _tensors(
    checkpoint: Path, huggingface: bool, style: Style
) -> Iterator[tuple[str, tuple[int, ...], int, bytes]]:
    """Yield name, shape, type number and data."""
    renamed = _FROM_HUGGINGFACE if huggingface else _FROM_ORIGINAL
    pattern = re.compile("|".join(map(re.escape, renamed)))
    stored: dict[str, NDArray[Any]] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            dtype = {"U8": np.uint8, "BF16": np.uint16}[tensor["dtype"]]
            array = np.frombuffer(bytes(tensor["data"]), dtype).reshape(tensor["shape"])
            stored[pattern.sub(lambda match: renamed[match[0]], name)] = array
    for name, array in stored.items():
        if name.endswith(".scales"):
            continue
        if name.endswith(".blocks"):
            base = name.removesuffix(".blocks")
            records = _mxfp4(array, stored[f"{base}.scales"], style)
            yield from _experts(base.removesuffix(".weight") + ".weight", records, style.mxfp4, style)
        elif name.endswith("_exps.bias"):
            yield from _experts(name, _floats(array, style.expert_bias), style.expert_bias, style)
        else:
            always_f32 = array.ndim == 1 or name.endswith("ffn_gate_inp.weight")
            number = F32 if always_f32 else style.dense
            yield name, array.shape, number, _floats(array, number).tobytes()


def _experts(
    name: str, array: NDArray[Any], number: int, style: Style
) -> Iterator[tuple[str, tuple[int, ...], int, bytes]]:
    """Yield a tensor of all experts, or gate and up apart; MXFP4 has records of 17 bytes as its last dimension."""
    halves = {name: array}
    if style.divided and "gate_up" in name:
        halves = {name.replace("gate_up", part): array[:, i::2] for i, part in enumerate(("gate", "up"))}
    for half, rows in halves.items():
        shape = rows.shape if rows.ndim == 2 else (*rows.shape[:2], rows.shape[2] // 17 * 32)
        yield half, shape, number, np.ascontiguousarray(rows).tobytes()


def _mxfp4(blocks: NDArray[np.uint8], scales: NDArray[np.uint8], style: Style) -> NDArray[np.uint8]:
    """[experts, rows, bytes per row]: for each block the scale and its 16 bytes."""
    codes = blocks
    if style.mxfp4 == MXFP4:
        elements = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
        codes = elements[..., :16] | elements[..., 16:] << 4
    records: NDArray[np.uint8] = np.concatenate([scales[..., None], codes], axis=-1)
    return records.reshape(*blocks.shape[:2], -1)


def _floats(bf16: NDArray[np.uint16], number: int) -> NDArray[Any]:
    values: NDArray[np.float32] = (bf16.astype(np.uint32) << 16).view(np.float32)
    if number == BF16:
        return bf16
    return values if number == F32 else values.astype(np.float16)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        return struct.pack("<I", _ARRAY) + _array(value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    return struct.pack("<II", _UINT32, value)


def _array(values: Sequence[Any]) -> bytes:
    if isinstance(values[0], str):
        return struct.pack("<IQ", _STRING, len(values)) + b"".join(map(_string, values))
    kind, code = (_FLOAT32, "f") if isinstance(values[0], float) else (_INT32, "i")
    return struct.pack("<IQ", kind, len(values)) + struct.pack(f"<{len(values)}{code}", *values)
