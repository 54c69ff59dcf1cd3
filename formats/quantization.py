"""What `quantization_config` says about how the weights of a Hugging Face folder lie.

Sources: `Mxfp4Config` of transformers 5.23; compressed-tensors 0.13.0, 0.14.0 and 0.20.0 (`compressors/mxfp4`); the
llm-compressor releases 0.9 to 0.14; auto-round 0.16.1 (`export`, `modeling/fused_moe/gpt_oss.py`); AMD Quark 0.13
(`torch/export`, `torch/utils/pack.py`); mlx-lm (`quantization` of config.json).
Only weights count here: how a runtime should quantise activations or its cache is left out.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec

from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.config_fields import convert_config

READABLE = "mxfp4, or MXFP4 weights of compressed-tensors, auto-round, quark, modelopt or MLX"


class GateUpRows(enum.Enum):
    """Which rows of the canonical `gate_up_proj` a separate `gate_proj` and `up_proj` hold."""

    ALTERNATING = enum.auto()
    """`gate_proj` the even ones and `up_proj` the odd ones: what the names say."""
    HALVES = enum.auto()
    """`gate_proj` the first half and `up_proj` the second: each is a mixture of both."""


@dataclass(frozen=True)
class Quantization:
    """The facts about a folder's weights that its configuration states."""

    method: str
    scale_offset: int = 0
    """To be added to stored scale bytes of packed tensors, for a bias of 127."""
    gate_up: GateUpRows | None = GateUpRows.ALTERNATING
    """None if it cannot be told."""
    gate_up_hint: str | None = None
    """What to do if `gate_up` cannot be told."""
    remarks: tuple[str, ...] = ()
    """For people: what is left out."""


NONE = Quantization("none")


def read_quantization(raw: Mapping[str, Any], path: Path) -> Quantization:
    """Return what `raw`, the contents of a config.json at `path`, says about quantised weights.

    Raises:
        InputError: the statement is malformed or leaves open what the bytes mean.
        UnsupportedError: the weights are quantised in a way that cannot be read.
    """
    stated = raw.get("quantization_config")
    if stated is None:
        stated = raw.get("quantization")
    if stated is None:
        return NONE
    if not isinstance(stated, dict):
        raise InputError(
            "configuration: quantization_config is not an object", file=path, found=type(stated).__name__
        )
    method = stated.get("quant_method")
    if method is None and "bits" in stated:
        return _mlx(stated, path)
    reader = _READERS.get(method if isinstance(method, str) else "") if method is not None else _mxfp4
    if reader is None:
        raise _unreadable(path, str(method), _WAYS_OUT.get(str(method), _WAY_OUT))
    return reader(stated, path)


_WAY_OUT = "convert the checkpoint it was made from, or dequantise it with the tool that wrote it and save BF16"
_WAYS_OUT = {
    "bitsandbytes": "convert the checkpoint it was made from, or `dequantize()` it with transformers and save that",
    "gptq": "its integers are not MXFP4: convert the checkpoint it was made from",
    "awq": "its integers are not MXFP4: convert the checkpoint it was made from",
}


def _unreadable(path: Path, found: str, hint: str = _WAY_OUT) -> UnsupportedError:
    return UnsupportedError(
        "quantization method cannot be read", file=path, found=found, expected=READABLE, hint=hint
    )


def _mxfp4(stated: Mapping[str, Any], path: Path) -> Quantization:
    return Quantization("mxfp4")


# --- compressed-tensors

_Version: TypeAlias = tuple[int, int, int]
_Meaning = TypeVar("_Meaning")

_SCALE_OFFSETS: Sequence[tuple[_Version, int | None]] = (((0, 13, 0), 2), ((0, 13, 1), None), ((0, 14, 0), 0))
"""Release 0.13.0 subtracts 2 from the exponent of every scale; development versions after it may or may not."""

_GATE_UP_ROWS: Sequence[tuple[_Version, GateUpRows | None]] = (
    ((0, 14, 0), GateUpRows.ALTERNATING),
    ((0, 16, 1), None),
    ((0, 17, 1), GateUpRows.HALVES),
    ((0, 18, 1), None),
    ((0, 19, 0), GateUpRows.ALTERNATING),
)
"""By the version of compressed-tensors, which each release of llm-compressor pins.

llm-compressor 0.10 and 0.11 (with 0.14.0 and 0.16.0) split even and odd rows; 0.12 and 0.13 (with 0.17.1 and
0.18.0) cut the alternating rows in the middle; 0.14 (with 0.19.0) splits even and odd rows again. Development
versions in between went either way, and 0.9 (with 0.13.0) did not split. auto-round writes this format with code of
its own, which always split even and odd rows and gave scales a bias of 127; it states `provider` and no version.
"""


