"""Comparison of checkpoints number by number."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.encodings import ENCODINGS, Array, LossClass
from gptoss_convert.encodings.deviation import LARGEST_DECIBELS, LARGEST_ERROR
from gptoss_convert.errors import InputError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.weights import (
    STEP_BYTES,
    TensorComparison,
    compare_tensor,
    compare_weights,
    verify_weights,
)
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.memory import InMemory, zeros
from tests.support.tokenizers import write_small_tokenizer

BYTE_EXACT, VALUE_EXACT, LOSSY = LossClass


def stored(encoding: str, values: list[list[float]] | Array, *, row_group: int = 1) -> Tensor:
    array = np.array(values, np.float32)
    return Tensor("t", array.shape, ENCODINGS[encoding], InMemory(ENCODINGS[encoding].encode(array), row_group))


def mxfp4(code: int, scale: int) -> Tensor:
    parts = np.full((1, 16), code | code << 4, np.uint8), np.full((1, 1), scale, np.uint8)
    return Tensor("t", (1, 32), ENCODINGS["mxfp4"], InMemory(parts))


def test_same_bytes_are_byte_exact() -> None:
    found = compare_tensor(stored("bf16", [[1, 2]]), stored("bf16", [[1, 2]]))
    assert (found.found, found.expected, found.passed) == (BYTE_EXACT, BYTE_EXACT, True)
    assert (found.values, found.different, found.largest_error, found.signal_to_noise) == (2, 0, 0, None)


def test_same_values_in_another_encoding_are_value_exact() -> None:
    found = compare_tensor(stored("bf16", [[1, 2]]), stored("f32", [[1, 2]]))
    assert (found.found, found.expected, found.passed) == (VALUE_EXACT, VALUE_EXACT, True)
    assert found.signal_to_noise is None


@pytest.mark.parametrize(
    ("left", "right"),
    [(stored("f32", [[0.0]]), stored("f32", [[-0.0]])), (mxfp4(0, 1), mxfp4(0, 2)), (mxfp4(1, 9), mxfp4(2, 8))],
)
def test_same_values_in_other_bytes_are_value_exact_and_do_not_pass(left: Tensor, right: Tensor) -> None:
    found = compare_tensor(left, right)
    assert (found.found, found.expected, found.passed) == (VALUE_EXACT, BYTE_EXACT, False)
    assert found.different == 0


def test_rounded_values_are_lossy() -> None:
    found = compare_tensor(stored("f32", [[3.0, 4.015625]]), stored("bf16", [[3.0, 4.0]]))
    assert (found.found, found.expected, found.passed) == (LOSSY, LOSSY, True)
    assert (found.different, found.largest_error) == (1, 0.015625)
    assert found.signal_to_noise == pytest.approx(50.13, abs=0.01)


def test_more_noise_than_rounding_leaves_does_not_pass() -> None:
    found = compare_tensor(stored("f32", [[3.0, 4.0]]), stored("bf16", [[3.0, 4.5]]))
    assert (found.found, found.expected, found.passed) == (LOSSY, LOSSY, False)
    assert found.signal_to_noise == pytest.approx(20.0)
    assert found.least_signal_to_noise == ENCODINGS["bf16"].least_signal_to_noise


@pytest.mark.parametrize(("decibels", "passed"), [(None, True), (12.0, True), (11.9, False), (-1000.0, False)])
def test_noise_is_compared_with_the_floor(decibels: float | None, passed: bool) -> None:
    found = compare_tensor(stored("f32", [[3.0, 4.0]]), stored("bf16", [[3.0, 4.5]]))
    assert replace(found, least_signal_to_noise=12.0, signal_to_noise=decibels).passed is passed


def test_a_coarse_source_does_not_excuse_noise_in_a_fine_artifact() -> None:
    found = compare_tensor(mxfp4(7, 127), stored("f16", [[6.5] * 32]))
    assert found.signal_to_noise is not None
    assert ENCODINGS["mxfp4"].least_signal_to_noise < found.signal_to_noise < found.least_signal_to_noise
    assert not found.passed


def test_other_values_do_not_pass_where_exact_ones_are_promised() -> None:
    found = compare_tensor(stored("bf16", [[1, 2]]), stored("f32", [[1, 2.5]]))
    assert (found.found, found.expected, found.passed) == (LOSSY, VALUE_EXACT, False)


def test_nan_equals_nan() -> None:
    nan = [[math.nan, 1.0]]
    assert compare_tensor(stored("bf16", nan), stored("f32", nan)).different == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("turned", [False, True])
def test_numbers_that_become_infinite_or_nan_are_errors_of_finite_size(value: float, turned: bool) -> None:
    pair = stored("f32", [[1.0, 2.0, -math.inf, math.nan]]), stored("bf16", [[value, 2.0, -math.inf, math.nan]])
    found = compare_tensor(*(reversed(pair) if turned else pair))
    assert (found.different, found.largest_error, found.passed) == (1, LARGEST_ERROR, False)
    assert found.signal_to_noise is not None
    assert -LARGEST_DECIBELS < found.signal_to_noise < 0


def test_numbers_that_are_not_finite_are_no_signal() -> None:
    rest = [math.inf, math.nan]
    found = compare_tensor(stored("f32", [[3.0, 4.0, *rest]]), stored("bf16", [[3.0, 4.5, *rest]]))
    assert found.signal_to_noise == pytest.approx(20.0)


def test_zeros_that_became_numbers_have_no_signal() -> None:
    assert compare_tensor(stored("f32", [[0.0]]), stored("f32", [[1.0]])).signal_to_noise == -LARGEST_DECIBELS


@pytest.mark.parametrize("row_group", [1, 3, 5000])
def test_large_tensors_are_compared_to_the_last_row(row_group: int) -> None:
    rows = STEP_BYTES // (4 * 64) + 5
    values = np.ones((rows, 64), np.float32)
    other = values.copy()
    other[-1, -1] = 2
    artifact = stored("f32", other, row_group=row_group)
    assert compare_tensor(stored("f32", values), artifact).different == 1


def test_damaged_numbers_of_the_artifact_are_a_finding() -> None:
    found = compare_tensor(mxfp4(1, 100), mxfp4(1, 255))
    assert (found.found, found.passed) == (LOSSY, False)
    assert found.failure is not None
    assert "scale byte 255 (NaN)" in found.failure


def test_damaged_numbers_of_the_reference_are_an_error_that_names_the_tensor() -> None:
    with pytest.raises(InputError, match="tensor t"):
        compare_tensor(mxfp4(1, 255), mxfp4(1, 100))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_small_tokenizer(path / "hf")
    write_huggingface(path / "hf", Shape(layers=1), edge_blocks=False)
    return path


def compared(folder: Path, options: GgufOptions) -> list[TensorComparison]:
    source = open_checkpoint(folder / "hf")
    plan = plan_gguf(source, folder / "model.gguf", options)
    execute(plan, replace=True)
    return list(compare_weights(source, open_checkpoint(folder / "model.gguf")))


@pytest.mark.parametrize(
    "options", [GgufOptions(), GgufOptions(dense="f32", experts="bf16"), GgufOptions(dense="q8_0", experts="f16")]
)
def test_converted_model_passes(folder: Path, options: GgufOptions) -> None:
    found = compared(folder, options)
    assert [comparison.name for comparison in found] == list(open_checkpoint(folder / "hf").tensors)
    assert all(comparison.passed for comparison in found)


def test_lossless_conversion_differs_nowhere(folder: Path) -> None:
    assert sum(comparison.different for comparison in compared(folder, GgufOptions())) == 0


def test_other_layout_is_byte_exact(folder: Path) -> None:
    original = open_checkpoint(write_original(folder / "original", Shape(layers=1), edge_blocks=False))
    found = compare_weights(open_checkpoint(folder / "hf"), original)
    assert {comparison.found for comparison in found} == {BYTE_EXACT}


def test_other_model_does_not_pass(folder: Path) -> None:
    other = open_checkpoint(write_huggingface(folder / "other", Shape(layers=1), seed=1))
    assert not all(comparison.passed for comparison in compare_weights(open_checkpoint(folder / "hf"), other))


def test_tensors_that_only_one_side_has_are_left_out(folder: Path) -> None:
    model = open_checkpoint(folder / "hf")
    name, *others = model.tensors
    artifact = replace(model, tensors={"z": zeros("z", (1,))} | {other: model.tensors[other] for other in others})
    found = verify_weights(model, artifact)
    assert [item.name for item in found.tensors] == others
    assert (found.not_compared, found.passed) == ((name,), False)
    assert found.reason == f"tensor {name} could not be compared"


def test_tensors_of_another_shape_are_left_out(folder: Path) -> None:
    other = open_checkpoint(write_huggingface(folder / "wide", Shape(layers=1, vocab=600)))
    found = verify_weights(open_checkpoint(folder / "hf"), other)
    assert found.not_compared == ("model.embed_tokens.weight", "lm_head.weight")
    assert not found.passed
