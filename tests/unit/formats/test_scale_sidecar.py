"""The file that names scales: it returns what was named, takes no harm from a hostile archive, and does none."""

import errno
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gptoss_convert.encodings.mxfp4_format import NOT_NAMED
from gptoss_convert.errors import InputError, OutputError
from gptoss_convert.formats import scale_sidecar, storage
from gptoss_convert.formats.scale_sidecar import SIDECAR_NAME, NamedScales, ScaleSidecarWriter, read_sidecar

Scales = NDArray[np.uint8]

EXPERTS, ROWS, BLOCKS = 3, 5, 7
SHAPES = dict.fromkeys(("a.down_proj", "b.down_proj"), (EXPERTS, ROWS, 32 * BLOCKS))
MEMBER = "a.down_proj/1"
SIZE = 5
"""Bytes of one bit for each of 35 blocks."""


def write(path: Path, scales: Mapping[str, Scales], cuts: tuple[int, ...] = ()) -> int:
    """Write the file of scales `[experts, rows, blocks]` by tensor, each matrix in pieces of rows."""
    writer = ScaleSidecarWriter(path)
    for tensor, matrices in scales.items():
        for index, matrix in enumerate(matrices):
            for piece in np.split(matrix, cuts):
                writer.add(tensor, index, piece)
    writer.close()
    return writer.blocks


def read_all(path: Path) -> dict[str, Scales]:
    return {
        tensor: named.read(0, EXPERTS * ROWS).reshape(EXPERTS, ROWS, BLOCKS)
        for tensor, named in read_sidecar(path, SHAPES).items()
    }


