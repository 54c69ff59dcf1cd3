"""What differs between some rows and those that are expected."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from gptoss_convert.encodings.deviation import LARGEST_ERROR
from gptoss_convert.verify.differences import Differences, WorstBlock, differences

SHAPE = (2, 3, 72)
"""Two experts of three rows, of two blocks and a short one."""


def numbers() -> np.ndarray:
    return np.arange(1, 6 * 72 + 1, dtype=np.float32).reshape(6, 72)


def test_equal_numbers_differ_in_nothing() -> None:
    assert differences(numbers(), numbers(), 0, SHAPE) == Differences(values=6 * 72)


@pytest.mark.parametrize(
    ("row", "column", "expert", "inner", "block"),
    [(0, 0, 0, 0, 0), (2, 31, 0, 2, 0), (3, 32, 1, 0, 32), (5, 71, 1, 2, 64)],
)
def test_block_is_placed_by_expert_row_and_column(
    row: int, column: int, expert: int, inner: int, block: int
) -> None:
    found = numbers()
    found[row, column] += 2
    result = differences(numbers(), found, 0, SHAPE)
    assert (result.different, result.blocks, result.largest_error, result.squared_error) == (1, 1, 2, 4)
    assert result.worst is not None
    assert (result.worst.expert, result.worst.row, result.worst.column) == (expert, inner, block)


@pytest.mark.parametrize(
    ("shape", "first", "place"),
    [
        ((2, 3, 72), 3, "expert 1, row 1, column 32"),
        ((9, 72), 3, "row 4, column 32"),
        ((72,), 0, "row 1, column 32"),
    ],
)
def test_rows_are_counted_from_the_start_of_the_tensor(shape: tuple[int, ...], first: int, place: str) -> None:
    found = numbers()[:2].copy()
    found[1, 40] = 0
    worst = differences(numbers()[:2], found, first, shape).worst
    assert worst is not None
    assert worst.place == place


def test_worst_block_has_the_largest_error_and_tells_both_ranges() -> None:
    found = numbers()
    found[0, 0], found[4, 33], found[4, 34] = 3, 0, -100
    worst = differences(numbers(), found, 0, SHAPE).worst
    expected = numbers()[4, 32:64].astype(np.float64)
    error = expected[1] ** 2 + (expected[2] + 100) ** 2
    assert worst == WorstBlock(
        expert=1,
        row=1,
        column=32,
        squared_error=error,
        relative_error=pytest.approx(float(np.sqrt(error / np.square(expected).sum()))),
        reference_range=(321, 352),
        artifact_range=(-100, 352),
    )


def test_first_of_equally_bad_blocks_is_the_worst() -> None:
    found = numbers()
    found[1] += 1
    found[0, 32:64] += 1
    pieces = [differences(numbers()[i : i + 1], found[i : i + 1], i, SHAPE) for i in range(6)]
    for result in (differences(numbers(), found, 0, SHAPE), sum(pieces, Differences())):
        assert result.worst is not None
        assert (result.worst.row, result.worst.column) == (0, 32)


def test_pieces_add_up_to_the_whole() -> None:
    found = numbers()
    found[1, 5], found[1, 6], found[4, 70], found[5, 0] = np.nan, np.inf, 9, 0.5
    pieces = [differences(numbers()[i : i + 2], found[i : i + 2], i, SHAPE) for i in (0, 2, 4)]
    assert sum(pieces, Differences()) == differences(numbers(), found, 0, SHAPE)


def test_zeros_of_other_sign_are_equal_and_counted() -> None:
    expected, found = np.array([[0.0, -0.0, 0.0, -1.0]], np.float32), np.array([[-0.0, -0.0, 0.0, 1.0]], np.float32)
    result = differences(expected, found, 0, (1, 4))
    assert (result.different, result.signs_of_zero) == (1, 1)
    assert differences(expected[:, :3], found[:, :3], 0, (1, 3)) == Differences(values=3, signs_of_zero=1)


def test_new_nan_and_infinities_are_counted_and_the_facts_are_json() -> None:
    expected = np.array([[1, 2, 3, np.nan, np.inf, -np.inf, np.nan]], np.float32)
    found = np.array([[np.nan, np.inf, -np.inf, np.nan, np.inf, np.nan, 1]], np.float32)
    result = differences(expected, found, 0, (1, 7))
    assert (result.different, result.new_nan, result.new_infinite) == (5, 1, 2)
    assert result.worst is not None
    assert result.worst.reference_range == (-LARGEST_ERROR, LARGEST_ERROR)
    json.dumps(asdict(result), allow_nan=False)
    nothing = differences(np.full((1, 2), 1, np.float32), np.full((1, 2), np.nan, np.float32), 0, (1, 2)).worst
    assert nothing is not None
    assert nothing.artifact_range is None


def test_only_blocks_of_equal_values_are_rescaled() -> None:
    expected = np.ones((2, 64), np.float32)
    found = expected.copy()
    found[1, 0] = 2
    other_scales = np.array([[True, False], [True, True]])
    assert differences(expected, expected, 0, (2, 64), other_scales).rescaled_blocks == 3
    assert differences(expected, found, 0, (2, 64), other_scales).rescaled_blocks == 2
