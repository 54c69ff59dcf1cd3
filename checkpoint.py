"""The canonical checkpoint: what every format is read into and written from.

Names and orientation are those of the Hugging Face gpt-oss repositories: every matrix is `[out, in]`, experts
are `[experts, out, in]`, and the rows of `gate_up_proj` alternate, gate i in row 2i and up i in row 2i+1.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from gptoss_convert.assets import Assets
from gptoss_convert.description import Description
from gptoss_convert.encodings import Array, Chunk, Encoding, EncodingError, Order
from gptoss_convert.errors import GptossConvertError, InputError, UnsupportedError
from gptoss_convert.tokenizer import TokenizerSource

SLIDING = "sliding_attention"
FULL = "full_attention"
LARGEST_LAYER_COUNT = 4096

_Stored = TypeVar("_Stored")


def alternating_layers(count: int) -> tuple[str, ...]:
    """Return the layer types of the published models: sliding and full in turn."""
    return tuple(SLIDING if index % 2 == 0 else FULL for index in range(count))


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

    @property
    def concentration(self) -> float:
        """The factor on sine and cosine, which makes the attention of longer contexts more pointed."""
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def mixed_pairs(self, head_dim: int) -> tuple[float, float]:
        """Return between which pairs of dimensions kept and slowed frequencies are mixed.

        As in OpenAI's `RotaryEmbedding` and transformers' `_compute_yarn_parameters`. llama.cpp rounds both bounds
        outwards (`truncate`), gpt-oss does not.

        Raises:
            UnsupportedError: the base makes no frequencies that fall.
        """
        if self.theta <= 1:
            raise UnsupportedError("rotary embedding of a base that is not above 1", found=self.theta)
        low, high = (self._pair_that_turns(turns, head_dim) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        return low, high + 0.001 if low == high else high

    def _pair_that_turns(self, turns: float, head_dim: int) -> float:
        """Return which pair turns so many times within the original context length, between whole numbers."""
        wavelength = self.original_context_length / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(self.theta))


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

    def require_consistent(self, path: Path) -> None:
        """Raise `InputError` for the first contradiction between fields; `path` is the file to name."""
        for conflict in self._conflicts():
            raise InputError(f"configuration contradicts itself: {conflict}", file=path)

    def _conflicts(self) -> Iterable[str]:
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


def parameter_count(config: ModelConfig) -> int:
    """Return the number of parameters of a model with this configuration."""
    return sum(math.prod(spec.shape) for spec in inventory(config).values())


class FileWriter(Protocol):
    """Takes what a storage writes."""

    def write(self, path: Path, data: bytes | Array, offset: int) -> None:
        """Write contiguous `data` at `offset` of the planned file `path`.

        Raises:
            OutputError: the system refused.
        """


class Storage(Protocol):
    """Where and how the rows of a tensor lie in files; a row is the last dimension, all others are flattened.

    Storages are values: equal if they mean the same bytes, and fit to be sent to another process.
    """

    @property
    def files(self) -> tuple[Path, ...]:
        """The files with the rows; the first is named when something is wrong with them."""

    @property
    def row_group(self) -> int:
        """Moving whole groups of so many rows, from a multiple of it, is cheapest."""

    @property
    def order(self) -> Order:
        """Memory order of the arrays that `read` returns and that `write` takes most cheaply."""

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop`.

        Raises:
            EncodingError: bytes that have to be decoded are no sound numbers.
            InputError: a file changed since it was opened, or cannot be read.
        """

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        """Write the rows of `chunk` from row `start` on.

        Raises:
            OutputError: the system refused.
        """