class _PackedWeights(msgspec.Struct):
    num_bits: int
    type: str
    group_size: int | None = None
    symmetric: bool = True
    scale_dtype: str | None = None


class _Group(msgspec.Struct):
    weights: _PackedWeights | None = None
    input_activations: dict[str, Any] | None = None
    output_activations: dict[str, Any] | None = None
    format: str | None = None


class _CompressedTensors(msgspec.Struct):
    format: str
    config_groups: dict[str, _Group]
    version: str | None = None
    provider: str | None = None
    kv_cache_scheme: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None


_PACKED_FORMAT = "mxfp4-pack-quantized"


def _compressed_tensors(stated: Mapping[str, Any], path: Path) -> Quantization:
    fields = convert_config(stated, _CompressedTensors, path)
    formats = {group.format or fields.format for group in fields.config_groups.values()} or {fields.format}
    if formats != {_PACKED_FORMAT}:
        raise _unreadable(path, f"compressed-tensors with format {', '.join(sorted(formats))}")
    for name, group in fields.config_groups.items():
        weights = group.weights
        if weights is None or (weights.num_bits, weights.type, weights.group_size, weights.symmetric) != (
            4, "float", 32, True,
        ):  # fmt: skip
            raise _unreadable(
                path, f"compressed-tensors {name} with weights {weights and msgspec.to_builtins(weights)}"
            )
        if weights.scale_dtype not in (None, "torch.uint8", "uint8"):
            raise _unreadable(path, f"compressed-tensors {name} with scales of {weights.scale_dtype}")
    if fields.transform_config:
        raise _unreadable(path, "compressed-tensors with transform_config: weights are rotated")
    version = _version(fields.version)
    by_auto_round = fields.provider == "auto-round"
    offset = 0 if by_auto_round else _at(_SCALE_OFFSETS, version)
    if offset is None:
        raise InputError(
            "quantization_config leaves open whether scales have a bias of 125 or 127",
            file=path,
            found=f"compressed-tensors version {fields.version}",
            expected="0.13.0, or at least 0.14.0",
            hint='set "version" in quantization_config: "0.13.0" for 125, "0.14.0" for 127',
        )
    rows = GateUpRows.ALTERNATING if by_auto_round else _at(_GATE_UP_ROWS, version)
    plain = ".".join(map(str, version or ()))
    remarks = []
    if any(group.input_activations or group.output_activations for group in fields.config_groups.values()):
        remarks.append(_LEFT_OUT.format("activations"))
    if fields.kv_cache_scheme:
        remarks.append(_LEFT_OUT.format("the KV cache"))
    if offset:
        remarks.append(f"scales are stored {offset} too small (compressed-tensors {plain}); they are read right")
    if rows is GateUpRows.HALVES:
        remarks.append(
            f"gate_proj and up_proj of compressed-tensors {plain} are taken as the first and the second "
            "half of the alternating rows, as llm-compressor 0.12 and 0.13 cut them"
        )
    return Quantization("compressed-tensors", offset, rows, _GATE_UP_HINT, tuple(remarks))


_LEFT_OUT = "how {} are to be quantised is left out: it is for the runtime and no part of the weights"
_GATE_UP_HINT = (
    'set "version" in quantization_config: "0.19.0" if gate_proj holds the gate, '
    '"0.18.0" if it holds the first half of the alternating rows'
)


def _version(text: str | None) -> _Version | None:
    match = re.match(r"([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", text or "")
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def _at(since: Sequence[tuple[_Version, _Meaning | None]], version: _Version | None) -> _Meaning | None:
    """Return what holds for `version` in a table of first versions; None if nothing is known."""
    meaning = None
    for first, then in since:
        if version is not None and version >= first:
            meaning = then
    return meaning


# --- auto-round


class _AutoRound(msgspec.Struct):
    data_type: str
    bits: int
    group_size: int
    sym: bool = True
    act_bits: int = 16
    rotation_config: Any = None
    spinquant_config: Any = None


def _auto_round(stated: Mapping[str, Any], path: Path) -> Quantization:
    """Return the facts of auto-round's own format; layers that differ are told by the dtypes of their tensors."""
    fields = convert_config(stated, _AutoRound, path)
    if not fields.data_type.startswith("mx_fp") or (fields.bits, fields.group_size, fields.sym) != (4, 32, True):
        raise _unreadable(
            path,
            f"auto-round with data_type {fields.data_type}, {fields.bits} bits in groups of {fields.group_size}",
        )
    if fields.rotation_config or fields.spinquant_config:
        raise _unreadable(path, "auto-round with rotated weights")
    remarks = (_LEFT_OUT.format("activations"),) if fields.act_bits < 16 else ()
    return Quantization("auto-round", remarks=remarks)


