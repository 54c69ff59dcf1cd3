"""The canonical checkpoint: what every format is read into and written from.

Names and orientation are those of the Hugging Face gpt-oss repositories: every matrix is `[out, in]`, experts
are `[experts, out, in]`, and the rows of `gate_up_proj` alternate, gate i in row 2i and up i in row 2i+1.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gptoss_convert.assets import Assets
from gptoss_convert.encodings import Chunk, Encoding, EncodingError
from gptoss_convert.errors import GptossConvertError, InputError
from gptoss_convert.tokenizer import TokenizerSource

SLIDING = "sliding_attention"
FULL = "full_attention"


@dataclass(frozen=True, kw_only=True)
class YarnRope:
    """Rotary position embedding with YaRN scaling (arXiv:2309.00071).

    `truncate` says whether the range of scaled dimensions is rounded to whole numbers; gpt-oss does not.
    """

    theta: float
    factor: float
    beta_fast: float
    beta_slow: float
    original_context_length: int
    truncate: bool


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a gpt-oss model, in the terms of its Hugging Face configuration."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_local_experts: int
    num_experts_per_tok: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    sliding_window: int
    layer_types: tuple[str, ...]
    """`SLIDING` or `FULL` for each layer."""
    rope: YarnRope
    rms_norm_eps: float
    swiglu_limit: float

    def conflicts(self) -> Iterable[str]:
        """Yield one sentence for every pair of fields that contradict each other."""
        if len(self.layer_types) != self.num_hidden_layers:
            yield f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers"
        if self.num_attention_heads % self.num_key_value_heads:
            yield (
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.num_experts_per_tok > self.num_local_experts:
            yield f"num_experts_per_tok {self.num_experts_per_tok} of only {self.num_local_experts} experts"
        if self.head_dim % 2:
            yield f"head_dim {self.head_dim} is odd, but rotary embedding pairs dimensions"


class Role(enum.StrEnum):
    """What a tensor does in the model."""

    EMBEDDING = "embedding"
    UNEMBEDDING = "unembedding"
    NORM = "norm"
    ATTENTION = "attention"
    ATTENTION_BIAS = "attention bias"
    SINKS = "attention sinks"
    ROUTER = "router"
    EXPERTS = "experts"
    EXPERT_BIAS = "expert bias"


@dataclass(frozen=True)
class TensorSpec:
    """What the configuration says about one tensor: its role and its shape in elements."""

    role: Role
    shape: tuple[int, ...]


def inventory(config: ModelConfig) -> dict[str, TensorSpec]:
    """Return every tensor of a model with this configuration, in canonical order.

    17 per layer and 3 around them: 411 for gpt-oss-20b, 615 for gpt-oss-120b. Files hold more, since each
    MXFP4 matrix lies there as two tensors.
    """
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_local_experts
    query = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    layer: dict[str, TensorSpec] = {
        "input_layernorm.weight": TensorSpec(Role.NORM, (hidden,)),
        "self_attn.q_proj.weight": TensorSpec(Role.ATTENTION, (query, hidden)),
        "self_attn.q_proj.bias": TensorSpec(Role.ATTENTION_BIAS, (query,)),
        "self_attn.k_proj.weight": TensorSpec(Role.ATTENTION, (key_value, hidden)),
        "self_attn.k_proj.bias": TensorSpec(Role.ATTENTION_BIAS, (key_value,)),
        "self_attn.v_proj.weight": TensorSpec(Role.ATTENTION, (key_value, hidden)),
        "self_attn.v_proj.bias": TensorSpec(Role.ATTENTION_BIAS, (key_value,)),
        "self_attn.o_proj.weight": TensorSpec(Role.ATTENTION, (hidden, query)),
        "self_attn.o_proj.bias": TensorSpec(Role.ATTENTION_BIAS, (hidden,)),
        "self_attn.sinks": TensorSpec(Role.SINKS, (config.num_attention_heads,)),
        "post_attention_layernorm.weight": TensorSpec(Role.NORM, (hidden,)),
        "mlp.router.weight": TensorSpec(Role.ROUTER, (experts, hidden)),
        "mlp.router.bias": TensorSpec(Role.ROUTER, (experts,)),
        "mlp.experts.gate_up_proj": TensorSpec(Role.EXPERTS, (experts, 2 * inner, hidden)),
        "mlp.experts.gate_up_proj_bias": TensorSpec(Role.EXPERT_BIAS, (experts, 2 * inner)),
        "mlp.experts.down_proj": TensorSpec(Role.EXPERTS, (experts, hidden, inner)),
        "mlp.experts.down_proj_bias": TensorSpec(Role.EXPERT_BIAS, (experts, hidden)),
    }
    tensors = {"model.embed_tokens.weight": TensorSpec(Role.EMBEDDING, (config.vocab_size, hidden))}
    for index in range(config.num_hidden_layers):
        tensors |= {f"model.layers.{index}.{name}": spec for name, spec in layer.items()}
    tensors["model.norm.weight"] = TensorSpec(Role.NORM, (hidden,))
    tensors["lm_head.weight"] = TensorSpec(Role.UNEMBEDDING, (config.vocab_size, hidden))
    return tensors


class Source(Protocol):
    """Where the rows of a tensor come from."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read; the first is named when something is wrong with the bytes."""

    @property
    def row_group(self) -> int:
        """Reading whole groups of so many rows, from a multiple of it, avoids reading bytes twice."""

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop` of the tensor flattened to two dimensions.

        Raises:
            InputError: the file became unreadable or shorter since it was opened.
        """


@dataclass(frozen=True)
class Tensor:
    """A named tensor whose rows are read on demand. A row is the last dimension."""

    name: str
    shape: tuple[int, ...]
    """In elements, canonical orientation."""
    encoding: Encoding
    source: Source

    @property
    def file(self) -> Path:
        """The file to name when something is wrong with this tensor."""
        return self.source.files[0]

    @property
    def rows(self) -> int:
        """Number of rows: the product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Elements per row."""
        return self.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of the stored numbers."""
        return self.encoding.nbytes(self.shape)

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop` in the tensor's encoding, checked.

        Raises:
            InputError: the bytes cannot be read or are no sound numbers of the encoding.
        """
        chunk = self.source.read(start, stop)
        try:
            self.encoding.check(chunk)
        except EncodingError as error:
            raise self.error(error) from None
        return chunk

    def error(self, cause: EncodingError) -> InputError:
        """Return `cause` as an error that names this tensor and its file."""
        return InputError(str(cause), file=self.file, tensor=self.name)

    def row_ranges(self, most_rows: int) -> Iterable[tuple[int, int]]:
        """Yield `(start, stop)` pairs that cover all rows, each of at most `most_rows` (at least one) rows.

        The pairs respect the source's row group where a group is not larger than `most_rows`.
        """
        group = self.source.row_group
        step = max(most_rows - most_rows % group if most_rows >= group else most_rows, 1)
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


@dataclass(frozen=True)
class Checkpoint:
    """An opened model: nothing of its tensors has been read yet."""

    path: Path
    """What the user named: a folder or a file."""
    format: str
    """Name of the format in `gptoss_convert.formats.FORMATS`."""
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    """In canonical order."""
    assets: Assets
    """Files that travel with the weights."""
    tokenizer: TokenizerSource | None
    files: tuple[Path, ...]
    """Every file that tensors are read from; an output must never be one of them."""
    details: Mapping[str, str] = field(default_factory=dict)
    """What the format says about the model beyond all this, for people to read."""
    problems: tuple[GptossConvertError, ...] = ()
    """What is wrong with it; empty for a sound checkpoint."""

    def require_sound(self) -> None:
        """Raise the first problem, if there is one, and say how many more there are."""
        if not self.problems:
            return
        first, *others = self.problems
        if others and first.hint is None:
            first.hint = f"{len(others)} more: see `gptoss-convert inspect`"
        raise first


def check_tensors(config: ModelConfig, found: Mapping[str, Tensor], place: Path) -> list[GptossConvertError]:
    """Compare the tensors of a file or folder with the inventory of its configuration.

    Args:
        config: the configuration that lies beside the tensors.
        found: tensors by canonical name.
        place: file or folder to name for tensors that are missing.

    Returns:
        One error for each tensor that is missing, unknown or of another shape than the configuration says.
    """
    expected = inventory(config)
    problems: list[GptossConvertError] = []
    for name, spec in expected.items():
        tensor = found.get(name)
        if tensor is None:
            problems.append(InputError("tensor is missing", file=place, tensor=name, expected=list(spec.shape)))
        elif tensor.shape != spec.shape:
            problems.append(
                InputError(
                    "tensor does not fit the configuration",
                    file=tensor.file,
                    tensor=name,
                    found=f"shape {list(tensor.shape)}",
                    expected=list(spec.shape),
                )
            )
    for name in found.keys() - expected.keys():
        problems.append(
            InputError(
                "unknown tensor",
                file=found[name].file,
                tensor=name,
                expected=f"the {len(expected)} tensors of a gpt-oss model with {config.num_hidden_layers} layers",
            )
        )
    return problems


def in_canonical_order(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` ordered as the inventory, unknown ones last and by name."""
    order = {name: index for index, name in enumerate(inventory(config))}
    return dict(sorted(tensors.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def files_of(tensors: Iterable[Tensor]) -> tuple[Path, ...]:
    """Return every file that `tensors` are read from, sorted."""
    return tuple(sorted({file for tensor in tensors for file in tensor.source.files}))
