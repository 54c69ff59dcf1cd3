"""What quantization_config states, and which statements are refused."""

from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.quantization import NONE, GateUpRows, read_quantization
from tests.support.foreign_layouts import (
    AUTO_ROUND,
    COMPRESSED_BY_AUTO_ROUND,
    COMPRESSED_TENSORS,
    MLX,
    MODELOPT,
    QUARK,
)

PATH = Path("config.json")
GROUP: dict[str, Any] = COMPRESSED_TENSORS["config_groups"]["group_0"]
QUARK_LAYER: dict[str, Any] = QUARK["global_quant_config"]


def stated(quantization: object) -> Any:
    return read_quantization({"quantization_config": quantization}, PATH)


def compressed(**fields: Any) -> dict[str, Any]:
    """The statement of compressed-tensors with other fields; those of its group are spelled `group_...`."""
    group = GROUP | {key.removeprefix("group_"): value for key, value in fields.items() if key.startswith("group_")}
    rest = {key: value for key, value in fields.items() if not key.startswith("group_")}
    return COMPRESSED_TENSORS | {"config_groups": {"group_0": group}} | rest


def weights(**fields: Any) -> dict[str, Any]:
    return compressed(group_weights=GROUP["weights"] | fields)


def quark(**weight: Any) -> dict[str, Any]:
    return QUARK | {"global_quant_config": QUARK_LAYER | {"weight": QUARK_LAYER["weight"] | weight}}


def test_no_statement_means_what_the_tensors_say() -> None:
    assert read_quantization({}, PATH) == NONE
    assert stated(None) == NONE


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4"),
        ({}, "mxfp4"),
        (COMPRESSED_TENSORS, "compressed-tensors"),
        (compressed(format="mixed-precision", group_format="mxfp4-pack-quantized"), "compressed-tensors"),
        (COMPRESSED_BY_AUTO_ROUND, "compressed-tensors"),
        (AUTO_ROUND, "auto-round"),
        (AUTO_ROUND | {"data_type": "mx_fp4", "extra_config": {"lm_head": {"bits": 16}}}, "auto-round"),
        (QUARK, "quark"),
        (QUARK | {"layer_quant_config": {"*k_proj": QUARK_LAYER, "*q_proj": {"weight": None}}}, "quark"),
        (MODELOPT, "modelopt"),
        (MLX, "MLX"),
        (MLX | {"model.layers.0.mlp.router": False, "lm_head": MLX}, "MLX"),
    ],
)
def test_mxfp4_of_every_tool_is_accepted(quantization: dict[str, Any], method: str) -> None:
    assert stated(quantization).method == method


@pytest.mark.parametrize(
    ("version", "offset", "rows"),
    [
        ("0.13.0", 2, None),
        ("0.14.0", 0, GateUpRows.ALTERNATING),
        ("0.14.1.a20260301", 0, GateUpRows.ALTERNATING),
        ("0.16.0", 0, GateUpRows.ALTERNATING),
        ("0.16.1.a20260601", 0, None),
        ("0.17.0", 0, None),
        ("0.17.1", 0, GateUpRows.HALVES),
        ("0.18.0", 0, GateUpRows.HALVES),
        ("0.18.1.a20260826", 0, None),
        ("0.19.0", 0, GateUpRows.ALTERNATING),
        ("0.20.0", 0, GateUpRows.ALTERNATING),
        ("1.0.0", 0, GateUpRows.ALTERNATING),
    ],
)
def test_version_of_compressed_tensors_tells_scales_and_rows(
    version: str, offset: int, rows: GateUpRows | None
) -> None:
    quantization = stated(COMPRESSED_TENSORS | {"version": version})
    assert (quantization.scale_offset, quantization.gate_up) == (offset, rows)


@pytest.mark.parametrize("version", [None, "0.13.0", "0.18.0", "0.20.0"])
def test_auto_round_splits_rows_and_biases_scales_in_the_same_way_beside_any_version(version: str | None) -> None:
    quantization = stated(COMPRESSED_BY_AUTO_ROUND | {"version": version})
    assert (quantization.scale_offset, quantization.gate_up) == (0, GateUpRows.ALTERNATING)


@pytest.mark.parametrize("version", [None, "", "0.12.2", "0.13.1.a20260110", "next", "0.20", "99999.0.0"])
def test_version_that_leaves_the_bias_of_scales_open_is_refused(version: str | None) -> None:
    with pytest.raises(InputError, match=r"bias of 125 or 127 \(config\.json\).*set \"version\"") as caught:
        stated(COMPRESSED_TENSORS | {"version": version})
    assert f"compressed-tensors version {version}" in str(caught.value)


