"""The random model of `weights` in the layouts of other tools.

Each layout is a function from the stored arrays of the published layout, or of the dequantised one, to those of
the tool. `write_folder` puts any of them into a folder. Sources: docs/sources.md.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.support.checkpoints import Entry, Shape, write_huggingface, write_safetensors
from tests.support.layouts import huggingface_tensors
from tests.support.weights import Filling, chunks

Arrays: TypeAlias = dict[str, tuple[str, NDArray[Any]]]
"""Dtype, as safetensors calls it, and numbers by name; BF16 as bits."""

_NUMPY = {"BF16": "<u2", "F16": "<u2", "F32": "<f4", "U8": "u1", "U32": "<u4", "F8_E8M0": "u1"}
_EXPERTS = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(gate_up|down)_proj(.*)")


def model_arrays(shape: Shape, *, experts: Literal["mxfp4", "bf16"] = "mxfp4", seed: int = 0) -> Arrays:
    """The arrays that `write_huggingface` writes."""
    filling = Filling(seed=seed)
    arrays: Arrays = {}
    for tensor in huggingface_tensors(shape, experts=experts):
        data = b"".join(bytes(piece) for piece in chunks(tensor, filling))
        arrays[tensor.name] = (tensor.dtype, np.frombuffer(data, _NUMPY[tensor.dtype]).reshape(tensor.shape))
    return arrays


def write_folder(
    folder: Path,
    shape: Shape,
    arrays: Arrays,
    *,
    quantization: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write `arrays` into one file beside a configuration, with this `quantization_config` and these other keys."""
    stated = {} if quantization is None else {"quantization_config": dict(quantization)}
    write_huggingface(folder, shape, experts="bf16", config_overrides=stated | dict(config or {}))
    entries = [Entry(name, dtype, array.shape, array.tobytes()) for name, (dtype, array) in arrays.items()]
    write_safetensors(folder / "model.safetensors", entries)
    return folder


def _rebuilt(arrays: Arrays, rename: Callable[[str, str, str, str, NDArray[Any]], Arrays]) -> Arrays:
    """Replace every tensor of experts by what `rename` makes of (place, matrix, suffix, dtype, array)."""
    rebuilt: Arrays = {}
    for name, (dtype, array) in arrays.items():
        match = _EXPERTS.fullmatch(name)
        rebuilt |= {name: (dtype, array)} if match is None else rename(match[1], match[2], match[3], dtype, array)
    return rebuilt


def _linear(suffix: str, array: NDArray[Any]) -> NDArray[Any]:
    """Experts as a Linear has them, `[experts, out, in]`: codes without blocks, dequantised experts turned."""
    if suffix == "_blocks":
        return array.reshape(*array.shape[:2], -1)
    return array.transpose(0, 2, 1) if suffix == "" else array


_DENSE = {"": "weight", "_bias": "bias"}
COMPRESSED_PARTS = {"_blocks": "weight_packed", "_scales": "weight_scale", "_bias": "bias"}
QUARK_PARTS = {"_blocks": "weight", "_scales": "weight_scale", "_bias": "bias"}


def per_expert(arrays: Arrays, parts: Mapping[str, str] = _DENSE) -> Arrays:
    """`experts.<e>.gate_up_proj.weight` and `experts.<e>.down_proj.weight`, with biases."""

    def rename(place: str, matrix: str, suffix: str, dtype: str, array: NDArray[Any]) -> Arrays:
        return {
            f"{place}.{index}.{matrix}_proj.{parts[suffix]}": (dtype, expert)
            for index, expert in enumerate(_linear(suffix, array))
        }

    return _rebuilt(arrays, rename)


def split_experts(
    arrays: Arrays, parts: Mapping[str, str] = _DENSE, *, rows: Literal["alternating", "halves"] = "alternating"
) -> Arrays:
    """`experts.<e>.gate_proj.weight`, `up_proj` and `down_proj`, with biases."""

    def rename(place: str, matrix: str, suffix: str, dtype: str, array: NDArray[Any]) -> Arrays:
        experts = _linear(suffix, array)
        if matrix == "down":
            halves = {"down": experts}
        elif rows == "alternating":
            halves = {"gate": experts[:, 0::2], "up": experts[:, 1::2]}
        else:
            middle = experts.shape[1] // 2
            halves = {"gate": experts[:, :middle], "up": experts[:, middle:]}
        return {
            f"{place}.{index}.{half}_proj.{parts[suffix]}": (dtype, expert)
            for half, all_experts in halves.items()
            for index, expert in enumerate(all_experts)
        }

    return _rebuilt(arrays, rename)


