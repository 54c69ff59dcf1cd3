"""LoRA adapters as PEFT saves them: adapter_config.json beside adapter_model.safetensors.

Source: peft 0.17 to 0.21 (`tuners/lora/layer.py`, `tuners/tuners_utils.py`, `utils/save_and_load.py`). With rank r:

=====================  ====================  =====================  =============================================
target                 A                     B                      change of the weight
=====================  ====================  =====================  =============================================
matrix `[out, in]`     `[r, in]`             `[out, r]`             `scaling * B @ A`
embedding              `[r, vocab]`          `[hidden, r]`          `scaling * (B @ A).T`
expert matrices        `[experts * r, in]`   `[out, r * experts]`   for expert e: row `e * r + k` of A goes with
                                                                    column `k * experts + e` of B
=====================  ====================  =====================  =============================================

Since 0.19 PEFT takes the two dimensions of expert matrices the other way round when the model does not say that
they lie as `[in, out]`, as that of transformers before 5 does not: A is then `[experts * r, out]` and B
`[in, r * experts]`. Adapters of several parameters of the experts nest: every `base_layer` in a name leads to the
parameter that comes before it in the module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from gptoss_convert.assets import read_json_object
from gptoss_convert.checkpoint import LARGEST_LAYER_COUNT, Tensor
from gptoss_convert.encodings import Chunk, Order
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.config_fields import convert_config
from gptoss_convert.formats.safetensors import StoredTensor, read_header
from gptoss_convert.formats.safetensors_tensors import plain_tensor, transposed_experts
from gptoss_convert.formats.storage import FileRef, ReadOnlyStorage, StoredArray

_FUSED_EXPERTS = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
LARGEST_RANK = 4096
LARGEST_COUNT = 2 * 17 * LARGEST_LAYER_COUNT
"""Tensors: two for each tensor of the largest model."""

_MERGE_FIRST = "merge it into its base model with PEFT (merge_and_unload) and convert the result"
_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+?)(?P<nesting>(?:\.base_layer)*)\.(?P<factor>lora_[AB]\.weight|lora_embedding_[AB])"
)
_MATRIX_FACTORS = ("lora_A.weight", "lora_B.weight")
_EMBEDDING_FACTORS = ("lora_embedding_A", "lora_embedding_B")
_WRAPPER = re.compile(r"\.(?:modules_to_save|base_layer)(?=\.)")
_EXPERTS = re.compile(r".*\.mlp\.experts")
_EXPERT_PARAMETERS = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
"""In the order in which the module of transformers has them, which is the order of nesting, innermost first."""
_FLOATS = ("F32", "F16", "BF16")
_NOT_MERGED = {
    "lora_magnitude_vector": "DoRA scales every row anew",
    "lora_B.bias": "its low-rank layers have biases (lora_bias)",
    "trainable_tokens": "it trains single tokens (trainable_token_indices)",
    "experts.gate_up_projs.": "its experts are single linear layers, as of Unsloth's 4-bit models",
    "experts.down_projs.": "its experts are single linear layers, as of Unsloth's 4-bit models",
}
"""By a part of a tensor's name, why that adapter is more than a low-rank change of the model's own tensors."""
_PLAIN_INITS = {"gaussian", "eva", "orthogonal"}
"""Initialisations, besides true and false, that leave the base model as it is."""

_SIMPLE_PATTERN = re.compile(
    r"(?:[\w|$^-]|\((?:\?:)?|\)(?![*+?{])|\\\.|(?:\.|\\d|\\w|\[[\w-]+\])[*+]?(?![*+?{]))+", re.ASCII
)
"""Names, alternatives, and repeated single characters; nothing repeated within something repeated."""
_LONGEST_PATTERN = 300
_MOST_REPEATS = 2

_Value = TypeVar("_Value", int, float)
_Rank = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_RANK)]
_Alpha = Annotated[float, msgspec.Meta(gt=-1e9, lt=1e9)]
_FEW = msgspec.Meta(max_length=4096)


class _Config(msgspec.Struct):
    """The fields of adapter_config.json that matter; a default is PEFT's."""

    peft_type: str
    r: _Rank = 8
    lora_alpha: _Alpha = 8.0
    use_rslora: bool = False
    rank_pattern: Annotated[dict[str, _Rank], _FEW] | None = None
    alpha_pattern: Annotated[dict[str, _Alpha], _FEW] | None = None
    target_parameters: list[str] | None = None
    base_model_name_or_path: str | None = None
    init_lora_weights: bool | str | None = True
    fan_in_fan_out: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    layer_replication: Any = None
    trainable_token_indices: Any = None
    alora_invocation_tokens: Any = None
    arrow_config: Any = None
    kasa_config: Any = None
    monteclora_config: Any = None
    megatron_config: Any = None
    use_qalora: bool = False
    use_bdlora: Any = None

    def unsupported(self) -> Iterator[tuple[str, object, str]]:
        """Yield (field, value, what it means) for each setting that makes it more than a low-rank change."""
        init = self.init_lora_weights
        if isinstance(init, str) and init not in _PLAIN_INITS:
            yield "init_lora_weights", init, "it belongs to a base model whose weights this initialisation changed"
        meanings = {
            "fan_in_fan_out": "it is for transposed matrices, which gpt-oss has not",
            "use_dora": _NOT_MERGED["lora_magnitude_vector"],
            "lora_bias": _NOT_MERGED["lora_B.bias"],
            "layer_replication": "it is for a model with repeated layers",
            "trainable_token_indices": _NOT_MERGED["trainable_tokens"],
            "alora_invocation_tokens": "it is active for some tokens only",
            "arrow_config": "it chooses between adapters for every token",
            "kasa_config": "it changes the base model's singular values",
            "monteclora_config": "its weights are samples of a distribution",
            "megatron_config": "it is for layers of Megatron",
            "use_qalora": "it pools the inputs of its layers",
            "use_bdlora": "its matrices are block-diagonal",
        }
        for name, meaning in meanings.items():
            if value := getattr(self, name):
                yield name, value, meaning