@pytest.mark.parametrize(
    ("quantization", "remark"),
    [
        (compressed(group_input_activations={"num_bits": 8}), "activations"),
        (compressed(kv_cache_scheme={"num_bits": 8}), "KV cache"),
        (COMPRESSED_TENSORS | {"version": "0.13.0"}, "stored 2 too small"),
        (COMPRESSED_TENSORS | {"version": "0.18.0"}, "first and the second half"),
        (QUARK, "activations or the KV cache"),
        (MODELOPT | {"quant_algo": "W4A8_MXFP4_FP8"}, "activations"),
        (MODELOPT | {"kv_cache_quant_algo": "FP8"}, "KV cache"),
    ],
)
def test_what_is_left_out_or_assumed_is_said(quantization: dict[str, Any], remark: str) -> None:
    (said,) = stated(quantization).remarks
    assert remark in said


@pytest.mark.parametrize(
    ("quantization", "found"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": ["mxfp4"]}, r"\['mxfp4'\]"),
        (compressed(format="nvfp4-pack-quantized"), "compressed-tensors with format nvfp4-pack-quantized"),
        (compressed(format="pack-quantized"), "format pack-quantized"),
        (compressed(group_format="float-quantized"), "format float-quantized"),
        (compressed(group_weights=None), "group_0 with weights None"),
        (weights(group_size=16), "'group_size': 16"),
        (weights(num_bits=8), "'num_bits': 8"),
        (weights(type="int"), "'type': 'int'"),
        (weights(symmetric=False), "'symmetric': False"),
        (weights(scale_dtype="torch.float8_e4m3fn"), "scales of torch.float8_e4m3fn"),
        (compressed(transform_config={"config_groups": {"R1": {}}}), "weights are rotated"),
        (AUTO_ROUND | {"data_type": "int"}, "auto-round with data_type int, 4 bits in groups of 32"),
        (AUTO_ROUND | {"data_type": "nv_fp", "group_size": 16}, "data_type nv_fp, 4 bits in groups of 16"),
        (AUTO_ROUND | {"bits": 8}, "data_type mx_fp, 8 bits"),
        (AUTO_ROUND | {"rotation_config": {"block_size": 32}}, "auto-round with rotated weights"),
        (AUTO_ROUND | {"spinquant_config": {"R1": True}}, "auto-round with rotated weights"),
        (quark(dtype="mx", mx_element_dtype="fp4"), "blocks of 17 bytes"),
        (quark(dtype="fp8_e4m3"), "dtype fp8_e4m3"),
        (quark(group_size=16), "group_size 16"),
        (quark(scale_format="e4m3"), "scale_format e4m3"),
        (QUARK | {"layer_quant_config": {"*o_proj": {"weight": {"dtype": "int4"}}}}, r"\*o_proj with dtype int4"),
        (QUARK | {"algo_config": [{"name": "rotation"}]}, "rotated weights"),
        (MODELOPT | {"quant_algo": "NVFP4"}, "modelopt with quant_algo NVFP4"),
        ({"quant_method": "modelopt"}, "modelopt with quant_algo None"),
        ({"group_size": 64, "bits": 4}, "MLX, weights with mode affine, 4 bits in groups of 64"),
        (MLX | {"lm_head": {"group_size": 64, "bits": 8}}, "MLX, lm_head with mode affine, 8 bits"),
    ],
)
def test_other_quantization_is_refused_with_what_was_found_and_what_can_be_done(
    quantization: dict[str, Any], found: str
) -> None:
    with pytest.raises(UnsupportedError, match=f"quantization method cannot be read .*found .*{found}") as caught:
        stated(quantization)
    assert caught.value.file == "config.json"
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "quantization",
    [
        [],
        "mxfp4",
        {"quant_method": "compressed-tensors"},
        compressed(config_groups=[]),
        weights(num_bits="4"),
        {"quant_method": "auto-round"},
        AUTO_ROUND | {"bits": "4"},
        {"quant_method": "quark"},
        QUARK | {"global_quant_config": {"weight": 4}},
        MODELOPT | {"quant_algo": 4},
        MLX | {"bits": "4"},
    ],
)
def test_malformed_statement_is_refused(quantization: object) -> None:
    with pytest.raises(InputError, match=r"configuration.*config\.json"):
        stated(quantization)