# --- AMD Quark


class _QuarkTensor(msgspec.Struct):
    dtype: str
    qscheme: str | None = None
    group_size: int | None = None
    scale_format: str | None = None
    mx_element_dtype: str | None = None


class _QuarkLayer(msgspec.Struct):
    weight: _QuarkTensor | list[_QuarkTensor] | None = None
    input_tensors: Any = None
    output_tensors: Any = None


class _Quark(msgspec.Struct):
    global_quant_config: _QuarkLayer
    layer_quant_config: dict[str, _QuarkLayer] | None = None
    layer_type_quant_config: dict[str, _QuarkLayer] | None = None
    algo_config: list[dict[str, Any]] | dict[str, Any] | None = None


def _quark(stated: Mapping[str, Any], path: Path) -> Quantization:
    fields = convert_config(stated, _Quark, path)
    layers = {
        "global_quant_config": fields.global_quant_config,
        **(fields.layer_quant_config or {}),
        **(fields.layer_type_quant_config or {}),
    }
    for name, layer in layers.items():
        for weight in layer.weight if isinstance(layer.weight, list) else [layer.weight]:
            if weight is not None:
                _require_quark_mxfp4(name, weight, path)
    algorithms = fields.algo_config if isinstance(fields.algo_config, list) else [fields.algo_config or {}]
    if any(algorithm.get("name") == "rotation" for algorithm in algorithms):
        raise _unreadable(path, "quark with rotated weights")
    quantised = any(layer.input_tensors or layer.output_tensors for layer in layers.values())
    remarks = (_LEFT_OUT.format("activations or the KV cache"),) if quantised else ()
    # Quark keeps gate_up_proj whole; nobody says what a separate gate_proj of its would hold.
    return Quantization("quark", gate_up=None, remarks=remarks)


def _require_quark_mxfp4(name: str, weight: _QuarkTensor, path: Path) -> None:
    if weight.dtype == "mx":
        raise _unreadable(
            path,
            f"quark, {name} with dtype mx: blocks of 17 bytes with signed exponents",
            'export it again with Quark\'s scheme "mxfp4", whose dtype is fp4',
        )
    if (weight.dtype, weight.group_size, weight.scale_format) != ("fp4", 32, "e8m0"):
        raise _unreadable(
            path,
            f"quark, {name} with dtype {weight.dtype}, group_size {weight.group_size}, "
            f"scale_format {weight.scale_format}",
        )


# --- NVIDIA ModelOpt


class _ModelOpt(msgspec.Struct):
    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None
    kv_cache_scheme: dict[str, Any] | None = None


def _modelopt(stated: Mapping[str, Any], path: Path) -> Quantization:
    fields = convert_config(stated, _ModelOpt, path)
    if fields.quant_algo is None or fields.quant_algo.upper() not in ("MXFP4", "W4A16_MXFP4", "W4A8_MXFP4_FP8"):
        raise _unreadable(path, f"modelopt with quant_algo {fields.quant_algo}")
    remarks = []
    if fields.quant_algo.upper() == "W4A8_MXFP4_FP8":
        remarks.append(_LEFT_OUT.format("activations"))
    if fields.kv_cache_quant_algo or fields.kv_cache_scheme:
        remarks.append(_LEFT_OUT.format("the KV cache"))
    return Quantization("modelopt", remarks=tuple(remarks))


# --- MLX


class _Mlx(msgspec.Struct):
    bits: int
    group_size: int
    mode: str = "affine"


def _mlx(stated: Mapping[str, Any], path: Path) -> Quantization:
    """Return the facts of MLX, which states exceptions as objects by module name beside the general rule."""
    for name, rule in {"weights": stated, **_exceptions(stated)}.items():
        fields = convert_config(rule, _Mlx, path)
        if (fields.mode, fields.bits, fields.group_size) != ("mxfp4", 4, 32):
            raise _unreadable(
                path,
                f"MLX, {name} with mode {fields.mode}, {fields.bits} bits in groups of {fields.group_size}",
                "convert the checkpoint it was made from, or dequantise it with `mlx_lm.convert --dequantize`",
            )
    return Quantization("MLX")


def _exceptions(stated: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: rule for name, rule in stated.items() if isinstance(rule, dict)}


_READERS: dict[str, Callable[[Mapping[str, Any], Path], Quantization]] = {
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed_tensors,
    "auto-round": _auto_round,
    "quark": _quark,
    "modelopt": _modelopt,
}
