"""GGUF files as canonical checkpoints."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.assets import Assets
from gptoss_convert.checkpoint import Checkpoint, Tensor, inventory
from gptoss_convert.description import Description
from gptoss_convert.encodings import Array
from gptoss_convert.errors import GptossConvertError, InputError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.gguf import recognises
from gptoss_convert.formats.gguf.names import gguf_names
from gptoss_convert.formats.gguf.reader import read, split_path
from gptoss_convert.formats.gguf.vocabulary import O200K_PATTERN
from gptoss_convert.formats.tokenizer_files import tokenizer_files
from gptoss_convert.formats.tokenizer_json import HuggingFaceTokenizer
from tests.support import ollama
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.tokenizers import write_small_tokenizer
from tests.unit.formats.gguf import models

GATE, UP = "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"
GATE_BIAS, UP_BIAS = "blk.0.ffn_gate_exps.bias", "blk.0.ffn_up_exps.bias"
EXPERTS = "model.layers.0.mlp.experts."


def decoded(tensor: Tensor) -> Array:
    """All numbers of a tensor in its shape."""
    return tensor.encoding.decode(tensor.read(0, tensor.rows)).reshape(tensor.shape)


def problems(checkpoint: Checkpoint) -> str:
    return "\n".join(map(str, checkpoint.problems))


@pytest.mark.parametrize("encoding", ["f32", "f16", "bf16", "q8_0", "mxfp4"])
def test_numbers_of_a_file_of_gguf_py(tmp_path: Path, encoding: str) -> None:
    values = models.random_values()
    encodings = {name: encoding for name, array in values.items() if array.ndim > 1 and name.endswith("weight")}
    checkpoint = read(models.write(tmp_path / "m.gguf", values, encodings=encodings))
    checkpoint.require_sound()
    stored = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(models.SHAPES[tensor.name])
        for tensor in gguf.GGUFReader(checkpoint.path).tensors
    }
    for name, tensor in checkpoint.tensors.items():
        names, numbers = gguf_names(name), decoded(tensor)
        if len(names) == 1:
            np.testing.assert_array_equal(numbers, stored[names[0]], err_msg=name)
        else:
            np.testing.assert_array_equal(numbers[:, 0::2], stored[names[0]], err_msg=name)
            np.testing.assert_array_equal(numbers[:, 1::2], stored[names[1]], err_msg=name)


def test_facts_of_a_file_of_gguf_py(tmp_path: Path) -> None:
    path = models.write(tmp_path / "m.gguf", models.random_values(), change={"general.name": "Tiny"})
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "gguf"
    assert checkpoint.files == (path,)
    assert list(checkpoint.tensors) == list(inventory(checkpoint.config))
    assert checkpoint.describe() == Description(name="Tiny")
    assert checkpoint.config.vocab_size == models.VOCAB
    assert checkpoint.tokenizer is not None
    assert list(checkpoint.tokenizer.vocabulary().tokens) == [f"t{index}" for index in range(models.VOCAB)]


def test_file_without_tokens_has_no_tokenizer(tmp_path: Path) -> None:
    path = models.write(tmp_path / "m.gguf", models.random_values(), change={"tokenizer.ggml.tokens": None})
    assert read(path).tokenizer is None


@pytest.mark.parametrize(("content", "expected"), [(b"GGUF", True), (b"GGUX", False), (b"GG", False), (b"", False)])
def test_files_are_recognised_by_their_first_bytes(tmp_path: Path, content: bytes, expected: bool) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    assert recognises(path) is expected


def test_folder_is_not_recognised(tmp_path: Path) -> None:
    assert not recognises(tmp_path)


# --- what is wrong with a model


def without(*names: str) -> models.Values:
    return {name: array for name, array in models.random_values().items() if name not in names}


def reshaped(**shapes: tuple[int, ...]) -> models.Values:
    """The model with some tensors of another shape; `GATE` and so on name them."""
    return models.random_values() | {globals()[key]: np.zeros(shape, np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    "name", [name for name in models.SHAPES if "gate_exps" not in name and "up_exps" not in name]
)
def test_missing_tensor_is_a_problem(tmp_path: Path, name: str) -> None:
    checkpoint = read(models.write(tmp_path / "m.gguf", without(name)))
    assert "tensor is missing" in problems(checkpoint)


@pytest.mark.parametrize("name", [GATE, UP, GATE_BIAS, UP_BIAS])
def test_half_without_the_other_is_a_problem(tmp_path: Path, name: str) -> None:
    assert "tensor lacks its other half" in problems(read(models.write(tmp_path / "m.gguf", without(name))))


@pytest.mark.parametrize(
    "values",
    [
        reshaped(UP=(models.EXPERTS, models.INNER + 1, models.HIDDEN)),
        reshaped(UP=(models.EXPERTS, models.INNER, models.HIDDEN * 2)),
        reshaped(UP=(models.EXPERTS * models.INNER, models.HIDDEN)),
        reshaped(UP_BIAS=(models.EXPERTS * models.INNER,)),
    ],
)
def test_halves_of_different_shapes_are_a_problem(tmp_path: Path, values: models.Values) -> None:
    assert "tensor does not fit its other half" in problems(read(models.write(tmp_path / "m.gguf", values)))


@pytest.mark.parametrize("kinds", [("mxfp4", "bf16"), ("q4_0", "q5_1"), ("f32", "q8_0"), ("q4_0", "mxfp4")])
def test_halves_of_different_encodings_are_decoded(tmp_path: Path, kinds: tuple[str, str]) -> None:
    encodings = dict(zip((GATE, UP), kinds, strict=True))
    checkpoint = read(models.write(tmp_path / "m.gguf", models.random_values(), encodings=encodings))
    checkpoint.require_sound()
    tensor = checkpoint.tensors[EXPERTS + "gate_up_proj"]
    stored = {item.name: item for item in gguf.GGUFReader(checkpoint.path).tensors}
    values = {name: gguf.quants.dequantize(stored[name].data, stored[name].tensor_type) for name in (GATE, UP)}
    numbers = decoded(tensor)
    np.testing.assert_array_equal(numbers[:, 0::2], values[GATE].reshape(models.SHAPES[GATE]))
    np.testing.assert_array_equal(numbers[:, 1::2], values[UP].reshape(models.SHAPES[UP]))
    assert tensor.encoding.name == "+".join(kinds)
    assert tensor.nbytes == stored[GATE].n_bytes + stored[UP].n_bytes


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 2), (3, 8), (2, 128)])
def test_halves_of_different_encodings_are_read_in_any_range(tmp_path: Path, start: int, stop: int) -> None:
    path = models.write(tmp_path / "m.gguf", models.random_values(), encodings={GATE: "q4_0", UP: "q5_1"})
    tensor = read(path).tensors[EXPERTS + "gate_up_proj"]
    (all_rows,), (rows,) = tensor.read(0, tensor.rows), tensor.read(start, stop)
    np.testing.assert_array_equal(rows, all_rows[start:stop])


def test_biases_of_different_encodings_are_decoded(tmp_path: Path) -> None:
    values = models.random_values()
    checkpoint = read(models.write(tmp_path / "m.gguf", values, encodings={UP_BIAS: "q8_0"}))
    numbers = decoded(checkpoint.tensors[EXPERTS + "gate_up_proj_bias"])
    np.testing.assert_array_equal(numbers[:, 0::2], values[GATE_BIAS])
    np.testing.assert_allclose(numbers[:, 1::2], values[UP_BIAS], atol=0.02)


def test_halves_of_which_one_cannot_be_decoded_are_a_problem(tmp_path: Path) -> None:
    path = models.write(tmp_path / "m.gguf", models.random_values())
    retyped(path, UP, 26)  # I32, of the same size
    assert "different encodings, and one cannot be decoded" in problems(read(path))


def test_numbers_that_are_not_finite_in_one_half_name_the_tensor(tmp_path: Path) -> None:
    path = models.write(tmp_path / "m.gguf", models.random_values(), encodings={GATE: "q4_0", UP: "q5_1"})
    place = next(int(item.data_offset) for item in gguf.GGUFReader(path).tensors if item.name == UP)
    content = bytearray(path.read_bytes())
    content[place : place + 2] = b"\xff\xff"
    path.write_bytes(content)
    tensor = read(path).tensors[EXPERTS + "gate_up_proj"]
    with pytest.raises(InputError, match=r"q5_1.*not finite.*gate_up_proj"):
        tensor.read(0, tensor.rows)


def retyped(path: Path, name: str, number: int) -> None:
    """Give a tensor of a file another type number."""
    content = bytearray(path.read_bytes())
    place = content.index(name.encode(), content.index(b"blk.")) + len(name)
    rank = int.from_bytes(content[place : place + 4], "little")
    content[place + 4 + 8 * rank : place + 8 + 8 * rank] = number.to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    "values",
    [
        reshaped(GATE=(2, 3, 64), UP=(2, 3, 64)),
        reshaped(GATE=(64, 64), UP=(64, 64)),
        reshaped(GATE=(1, 2, 32, 64), UP=(1, 2, 32, 64)),
        reshaped(GATE_BIAS=(64,), UP_BIAS=(64,)),
        reshaped(GATE_BIAS=(1, 2, 32), UP_BIAS=(1, 2, 32)),
    ],
)
def test_shape_that_does_not_fit_the_configuration_is_a_problem(tmp_path: Path, values: models.Values) -> None:
    assert "tensor does not fit the configuration" in problems(read(models.write(tmp_path / "m.gguf", values)))


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.ffn_norm.weight", "\x1b[31mred"])
def test_unknown_tensor_is_a_problem(tmp_path: Path, name: str) -> None:
    values = models.random_values() | {name: np.zeros(8, np.float32)}
    found = problems(read(models.write(tmp_path / "m.gguf", values)))
    assert "unknown tensor" in found
    assert "\x1b" not in found


def test_second_spelling_of_a_tensor_is_a_problem(tmp_path: Path) -> None:
    values = models.random_values()
    values["blk.00.attn_norm.weight"] = np.zeros(models.HIDDEN, np.float32)
    assert problems(read(models.write(tmp_path / "m.gguf", values)))


def test_interleaved_biases_in_blocks_are_a_problem_or_right(tmp_path: Path) -> None:
    values = models.random_values()
    values[GATE_BIAS][:] = 1
    values[UP_BIAS][:] = 100
    encodings = {GATE_BIAS: "q8_0", UP_BIAS: "q8_0"}
    checkpoint = read(models.write(tmp_path / "m.gguf", values, encodings=encodings))
    if not checkpoint.problems:
        numbers = decoded(checkpoint.tensors[EXPERTS + "gate_up_proj_bias"])
        np.testing.assert_allclose(numbers[0, :4], [1, 100, 1, 100], rtol=0.01)


@pytest.mark.parametrize(("name", "nbytes"), [("q4_0", 18), ("q4_1", 20), ("q5_0", 22), ("q5_1", 24)])
def test_tensor_of_a_type_that_is_never_made_is_decoded(tmp_path: Path, name: str, nbytes: int) -> None:
    values = models.random_values()
    checkpoint = read(models.write(tmp_path / "m.gguf", values, encodings={"token_embd.weight": name}))
    tensor = checkpoint.tensors["model.embed_tokens.weight"]
    assert checkpoint.problems == ()
    assert tensor.encoding.name == name
    assert tensor.nbytes == models.VOCAB * models.HIDDEN // 32 * nbytes
    (stored,) = (item for item in gguf.GGUFReader(checkpoint.path).tensors if item.name == "token_embd.weight")
    np.testing.assert_array_equal(decoded(tensor), gguf.quants.dequantize(stored.data, stored.tensor_type))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "deepseek2"])
def test_other_architecture_is_not_supported(tmp_path: Path, architecture: str) -> None:
    with pytest.raises(UnsupportedError, match="not a gpt-oss model"):
        read(models.write(tmp_path / "m.gguf", models.random_values(), architecture=architecture))


# --- split files


def write_split(folder: Path, change: Mapping[str, Any] | None = None) -> list[Path]:
    """A model in three files, the tensors in turn."""
    values = models.random_values()
    paths = [split_path(folder / "m.gguf", index, 3) for index in range(3)]
    for index, path in enumerate(paths):
        part = {name: values[name] for name in list(values)[index::3]}
        keys = {"split.no": index, "split.count": 3, "split.tensors.count": len(values)}
        models.write(path, part, change=keys | dict(change or {}))
    return paths


def test_split_path_is_named_as_llama_cpp_does() -> None:
    assert split_path(Path("a/m.gguf"), 0, 12) == Path("a/m-00001-of-00012.gguf")


def test_split_files_hold_what_one_file_holds(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    split = read(paths[0])
    whole = read(models.write(tmp_path / "whole.gguf", models.random_values()))
    split.require_sound()
    assert split.files == tuple(paths)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(decoded(split.tensors[name]), decoded(tensor))


@pytest.mark.parametrize("index", [1, 2])
def test_missing_shard_is_named(tmp_path: Path, index: int) -> None:
    paths = write_split(tmp_path)
    paths[index].unlink()
    with pytest.raises(InputError, match=paths[index].name):
        read(paths[0])


def test_later_shard_points_to_the_first(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    with pytest.raises(InputError, match=f"name {paths[0].name} instead") as caught:
        read(paths[1])
    assert caught.value.what == "not the first shard of a split model"


def test_shard_under_another_name_is_refused(tmp_path: Path) -> None:
    first = write_split(tmp_path)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"NAME-00001-of-00003\.gguf"):
        read(first)


def test_shard_of_a_model_of_another_number_is_refused(tmp_path: Path) -> None:
    first = write_split(tmp_path, {"split.count": 4})[0]
    with pytest.raises(InputError, match=r"NAME-00001-of-00004\.gguf"):
        read(first)


def write_shard(path: Path, names: Sequence[str], **keys: Any) -> None:
    """A later shard as llama-gguf-split writes it: tensors, and three keys."""
    values = models.random_values()
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    for key, value in keys.items():
        models.add(writer, f"split.{key}", value)
    for name in names:
        writer.add_tensor(name, values[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_metadata_of_the_model_may_lie_in_the_first_shard_alone(tmp_path: Path) -> None:
    first, second = (split_path(tmp_path / "m.gguf", index, 2) for index in range(2))
    names, count = list(models.SHAPES), len(models.SHAPES)
    keys = {"split.no": 0, "split.count": 2, "split.tensors.count": count}
    models.write(first, {name: models.random_values()[name] for name in names[:9]}, change=keys)
    write_shard(second, names[9:], no=1, count=2, **{"tensors.count": count})
    read(first).require_sound()


def test_first_shard_may_hold_no_tensor(tmp_path: Path) -> None:
    """As `llama-gguf-split --no-tensor-first-split` writes it."""
    first, second = (split_path(tmp_path / "m.gguf", index, 2) for index in range(2))
    names = list(models.SHAPES)
    keys = {"split.no": 0, "split.count": 2, "split.tensors.count": len(names)}
    models.write(first, {}, change=keys)
    write_shard(second, names, no=1, count=2, **{"tensors.count": len(names)})
    checkpoint = read(first)
    checkpoint.require_sound()
    assert checkpoint.config.vocab_size == models.VOCAB
    assert checkpoint.files == (second,)
    values = models.random_values()
    np.testing.assert_array_equal(decoded(checkpoint.tensors["lm_head.weight"]), values["output.weight"])


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"no": 2}, "split.no"),
        ({"no": 0}, "split.no"),
        ({"no": None}, "split.no"),
        ({"no": "1"}, "split.no"),
        ({"count": 3}, "split.count"),
        ({"count": None}, "split.count"),
    ],
)
def test_shard_of_another_model_or_number_is_refused(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    first, second = (split_path(tmp_path / "m.gguf", index, 2) for index in range(2))
    names = list(models.SHAPES)
    keys = {"split.no": 0, "split.count": 2, "split.tensors.count": len(names)}
    models.write(first, {}, change=keys)
    write_shard(second, names, **({"no": 1, "count": 2} | change))
    with pytest.raises(InputError, match=rf"{key}") as caught:
        read(first)
    assert caught.value.file == str(second)


@pytest.mark.parametrize("count", [0, 1, len(models.SHAPES) - 1, len(models.SHAPES) + 1, "22"])
def test_shards_must_hold_the_tensors_that_are_counted(tmp_path: Path, count: Any) -> None:
    with pytest.raises(InputError, match=r"split\.tensors\.count"):
        read(write_split(tmp_path, {"split.tensors.count": count})[0])


def test_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    first, second = (split_path(tmp_path / "m.gguf", index, 2) for index in range(2))
    models.write(first, models.random_values(), change={"split.no": 0, "split.count": 2})
    write_shard(second, ["output.weight"], no=1, count=2)
    with pytest.raises(InputError, match="tensor occurs in two shards"):
        read(first)


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-40])
    with pytest.raises(InputError, match=f"{paths[2].name}.*truncated|truncated.*{paths[2].name}"):
        read(paths[0])


@pytest.mark.parametrize("count", [0, 10_001, (1 << 32) - 1, "3", 3.0, [3]])
def test_impossible_number_of_shards_is_refused(tmp_path: Path, count: Any) -> None:
    with pytest.raises(InputError, match=r"split\.count"):
        read(write_split(tmp_path, {"split.count": count})[0])


def test_missing_number_of_a_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the first shard"):
        read(write_split(tmp_path, {"split.no": None})[0])


@pytest.mark.parametrize("number", ["0", 0.0, [0, 1]])
def test_number_of_a_shard_of_another_kind_is_refused(tmp_path: Path, number: Any) -> None:
    with pytest.raises(InputError, match=r"split\.no"):
        read(write_split(tmp_path, {"split.no": number})[0])


def test_model_of_one_shard_is_one_file(tmp_path: Path) -> None:
    path = models.write(tmp_path / "m.gguf", models.random_values(), change={"split.count": 1, "split.no": 0})
    read(path).require_sound()


# --- files of other programs


OLLAMA_SHAPE = Shape(layers=3, hidden=64, intermediate=96)
STYLES = {"library": ollama.LIBRARY, "later": ollama.LATER}


@pytest.fixture(scope="module", params=["huggingface", "original"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that Ollama converted; OpenAI's layout has q, k and v in one tensor."""
    folder = tmp_path_factory.mktemp("source") / str(request.param)
    write_small_tokenizer(folder)
    write = write_huggingface if request.param == "huggingface" else write_original
    return write(folder, OLLAMA_SHAPE)


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_file_of_ollama_is_the_model_it_was_made_of(tmp_path: Path, source: Path, style: ollama.Style) -> None:
    reference = open_checkpoint(source)
    checkpoint = open_checkpoint(ollama.write_ollama(tmp_path / "m.gguf", source, style))
    checkpoint.require_sound()
    assert checkpoint.config == reference.config
    assert list(checkpoint.tensors) == list(reference.tensors)
    for name, tensor in reference.tensors.items():
        np.testing.assert_array_equal(decoded(checkpoint.tensors[name]), decoded(tensor), err_msg=name)


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_experts_of_ollama_keep_every_code(tmp_path: Path, source: Path, style: ollama.Style) -> None:
    reference = open_checkpoint(source)
    checkpoint = open_checkpoint(ollama.write_ollama(tmp_path / "m.gguf", source, style))
    for name in (f"model.layers.1.mlp.experts.{part}" for part in ("gate_up_proj", "down_proj")):
        tensor, other = reference.tensors[name], checkpoint.tensors[name]
        assert other.encoding.name == "mxfp4"
        for part, expected in zip(other.read(0, other.rows), tensor.read(0, tensor.rows), strict=True):
            np.testing.assert_array_equal(part, expected)


