"""GGUF files as canonical checkpoints."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.checkpoint import Checkpoint, Tensor, inventory
from gptoss_convert.description import Description
from gptoss_convert.encodings import Array
from gptoss_convert.errors import GptossConvertError, InputError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.gguf import recognises
from gptoss_convert.formats.gguf.names import gguf_names
from gptoss_convert.formats.gguf.reader import read, split_path
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


def test_halves_of_different_encodings_are_a_problem(tmp_path: Path) -> None:
    path = models.write(tmp_path / "m.gguf", models.random_values(), encodings={GATE: "mxfp4", UP: "bf16"})
    assert "two halves of a tensor have different encodings" in problems(read(path))


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


def test_tensor_of_a_type_without_codec_can_be_described_but_not_decoded(tmp_path: Path) -> None:
    encodings = {"token_embd.weight": "q4_0"}
    checkpoint = read(models.write(tmp_path / "m.gguf", models.random_values(), encodings=encodings))
    tensor = checkpoint.tensors["model.embed_tokens.weight"]
    assert checkpoint.problems == ()
    assert tensor.encoding.name == "q4_0"
    assert tensor.nbytes == models.VOCAB * models.HIDDEN // 32 * 18


@pytest.mark.parametrize("architecture", ["llama", "gptoss"])
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


def test_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(InputError, match="tensor occurs in two shards"):
        read(paths[0])


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


# --- fuzzing


@pytest.fixture(scope="module")
def sound_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    values = models.random_values()
    encodings = dict.fromkeys([GATE, UP, "blk.0.ffn_down_exps.weight"], "mxfp4")
    return models.write(tmp_path_factory.mktemp("fuzz") / "m.gguf", values, encodings=encodings).read_bytes()


@given(data=st.data())
def test_damaged_model_gives_an_error_of_ours_or_numbers(
    tmp_path: Path, sound_file: bytes, data: st.DataObject
) -> None:
    content = bytearray(sound_file)
    header = content.index(b"output.weight") + 64
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(4, header))
        piece = data.draw(st.binary(min_size=1, max_size=2) | st.sampled_from([bytes(8), b"\xff" * 8]))
        content[place : place + len(piece)] = piece
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with contextlib.suppress(GptossConvertError):
        checkpoint = read(path)
        for tensor in checkpoint.tensors.values():
            tensor.read(0, tensor.rows)
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.vocabulary()
