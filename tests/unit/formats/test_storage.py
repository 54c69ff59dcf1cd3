"""Where rows lie in files: positional reads, and the layouts that all formats share."""

import errno
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.encodings import ENCODINGS, Array
from gptoss_convert.errors import InputError
from gptoss_convert.formats.gguf.blocks import RecordStorage
from gptoss_convert.formats.storage import (
    OPEN_FILES,
    FileRef,
    InterleavedStorage,
    PartsStorage,
    SameBytes,
    StoredArray,
    TransposedStorage,
)
from tests.unit.formats.moves import UNTOUCHED, Case, Memory, pieces, ranges, stored_in

ROWS = np.arange(6 * 5, dtype="<u2").reshape(6, 5)


@pytest.fixture
def stored(tmp_path: Path) -> StoredArray:
    """`ROWS` in a file, after three other bytes."""
    path = tmp_path / "rows"
    path.write_bytes(b"abc" + ROWS.tobytes())
    return StoredArray(FileRef.at(path), 3, np.dtype("<u2"), 5)


def forget_open_files(folder: Path) -> None:
    """Open so many other files that all earlier ones are closed."""
    folder.mkdir()
    for index in range(OPEN_FILES):
        (folder / str(index)).write_bytes(b"")
        FileRef.at(folder / str(index))


# --- files


def test_bytes_are_read_from_any_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    file = FileRef.at(path)
    assert file.size == 10
    assert file.read(3, 4) == b"3456"
    assert file.read(10, 0) == b""