@dataclass(frozen=True)
class Tensor:
    """A named tensor in some encoding and storage: one that can be read, or one that a plan will write."""

    name: str
    shape: tuple[int, ...]
    """In elements, canonical orientation."""
    encoding: Encoding
    storage: Storage
    preferred: Encoding | None = None
    """The encoding that conversions which keep encodings give it; None for its own.

    Numbers that are computed while they are read are float32, but were meant to be stored in another encoding.
    """

    @property
    def kept_encoding(self) -> Encoding:
        """The encoding that it gets where encodings are kept."""
        return self.preferred or self.encoding

    @property
    def file(self) -> Path:
        """The file to name when something is wrong with this tensor."""
        return self.storage.files[0]

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
        with self.named_errors():
            chunk = self.storage.read(start, stop)
            self.encoding.check(chunk)
        return chunk

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Turn an `EncodingError` within the block into an `InputError` that names this tensor and its file."""
        try:
            yield
        except EncodingError as error:
            raise InputError(str(error), file=self.file, tensor=self.name) from None


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
    describe: Callable[[], Description]
    """Reads what the checkpoint says about the model: name, author, licence."""
    details: Mapping[str, str]
    """What only this format says, for people to read."""
    problems: tuple[GptossConvertError, ...]
    """What is wrong with it; empty for a sound checkpoint."""
    remarks: tuple[str, ...] = ()
    """What its owner should know although nothing is wrong: what was repaired, assumed or left out."""
    notes: tuple[str, ...] = ()
    """What the user of a conversion should know about it."""
    further_files: tuple[Path, ...] = ()
    """Files that say how tensors are computed, such as the configuration of an adapter."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that tensors come from, sorted."""
        stored = {file for tensor in self.tensors.values() for file in tensor.storage.files}
        return tuple(sorted(stored.union(self.further_files)))

    def require_sound(self) -> None:
        """Raise the first problem, if there is one, and say how many more there are."""
        if self.problems:
            first, *others = self.problems
            raise first.with_hint(f"{len(others)} more: see `gptoss-convert inspect`") if others else first


def assemble_checkpoint(
    path: Path,
    format_name: str,
    config: ModelConfig,
    collected: Collected,
    *,
    tensor_place: Path,
    assets: Assets,
    tokenizer: TokenizerSource | None,
    describe: Callable[[], Description],
    details: Mapping[str, str] | None = None,
    remarks: tuple[str, ...] = (),
) -> Checkpoint:
    """Return a checkpoint from what a format has read: checked against the inventory, in canonical order.

    `tensor_place` is the file or folder to name for tensors that are missing; all else is as in `Checkpoint`.
    """
    problems = [*collected.problems, *check_tensors(config, collected.tensors, tensor_place)]
    return Checkpoint(
        path=path,
        format=format_name,
        config=config,
        tensors=in_canonical_order(config, collected.tensors),
        assets=assets,
        tokenizer=tokenizer,
        describe=describe,
        details=details or {},
        problems=tuple(problems),
        remarks=remarks,
    )


@dataclass(frozen=True)
class Collected:
    """Tensors by canonical name, and what is wrong with those that could not be made."""

    tensors: Mapping[str, Tensor]
    problems: tuple[GptossConvertError, ...]


def collect_tensors(stored: Iterable[_Stored], canonical: Callable[[_Stored], Iterable[Tensor]]) -> Collected:
    """Make canonical tensors of stored ones; two that become the same canonical tensor are a problem."""
    tensors: dict[str, Tensor] = {}
    problems: list[GptossConvertError] = []
    for item in stored:
        try:
            for tensor in canonical(item):
                if tensor.name in tensors:
                    raise InputError(
                        "tensor occurs twice, perhaps in two encodings", file=tensor.file, tensor=tensor.name
                    )
                tensors[tensor.name] = tensor
        except GptossConvertError as problem:
            problems.append(problem)
    return Collected(tensors, tuple(problems))


_UNTIED = (
    "gpt-oss does not share it with the embedding; "
    "a folder whose model does needs tie_word_embeddings true in config.json"
)


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
            hint = _UNTIED if spec.role is Role.UNEMBEDDING else None
            missing = InputError("tensor is missing", file=place, tensor=name, expected=list(spec.shape), hint=hint)
            problems.append(missing)
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
    for name in sorted(found.keys() - expected.keys()):
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
