"""How other programs than llama.cpp write gpt-oss into GGUF files: architecture, tensor names, keys they leave out.

Source for Ollama: `convert/convert_gptoss.go`, `model/models/gptoss/model.go` and `ml/backend/ggml/ggml.go` of the
versions that wrote architecture `gptoss`, from August 2025 on. Later ones write the names and keys of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.gguf.container import Value


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What a program writes otherwise than llama.cpp; all else is the same."""

    program: str
    architecture: str
    """`general.architecture`, and the prefix of the keys of the configuration."""
    in_layer: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Canonical names of the tensors that lie in a tensor of this name, one after the other and undivided."""
    constants: Mapping[str, str] = field(default_factory=dict)
    """Values of keys that its files leave out."""
    substitutes: Mapping[str, str] = field(default_factory=dict)
    """Keys whose value serves for keys that its files leave out."""
    pre_tokenizers: Mapping[str, str] = field(default_factory=dict)
    """llama.cpp's name of the pre-tokenizer by what its files say; an empty text is a missing key."""
    own_file_types: bool = False
    """Whether it numbers `general.file_type` for itself."""


LLAMA_CPP = Dialect(program="llama.cpp", architecture="gpt-oss")
OLLAMA = Dialect(
    program="Ollama",
    architecture="gptoss",
    in_layer={
        "attn_qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        "attn_qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
        "attn_out.weight": ("self_attn.o_proj.weight",),
        "attn_out.bias": ("self_attn.o_proj.bias",),
        "attn_sinks": ("self_attn.sinks",),
        "ffn_norm.weight": ("post_attention_layernorm.weight",),
        "ffn_gate_up_exps.weight": ("mlp.experts.gate_up_proj",),
        "ffn_gate_up_exps.bias": ("mlp.experts.gate_up_proj_bias",),
    },
    constants={"rope.scaling.type": "yarn"},
    substitutes={"expert_feed_forward_length": "feed_forward_length"},
    # Its converter knows no o200k; its engine splits the text of gpt-oss by that expression in any case.
    pre_tokenizers={"": "gpt-4o", "default": "gpt-4o"},
    own_file_types=True,
)
DIALECTS = {dialect.architecture: dialect for dialect in (LLAMA_CPP, OLLAMA)}


def dialect_of(metadata: Mapping[str, Value], path: Path) -> Dialect:
    """Return the dialect of a file with these metadata; `path` is the file to name in errors.

    Raises:
        InputError: the metadata name no architecture.
        UnsupportedError: it is another architecture.
    """
    value = metadata.get("general.architecture")
    if value is None or not isinstance(value.value, str):
        raise InputError("metadata key is missing or no text: general.architecture", file=path, expected="text")
    dialect = DIALECTS.get(value.value)
    if dialect is None:
        raise UnsupportedError("not a gpt-oss model", file=path, found=value.value, expected=LLAMA_CPP.architecture)
    return dialect