def test_tokenizer_of_ollama_is_that_of_the_source(tmp_path: Path, source: Path) -> None:
    checkpoint = open_checkpoint(ollama.write_ollama(tmp_path / "m.gguf", source))
    expected = HuggingFaceTokenizer(Assets(source), {}).vocabulary()
    assert checkpoint.tokenizer is not None
    found = checkpoint.tokenizer.vocabulary()
    assert found == replace(expected, special_ids={"bos": 480, "eos": 481})
    # As its own list tokenizer.ggml.eos_token_ids: <|endoftext|>, <|return|>, <|call|>.
    assert json.loads(tokenizer_files(found)["generation_config.json"])["eos_token_id"] == [481, 484, 494]


@pytest.mark.parametrize("pre", [None, "default", "gpt-4o"])
def test_pre_tokenizer_of_ollama_is_that_of_gpt_oss_in_any_case(
    tmp_path: Path, source: Path, pre: str | None
) -> None:
    path = ollama.write_ollama(tmp_path / "m.gguf", source, change={"tokenizer.ggml.pre": pre})
    tokenizer = open_checkpoint(path).tokenizer
    assert tokenizer is not None
    assert tokenizer.vocabulary().pattern == O200K_PATTERN


def test_details_of_ollama_name_its_architecture_and_not_its_file_type(tmp_path: Path, source: Path) -> None:
    details = open_checkpoint(ollama.write_ollama(tmp_path / "m.gguf", source)).details
    assert details == {"general.architecture": "gptoss", "general.quantization_version": "2"}