@dataclass(frozen=True)
class Pair:
    """The two stored matrices that change one tensor."""

    a: StoredTensor
    b: StoredTensor
    rank: int
    scaling: float
    embedding: bool
    """Whether they were made for an embedding, which swaps their parts."""


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: nothing of its tensors has been read yet."""

    path: Path
    base_model: str | None
    """Name of the model that it was trained on, as its configuration says."""
    pairs: Mapping[str, Pair]
    """Low-rank changes by canonical name of the tensor."""
    replacements: Mapping[str, Tensor]
    """Tensors that were trained as a whole, by canonical name."""


@dataclass(frozen=True)
class Factors:
    """A change of a tensor `[..., out, in]`: `scaling * left @ right.T` for each of its matrices."""

    left: Tensor
    """`[..., out, r]`."""
    right: Tensor
    """`[..., in, r]`."""
    scaling: float


def open_adapter(path: Path | str) -> Adapter:
    """Open the adapter in the folder `path`. No tensor data is read.

    Raises:
        InputError: it is no adapter, or damaged.
        UnsupportedError: it is another kind of adapter than LoRA, or a pickle.
    """
    path = Path(path)
    config_path, weights_path = path / CONFIG_NAME, path / WEIGHTS_NAME
    try:
        if not config_path.is_file():
            raise InputError(
                "not an adapter", file=path, expected=f"a folder with {CONFIG_NAME} and {WEIGHTS_NAME}"
            )
        config = _read_config(config_path)
        if not weights_path.exists() and (path / PICKLE_NAME).exists():
            raise UnsupportedError(
                "pickled weights are not read, because unpickling can run code",
                file=path / PICKLE_NAME,
                hint="save the adapter with PEFT as safetensors",
            )
        stored = read_header(FileRef.at(weights_path))
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror or error}", file=path) from error
    if not 0 < len(stored) <= LARGEST_COUNT:
        raise InputError(
            "adapter has no tensors, or too many",
            file=weights_path,
            found=len(stored),
            expected=f"1 to {LARGEST_COUNT}",
        )
    halves: dict[tuple[str, int], dict[str, StoredTensor]] = {}
    replacements: dict[str, Tensor] = {}
    for tensor in stored.values():
        name = tensor.name.removeprefix(_PREFIX)
        _check_kind(tensor, name)
        match = _FACTOR.fullmatch(name)
        if match is not None:
            place = match["module"], match["nesting"].count(".")
            halves.setdefault(place, {})[match["factor"]] = tensor
        else:
            replacement = _replacement(name, tensor)
            if replacement.name in replacements:
                raise InputError("adapter has a tensor twice", file=weights_path, tensor=replacement.name)
            replacements[replacement.name] = replacement
    return Adapter(path, config.base_model_name_or_path, dict(_pairs(halves, config, path)), replacements)


def _read_config(path: Path) -> _Config:
    raw = read_json_object(path)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(
            "not a LoRA adapter", file=path, found=f"peft_type {kind!r}", expected="LORA", hint=_MERGE_FIRST
        )
    config = convert_config(raw, _Config, path)
    for name, value, meaning in config.unsupported():
        raise UnsupportedError(
            f"adapter cannot be merged: {meaning}", file=path, found=f"{name} {value!r}", hint=_MERGE_FIRST
        )
    return config


def _check_kind(tensor: StoredTensor, name: str) -> None:
    """Refuse tensors of other kinds of adapters."""
    for part, meaning in _NOT_MERGED.items():
        if part in name:
            raise UnsupportedError(
                f"adapter cannot be merged: {meaning}",
                file=tensor.file.path,
                tensor=tensor.name,
                hint=_MERGE_FIRST,
            )
    if tensor.dtype not in _FLOATS:
        raise UnsupportedError(
            "adapter is quantised",
            file=tensor.file.path,
            tensor=tensor.name,
            found=tensor.dtype,
            expected=f"one of {', '.join(_FLOATS)}",
            hint=_MERGE_FIRST,
        )


def _replacement(name: str, stored: StoredTensor) -> Tensor:
    """Return a tensor that was saved as a whole."""
    if "lora_" in name:
        raise InputError("unknown kind of adapter tensor", file=stored.file.path, tensor=stored.name)
    renamed = replace(stored, name=_WRAPPER.sub("", name))
    if renamed.name.endswith(_FUSED_EXPERTS):
        return transposed_experts(renamed.name, renamed)
    return plain_tensor(renamed.name, renamed)


def _pairs(
    halves: Mapping[tuple[str, int], Mapping[str, StoredTensor]], config: _Config, path: Path
) -> Iterator[tuple[str, Pair]]:
    """Yield canonical names and the pairs that change these tensors."""
    depths: dict[str, list[int]] = {}
    for module, nesting in sorted(halves):
        depths.setdefault(module, []).append(nesting)
    for (module, nesting), found in halves.items():
        embedding = any(name in found for name in _EMBEDDING_FACTORS)
        a_name, b_name = _EMBEDDING_FACTORS if embedding else _MATRIX_FACTORS
        first = next(iter(found.values()))
        if found.keys() != {a_name, b_name}:
            raise InputError(
                "adapter does not have one A and one B for a tensor",
                file=first.file.path,
                tensor=first.name,
                found=" and ".join(sorted(found)),
                expected=f"{a_name} and {b_name}",
            )
        for tensor in found.values():
            if len(tensor.shape) != 2:
                raise InputError(
                    "adapter tensor is no matrix",
                    file=tensor.file.path,
                    tensor=tensor.name,
                    found=list(tensor.shape),
                )
        if _EXPERTS.fullmatch(module):
            target = key = f"{module}.{_expert_parameter(module, nesting, depths[module], config, path)}"
        elif nesting:
            raise InputError("unknown kind of adapter tensor", file=first.file.path, tensor=first.name)
        else:
            target = f"{module}.weight"
            key = target if _targets(config.target_parameters, target) else module
        rank = _by_pattern(config.rank_pattern, key, path, config.r)
        alpha = _by_pattern(config.alpha_pattern, key, path, config.lora_alpha)
        scaling = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        yield target, Pair(found[a_name], found[b_name], rank, scaling, embedding)


def _expert_parameter(module: str, nesting: int, depths: Sequence[int], config: _Config, path: Path) -> str:
    """Return the parameter of the experts that the pair below `nesting` wrappers changes."""
    targeted = [name for name in _EXPERT_PARAMETERS if _targets(config.target_parameters, f"{module}.{name}")]
    if depths != list(range(len(targeted))):
        raise InputError(
            "adapter does not have one pair for every target parameter of the experts",
            file=path / WEIGHTS_NAME,
            tensor=module,
            found=f"{len(depths)} pairs",
            expected=f"{len(targeted)}, for {', '.join(targeted) or 'none'} by target_parameters of {CONFIG_NAME}",
        )
    return targeted[len(targeted) - 1 - nesting]


def _targets(patterns: Sequence[str] | None, name: str) -> bool:
    """Return whether PEFT applies one of the target parameters `patterns` to the parameter `name`."""
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns or ())


def _by_pattern(patterns: Mapping[str, _Value] | None, key: str, path: Path, default: _Value) -> _Value:
    """Return the value of the first pattern that matches the end of the module name `key`, as PEFT does."""
    for pattern, value in (patterns or {}).items():
        if not _is_simple(pattern):
            raise UnsupportedError(
                "pattern of ranks or alphas is too complicated",
                file=path / CONFIG_NAME,
                found=pattern,
                hint=_MERGE_FIRST,
            )
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", key)
        except re.error as error:
            raise InputError(
                f"pattern is no regular expression: {error}", file=path / CONFIG_NAME, found=pattern
            ) from None
        if matches:
            return value
    return default


def _is_simple(pattern: str) -> bool:
    """Return whether `pattern` can be matched in little time, which is not so for any regular expression."""
    return (
        len(pattern) <= _LONGEST_PATTERN
        and _SIMPLE_PATTERN.fullmatch(pattern) is not None
        and pattern.count("*") + pattern.count("+") <= _MOST_REPEATS
        and pattern.count("(") <= _MOST_REPEATS
    )


def swapped_experts(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> bool | None:
    """Return whether A of experts is on the side of their outputs; None if all are square, so that none can tell.

    Args:
        adapter: the adapter.
        shapes: canonical shapes of the tensors that it changes.

    Raises:
        InputError: the pairs contradict each other.
    """
    told: dict[bool, str] = {}
    for name, pair in adapter.pairs.items():
        if len(shapes[name]) == 3:
            _, rows, columns = shapes[name]
            sides = pair.a.shape[1], pair.b.shape[0]
            if rows != columns and sides in ((columns, rows), (rows, columns)):
                told[sides == (rows, columns)] = name
    if len(told) > 1:
        raise InputError(
            "adapter takes some experts as [in, out] and others as [out, in]",
            file=adapter.path / WEIGHTS_NAME,
            tensor=told[True],
        )
    return next(iter(told), None)


def factors(pair: Pair, name: str, shape: tuple[int, ...], *, swapped: bool) -> Factors:
    """Return how `pair` changes the tensor `name` of canonical `shape` `[..., out, in]`.

    Args:
        pair: its two matrices.
        name: for errors.
        shape: two or three dimensions.
        swapped: whether A of experts is on the side of their outputs.

    Raises:
        InputError: the matrices do not fit the tensor.
    """
    rank = pair.rank
    if len(shape) not in (2, 3):
        raise InputError("adapter changes a tensor that is no matrix", file=pair.a.file.path, tensor=name)
    *experts, rows, columns = shape
    count = math.prod(experts)
    if pair.embedding or (experts and swapped):
        rows, columns = columns, rows
    for stored, expected in ((pair.a, (count * rank, columns)), (pair.b, (rows, rank * count))):
        if stored.shape != expected:
            raise InputError(
                "adapter does not fit the model",
                file=stored.file.path,
                tensor=stored.name,
                found=list(stored.shape),
                expected=f"{list(expected)} for {name} {list(shape)} and rank {rank}",
            )
    a = transposed_experts(name, replace(pair.a, shape=(count, rank, columns)))
    b = _expert_columns(name, pair.b, count) if experts else plain_tensor(name, pair.b)
    left, right = (a, b) if pair.embedding or (experts and swapped) else (b, a)
    return Factors(left, right, pair.scaling)


def _expert_columns(name: str, stored: StoredTensor, experts: int) -> Tensor:
    plain = plain_tensor(name, stored)
    rows, items = stored.shape
    array = StoredArray(stored.file, stored.offset, plain.encoding.parts[0].dtype, items)
    return Tensor(
        name, (experts, rows, items // experts), plain.encoding, ExpertColumnsStorage(array, rows, experts)
    )


@dataclass(frozen=True)
class ExpertColumnsStorage(ReadOnlyStorage):
    """Matrices `[experts, rows, r]` of plain numbers that lie as `[rows, r * experts]`, experts varying fastest."""

    stored: StoredArray
    rows: int
    """Rows of one matrix, which are the stored rows."""
    experts: int
    order: Order = field(default="C", init=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """File of the stored matrices."""
        return (self.stored.file.path,)

    @property
    def row_group(self) -> int:
        """Rows of one matrix."""
        return self.rows

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop` over all matrices, as one array `[rows, r]`."""
        gathered = np.empty((stop - start, self.stored.items // self.experts), self.stored.dtype)
        bite = max((1 << 20) // self.stored.row_nbytes, 1)
        position = start
        while position < stop:
            expert, first = divmod(position, self.rows)
            last = min(first + bite, first + stop - position, self.rows)
            stripe = self.stored.read(first, last)[:, expert :: self.experts]
            gathered[position - start : position - start + last - first] = stripe
            position += last - first
        return (gathered,)
