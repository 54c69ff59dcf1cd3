"""Adapter folders: what is taken from their names and configuration, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.errors import GptossConvertError, InputError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.peft import ExpertColumnsStorage, factors, open_adapter, swapped_experts
from gptoss_convert.formats.storage import FileRef, StoredArray
from tests.support.adapters import LAYER, pair, write_adapter, write_config

QUERY = f"{LAYER}.self_attn.q_proj"
EXPERTS = f"{LAYER}.mlp.experts"
NAME = "model.layers.0.self_attn.q_proj.weight"
ONE = pair(QUERY, (2, 64), (128, 2))


def zeros(*shape: int, dtype: str = "f4") -> Any:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("config", "rank", "scaling"),
    [
        ({}, 2, 2.0),
        ({"lora_alpha": 3}, 2, 1.5),
        ({"use_rslora": True}, 2, 4 / math.sqrt(2)),
        ({"r": 8, "rank_pattern": {"q_proj": 2}}, 2, 2.0),
        ({"r": 8, "rank_pattern": {"k_proj": 3, "self_attn.q_proj": 2, "q_proj": 5}}, 2, 2.0),
        ({"r": 2, "rank_pattern": {"proj": 5, "q_pro": 6, "elf_attn.q_proj": 7}}, 2, 2.0),
        ({"alpha_pattern": {r"^model\.layers\.\d+\.self_attn\.(q|k)_proj": 10}}, 2, 5.0),
        ({"alpha_pattern": {r"layers\.[1-9]\..*q_proj": 10}}, 2, 2.0),
        ({"r": 2, "use_rslora": True, "rank_pattern": {"q_proj": 16}}, 16, 1.0),
    ],
)
def test_rank_and_scaling_come_from_the_first_pattern_that_matches_the_end_of_the_name(
    tmp_path: Path, config: dict[str, Any], rank: int, scaling: float
) -> None:
    found = open_adapter(write_adapter(tmp_path, ONE, **config)).pairs[NAME]
    assert (found.rank, found.scaling) == (rank, pytest.approx(scaling, rel=1e-15))


def test_nested_pairs_of_experts_are_counted_from_the_inside(tmp_path: Path) -> None:
    inner, outer = pair(f"{EXPERTS}.base_layer", (8, 64), (192, 8)), pair(EXPERTS, (8, 96), (64, 8))
    targets = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    pairs = open_adapter(write_adapter(tmp_path, outer | inner, target_parameters=targets)).pairs
    shapes = {name.rpartition(".")[2]: (found.a.shape, found.b.shape) for name, found in pairs.items()}
    assert shapes == {"gate_up_proj": ((8, 64), (192, 8)), "down_proj": ((8, 96), (64, 8))}


def test_a_single_pair_of_experts_belongs_to_the_only_target(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, pair(EXPERTS, (8, 96), (64, 8)), target_parameters=["mlp.experts.down_proj"])
    assert list(open_adapter(adapter).pairs) == ["model.layers.0.mlp.experts.down_proj"]


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("base_model.model.lm_head.weight", "lm_head.weight"),
        ("base_model.model.lm_head.modules_to_save.weight", "lm_head.weight"),
        ("base_model.model.model.embed_tokens.base_layer.weight", "model.embed_tokens.weight"),
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
    ],
)
def test_tensors_that_were_saved_as_a_whole(tmp_path: Path, stored: str, canonical: str) -> None:
    assert list(open_adapter(write_adapter(tmp_path, {stored: zeros(4, 3)})).replacements) == [canonical]


def test_the_base_model_is_the_one_that_the_configuration_names(tmp_path: Path) -> None:
    assert open_adapter(write_adapter(tmp_path, ONE)).base_model == "someone/base"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LOHA"}, ["not a LoRA adapter", "LOHA"]),
        ({"peft_type": None}, ["not a LoRA adapter"]),
        ({"use_dora": True}, ["DoRA"]),
        ({"lora_bias": True}, ["lora_bias True"]),
        ({"fan_in_fan_out": True}, ["transposed"]),
        ({"layer_replication": [[0, 4], [2, 5]]}, ["repeated layers"]),
        ({"trainable_token_indices": [1]}, ["single tokens"]),
        ({"alora_invocation_tokens": [1]}, ["some tokens only"]),
        ({"megatron_config": {"x": 1}}, ["Megatron"]),
        ({"use_qalora": True}, ["use_qalora"]),
        *(({"init_lora_weights": kind}, [kind, "base model whose weights"]) for kind in
          ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")),
        ({"rank_pattern": {"(a+)+": 2}}, ["too complicated", "(a+)+"]),
        ({"rank_pattern": {"(a|a)(a|a)(a|a)q": 2}}, ["too complicated"]),
        ({"alpha_pattern": {".*.*.*": 2}}, ["too complicated"]),
        ({"alpha_pattern": {r"(.)\1": 2}}, ["too complicated"]),
        ({"alpha_pattern": {"a" * 301: 2}}, ["too complicated"]),
    ],
)  # fmt: skip
def test_settings_that_make_it_more_than_a_low_rank_change(
    tmp_path: Path, config: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        open_adapter(write_adapter(tmp_path, ONE, **config))
    assert all(word in str(caught.value) for word in words)
    assert "adapter_config.json" in str(caught.value)
    assert "merge_and_unload" in str(caught.value)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_initialisations_that_keep_the_base(tmp_path: Path, init: object) -> None:
    assert open_adapter(write_adapter(tmp_path, ONE, init_lora_weights=init)).pairs


@pytest.mark.parametrize(
    "config",
    [
        {"r": 0},
        {"r": 1 << 40},
        {"r": "8"},
        {"r": True},
        {"lora_alpha": 1e300},
        {"lora_alpha": [1]},
        {"rank_pattern": {"q_proj": -1}},
        {"rank_pattern": ["q_proj"]},
        {"alpha_pattern": {"q_proj": None}},
        {"alpha_pattern": {"(q_proj": 1}},
        {"target_parameters": "experts"},
        {"use_rslora": "yes"},
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        open_adapter(write_adapter(tmp_path, ONE, **config))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_scalings_that_are_no_numbers(tmp_path: Path, number: str) -> None:
    write_adapter(tmp_path, ONE)
    text = json.dumps({"peft_type": "LORA", "r": 2})[:-1] + f', "lora_alpha": {number}}}'
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="lora_alpha"):
        open_adapter(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        (ONE | {f"{QUERY}.lora_magnitude_vector": zeros(128)}, UnsupportedError, ["DoRA", "lora_magnitude_vector"]),
        (ONE | {f"{QUERY}.lora_B.bias": zeros(128)}, UnsupportedError, ["lora_bias"]),
        (
            ONE | {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": zeros(2, 64)},
            UnsupportedError, ["single tokens"],
        ),
        (pair(f"{EXPERTS}.gate_up_projs.3", (2, 64), (192, 2)), UnsupportedError, ["Unsloth", "gate_up_projs.3"]),
        (pair(f"{EXPERTS}.down_projs.0", (2, 96), (64, 2)), UnsupportedError, ["Unsloth"]),
        (ONE | {f"{QUERY}.base_layer.weight": zeros(64, 64, dtype="u1")}, UnsupportedError, ["quantised", "U8"]),
        (ONE | {f"{QUERY}.lora_C.weight": zeros(2, 2)}, InputError, ["unknown kind", "lora_C"]),
        (ONE | {f"{QUERY}.lora_A.default.weight": zeros(2, 64)}, InputError, ["unknown kind"]),
        ({f"{QUERY}.lora_A.weight": zeros(2, 64)}, InputError, ["one A and one B", "lora_A.weight"]),
        ({f"{QUERY}.lora_B.weight": zeros(128, 2)}, InputError, ["one A and one B"]),
        (
            {f"{QUERY}.lora_A.weight": zeros(2, 64), f"{QUERY}.lora_embedding_B": zeros(64, 2)},
            InputError, ["one A and one B"],
        ),
        (pair(QUERY, (2, 64), (2,)), InputError, ["no matrix", "lora_B"]),
        (pair(QUERY, (), (128, 2)), InputError, ["no matrix", "lora_A"]),
        (pair(f"{QUERY}.base_layer", (2, 64), (128, 2)), InputError, ["unknown kind"]),
        (pair(EXPERTS, (8, 96), (64, 8)), InputError, ["target parameter", "none"]),
        ({"lm_head.weight": zeros(2, 2), "lm_head.base_layer.weight": zeros(2, 2)}, InputError, ["twice"]),
        ({"lm_head.weight": zeros(0, 2)}, InputError, ["empty"]),
        ({f"{EXPERTS}.down_proj": zeros(2, 2)}, InputError, ["[experts, in, out]"]),
        ({}, InputError, ["no tensors"]),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(
    tmp_path: Path, tensors: Any, error: type[GptossConvertError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        open_adapter(write_adapter(tmp_path, tensors))
    assert all(word in str(caught.value) for word in words), caught.value
    assert "adapter_model.safetensors" in str(caught.value)


def test_fewer_pairs_of_experts_than_target_parameters(tmp_path: Path) -> None:
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    with pytest.raises(InputError, match=r"found 1 pairs, expected 2, for gate_up_proj, down_proj"):
        open_adapter(write_adapter(tmp_path, pair(EXPERTS, (8, 96), (64, 8)), target_parameters=targets))


def test_a_gap_in_the_nesting(tmp_path: Path) -> None:
    tensors = pair(EXPERTS, (8, 96), (64, 8)) | pair(f"{EXPERTS}.base_layer.base_layer", (8, 64), (192, 8))
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    with pytest.raises(InputError, match="one pair for every target parameter"):
        open_adapter(write_adapter(tmp_path, tensors, target_parameters=targets))


def test_pickles_are_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(UnsupportedError, match=r"unpickling can run code.*adapter_model\.bin"):
        open_adapter(tmp_path)


def test_a_pickle_beside_safetensors_is_not_looked_at(tmp_path: Path) -> None:
    write_adapter(tmp_path, ONE)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x02.")
    assert open_adapter(tmp_path).pairs


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files(tmp_path: Path, missing: str) -> None:
    (write_adapter(tmp_path, ONE) / missing).unlink()
    with pytest.raises(InputError, match=r"not an adapter|file is missing"):
        open_adapter(tmp_path)


def test_a_file_is_no_adapter(tmp_path: Path) -> None:
    file = write_adapter(tmp_path, ONE) / "adapter_model.safetensors"
    with pytest.raises(InputError, match="not an adapter"):
        open_adapter(file)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"peft_type": "LORA", "r": 1e999}'])
def test_configurations_that_are_no_json_objects_or_hold_no_numbers(tmp_path: Path, text: str) -> None:
    (write_adapter(tmp_path, ONE) / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        open_adapter(tmp_path)


@given(cut=st.integers(0, 2000))
def test_truncated_weights(tmp_path: Path, cut: int) -> None:
    weights = write_adapter(tmp_path, ONE) / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: min(cut, len(data) - 1)])
    with pytest.raises(InputError):
        open_adapter(tmp_path)


def test_a_folder_with_an_adapter_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"adapter, not a model.*--adapter"):
        open_checkpoint(write_adapter(tmp_path, ONE))


@pytest.mark.parametrize(
    ("a", "b", "shape"),
    [
        ((2, 65), (128, 2), (128, 64)),
        ((2, 64), (127, 2), (128, 64)),
        ((3, 64), (128, 3), (128, 64)),
        ((2, 64), (128, 3), (128, 64)),
        ((128, 2), (2, 64), (128, 64)),
        ((2, 64), (128, 2), (4, 128, 64)),
        ((8, 64), (128, 6), (4, 128, 64)),
    ],
)
def test_matrices_that_do_not_fit(
    tmp_path: Path, a: tuple[int, ...], b: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    found = open_adapter(write_adapter(tmp_path, pair(QUERY, a, b))).pairs[NAME]
    with pytest.raises(InputError, match=r"does not fit the model.*rank 2"):
        factors(found, NAME, shape, swapped=False)


def test_a_vector_has_no_low_rank_change(tmp_path: Path) -> None:
    found = open_adapter(write_adapter(tmp_path, ONE)).pairs[NAME]
    with pytest.raises(InputError, match="no matrix"):
        factors(found, NAME, (128,), swapped=False)


@pytest.mark.parametrize(
    ("gate_up", "down", "expected"),
    [
        (((8, 64), (192, 8)), ((8, 96), (64, 8)), False),
        (((8, 192), (64, 8)), ((8, 64), (96, 8)), True),
        (((8, 192), (64, 8)), ((8, 1), (1, 8)), True),
    ],
)
def test_the_side_of_a_is_told_by_shapes(tmp_path: Path, gate_up: Any, down: Any, expected: bool) -> None:
    tensors = pair(f"{EXPERTS}.base_layer", *gate_up) | pair(EXPERTS, *down)
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    adapter = open_adapter(write_adapter(tmp_path, tensors, target_parameters=targets))
    shapes = {
        "model.layers.0.mlp.experts.gate_up_proj": (4, 192, 64),
        "model.layers.0.mlp.experts.down_proj": (4, 64, 96),
    }
    assert swapped_experts(adapter, shapes) is expected


def test_square_experts_do_not_tell_the_side_of_a(tmp_path: Path) -> None:
    tensors = pair(EXPERTS, (8, 64), (64, 8))
    adapter = open_adapter(write_adapter(tmp_path, tensors, target_parameters=["experts.down_proj"]))
    assert swapped_experts(adapter, {"model.layers.0.mlp.experts.down_proj": (4, 64, 64)}) is None


def test_sides_that_contradict_each_other(tmp_path: Path) -> None:
    tensors = pair(f"{EXPERTS}.base_layer", (8, 64), (192, 8)) | pair(EXPERTS, (8, 64), (96, 8))
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    adapter = open_adapter(write_adapter(tmp_path, tensors, target_parameters=targets))
    shapes = {
        "model.layers.0.mlp.experts.gate_up_proj": (4, 192, 64),
        "model.layers.0.mlp.experts.down_proj": (4, 64, 96),
    }
    with pytest.raises(InputError, match="some experts"):
        swapped_experts(adapter, shapes)


@given(bounds=st.tuples(st.integers(0, 15), st.integers(0, 15)).map(sorted))
def test_columns_of_experts_are_gathered(tmp_path: Path, bounds: list[int]) -> None:
    values = np.arange(5 * 6, dtype="<f4").reshape(5, 6)
    path = tmp_path / "values"
    path.write_bytes(values.tobytes())
    storage = ExpertColumnsStorage(StoredArray(FileRef.at(path), 0, values.dtype, 6), rows=5, experts=3)
    expected = np.stack([values[:, expert::3] for expert in range(3)]).reshape(15, 2)
    (rows,) = storage.read(*bounds)
    np.testing.assert_array_equal(rows, expected[slice(*bounds)])


def test_gathered_columns_are_never_written(tmp_path: Path) -> None:
    path = tmp_path / "values"
    path.write_bytes(bytes(8))
    storage = ExpertColumnsStorage(StoredArray(FileRef.at(path), 0, np.dtype("<f4"), 2), rows=1, experts=2)
    with pytest.raises(TypeError, match="can only be read"):
        storage.write(None, 0, ())  # type: ignore[arg-type]
