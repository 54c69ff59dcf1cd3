"""Comparison of checkpoints number by number."""

import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.encodings import ENCODINGS, Array, LossClass, Order
from gptoss_convert.encodings.deviation import LARGEST_DECIBELS, LARGEST_ERROR
from gptoss_convert.encodings.opaque import Opaque
from gptoss_convert.errors import InputError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.weights import (
    PIECE_BYTES,
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


def test_facts_of_a_difference() -> None:
    values = np.ones((70, 64), np.float32)
    other = values.copy()
    other[3, 40], other[69, 0] = -3, 0
    found = compare_tensor(stored("bf16", values), stored("bf16", other))
    assert (found.different, found.different_blocks, found.largest_error) == (2, 2, 4)
    assert found.relative_error == pytest.approx(math.sqrt(17 / values.size))
    assert found.worst_block is not None
    assert (found.worst_block.expert, found.worst_block.row, found.worst_block.column) == (None, 3, 32)
    assert found.worst_block.artifact_range == (-3, 1)
    assert found.failure is not None
    assert found.failure.startswith("is lossy where byte-exact is promised by the encodings: 2 of 4480 values")


@pytest.mark.parametrize("row_group", [1, 3, 5000, 100_000])
@pytest.mark.parametrize("order", ["C", "F"])
def test_noise_is_relative_to_the_whole_tensor_though_equal_rows_are_not_decoded(
    row_group: int, order: Order
) -> None:
    rows = 2 * PIECE_BYTES // (2 * 64) + 5
    values = np.random.default_rng(0).choice(np.float32([1, 2, -4]), (rows, 64))
    other = values.copy()
    other[rows // 3, 7] += 1
    parts = [ENCODINGS["bf16"].encode(array)[0] for array in (values, other)]
    reference, artifact = (
        Tensor("t", values.shape, ENCODINGS["bf16"], InMemory((np.asarray(part, order=order),), group))
        for part, group in zip(parts, (1, row_group), strict=True)
    )
    found = compare_tensor(reference, artifact)
    assert (found.different, found.found) == (1, LOSSY)
    assert found.relative_error == pytest.approx(1 / math.sqrt(np.square(values, dtype=np.float64).sum()))
    assert found.signal_to_noise == pytest.approx(-20 * math.log10(found.relative_error))
    assert found.worst_block is not None
    assert found.worst_block.row == rows // 3


def test_rows_in_columns_are_compared_with_rows_one_after_the_other() -> None:
    values = np.arange(96, dtype=np.float32).reshape(3, 32)
    bits = ENCODINGS["bf16"].encode(values)[0]
    columns = Tensor("t", (3, 32), ENCODINGS["bf16"], InMemory((np.asfortranarray(bits),), order="F"))
    assert compare_tensor(columns, stored("bf16", values)).found is BYTE_EXACT
    assert compare_tensor(stored("f32", values), columns).found is VALUE_EXACT
    assert compare_tensor(columns, stored("bf16", values[::-1])).different > 0


@pytest.mark.parametrize(
    ("left", "right", "rescaled"),
    [(mxfp4(0, 1), mxfp4(0, 2), 1), (mxfp4(1, 9), mxfp4(2, 8), 1), (mxfp4(0, 1), mxfp4(8, 1), 0)],
)
def test_same_values_in_other_bytes_are_told_apart(left: Tensor, right: Tensor, rescaled: int) -> None:
    found = compare_tensor(left, right)
    assert (found.rescaled_blocks, found.signs_of_zero, found.worst_block) == (rescaled, 32 - 32 * rescaled, None)
    assert found.failure is not None
    assert f"{found.signs_of_zero} zero(s) of other sign, {rescaled} block(s) of other scale" in found.failure


@pytest.mark.parametrize(("value", "nan", "infinite"), [(math.nan, 1, 0), (math.inf, 0, 1)])
def test_new_numbers_that_are_not_finite_are_counted(value: float, nan: int, infinite: int) -> None:
    found = compare_tensor(stored("f32", [[1.0, math.nan]]), stored("bf16", [[value, math.nan]]))
    assert (found.new_nan, found.new_infinite) == (nan, infinite)
    json.dumps(found.as_dict(), allow_nan=False)


def test_numbers_that_cannot_be_decoded_are_compared_by_their_bytes() -> None:
    opaque = Opaque("odd", 32, 4)
    same, other = (Tensor("t", (2, 64), opaque, InMemory((np.full((2, 8), value, np.uint8),))) for value in (1, 2))
    assert compare_tensor(same, same).found is BYTE_EXACT
    assert compare_tensor(same, other).failure == "has other bytes, and they cannot be decoded"
    assert not compare_tensor(stored("f32", np.zeros((2, 64), np.float32)), other).passed


@pytest.mark.parametrize(("declared", "passed"), [(VALUE_EXACT, False), (BYTE_EXACT, False), (LOSSY, True)])
def test_artifact_must_not_be_worse_than_declared(declared: LossClass, passed: bool) -> None:
    found = compare_tensor(stored("f32", [[3.0, 4.015625]]), stored("bf16", [[3.0, 4.0]]))
    held = replace(found, declared=declared)
    assert (found.passed, held.passed) == (True, passed)
    assert passed or f"where {declared} is declared" in str(held.failure)


def test_declaration_does_not_excuse_what_the_encodings_promise() -> None:
    found = compare_tensor(stored("bf16", [[1, 2]]), stored("bf16", [[1, 2.5]]))
    assert not replace(found, declared=LOSSY).passed


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


def test_any_number_of_jobs_finds_the_same_in_canonical_order(folder: Path) -> None:
    model = open_checkpoint(folder / "hf")
    other = open_checkpoint(write_huggingface(folder / "seed", Shape(layers=1), seed=1))
    results = [list(compare_weights(model, other, jobs=jobs)) for jobs in (1, 2, 5)]
    assert [item.name for item in results[0]] == list(model.tensors)
    assert results[0] == results[1] == results[2]


def test_progress_adds_up_to_the_stored_bytes(folder: Path) -> None:
    model = open_checkpoint(folder / "hf")
    told: dict[str, int] = {}

    def progress(tensor: str, nbytes: int) -> None:
        told[tensor] = told.get(tensor, 0) + nbytes

    verify_weights(model, model, jobs=2, progress=progress)
    assert told == {name: tensor.nbytes for name, tensor in model.tensors.items()}


def test_result_names_the_worst_tensor_and_says_why(folder: Path) -> None:
    model = open_checkpoint(folder / "hf")
    same = verify_weights(model, model)
    assert (same.passed, same.loss, same.worst) == (True, BYTE_EXACT, None)
    assert same.reason == f"all {len(model.tensors)} tensors are byte-exact"
    lossy = replace(same.tensors[0], expected=LOSSY, found=LOSSY, different=3, relative_error=0.5)
    rounded = replace(same, tensors=(lossy, *same.tensors[1:]))
    assert (rounded.passed, rounded.loss, rounded.worst) == (True, LOSSY, lossy)
    assert "as good as promised" in rounded.reason
    assert rounded.reason.endswith(f"in {lossy.name}")
    failed = replace(rounded, tensors=(lossy, replace(same.tensors[1], problem="is gone"), *same.tensors[2:]))
    assert (failed.passed, failed.worst) == (False, failed.tensors[1])
    assert failed.reason == f"tensor {same.tensors[1].name} is gone"
    json.dumps(failed.as_dict(), allow_nan=False)


def test_full_experts_take_little_memory_unless_they_lie_in_columns(tmp_path: Path) -> None:
    shape = Shape(layers=1, hidden=1024, intermediate=2048, experts=8)
    model = open_checkpoint(write_huggingface(tmp_path / "hf", shape))
    largest = max(tensor.nbytes for tensor in model.tensors.values())
    tracemalloc.start()
    verify_weights(model, model, jobs=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * PIECE_BYTES < largest