named = hnp.arrays(
    np.uint8, (EXPERTS, ROWS, BLOCKS), elements=st.integers(0, 254) | st.just(NOT_NAMED), fill=st.just(NOT_NAMED)
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / SIDECAR_NAME


@pytest.fixture
def sound(path: Path) -> Path:
    """A file in which matrix 1 of one tensor has three scales."""
    scales = np.full((EXPERTS, ROWS, BLOCKS), NOT_NAMED, np.uint8)
    scales[1, 2, 3:6] = 120, 0, 254
    assert write(path, {"a.down_proj": scales}) == 3
    return path


# --- what is named returns


@given(first=named, second=named, cuts=st.sets(st.integers(1, ROWS - 1)))
def test_scales_return(tmp_path: Path, first: Scales, second: Scales, cuts: set[int]) -> None:
    path = tmp_path / SIDECAR_NAME
    path.unlink(missing_ok=True)
    scales = {"a.down_proj": first, "b.down_proj": second}
    blocks = write(path, scales, tuple(sorted(cuts)))
    assert blocks == sum(int((matrices != NOT_NAMED).sum()) for matrices in scales.values())
    found = read_all(path) if blocks else {}
    assert path.exists() == bool(blocks)
    for tensor, matrices in scales.items():
        if (matrices != NOT_NAMED).any():
            np.testing.assert_array_equal(found.pop(tensor), matrices)
    assert not found


@given(matrices=named, data=st.data())
def test_any_rows_can_be_read(tmp_path: Path, matrices: Scales, data: st.DataObject) -> None:
    path = tmp_path / SIDECAR_NAME
    path.unlink(missing_ok=True)
    matrices[0, 0, 0] = 1
    write(path, {"a.down_proj": matrices})
    start = data.draw(st.integers(0, EXPERTS * ROWS - 1))
    stop = data.draw(st.integers(start + 1, EXPERTS * ROWS))
    found = read_sidecar(path, SHAPES)["a.down_proj"].read(start, stop)
    np.testing.assert_array_equal(found, matrices.reshape(-1, BLOCKS)[start:stop])


def test_without_scales_there_is_no_file(path: Path) -> None:
    assert write(path, {"a.down_proj": np.full((EXPERTS, ROWS, BLOCKS), NOT_NAMED, np.uint8)}) == 0
    assert not path.exists()


def test_file_depends_on_the_scales_alone(tmp_path: Path) -> None:
    scales = {"a.down_proj": np.arange(EXPERTS * ROWS * BLOCKS, dtype=np.uint8).reshape(EXPERTS, ROWS, BLOCKS)}
    files = [tmp_path / "first", tmp_path / "second"]
    write(files[0], scales)
    os.utime(files[0], (0, 0))
    write(files[1], scales, (1, 3))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_members_are_as_documented(sound: Path) -> None:
    with zipfile.ZipFile(sound) as archive:
        assert archive.namelist() == [MEMBER]
        content = archive.read(MEMBER)
    bits = np.unpackbits(np.frombuffer(content[:SIZE], np.uint8))
    assert np.flatnonzero(bits).tolist() == [17, 18, 19]
    assert content[SIZE:] == bytes([120, 0, 254])


def test_names_of_scales_are_a_value(sound: Path) -> None:
    found = read_sidecar(sound, SHAPES)["a.down_proj"]
    copy = pickle.loads(pickle.dumps(found))
    assert copy == found
    np.testing.assert_array_equal(copy.read(5, 10), found.read(5, 10))


def rows_of(found: NamedScales, start: int) -> bytes:
    return found.read(start, start + 1).tobytes()


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_workers_read_at_once(path: Path, pool: Any) -> None:
    """Also processes that were forked while the file was open; members are larger than a buffer of the system."""
    scales = np.random.default_rng(0).integers(0, 255, (8, 200, 200), np.uint8)
    write(path, {"a.down_proj": scales})
    found = read_sidecar(path, {"a.down_proj": (8, 200, 6400)})["a.down_proj"]
    found.read(0, 1)
    starts = [200 * matrix for matrix in range(8)] * 25
    with pool(4) as workers:
        rows = workers.map(rows_of, [found] * len(starts), starts)
        expected = scales.reshape(-1, 200)
        assert all(row == expected[start].tobytes() for start, row in zip(starts, rows, strict=True))


# --- hostile archives


def archive(
    path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED
) -> Path:
    pairs = members if isinstance(members, list) else list(members.items())
    with zipfile.ZipFile(path, "w", method) as target:
        for name, content in pairs:
            target.writestr(name, content)
    return path


def content(count: int = 3, extra: int = 0) -> bytes:
    bits = np.zeros(35, np.uint8)
    bits[:count] = 1
    return np.packbits(bits).tobytes() + bytes(range(100, 100 + count + extra))


def in_central_directory(path: Path, offset: int, form: str, value: int) -> Path:
    """Change a field of the only member's entry in the list of members."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.rindex(b"PK\x01\x02") + offset, value)
    path.write_bytes(data)
    return path


def overwritten(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def cut(path: Path, nbytes: int) -> Path:
    return overwritten(archive(path, {MEMBER: content()}), path.read_bytes()[:nbytes])


FLAGS, METHOD, STORED_SIZE, SIZE_OF_CONTENT, START = (8, "<H"), (10, "<H"), (20, "<I"), (24, "<I"), (42, "<I")

UNREADABLE: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (lambda path: overwritten(path, b""), "damaged file of scales"),
    "not a zip": (lambda path: overwritten(path, b"scales" * 100), "damaged file of scales"),
    "cut": (lambda path: cut(path, 40), "damaged file of scales"),
    "unknown tensor": (lambda path: archive(path, {"c.down_proj/1": content()}), "that the model has not.*c.down"),
    "no matrix": (lambda path: archive(path, {"a.down_proj": content()}), "that the model has not"),
    "matrix too many": (lambda path: archive(path, {"a.down_proj/3": content()}), "that the model has not"),
    "negative matrix": (lambda path: archive(path, {"a.down_proj/-1": content()}), "that the model has not"),
    "odd number": (lambda path: archive(path, {"a.down_proj/01": content()}), "that the model has not"),
    "other digit": (lambda path: archive(path, {"a.down_proj/\u0661": content()}), "that the model has not"),
    "huge number": (lambda path: archive(path, {"a.down_proj/" + "9" * 5000: content()}), "that the model has not"),
    "path": (lambda path: archive(path, {"../../a.down_proj/1": content()}), "that the model has not"),
    "too short": (lambda path: archive(path, {MEMBER: content()[:SIZE]}), "do not fit.*found 5 bytes"),
    "too long": (lambda path: archive(path, {MEMBER: bytes(41)}), "do not fit.*found 41 bytes"),
    "bomb": (lambda path: archive(path, {MEMBER: bytes(100_000_000)}), "do not fit.*found 100000000 bytes"),
    "compressed otherwise": (
        lambda path: archive(path, {MEMBER: content()}, zipfile.ZIP_LZMA),
        "do not fit the tensor",
    ),
    "encrypted": (lambda path: in_central_directory(archive(path, {MEMBER: content()}), *FLAGS, 1), "encrypted"),
    "huge size": (
        lambda path: in_central_directory(archive(path, {MEMBER: content()}), *SIZE_OF_CONTENT, 1 << 31),
        "do not fit.*found 2147483648 bytes",
    ),
}
"""Archives that are refused as soon as they are looked at."""


@pytest.mark.parametrize("case", UNREADABLE)
def test_hostile_archive_is_refused(case: str, path: Path) -> None:
    make, message = UNREADABLE[case]
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        read_sidecar(path, SHAPES)
    assert caught.value.file == str(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_scales_that_are_named_twice_are_refused(path: Path) -> None:
    archive(path, [(MEMBER, content()), (MEMBER, content(2))])
    with pytest.raises(InputError, match="scales are named twice"):
        read_sidecar(path, SHAPES)


LYING: Mapping[str, Callable[[Path], Path]] = {
    "fewer scales than bits": lambda path: archive(path, {MEMBER: content(extra=-1)}),
    "more scales than bits": lambda path: archive(path, {MEMBER: content(extra=1)}),
    "size too small": lambda path: in_central_directory(archive(path, {MEMBER: content()}), *SIZE_OF_CONTENT, 7),
    "bomb that claims to be small": lambda path: in_central_directory(
        archive(path, {MEMBER: bytes(100_000_000)}), *SIZE_OF_CONTENT, 8
    ),
    "starts beyond the file": lambda path: in_central_directory(
        archive(path, {MEMBER: content()}), *START, 1 << 31
    ),
    "another method": lambda path: in_central_directory(archive(path, {MEMBER: content()}), *METHOD, 0),
}
"""Archives that show what they are when a member is read."""


@pytest.mark.parametrize("case", LYING)
def test_archive_that_lies_is_refused_when_it_is_read(case: str, path: Path) -> None:
    LYING[case](path)
    with pytest.raises(InputError, match="damaged file of scales"):
        read_sidecar(path, SHAPES)["a.down_proj"].read(0, EXPERTS * ROWS)


@pytest.mark.parametrize(("field", "value"), [(SIZE_OF_CONTENT, 9), (STORED_SIZE, 1 << 31)])
def test_lie_that_changes_nothing_is_harmless(path: Path, field: tuple[int, str], value: int) -> None:
    in_central_directory(archive(path, {MEMBER: content()}), *field, value)
    assert read_all(path)["a.down_proj"][1, 0].tolist() == [100, 101, 102, 255, 255, 255, 255]


def test_list_of_members_is_not_read_if_it_is_huge(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(path, {f"{index}": b"" for index in range(1000)})
    monkeypatch.setattr(scale_sidecar, "_LARGEST_READ", 30_000)
    with pytest.raises(InputError, match=r"damaged file of scales: \d+ bytes in one piece"):
        read_sidecar(path, SHAPES)


@given(data=st.data())
def test_damaged_file_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever a byte becomes, there is an error of ours, or scales of the right shape."""
    path = tmp_path / SIDECAR_NAME
    damaged = bytearray(archive(path, {MEMBER: content(), "b.down_proj/0": content(30)}).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged)) | st.just(len(damaged))) :]
    path.write_bytes(damaged)
    try:
        found = read_all(path)
    except InputError:
        return
    assert found.keys() <= SHAPES.keys()