@pytest.mark.parametrize("name", ["attn_out.weight", "attn_sinks", "ffn_norm.weight", "ffn_gate_up_exps.weight"])
def test_names_of_ollama_are_unknown_under_the_architecture_of_llama_cpp(tmp_path: Path, name: str) -> None:
    values = models.random_values() | {f"blk.0.{name}": np.zeros(8, np.float32)}
    assert "unknown tensor" in problems(read(models.write(tmp_path / "m.gguf", values)))


def as_ollama(**shapes: tuple[int, ...]) -> tuple[models.Values, dict[str, Any]]:
    """A model under names that Ollama shares with llama.cpp, and more tensors of layer 0; and its keys."""
    values = models.random_values()
    values |= {f"blk.0.{name.replace('__', '.')}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    keys = {key.replace("gpt-oss.", "gptoss."): value for key, value in models.KEYS.items()}
    return values, keys


@pytest.mark.parametrize("shape", [(64, models.HIDDEN + 1), (63, models.HIDDEN), (64,), (1, 64, models.HIDDEN)])
def test_fused_attention_of_another_shape_is_a_problem(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values, keys = as_ollama(attn_qkv__weight=shape)
    for letter in "qkv":
        del values[f"blk.0.attn_{letter}.weight"]
    found = problems(read(models.write(tmp_path / "m.gguf", values, change=keys, architecture="gptoss")))
    assert f"tensor blk.0.attn_qkv.weight): found shape {list(shape)}, expected [64, 64]" in found


def test_fused_attention_beside_its_parts_is_a_problem(tmp_path: Path) -> None:
    values, keys = as_ollama(attn_qkv__weight=(64, models.HIDDEN))
    found = problems(read(models.write(tmp_path / "m.gguf", values, change=keys, architecture="gptoss")))
    assert "self_attn.q_proj.weight" in found


def test_gate_and_up_beside_the_undivided_tensor_are_a_problem(tmp_path: Path) -> None:
    values, keys = as_ollama(ffn_gate_up_exps__weight=(models.EXPERTS, 2 * models.INNER, models.HIDDEN))
    found = problems(read(models.write(tmp_path / "m.gguf", values, change=keys, architecture="gptoss")))
    assert "gate_up_proj" in found


def test_fused_tensor_of_a_layer_that_does_not_exist_is_a_problem(tmp_path: Path) -> None:
    values, keys = as_ollama()
    values["blk.7.attn_qkv.weight"] = np.zeros((64, models.HIDDEN), np.float32)
    found = problems(read(models.write(tmp_path / "m.gguf", values, change=keys, architecture="gptoss")))
    assert "blk.7.attn_qkv.weight" in found


def test_fused_bias_in_blocks_that_span_two_parts_is_a_problem(tmp_path: Path) -> None:
    values, keys = as_ollama(attn_qkv__bias=(64,))
    for letter in "qkv":
        del values[f"blk.0.attn_{letter}.bias"]
    encodings = {"blk.0.attn_qkv.bias": "q8_0"}  # q has 32 elements, k and v have 16 each
    path = models.write(tmp_path / "m.gguf", values, change=keys, architecture="gptoss", encodings=encodings)
    assert "blocks span several tensors" in problems(read(path))


AUGUST_2025 = {
    "general.file_type": 38,
    "gpt-oss.feed_forward_length": models.INNER,
    "gpt-oss.rope.scaling.yarn_beta_fast": None,
    "gpt-oss.rope.scaling.yarn_beta_slow": None,
    "tokenizer.ggml.add_bos_token": None,
    "tokenizer.ggml.add_eos_token": None,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.padding_token_id": 17,
    "tokenizer.chat_template": "{# a template of their own #}",
}
"""What llama.cpp's converter left out in August 2025, and what those who published such files chose themselves."""


def test_published_file_of_august_2025(tmp_path: Path) -> None:
    """MXFP4 experts with the rest in q8_0, as ggml-org published it."""
    values = models.random_values()
    dense = [name for name in values if name.startswith(("token_embd", "output.")) or "attn_" in name]
    encodings = {name: "q8_0" for name in dense if values[name].ndim == 2}
    encodings |= {name: "mxfp4" for name in values if name.endswith("_exps.weight")}
    path = models.write(tmp_path / "m.gguf", values, encodings=encodings, change=AUGUST_2025)
    checkpoint = open_checkpoint(path)
    checkpoint.require_sound()
    assert checkpoint.details["general.file_type"] == "38"
    assert (checkpoint.config.rope.beta_fast, checkpoint.config.rope.beta_slow) == (32, 1)
    assert checkpoint.tokenizer is not None
    vocabulary = checkpoint.tokenizer.vocabulary()
    assert vocabulary.special_ids == {"eos": 1, "pad": 17}
    assert vocabulary.added_automatically == {}
    assert vocabulary.chat_templates == {"default": "{# a template of their own #}"}


# --- fuzzing


@pytest.fixture(scope="module")
def sound_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    values = models.random_values()
    encodings = {GATE: "q4_0", UP: "mxfp4", "blk.0.ffn_down_exps.weight": "mxfp4", "token_embd.weight": "q5_1"}
    return models.write(tmp_path_factory.mktemp("fuzz") / "m.gguf", values, encodings=encodings).read_bytes()


@pytest.fixture(scope="module")
def ollama_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("fuzz")
    write_small_tokenizer(folder, tokens=300)
    shape = Shape(layers=1, hidden=32, intermediate=32, experts=2, experts_per_token=1, vocab=330)
    return ollama.write_ollama(folder / "m.gguf", write_original(folder, shape)).read_bytes()


@given(data=st.data())
def test_damaged_model_of_ollama_gives_an_error_of_ours_or_numbers(
    tmp_path: Path, ollama_file: bytes, data: st.DataObject
) -> None:
    read_damaged(tmp_path, ollama_file, data)


@given(data=st.data())
def test_damaged_model_gives_an_error_of_ours_or_numbers(
    tmp_path: Path, sound_file: bytes, data: st.DataObject
) -> None:
    read_damaged(tmp_path, sound_file, data)


def read_damaged(folder: Path, sound: bytes, data: st.DataObject) -> None:
    """Damage the header of a sound file and read all that can be read."""
    content = bytearray(sound)
    header = max(content.index(b"output.weight"), content.index(b"_exps.weight")) + 64
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(4, header))
        piece = data.draw(st.binary(min_size=1, max_size=2) | st.sampled_from([bytes(8), b"\xff" * 8]))
        content[place : place + len(piece)] = piece
    path = folder / "m.gguf"
    path.write_bytes(content)
    with contextlib.suppress(GptossConvertError):
        checkpoint = read(path)
        for tensor in checkpoint.tensors.values():
            chunk = tensor.read(0, tensor.rows)
            if tensor.encoding.can_decode:
                with tensor.named_errors():
                    tensor.encoding.decode(chunk)
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.vocabulary()