def test_file_is_a_value(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    file = FileRef.at(path)
    copy = pickle.loads(pickle.dumps(file))
    assert copy == file == FileRef.at(path)
    assert hash(copy) == hash(file)
    assert copy.read(0, 10) == b"0123456789"
    path.write_bytes(b"0123")
    assert FileRef.at(path) != file


def test_relative_path_means_the_same_file_wherever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    monkeypatch.chdir(tmp_path)
    file = FileRef.at(Path("file"))
    monkeypatch.chdir("/")
    forget_open_files(tmp_path / "others")
    assert file.path == tmp_path / "file"
    assert file.read(0, 2) == b"01"


def test_file_that_is_yet_to_be_written_can_be_read_once_it_is(tmp_path: Path) -> None:
    file = FileRef(tmp_path / "file", 4)
    with pytest.raises(InputError, match="cannot read file: No such file"):
        file.read(0, 4)
    file.path.write_bytes(b"0123")
    assert file.read(0, 4) == b"0123"


def test_more_files_can_be_in_use_than_are_kept_open(tmp_path: Path, stored: StoredArray) -> None:
    forget_open_files(tmp_path / "others")
    np.testing.assert_array_equal(stored.read(0, 6), ROWS)


# --- storages: each is read and written in any ranges and in any order


def parts(folder: Path) -> Case:
    contents: dict[Path, bytes] = {}
    codes, scales = ROWS, np.arange(6, dtype="u1").reshape(6, 1)
    arrays = stored_in(folder / "codes", codes, contents), stored_in(folder / "scales", scales, contents)
    return Case(PartsStorage(arrays), (codes, scales), contents)


def transposed(folder: Path, experts: int = 3, stored_rows: int = 300, rows: int = 7) -> Case:
    """Matrices that are more than a tile high."""
    contents: dict[Path, bytes] = {}
    matrices = np.random.default_rng(7).integers(0, 1 << 16, (experts, stored_rows, rows), np.uint16)
    array = stored_in(folder / "matrices", matrices.reshape(-1, rows), contents)
    chunk = np.ascontiguousarray(matrices.transpose(0, 2, 1)).reshape(experts * rows, stored_rows)
    return Case(TransposedStorage(array, stored_rows), (chunk,), contents)


def interleaved_rows(folder: Path) -> Case:
    """Even and odd rows of two parts each."""
    contents: dict[Path, bytes] = {}
    codes, scales = np.arange(14 * 4, dtype="<u4").reshape(14, 4), np.arange(14, dtype="u1").reshape(14, 1)
    halves = [
        PartsStorage(
            (
                stored_in(folder / f"codes{first}", codes[first::2], contents),
                stored_in(folder / f"scales{first}", scales[first::2], contents),
            )
        )
        for first in (0, 1)
    ]
    return Case(InterleavedStorage(*halves, axis=0), (codes, scales), contents)


def interleaved_elements(folder: Path) -> Case:
    contents: dict[Path, bytes] = {}
    rows = np.arange(5 * 8, dtype="<u2").reshape(5, 8)
    halves = [PartsStorage((stored_in(folder / f"half{first}", rows[:, first::2], contents),)) for first in (0, 1)]
    return Case(InterleavedStorage(*halves, axis=1), (rows,), contents)


def interleaved_transposed_rows(folder: Path) -> Case:
    contents: dict[Path, bytes] = {}
    rows = np.arange(2 * 3 * 2 * 4, dtype="<u2").reshape(12, 4)
    halves = [
        TransposedStorage(
            stored_in(
                folder / f"half{first}", rows[first::2].reshape(2, 3, 4).transpose(0, 2, 1).reshape(8, 3), contents
            ),
            4,
        )
        for first in (0, 1)
    ]
    return Case(InterleavedStorage(*halves, axis=0), (rows,), contents)


LAYOUTS = [parts, transposed, interleaved_rows, interleaved_elements, interleaved_transposed_rows]


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


@pytest.mark.parametrize(
    ("layout", "row_group"),
    [
        (parts, 1),
        (transposed, 7),
        (interleaved_rows, 2),
        (interleaved_elements, 1),
        (interleaved_transposed_rows, 6),
    ],
)
def test_rows_come_cheapest_in_whole_groups(tmp_path: Path, layout: Callable[[Path], Case], row_group: int) -> None:
    assert layout(tmp_path).storage.row_group == row_group


def test_storage_names_a_file_of_both_halves_once(stored: StoredArray) -> None:
    half = PartsStorage((stored,))
    assert InterleavedStorage(half, half, axis=0).files == (stored.file.path,)


@pytest.mark.parametrize("shape", [(1, 1), (192, 192), (193, 5), (5, 193), (500, 400)])
def test_matrices_of_any_number_of_tiles_are_transposed(tmp_path: Path, shape: tuple[int, int]) -> None:
    case = transposed(tmp_path, 1, *shape)
    case.assert_reads(0, case.rows)
    case.assert_writes([(0, case.rows)])


def test_whole_matrices_are_written_in_one_piece_each(tmp_path: Path) -> None:
    case = transposed(tmp_path)
    offsets: list[int] = []

    class Counting(Memory):
        def write(self, path: Path, data: object, offset: int) -> None:
            offsets.append(offset)

    case.storage.write(Counting({}), 7, tuple(part[7:21] for part in case.chunk))
    assert len(offsets) == 2


@given(data=st.data())
def test_rows_of_transposed_matrices_lie_in_columns(tmp_path: Path, data: st.DataObject) -> None:
    """So that nothing is rearranged between them and the file."""
    case = transposed(tmp_path)
    assert case.storage.order == "F"
    start, stop = data.draw(ranges(case.rows))
    (rows,) = case.storage.read(start, stop)
    assert rows.flags.f_contiguous


@pytest.mark.parametrize("layout", [parts, interleaved_rows, interleaved_elements])
def test_rows_of_all_else_lie_in_rows(tmp_path: Path, layout: Callable[[Path], Case]) -> None:
    case = layout(tmp_path)
    assert case.storage.order == "C"
    assert all(part.flags.c_contiguous for part in case.storage.read(1, 4))


@given(data=st.data())
@pytest.mark.parametrize("order", ["C", "F", "every second"])
def test_rows_are_written_from_arrays_in_any_memory_order(case: Case, data: st.DataObject, order: str) -> None:
    def arranged(part: Array) -> Array:
        if order == "every second":
            return np.repeat(part, 2, axis=1)[:, ::2]
        return np.array(part, order=order)  # type: ignore[call-overload,no-any-return]

    Case(case.storage, tuple(map(arranged, case.chunk)), case.contents).assert_writes(data.draw(pieces(case.rows)))


def test_whole_matrix_in_columns_is_written_without_a_copy(tmp_path: Path) -> None:
    case = transposed(tmp_path)
    rows = np.asfortranarray(case.chunk[0][:7])
    written: list[Array] = []

    class Keeping(Memory):
        def write(self, path: Path, data: object, offset: int) -> None:
            assert isinstance(data, np.ndarray)
            written.append(data)

    case.storage.write(Keeping({}), 0, (rows,))
    assert len(written) == 1
    assert np.shares_memory(written[0], rows)


# --- rows that are the same bytes in two files


def plain(folder: Path, *, dtype: str = "<u2", items: int = 5) -> PartsStorage:
    return PartsStorage((StoredArray(FileRef(folder / "new", 100), 8, np.dtype(dtype), items),))


def test_rows_that_lie_as_they_are_in_both_files_are_the_same_bytes(tmp_path: Path, stored: StoredArray) -> None:
    target = plain(tmp_path)
    same = SameBytes.of(PartsStorage((stored,)), target)
    assert same == SameBytes(stored, target.parts[0])
    copied = Memory({tmp_path / "new": bytearray(UNTOUCHED * 100)})
    same.copy(copied, 1, 4)
    assert copied.files[tmp_path / "new"] == UNTOUCHED * 18 + ROWS[1:4].tobytes() + UNTOUCHED * 52


def test_rows_of_plain_numbers_are_the_same_bytes_in_gguf(tmp_path: Path, stored: StoredArray) -> None:
    in_bytes = plain(tmp_path, dtype="u1", items=10).parts[0]
    record = RecordStorage(in_bytes, ENCODINGS["bf16"])
    assert SameBytes.of(PartsStorage((stored,)), record) == SameBytes(stored, in_bytes)
    assert SameBytes.of(record, PartsStorage((stored,))) == SameBytes(in_bytes, stored)


def test_records_may_have_another_order_of_codes(tmp_path: Path) -> None:
    rows = plain(tmp_path, dtype="u1", items=17).parts[0]
    record = RecordStorage(rows, ENCODINGS["mxfp4"])
    assert SameBytes.of(record, record) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_are_rearranged_are_not_the_same_bytes(tmp_path: Path, layout: Callable[[Path], Case]) -> None:
    storage = layout(tmp_path).storage
    assert SameBytes.of(storage, plain(tmp_path)) is None
    assert SameBytes.of(plain(tmp_path), storage) is None


def test_rows_of_another_length_are_not_the_same_bytes(tmp_path: Path, stored: StoredArray) -> None:
    assert SameBytes.of(PartsStorage((stored,)), plain(tmp_path, items=6)) is None


# --- threads


def test_threads_read_at_once(stored: StoredArray) -> None:
    spans = [(start, stop) for start in range(6) for stop in range(start + 1, 7)] * 20
    with ThreadPoolExecutor(8) as pool:
        for (start, stop), rows in zip(spans, pool.map(lambda span: stored.read(*span), spans), strict=True):
            np.testing.assert_array_equal(rows, ROWS[start:stop])


def test_threads_read_at_once_without_positional_reads(
    stored: StoredArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "preadv", raising=False)
    test_threads_read_at_once(stored)


def test_short_reads_are_continued(stored: StoredArray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv

    def at_most_seven(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return whole(descriptor, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", at_most_seven)
    np.testing.assert_array_equal(stored.read(0, 6), ROWS)


# --- faults


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file is missing"):
        FileRef.at(tmp_path / "missing")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_an_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "odd")
    with pytest.raises(InputError, match="not a regular file"):
        FileRef.at(tmp_path / "odd")


def test_device_is_an_error() -> None:
    with pytest.raises(InputError, match="not a regular file"):
        FileRef.at(Path(os.devnull))


def test_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InputError):
        FileRef.at(tmp_path / "a")


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"])
def test_impossible_name_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        FileRef.at(tmp_path / name)


def test_file_that_cannot_be_opened_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="cannot open file: Permission denied"):
        FileRef.at(tmp_path / "file")


def test_file_that_became_shorter_is_an_error(stored: StoredArray) -> None:
    os.truncate(stored.file.path, 40)
    np.testing.assert_array_equal(stored.read(0, 3), ROWS[:3])
    with pytest.raises(InputError, match=r"became shorter while it was read.*found 40 bytes, expected at least 63"):
        stored.read(0, 6)


def become_shorter(path: Path) -> None:
    status = path.stat()
    os.truncate(path, 40)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def become_newer(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


@pytest.mark.parametrize("change", [become_shorter, become_newer])
def test_file_that_changed_since_it_was_looked_at_is_refused(
    tmp_path: Path, stored: StoredArray, change: Callable[[Path], None]
) -> None:
    change(stored.file.path)
    forget_open_files(tmp_path / "others")
    with pytest.raises(InputError, match=r"file changed while it was in use .*rows"):
        stored.read(0, 1)


def test_read_error_is_an_error_of_ours(stored: StoredArray, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(InputError, match="cannot read file: Input/output error"):
        stored.read(0, 1)
