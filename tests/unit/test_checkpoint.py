"""The canonical checkpoint: inventory, checks, ranges of rows, and equality over layouts."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert.assets import Assets
from gptoss_convert.checkpoint import (
    FULL,
    SLIDING,
    Checkpoint,
    Collected,
    ModelConfig,
    Role,
    Tensor,
    assemble_checkpoint,
    check_tensors,
    collect_tensors,
    in_canonical_order,
    inventory,
)
from gptoss_convert.description import Description
from gptoss_convert.encodings import ENCODINGS, Array, EncodingError
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.huggingface import parse_config
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.layouts import huggingface_tensors
from tests.support.memory import PLACE, InMemory, zeros

PUBLISHED = Path(__file__).resolve().parents[1] / "data/gpt-oss"


def config(size: str) -> ModelConfig:
    path = PUBLISHED / size / "config.json"
    return parse_config(json.loads(path.read_text(encoding="utf-8")), path)


# --- inventory


@pytest.mark.parametrize(
    ("size", "tensors", "parameters"), [("20b", 411, 20_914_757_184), ("120b", 615, 116_829_156_672)]
)
def test_inventory_of_published_models(size: str, tensors: int, parameters: int) -> None:
    specs = inventory(config(size))
    assert len(specs) == tensors
    assert sum(math.prod(spec.shape) for spec in specs.values()) == parameters


def test_inventory_names_what_the_published_index_names() -> None:
    index = json.loads((PUBLISHED / "20b/model.safetensors.index.json").read_text(encoding="utf-8"))
    stored = {name.removesuffix("_blocks").removesuffix("_scales") for name in index["weight_map"]}
    assert inventory(config("20b")).keys() == stored


def test_inventory_has_the_shapes_of_the_layout() -> None:
    shape = Shape(layers=2, hidden=64, intermediate=96, experts=3, experts_per_token=2, heads=4, kv_heads=2)
    raw = {
        entry.name: entry.shape if entry.kind != "experts" else (entry.shape[0], entry.shape[2], entry.shape[1])
        for entry in huggingface_tensors(shape, experts="bf16")
    }
    small = replace(
        config("20b"),
        num_hidden_layers=2,
        layer_types=(SLIDING, FULL),
        hidden_size=64,
        intermediate_size=96,
        num_local_experts=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=512,
    )
    assert {name: spec.shape for name, spec in inventory(small).items()} == raw


def test_inventory_begins_with_the_embedding_and_ends_with_the_unembedding() -> None:
    names = list(inventory(config("20b")))
    assert names[0] == "model.embed_tokens.weight"
    assert names[1].startswith("model.layers.0.")
    assert names[-2:] == ["model.norm.weight", "lm_head.weight"]


def test_layers_come_in_the_order_of_numbers() -> None:
    layers = [int(name.split(".")[2]) for name in inventory(config("20b")) if name.startswith("model.layers.")]
    assert layers == sorted(layers)


@pytest.mark.parametrize(
    ("role", "count"),
    [
        (Role.EMBEDDING, 1),
        (Role.UNEMBEDDING, 1),
        (Role.NORM, 49),
        (Role.ATTENTION, 96),
        (Role.ATTENTION_BIAS, 96),
        (Role.SINKS, 24),
        (Role.ROUTER, 48),
        (Role.EXPERTS, 48),
        (Role.EXPERT_BIAS, 48),
    ],
)
def test_roles_of_gpt_oss_20b(role: Role, count: int) -> None:
    assert sum(spec.role is role for spec in inventory(config("20b")).values()) == count


# --- configuration


@pytest.mark.parametrize("size", ["20b", "120b"])
def test_published_configurations_do_not_contradict_themselves(size: str) -> None:
    config(size).require_consistent(PLACE)


@pytest.mark.parametrize(
    ("change", "conflict"),
    [
        ({"num_hidden_layers": 23}, "layer_types has 24 entries for 23 layers"),
        ({"num_key_value_heads": 7}, "num_attention_heads 64 is not a multiple of num_key_value_heads 7"),
        ({"num_experts_per_tok": 40}, "num_experts_per_tok 40 of only 32 experts"),
        ({"head_dim": 33}, "head_dim 33 is odd"),
    ],
)
def test_contradiction_is_named(change: dict[str, Any], conflict: str) -> None:
    with pytest.raises(InputError, match=f"contradicts itself: {conflict}.*model.safetensors"):
        replace(config("20b"), **change).require_consistent(PLACE)


# --- check_tensors


@pytest.fixture(scope="module")
def small() -> ModelConfig:
    return replace(
        config("20b"),
        num_hidden_layers=1,
        layer_types=(SLIDING,),
        hidden_size=32,
        intermediate_size=32,
        num_local_experts=4,
        vocab_size=16,
    )


def complete(config: ModelConfig) -> dict[str, Tensor]:
    return {name: zeros(name, spec.shape) for name, spec in inventory(config).items()}


def test_complete_model_has_no_problems(small: ModelConfig) -> None:
    assert check_tensors(small, complete(small), PLACE) == []


def test_every_missing_tensor_is_a_problem(small: ModelConfig) -> None:
    problems = check_tensors(small, {}, PLACE)
    assert [problem.tensor for problem in problems] == list(inventory(small))
    assert {(problem.what, problem.file) for problem in problems} == {("tensor is missing", str(PLACE))}


def test_missing_tensor_is_described(small: ModelConfig) -> None:
    found = complete(small)
    del found["model.norm.weight"]
    (problem,) = check_tensors(small, found, PLACE)
    assert str(problem) == "tensor is missing (model.safetensors, tensor model.norm.weight): expected [32]"


def test_unknown_tensor_is_described(small: ModelConfig) -> None:
    other = zeros("model.layers.1.self_attn.sinks", (64,), file=Path("other"))
    (problem,) = check_tensors(small, complete(small) | {other.name: other}, PLACE)
    assert isinstance(problem, InputError)
    assert str(problem) == (
        "unknown tensor (other, tensor model.layers.1.self_attn.sinks): "
        "expected the 20 tensors of a gpt-oss model with 1 layers"
    )


def test_unknown_tensors_are_listed_by_name(small: ModelConfig) -> None:
    others = [zeros(f"other.{index:02d}", (1,)) for index in reversed(range(20))]
    problems = check_tensors(small, complete(small) | {other.name: other for other in others}, PLACE)
    assert [problem.tensor for problem in problems] == [f"other.{index:02d}" for index in range(20)]


def test_tensor_of_another_shape_is_described(small: ModelConfig) -> None:
    other = zeros("lm_head.weight", (16, 33), file=Path("other"))
    (problem,) = check_tensors(small, complete(small) | {other.name: other}, PLACE)
    assert str(problem) == (
        "tensor does not fit the configuration (other, tensor lm_head.weight): "
        "found shape [16, 33], expected [16, 32]"
    )


def test_canonical_order_is_that_of_the_inventory_and_then_by_name(small: ModelConfig) -> None:
    shuffled = dict(reversed(complete(small).items())) | {name: zeros(name, (1,)) for name in ("z", "b")}
    assert list(in_canonical_order(small, shuffled)) == [*inventory(small), "b", "z"]


# --- collecting


def test_tensors_are_collected_in_the_order_found() -> None:
    a, b, c = (zeros(name, (1,)) for name in "abc")
    found = collect_tensors([(c, a), (), (b,)], lambda tensors: tensors)
    assert found == Collected({"c": c, "a": a, "b": b}, ())


def test_tensor_that_occurs_twice_is_a_problem_and_the_first_counts() -> None:
    first, second = zeros("a", (1,)), zeros("a", (2,), file=Path("other"))
    found = collect_tensors([first, second], lambda tensor: [tensor])
    assert found.tensors == {"a": first}
    assert [str(problem) for problem in found.problems] == [
        "tensor occurs twice, perhaps in two encodings (other, tensor a)"
    ]


def test_tensors_that_cannot_be_made_are_problems_and_the_others_are_there() -> None:
    def canonical(name: str) -> Iterable[Tensor]:
        if name == "bad":
            raise UnsupportedError("cannot be", tensor=name)
        yield zeros(name, (1,))

    found = collect_tensors(["a", "bad", "b", "bad"], canonical)
    assert list(found.tensors) == ["a", "b"]
    assert [(type(problem), problem.tensor) for problem in found.problems] == [(UnsupportedError, "bad")] * 2


# --- tensors


def test_size_of_a_tensor() -> None:
    three = zeros("a", (2, 3, 5))
    assert (three.rows, three.columns, three.nbytes) == (6, 5, 120)
    vector = zeros("b", (7,))
    assert (vector.rows, vector.columns, vector.nbytes) == (1, 7, 28)


def test_file_to_name_is_the_first_of_the_storage() -> None:
    assert zeros("a", (1,), file=Path("x")).file == Path("x")


def test_bytes_that_are_no_numbers_are_an_error_that_names_the_tensor() -> None:
    parts = np.zeros((4, 16), np.uint8), np.array([[0], [0], [255], [0]], np.uint8)
    broken = Tensor("experts", (4, 32), ENCODINGS["mxfp4"], InMemory(parts))
    assert len(broken.read(0, 2)[0]) == 2
    with pytest.raises(InputError, match=r"255 \(NaN\).*model\.safetensors, tensor experts"):
        broken.read(1, 3)


def test_errors_of_an_encoding_are_named() -> None:
    with (
        pytest.raises(InputError, match=r"too large \(model\.safetensors, tensor a\)"),
        zeros("a", (1,)).named_errors(),
    ):
        raise EncodingError("too large")


# --- checkpoints


def test_sound_checkpoint_is_let_through(tmp_path: Path) -> None:
    open_checkpoint(write_huggingface(tmp_path, Shape(layers=1, vocab=64))).require_sound()


def assembled(config: ModelConfig, tensors: dict[str, Tensor], *problems: InputError) -> Checkpoint:
    return assemble_checkpoint(
        Path("model"),
        "huggingface",
        config,
        Collected(tensors, problems),
        tensor_place=PLACE,
        assets=Assets(None),
        tokenizer=None,
        describe=Description,
    )


def test_assembled_checkpoint_is_in_canonical_order(small: ModelConfig) -> None:
    checkpoint = assembled(small, dict(reversed(complete(small).items())))
    assert list(checkpoint.tensors) == list(inventory(small))
    assert (checkpoint.problems, checkpoint.remarks, checkpoint.details) == ((), (), {})
    assert checkpoint.describe() == Description()
    checkpoint.require_sound()


def test_assembled_checkpoint_has_the_problems_of_collecting_and_of_the_inventory(small: ModelConfig) -> None:
    tensors = complete(small)
    del tensors["lm_head.weight"]
    problems = assembled(small, tensors, InputError("first")).problems
    hint = (
        "gpt-oss does not share it with the embedding; "
        "a folder whose model does needs tie_word_embeddings true in config.json"
    )
    assert [str(problem) for problem in problems] == [
        "first",
        "tensor is missing (model.safetensors, tensor lm_head.weight): expected [16, 32]; " + hint,
    ]


def test_files_are_named_once_and_in_order(small: ModelConfig) -> None:
    tensors = complete(small) | {"lm_head.weight": zeros("lm_head.weight", (16, 32), file=Path("a"))}
    assert assembled(small, tensors).files == (Path("a"), PLACE)


def test_first_problem_is_raised_and_the_others_are_counted(small: ModelConfig) -> None:
    problems = tuple(InputError(f"problem {index}") for index in range(3))
    checkpoint = assembled(small, complete(small), *problems)
    for _ in range(2):
        with pytest.raises(InputError, match=r"^problem 0; 2 more: see `gptoss-convert inspect`$"):
            checkpoint.require_sound()
    assert str(problems[0]) == "problem 0"
    with pytest.raises(InputError, match=r"^problem 0$"):
        assembled(small, complete(small), problems[0]).require_sound()


def values(checkpoint: Checkpoint) -> dict[str, Array]:
    return {
        name: tensor.encoding.decode(tensor.read(0, tensor.rows)).view(np.uint32)
        for name, tensor in checkpoint.tensors.items()
    }


def test_all_layouts_of_a_model_hold_the_same_numbers(tmp_path: Path) -> None:
    shape = Shape(layers=2, experts=3, experts_per_token=2)
    layouts = [
        write_huggingface(tmp_path / "mxfp4", shape, seed=3),
        write_huggingface(tmp_path / "shards", shape, seed=3, shards=6, placement="shuffled"),
        write_huggingface(tmp_path / "bf16", shape, seed=3, experts="bf16"),
        write_original(tmp_path / "openai", shape, seed=3),
    ]
    first, *others = [values(open_checkpoint(folder)) for folder in layouts]
    for other in others:
        assert list(other) == list(first)
        for name in first:
            np.testing.assert_array_equal(other[name], first[name], err_msg=name)
