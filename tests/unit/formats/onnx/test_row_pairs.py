"""MXFP4 whose codes lie transposed, two rows in a byte."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.execute import Resources
from gptoss_convert.converters.plan import Plan, Transfer
from gptoss_convert.converters.tasks import run_task, tasks
from gptoss_convert.encodings.mxfp4 import MXFP4
from gptoss_convert.formats.onnx.row_pairs import RowPairsStorage
from gptoss_convert.formats.storage import SameBytes
from tests.support.memory import InMemory
from tests.unit.formats.moves import UNTOUCHED, Case, Memory, ranges, stored_in

EXPERTS, ROWS, COLUMNS = 3, 6, 64


def elements(experts: int, rows: int, columns: int) -> np.ndarray:
    """Codes, one in a byte."""
    return np.random.default_rng(3).integers(0, 16, (experts, rows, columns), np.uint8)


def case(folder: Path, experts: int = EXPERTS, rows: int = ROWS, columns: int = COLUMNS) -> Case:
    codes = elements(experts, rows, columns)
    stored = codes.transpose(0, 2, 1)
    pairs = stored[..., 0::2] | stored[..., 1::2] << 4
    scales = (
        (np.arange(experts * rows * columns // 32) % 253).astype(np.uint8).reshape(experts * rows, columns // 32)
    )
    contents: dict[Path, bytes] = {}
    storage = RowPairsStorage(
        stored_in(folder / "codes", pairs.reshape(-1, rows // 2), contents),
        stored_in(folder / "scales", scales, contents),
        columns,
    )
    packed = (codes[..., 0::2] | codes[..., 1::2] << 4).reshape(experts * rows, columns // 2)
    return Case(storage, (packed, scales), contents)


@st.composite
def even_pieces(draw: st.DrawFn, rows: int) -> list[tuple[int, int]]:
    """All of the rows in pieces of whole pairs, in any order."""
    cuts = sorted({0, rows, *(2 * cut for cut in draw(st.lists(st.integers(1, rows // 2), max_size=6)))})
    return draw(st.permutations(list(pairwise(cuts))))


@given(data=st.data())
def test_rows_are_read_in_any_range(tmp_path: Path, data: st.DataObject) -> None:
    one = case(tmp_path)
    one.assert_reads(*data.draw(ranges(one.rows)))


@given(data=st.data(), order=st.sampled_from("CF"))
def test_rows_are_written_in_pairs_and_in_any_order(tmp_path: Path, data: st.DataObject, order: str) -> None:
    one = case(tmp_path)
    chunk = tuple(np.array(part, order=order) for part in one.chunk)  # type: ignore[call-overload]
    Case(one.storage, chunk, one.contents).assert_writes(data.draw(even_pieces(one.rows)))


@pytest.mark.parametrize("shape", [(1, 2, 32), (2, 384, 192), (1, 2050, 224)])
def test_matrices_of_any_size_are_moved(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    one = case(tmp_path, *shape)
    one.assert_reads(0, one.rows)
    one.assert_writes([(0, one.rows)])


def test_whole_matrices_are_written_in_one_piece_each(tmp_path: Path) -> None:
    one, offsets = case(tmp_path), []

    class Counting(Memory):
        def write(self, path: Path, data: object, offset: int) -> None:
            offsets.append((path.name, offset))

    one.storage.write(Counting({}), ROWS, tuple(part[ROWS:] for part in one.chunk))
    assert [name for name, _ in offsets] == ["codes", "codes", "scales"]


@pytest.mark.parametrize(("start", "stop"), [(1, 4), (0, 3), (2, 5)])
def test_half_a_pair_is_not_written(tmp_path: Path, start: int, stop: int) -> None:
    one = case(tmp_path)
    with pytest.raises(ValueError, match="not whole pairs"):
        one.storage.write(Memory({}), start, tuple(part[start:stop] for part in one.chunk))


def test_values_are_those_of_the_rows(tmp_path: Path) -> None:
    storage, codes = case(tmp_path).storage, elements(EXPERTS, ROWS, COLUMNS).reshape(-1, COLUMNS)
    chunk = storage.read(0, len(codes))
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    signed = np.concatenate([magnitudes, -magnitudes])[codes]
    scales = np.repeat(2.0 ** (chunk[1].astype(float) - 127), 32, axis=1)
    np.testing.assert_array_equal(MXFP4().decode(chunk), signed * scales)


def test_storage_is_a_value_that_lies_in_columns(tmp_path: Path) -> None:
    one = case(tmp_path)
    one.assert_is_a_value()
    assert (one.storage.order, one.storage.row_group) == ("F", ROWS)
    assert one.storage.files == tuple(one.contents)
    assert one.storage.read(0, 2 * ROWS)[0].flags.f_contiguous
    assert SameBytes.of(one.storage, one.storage) is None


@pytest.mark.parametrize("memory", [10_000, 20_000, 1 << 30])
def test_conversions_cut_matrices_between_pairs(tmp_path: Path, memory: int) -> None:
    one, shape = case(tmp_path, 2, 102, 256), (2, 102, 256)
    source = Tensor("experts", shape, MXFP4(), InMemory(one.chunk))
    transfer = Transfer(source, Tensor("experts", shape, MXFP4(), one.storage))
    plan = Plan(source=Path(), source_format="", inputs=(), format="", files=(), transfers=(transfer,))
    cut = list(tasks(plan, Resources(jobs=1, memory=memory)))
    assert (len(cut) > 2) == (memory < 1 << 20)
    written = Memory({path: bytearray(UNTOUCHED * len(content)) for path, content in one.contents.items()})
    for task in cut:
        run_task(task, written)
    assert written.files == one.contents