def test_file_that_changed_is_refused(sound: Path) -> None:
    found = read_sidecar(sound, SHAPES)["a.down_proj"]
    status = sound.stat()
    os.utime(sound, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    other = NamedScales(found.file, "a.down_proj", frozenset({1}), ROWS, BLOCKS)
    scale_sidecar._archive.cache_clear()
    storage._opened.cache_clear()
    with pytest.raises(InputError, match="file changed while it was in use"):
        pickle.loads(pickle.dumps(other)).read(0, 10)


def test_missing_file_is_an_error(path: Path) -> None:
    with pytest.raises(InputError, match="file is missing"):
        read_sidecar(path, SHAPES)


# --- writing fails


FULL = Path("/dev/full")
"""A device on which no byte fits."""


def write_much() -> None:
    writer = ScaleSidecarWriter(FULL)
    for matrix in range(100):
        writer.add("a.down_proj", matrix, np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8))
    writer.close()


@pytest.mark.filterwarnings("error")  # a destructor that tries again would make another line on standard error
def test_full_disk_is_an_error_of_ours() -> None:
    with pytest.raises(OutputError, match=os.strerror(errno.ENOSPC)) as caught:
        write_much()
    assert caught.value.file == str(FULL)


def test_folder_that_does_not_exist_is_an_error_of_ours(tmp_path: Path) -> None:
    writer = ScaleSidecarWriter(tmp_path / "missing" / SIDECAR_NAME)
    writer.add("a.down_proj", 0, np.zeros((ROWS, BLOCKS), np.uint8))
    with pytest.raises(OutputError, match="cannot write: No such file"):
        writer.close()
