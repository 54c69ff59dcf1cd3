"""OpenAI's original layout."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert.checkpoint import Checkpoint, inventory
from gptoss_convert.errors import InputError
from gptoss_convert.formats import huggingface
from gptoss_convert.formats.openai import parse_config, read, recognises
from tests.support.checkpoints import Shape, write_huggingface, write_original, write_safetensors
from tests.support.layouts import BYTES_PER_ELEMENT, original_config, original_tensors
from tests.support.tokenizers import write_small_tokenizer

GPT_OSS = Path(__file__).resolve().parents[2] / "data/gpt-oss/20b"
PATH = Path("config.json")
SHAPE = Shape(layers=1, experts=2, experts_per_token=2, vocab=64)
FIELDS = list(original_config(SHAPE))
QKV = "block.0.attn.qkv.weight"
MLP1 = "block.0.mlp.mlp1_weight"


def changed(**fields: Any) -> dict[str, Any]:
    """The published configuration with other fields; None leaves a field out."""
    return {key: value for key, value in (original_config(SHAPE) | fields).items() if value is not None}


def problems(checkpoint: Checkpoint) -> str:
    return "\n".join(map(str, checkpoint.problems))


# --- configuration


def test_configuration_is_that_of_the_other_layout() -> None:
    ours = json.loads((GPT_OSS / "original/config.json").read_text(encoding="utf-8"))
    other = json.loads((GPT_OSS / "config.json").read_text(encoding="utf-8"))
    assert parse_config(ours, PATH) == huggingface.parse_config(other, PATH)


def test_swiglu_limit_has_a_default() -> None:
    assert parse_config(changed(swiglu_limit=None), PATH).swiglu_limit == 7.0


def test_layers_alternate() -> None:
    config = parse_config(changed(num_hidden_layers=3), PATH)
    assert config.layer_types == ("sliding_attention", "full_attention", "sliding_attention")


@pytest.mark.parametrize("field", [field for field in FIELDS if field != "swiglu_limit"])
@pytest.mark.parametrize("value", [None, 0, -1, "64", [64], True])
def test_field_that_is_missing_or_impossible_is_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        parse_config(changed(**{field: value}), PATH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "not a multiple of"),
        ({"experts_per_token": 3}, "3 of only 2 experts"),
        ({"head_dim": 31}, "odd"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ],
)
def test_contradiction_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config(changed(**change), PATH)


@pytest.mark.parametrize(("length", "factor"), [(4096, 32.0), (1 << 24, 1.0), (1 << 17, 1e4)])
def test_context_length_is_a_product(length: int, factor: float) -> None:
    config = parse_config(changed(initial_context_length=length, rope_scaling_factor=factor), PATH)
    assert config.max_position_embeddings == length * factor


@pytest.mark.parametrize("length", [4096, 1 << 24])
@pytest.mark.parametrize("factor", [1e6, 1e20, 1e306, float("inf")])
def test_context_length_beyond_31_bits_is_refused(length: int, factor: float) -> None:
    with pytest.raises(InputError):
        parse_config(changed(initial_context_length=length, rope_scaling_factor=factor), PATH)


def test_context_length_of_two_plausible_fields_is_refused_beyond_31_bits() -> None:
    with pytest.raises(InputError, match="context length"):
        parse_config(changed(initial_context_length=1 << 24, rope_scaling_factor=1e4), PATH)


# --- folders


def test_folder_is_recognised_by_its_configuration(tmp_path: Path) -> None:
    assert not recognises(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(changed(rope_ntk_alpha=None)), encoding="utf-8")
    assert not recognises(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(changed()), encoding="utf-8")
    assert recognises(tmp_path)


@pytest.mark.parametrize("shards", [1, 5])
def test_numbers_are_those_of_the_other_layout(tmp_path: Path, shards: int) -> None:
    shape = replace(SHAPE, layers=2)
    ours = read(write_original(tmp_path / "a", shape, shards=shards, placement="shuffled"))
    other = huggingface.read(write_huggingface(tmp_path / "b", shape))
    ours.require_sound()
    assert ours.config == other.config
    assert list(ours.tensors) == list(other.tensors) == list(inventory(ours.config))
    for name, tensor in ours.tensors.items():
        expected = other.tensors[name]
        assert (tensor.shape, tensor.encoding) == (expected.shape, expected.encoding)
        for left, right in zip(tensor.read(0, tensor.rows), expected.read(0, tensor.rows), strict=True):
            np.testing.assert_array_equal(left, right, err_msg=name)


def test_tokenizer_of_the_repository_is_used(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    write_huggingface(tmp_path, Shape())
    tokenizer = read(write_original(tmp_path / "original", Shape())).tokenizer
    assert tokenizer is not None
    assert tokenizer.path.resolve() == (tmp_path / "tokenizer.json").resolve()


def test_own_tokenizer_goes_before_that_of_the_repository(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    write_small_tokenizer(tmp_path / "original")
    tokenizer = read(write_original(tmp_path / "original", Shape())).tokenizer
    assert tokenizer is not None
    assert tokenizer.path == tmp_path / "original/tokenizer.json"


def test_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    assert read(write_original(tmp_path / "original", SHAPE)).tokenizer is None


# --- tensors that are wrong


Change = Mapping[str, tuple[str, tuple[int, ...]] | None]


def rewrite(folder: Path, change: Change) -> Checkpoint:
    """A folder of zeros where some tensors have another dtype and shape, or (None) are missing."""
    write_original(folder, SHAPE)
    stored: Change = {tensor.name: (tensor.dtype, tensor.shape) for tensor, _ in original_tensors(SHAPE)}
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
        ({MLP1 + ".scales": None}, "blocks without scales"),
        ({MLP1 + ".blocks": None}, "scales without blocks"),
        ({MLP1 + ".blocks": ("BF16", (2, 192, 2, 16))}, "MXFP4 part is not bytes"),
        ({MLP1 + ".scales": ("U8", (2, 192, 4))}, "MXFP4 scales do not fit the blocks"),
        ({QKV: None}, r"tensor is missing .*q_proj\.weight"),
        ({QKV: ("BF16", (255, 64))}, r"does not fit the configuration .*qkv.*found shape \[255, 64\]"),
        ({QKV: ("BF16", (256, 32))}, "does not fit the configuration"),
        ({QKV: ("BF16", (256,))}, "does not fit the configuration"),
        ({QKV: ("U8", (256, 64))}, "unexpected dtype"),
        ({QKV: ("BF16", (0, 64))}, "does not fit the configuration"),
        ({QKV: ("BF16", (256, 0))}, "tensor is empty"),
        ({"block.0.attn.qkv.bias": ("BF16", (256, 1))}, "does not fit the configuration"),
        ({"block.0.attn.sinks": None}, "tensor is missing .*sinks"),
        ({"norm.scale": ("BF16", (65,))}, "does not fit the configuration"),
        ({"block.1.attn.sinks": ("BF16", (4,))}, "unknown tensor"),
        ({"block.0.attn.q_norm.scale": ("BF16", (4,))}, "unknown tensor"),
        ({"lora.weight": ("BF16", (4,))}, "unknown tensor"),
    ],
)
def test_wrong_tensor_is_a_problem(tmp_path: Path, change: Change, message: str) -> None:
    assert re.search(message, problems(rewrite(tmp_path, change)))


@pytest.mark.parametrize("layer", ["00", "\u0660"])
def test_second_spelling_of_a_tensor_is_a_problem(tmp_path: Path, layer: str) -> None:
    assert problems(rewrite(tmp_path, {f"block.{layer}.attn.sinks": ("BF16", (4,))}))
