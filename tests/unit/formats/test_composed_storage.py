"""Storages made of several storages: experts one by one, rows in two pieces, scales with another bias."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.composed_storage import AdjoinedStorage, OffsetScalesStorage, StackedStorage
from gptoss_convert.formats.storage import InterleavedStorage, PartsStorage, TransposedStorage
from tests.unit.formats.moves import Case, Memory, pieces, ranges, stored_in


def stacked(folder: Path) -> Case:
    """Three experts of four rows, codes and scales in files of their own."""
    contents: dict[Path, bytes] = {}
    codes, scales = np.arange(12 * 4, dtype="<u4").reshape(12, 4), np.arange(12, dtype="u1").reshape(12, 1)
    experts = tuple(
        PartsStorage(
            (
                stored_in(folder / f"codes{first}", codes[first : first + 4], contents),
                stored_in(folder / f"scales{first}", scales[first : first + 4], contents),
            )
        )
        for first in (0, 4, 8)
    )
    return Case(StackedStorage(experts, 4), (codes, scales), contents)


def stacked_transposed(folder: Path) -> Case:
    contents: dict[Path, bytes] = {}
    rows = np.arange(3 * 5 * 4, dtype="<u2").reshape(15, 4)
    experts = tuple(
        TransposedStorage(stored_in(folder / f"expert{first}", rows[first : first + 5].T.copy(), contents), 4)
        for first in (0, 5, 10)
    )
    return Case(StackedStorage(experts, 5), (rows,), contents)


def interleaved_stacks(folder: Path) -> Case:
    """Two experts of three gates and three ups."""
    contents: dict[Path, bytes] = {}
    rows = np.arange(12 * 4, dtype="<u2").reshape(2, 6, 4)
    halves = [
        StackedStorage(
            tuple(
                PartsStorage((stored_in(folder / f"{first}of{expert}", rows[expert, first::2], contents),))
                for expert in (0, 1)
            ),
            3,
        )
        for first in (0, 1)
    ]
    return Case(InterleavedStorage(*halves, axis=0), (rows.reshape(12, 4),), contents)


def adjoined(folder: Path) -> Case:
    contents: dict[Path, bytes] = {}
    rows = np.arange(6 * 5, dtype="<u2").reshape(6, 5)
    halves = [
        PartsStorage((stored_in(folder / name, part, contents),))
        for name, part in (("first", rows[:, :3].copy()), ("second", rows[:, 3:].copy()))
    ]
    return Case(AdjoinedStorage(*halves, columns=3), (rows,), contents)


def offset_scales(folder: Path) -> Case:
    contents: dict[Path, bytes] = {}
    codes, scales = np.arange(7 * 4, dtype="u1").reshape(7, 4), np.array([2, 3, 125, 127, 129, 253, 254], "u1")
    stored = PartsStorage(
        (
            stored_in(folder / "codes", codes, contents),
            stored_in(folder / "scales", (scales - 2)[:, None].astype("u1"), contents),
        )
    )
    return Case(OffsetScalesStorage(stored, 2), (codes, scales[:, None]), contents)


LAYOUTS = [stacked, stacked_transposed, interleaved_stacks, adjoined, offset_scales]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.__name__)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    made: Case = request.param(tmp_path)
    return made


@given(data=st.data())
def test_rows_are_read_in_any_range(case: Case, data: st.DataObject) -> None:
    case.assert_reads(*data.draw(ranges(case.rows)))


@given(data=st.data())
def test_rows_are_written_in_any_pieces_and_in_any_order(case: Case, data: st.DataObject) -> None:
    case.assert_writes(data.draw(pieces(case.rows)))


def test_storage_is_a_value_that_can_be_sent_to_another_process(case: Case) -> None:
    case.assert_is_a_value()


def test_storage_names_its_files(case: Case) -> None:
    assert case.storage.files == tuple(case.contents)


@pytest.mark.parametrize("position", [0, 4, 12])
def test_no_rows_can_be_read_anywhere(tmp_path: Path, position: int) -> None:
    codes, scales = stacked(tmp_path).storage.read(position, position)
    assert (codes.shape, scales.shape) == ((0, 4), (0, 1))


@pytest.mark.parametrize(
    ("layout", "row_group", "order"),
    [
        (stacked, 1, "C"),
        (stacked_transposed, 5, "F"),
        (interleaved_stacks, 2, "C"),
        (adjoined, 1, "C"),
        (offset_scales, 1, "C"),
    ],
)
def test_rows_come_cheapest_in_whole_groups_and_in_one_order(
    tmp_path: Path, layout: Callable[[Path], Case], row_group: int, order: str
) -> None:
    storage = layout(tmp_path).storage
    assert (storage.row_group, storage.order) == (row_group, order)
    (part, *_) = storage.read(0, 5)
    assert part.flags[f"{order}_CONTIGUOUS"]


@pytest.mark.parametrize("scale", [253, 255])
def test_scale_that_would_be_no_number_is_refused(tmp_path: Path, scale: int) -> None:
    contents: dict[Path, bytes] = {}
    parts = [
        stored_in(tmp_path / "codes", np.zeros((2, 4), "u1"), contents),
        stored_in(tmp_path / "scales", np.array([[252], [scale]], "u1"), contents),
    ]
    storage = OffsetScalesStorage(PartsStorage(tuple(parts)), 2)
    assert storage.read(0, 1)[1] == [[254]]
    with pytest.raises(InputError, match=rf"too large .*codes.*found {scale}, expected at most 252"):
        storage.read(0, 2)


def test_scale_that_cannot_be_stored_smaller_is_refused(tmp_path: Path) -> None:
    storage = offset_scales(tmp_path).storage
    with pytest.raises(UnsupportedError, match=r"cannot be stored 2 smaller.*found 1"):
        storage.write(Memory({}), 0, (np.zeros((1, 4), "u1"), np.array([[1]], "u1")))