def unsloth(arrays: Arrays) -> Arrays:
    """`experts.gate_up_projs.<e>.weight`, with the router under `router.linear`."""

    def rename(place: str, matrix: str, suffix: str, dtype: str, array: NDArray[Any]) -> Arrays:
        return {
            f"{place}.{matrix}_projs.{index}.{_DENSE[suffix]}": (dtype, expert)
            for index, expert in enumerate(_linear(suffix, array))
        }

    return {name.replace(".router.", ".router.linear."): kept for name, kept in _rebuilt(arrays, rename).items()}


def compressed_tensors(arrays: Arrays, *, rows: Literal["alternating", "halves"] = "alternating") -> Arrays:
    """`experts.<e>.gate_proj.weight_packed`, as llm-compressor saves mxfp4-pack-quantized."""
    return split_experts(arrays, COMPRESSED_PARTS, rows=rows)


def nested_experts(arrays: Arrays) -> Arrays:
    """`experts.experts.<e>.gate_proj.weight_packed`, as llm-compressor 0.10 and 0.11 name them."""
    return {
        re.sub(r"\.experts\.(\d+)\.", r".experts.experts.\1.", name): kept
        for name, kept in compressed_tensors(arrays).items()
    }


def quark_quantizers(arrays: Arrays) -> Arrays:
    """As `quark`, with scales named after the quantizers that made them, as Quark 0.11 may save them."""
    return {
        re.sub(r"\.(weight|input|output)_scale$", r".\1_quantizer.scale", name): kept
        for name, kept in quark(arrays).items()
    }


def quark(arrays: Arrays) -> Arrays:
    """`experts.<e>.gate_up_proj.weight` with `.weight_scale`, and scalars for activations and the KV cache."""
    one = ("F32", np.ones((), "<f4"))
    stored = per_expert(arrays, QUARK_PARTS)
    quantised = [name.removesuffix("weight_scale") for name in stored if name.endswith("weight_scale")]
    scalars: Arrays = {f"{module}input_scale": one for module in quantised}
    return stored | scalars | {"model.layers.0.self_attn.k_proj.output_scale": one}


def mlx(arrays: Arrays) -> Arrays:
    """`experts.gate_proj.weight` as words of eight codes, with `.scales`, for all experts at once."""
    parts = {"_blocks": "weight", "_scales": "scales", "_bias": "bias"}

    def rename(place: str, matrix: str, suffix: str, dtype: str, array: NDArray[Any]) -> Arrays:
        experts = _linear(suffix, array)
        halves = {"gate": experts[:, 0::2], "up": experts[:, 1::2]} if matrix == "gate_up" else {"down": experts}
        stored: Arrays = {}
        for half, numbers in halves.items():
            words = np.ascontiguousarray(numbers).view("<u4") if suffix == "_blocks" else numbers
            stored[f"{place}.{half}_proj.{parts[suffix]}"] = ("U32" if suffix == "_blocks" else dtype, words)
        return stored

    return _rebuilt(arrays, rename)


COMPRESSED_TENSORS: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "version": "0.20.0",
    "format": "mxfp4-pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4, "type": "float", "symmetric": True, "group_size": 32, "strategy": "group",
                "dynamic": False, "scale_dtype": "torch.uint8",
            },
            "input_activations": None,
            "output_activations": None,
            "format": None,
        }
    },
    "ignore": ["lm_head", "re:.*router"],
    "kv_cache_scheme": None,
    "sparsity_config": {},
    "transform_config": {},
}  # fmt: skip
"""As compressed-tensors 0.20.0 writes it for the scheme MXFP4A16."""

COMPRESSED_BY_AUTO_ROUND: dict[str, Any] = {
    **{key: value for key, value in COMPRESSED_TENSORS.items() if key != "version"},
    "provider": "auto-round",
}
"""As auto-round 0.16.1 writes it for the format llm_compressor."""

AUTO_ROUND: dict[str, Any] = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:llm_compressor",
    "bits": 4,
    "group_size": 32,
    "sym": True,
    "data_type": "mx_fp",
    "iters": 0,
    "autoround_version": "0.16.1",
}

QUARK: dict[str, Any] = {
    "quant_method": "quark",
    "global_quant_config": {
        "weight": {
            "dtype": "fp4", "qscheme": "per_group", "group_size": 32, "ch_axis": -1, "is_dynamic": False,
            "scale_format": "e8m0", "scale_type": "float",
        },
        "input_tensors": {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False},
        "output_tensors": None,
        "bias": None,
    },
    "layer_quant_config": {},
    "layer_type_quant_config": {},
    "exclude": ["lm_head", "*router*"],
    "algo_config": None,
    "export": {"pack_method": "reorder", "weight_format": "real_quantized", "kv_cache_group": []},
}  # fmt: skip
MODELOPT: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": "MXFP4"}
MLX: dict[str, Any] = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
