"""The layout of Hugging Face repositories."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert.checkpoint import FULL, SLIDING, Checkpoint, ModelConfig, YarnRope, inventory
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.huggingface import parse_config, read, recognises
from tests.support.checkpoints import Shape, write_huggingface, write_safetensors
from tests.support.layouts import BYTES_PER_ELEMENT, huggingface_tensors
from tests.support.tokenizers import write_small_tokenizer

DATA = Path(__file__).resolve().parents[2] / "data"
PATH = Path("config.json")
SHAPE = Shape(layers=1, experts=2, experts_per_token=2, vocab=64)
GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"


def raw_config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((DATA / name).read_text(encoding="utf-8"))
    return config


PUBLISHED = raw_config("gpt-oss/20b/config.json")
GPT_OSS_20B = ModelConfig(
    num_hidden_layers=24,
    hidden_size=2880,
    intermediate_size=2880,
    num_local_experts=32,
    num_experts_per_tok=4,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=201088,
    max_position_embeddings=131072,
    sliding_window=128,
    layer_types=(SLIDING, FULL) * 12,
    rope=YarnRope(
        theta=150000,
        factor=32,
        beta_fast=32,
        beta_slow=1,
        original_context_length=4096,
        truncate=False,
    ),
    rms_norm_eps=1e-5,
    swiglu_limit=7.0,
)
GPT_OSS_120B = replace(GPT_OSS_20B, num_hidden_layers=36, num_local_experts=128, layer_types=(SLIDING, FULL) * 18)


def changed(**fields: Any) -> dict[str, Any]:
    """The published configuration with other fields; None leaves a field out."""
    return {key: value for key, value in (PUBLISHED | fields).items() if value is not None}


# --- configuration


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-oss/20b/config.json", GPT_OSS_20B),
        ("gpt-oss/120b/config.json", GPT_OSS_120B),
        ("golden/transformers-config-20b.json", GPT_OSS_20B),
        ("golden/transformers-config-120b.json", GPT_OSS_120B),
    ],
)
def test_configuration_is_read_as_published_and_as_transformers_5_saves_it(
    name: str, expected: ModelConfig
) -> None:
    assert parse_config(raw_config(name), PATH) == expected


def test_theta_may_stand_beside_rope_parameters() -> None:
    rope = PUBLISHED["rope_scaling"]
    config = parse_config(changed(rope_scaling=None, rope_parameters=rope, rope_theta=10000), PATH)
    assert config.rope.theta == 10000


@pytest.mark.parametrize(
    ("field", "expected"),
    [("beta_fast", 32.0), ("beta_slow", 1.0), ("truncate", True)],
)
def test_rope_has_the_defaults_of_transformers(field: str, expected: object) -> None:
    rope = {key: value for key, value in PUBLISHED["rope_scaling"].items() if key != field}
    assert getattr(parse_config(changed(rope_scaling=rope), PATH).rope, field) == expected


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("layer_types", (SLIDING, FULL) * 12),
        ("max_position_embeddings", 131072),
        ("rms_norm_eps", 1e-5),
        ("swiglu_limit", 7.0),
        ("num_experts_per_tok", 4),  # experts_per_token says so too
    ],
)
def test_configuration_has_the_defaults_of_transformers(field: str, expected: object) -> None:
    assert getattr(parse_config(changed(**{field: None}), PATH), field) == expected


def test_unknown_fields_are_ignored() -> None:
    assert parse_config(changed(use_cache=False, dtype="bfloat16", new_field=[1]), PATH) == GPT_OSS_20B


@pytest.mark.parametrize(
    "field",
    [
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_local_experts",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "sliding_window",
    ],
)
@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "64", True, [64], 10**10, "missing"])
def test_count_that_is_missing_or_impossible_is_refused(field: str, value: object) -> None:
    raw = changed(**{field: None}) if value == "missing" else PUBLISHED | {field: value}
    with pytest.raises(InputError, match=field):
        parse_config(raw, PATH)


@pytest.mark.parametrize("value", [0, -1.0, "1e-5", float("nan")])
@pytest.mark.parametrize("field", ["rms_norm_eps", "swiglu_limit", "rope_theta"])
def test_impossible_number_is_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        parse_config(PUBLISHED | {field: value}, PATH)


@pytest.mark.parametrize("field", ["rms_norm_eps", "swiglu_limit", "rope_theta"])
def test_infinity_is_refused(field: str) -> None:
    with pytest.raises(InputError, match=field):
        parse_config(PUBLISHED | {field: float("inf")}, PATH)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_theta": None}, "lacks rotary embedding"),
        ({"rope_scaling": None}, "lacks rotary embedding"),
        ({"num_experts_per_tok": None, "experts_per_token": None}, "lacks num_experts_per_tok"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"rope_scaling": []}, "rope_scaling"),
        ({"layer_types": [SLIDING] * 23}, "layer_types has 23 entries for 24 layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 36}, "layer_types has 24 entries for 36 layers"),
        ({"num_key_value_heads": 7}, "not a multiple of"),
        ({"num_experts_per_tok": 33}, "33 of only 32 experts"),
        ({"head_dim": 63}, "odd"),
        ({"quantization_config": []}, "quantization_config"),
    ],
)
def test_contradiction_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_config(changed(**fields), PATH)
    assert caught.value.file == "config.json"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llama"}, "not a gpt-oss model"),
        ({"model_type": ["gpt_oss"]}, "not a gpt-oss model"),
        ({"rope_scaling": PUBLISHED["rope_scaling"] | {"rope_type": "linear"}}, "not YaRN"),
        ({"rope_scaling": PUBLISHED["rope_scaling"] | {"rope_type": "longrope"}}, "not YaRN"),
        ({"layer_types": ["chunked_attention"] * 24}, "unknown layer type"),
        ({"attention_bias": False}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_variant_is_not_supported(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        parse_config(changed(**fields), PATH)


@pytest.mark.parametrize(
    "fields",
    [
        {"swiglu_alpha": 1.0},
        {"rope_scaling": PUBLISHED["rope_scaling"] | {"attention_factor": 2.0}},
        {"rope_scaling": PUBLISHED["rope_scaling"] | {"mscale": 2.0, "mscale_all_dim": 1.0}},
    ],
)
def test_variant_that_no_format_can_state_is_not_supported(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError):
        parse_config(changed(**fields), PATH)


# --- folders


def write(folder: Path, **options: Any) -> Path:
    return write_huggingface(folder, SHAPE, **options)


def problems(checkpoint: Checkpoint) -> str:
    return "\n".join(map(str, checkpoint.problems))


def test_folder_is_recognised_by_its_configuration(tmp_path: Path) -> None:
    assert not recognises(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert not recognises(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "any"}', encoding="utf-8")
    assert recognises(tmp_path)


@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
def test_folder_is_read(tmp_path: Path, experts: Any) -> None:
    checkpoint = read(write(tmp_path, experts=experts))
    checkpoint.require_sound()
    expected = inventory(checkpoint.config)
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {
        name: spec.shape for name, spec in expected.items()
    }
    assert list(checkpoint.tensors) == list(expected)
    assert checkpoint.tensors[GATE_UP].encoding.name == experts
    assert checkpoint.tensors["lm_head.weight"].encoding.name == "bf16"
    assert checkpoint.files == (tmp_path / "model.safetensors",)


def test_blocks_and_scales_may_lie_in_any_shards(tmp_path: Path) -> None:
    whole = read(write(tmp_path / "whole"))
    shuffled = read(write(tmp_path / "shuffled", shards=7, placement="shuffled"))
    shuffled.require_sound()
    assert len(shuffled.files) == 7
    for name, tensor in whole.tensors.items():
        for expected, found in zip(
            tensor.read(0, tensor.rows), shuffled.tensors[name].read(0, tensor.rows), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def test_tokenizer_is_found_with_the_ids_of_the_configuration(tmp_path: Path) -> None:
    special = write_small_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = read(write_huggingface(tmp_path, replace(SHAPE, vocab=512))).tokenizer
    assert tokenizer is not None
    assert tokenizer.vocabulary().special_ids == {"eos": special["<|return|>"], "pad": special["<|endoftext|>"]}


def test_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    assert read(write(tmp_path)).tokenizer is None


def test_configuration_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path) / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    read(tmp_path).require_sound()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000])
def test_damaged_configuration_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        recognises(tmp_path)


# --- tensors that are wrong; each case replaces or removes some


Change = Mapping[str, tuple[str, tuple[int, ...]] | None]


def rewrite(folder: Path, change: Change, *, experts: Any = "mxfp4") -> Checkpoint:
    """A folder of zeros where some tensors have another dtype and shape, or (None) are missing."""
    write(folder, experts=experts)
    stored: Change = {
        tensor.name: (tensor.dtype, tensor.shape) for tensor in huggingface_tensors(SHAPE, experts=experts)
    }
    entries = [
        (name, *kind, bytes(math.prod(kind[1]) * BYTES_PER_ELEMENT[kind[0]]))
        for name, kind in (dict(stored) | dict(change)).items()
        if kind is not None
    ]
    write_safetensors(folder / "model.safetensors", entries)
    return read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({GATE_UP + "_scales": None}, "blocks without scales"),
        ({GATE_UP + "_blocks": None}, "scales without blocks"),
        ({GATE_UP + "_blocks": None, GATE_UP + "_scales": None}, "tensor is missing"),
        ({GATE_UP + "_blocks": ("F32", (2, 192, 2, 16))}, "MXFP4 part is not bytes"),
        ({GATE_UP + "_scales": ("BF16", (2, 192, 2))}, "MXFP4 part is not bytes"),
        ({GATE_UP + "_blocks": ("U8", (2, 192, 4, 8))}, "MXFP4 blocks have the wrong shape"),
        ({GATE_UP + "_blocks": ("U8", (2, 192, 32))}, "MXFP4 blocks have the wrong shape"),
        ({GATE_UP + "_blocks": ("U8", (0, 192, 2, 16))}, "MXFP4 blocks have the wrong shape"),
        ({GATE_UP + "_scales": ("U8", (2, 192, 3))}, "MXFP4 scales do not fit the blocks"),
        ({GATE_UP + "_scales": ("U8", (2, 192, 2, 1))}, "MXFP4 scales do not fit the blocks"),
        # Expert counts, rows and columns that the configuration contradicts.
        (
            {GATE_UP + "_blocks": ("U8", (3, 192, 2, 16)), GATE_UP + "_scales": ("U8", (3, 192, 2))},
            "does not fit the configuration",
        ),
        (
            {GATE_UP + "_blocks": ("U8", (2, 191, 2, 16)), GATE_UP + "_scales": ("U8", (2, 191, 2))},
            "does not fit the configuration",
        ),
        (
            {GATE_UP + "_blocks": ("U8", (2, 64, 6, 16)), GATE_UP + "_scales": ("U8", (2, 64, 6))},
            "does not fit the configuration",
        ),
        ({"model.layers.0.self_attn.sinks": None}, "tensor is missing .*sinks"),
        ({"model.layers.0.self_attn.q_proj.bias": None}, "tensor is missing .*q_proj.bias"),
        ({"model.norm.weight": ("BF16", ())}, "tensor is empty"),
        ({"model.norm.weight": ("BF16", (0,))}, "tensor is empty"),
        ({"model.norm.weight": ("U8", (64,))}, "unexpected dtype"),
        ({"model.norm.weight": ("BF16", (1, 64))}, "does not fit the configuration"),
        ({"model.layers.1.self_attn.sinks": ("BF16", (4,))}, "unknown tensor"),
        ({"block.0.mlp.mlp1_weight.blocks": ("U8", (1,))}, "unexpected dtype"),
        ({"model.layers.0.mlp.experts.0.gate_proj.weight": ("BF16", (96, 64))}, "tensor occurs twice"),
        ({"model.layers.1.mlp.experts.0.down_proj.weight": ("BF16", (96, 64))}, "experts are missing"),
        ({"model.layers.0.self_attn.q_proj.scales": ("U8", (128, 2))}, "weight with scales is not packed codes"),
    ],
)
def test_wrong_tensor_is_a_problem(tmp_path: Path, change: Change, message: str) -> None:
    assert re.search(message, problems(rewrite(tmp_path, change)))


def test_experts_may_be_mixed(tmp_path: Path) -> None:
    change = {GATE_UP: ("BF16", (2, 64, 192)), GATE_UP + "_blocks": None, GATE_UP + "_scales": None}
    checkpoint = rewrite(tmp_path, change)
    checkpoint.require_sound()
    assert checkpoint.tensors[GATE_UP].encoding.name == "bf16"
    assert checkpoint.tensors["model.layers.0.mlp.experts.down_proj"].encoding.name == "mxfp4"


@pytest.mark.parametrize("shape", [(2, 192, 64), (2, 1, 64, 192), (128, 192), (0, 64, 192)])
def test_dense_experts_of_another_shape_are_a_problem(tmp_path: Path, shape: tuple[int, ...]) -> None:
    checkpoint = rewrite(tmp_path, {GATE_UP: ("BF16", shape)}, experts="bf16")
    assert re.search("does not fit the configuration|experts are not", problems(checkpoint))


@pytest.mark.parametrize(
    ("dtype", "shape", "scales", "message"),
    [
        ("BF16", (2, 192, 64), None, "does not fit the configuration"),
        ("BF16", (2, 64, 6, 32), None, "blocks without scales"),
        ("U8", (2, 64, 192), None, "blocks without scales"),
        ("BF16", (2, 64, 192), ("U8", (2, 192, 2)), "MXFP4 part is not bytes"),
    ],
)
def test_dense_experts_under_the_name_of_blocks_must_be_those_of_transformers(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], scales: Any, message: str
) -> None:
    change = {GATE_UP + "_blocks": (dtype, shape), GATE_UP + "_scales": scales}
    assert message in problems(rewrite(tmp_path, change))


def test_experts_that_are_stored_twice_are_a_problem(tmp_path: Path) -> None:
    assert problems(rewrite(tmp_path, {GATE_UP: ("BF16", (2, 64, 192))}))


def test_first_problem_is_raised_with_the_number_of_others(tmp_path: Path) -> None:
    checkpoint = rewrite(tmp_path, {"model.norm.weight": None, "lm_head.weight": None})
    with pytest.raises(InputError, match=r"tensor is missing .*model\.norm\.weight.*1 more"):
        checkpoint.require_sound()
