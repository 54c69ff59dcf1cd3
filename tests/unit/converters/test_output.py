"""Output files: complete under their final name, or not there at all."""

import errno
import itertools
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert.converters.destination import check_destination
from gptoss_convert.converters.output import Outputs, new_files, new_outputs
from gptoss_convert.converters.partial import Partial
from gptoss_convert.converters.plan import Plan, PlannedFile
from gptoss_convert.errors import InputError, OutputError
from gptoss_convert.formats.storage import FileRef

CONTENT = b"header" + bytes(range(10))


def planned(folder: Path, *names: str) -> list[PlannedFile]:
    return [PlannedFile(folder / name, len(CONTENT), b"header", ()) for name in names]


def empty(folder: Path, nbytes: int) -> list[PlannedFile]:
    """A file without header."""
    return [PlannedFile(folder / "a", nbytes, b"", ())]


def new_folder(
    folder: Path, files: list[PlannedFile], *, made_at_the_end: Sequence[Path] = ()
) -> AbstractContextManager[Outputs]:
    paths = [*(file.path for file in files), *made_at_the_end]
    return new_outputs(Partial.of_folder(folder, paths), files)


def write(files: list[PlannedFile]) -> None:
    with new_files(files) as outputs:
        for file in files:
            outputs.write(file.path, CONTENT[6:], 6)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


# --- success


def test_files_appear_with_their_contents(folder: Path) -> None:
    write(planned(folder, "b", "a"))
    assert names(folder) == ["a", "b"]
    assert {path.read_bytes() for path in folder.iterdir()} == {CONTENT}


def test_nothing_appears_before_the_end(folder: Path) -> None:
    with new_files(planned(folder, "a")):
        (partial,) = names(folder)
        assert partial.startswith("a.partial-")


def test_existing_files_stay_until_the_end(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).write_bytes(b"old")
    files = planned(folder, "a", "b")
    with new_files(files) as outputs:
        for file in files:
            outputs.write(file.path, CONTENT[6:], 6)
            assert file.path.read_bytes() == b"old"
    assert contents(folder) == {"a": CONTENT, "b": CONTENT}


def test_first_file_is_published_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = []
    replace = os.replace

    def remember(source: Any, target: Any) -> None:
        published.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", remember)
    write(planned(folder, "c", "a", "b"))
    assert published == ["b", "a", "c"]


def test_file_has_its_size_from_the_start(folder: Path) -> None:
    with new_files(empty(folder, 12345)):
        assert [path.stat().st_size for path in folder.iterdir()] == [12345]


def test_empty_file_is_published(folder: Path) -> None:
    with new_files(empty(folder, 0)):
        pass
    assert (folder / "a").read_bytes() == b""


@pytest.mark.parametrize(("umask", "mode"), [(0o000, 0o666), (0o027, 0o640)])
def test_mode_follows_the_umask(folder: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write(planned(folder, "a"))
    finally:
        os.umask(before)
    assert (folder / "a").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<f4", [("scale", "u1"), ("codes", "V16")]])
def test_arrays_are_written_as_their_bytes(folder: Path, dtype: Any) -> None:
    array = np.frombuffer(bytes(range(136)), np.dtype(dtype)).reshape(2, -1)
    with new_files(empty(folder, 138)) as outputs:
        outputs.write(folder / "a", array, 2)
        outputs.write(folder / "a", array[:0], 138)
    assert (folder / "a").read_bytes() == b"\0\0" + bytes(range(136))


@pytest.mark.parametrize("function", ["pwrite", "lseek and write"])
def test_threads_write_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    if function != "pwrite":
        monkeypatch.delattr(os, "pwrite")
    pieces = [bytes([index]) * 100 for index in range(200)]
    with new_files(empty(folder, 20_000)) as outputs, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: outputs.write(folder / "a", pieces[index], 100 * index), range(200)))
    assert (folder / "a").read_bytes() == b"".join(pieces)


def test_copies_in_other_processes_write_to_the_same_files_and_leave_none_open(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: set[int] = set()
    system_open, system_close = os.open, os.close

    def remember(*arguments: Any) -> int:
        opened.add(descriptor := system_open(*arguments))
        return descriptor

    def forget(descriptor: int) -> None:
        opened.discard(descriptor)
        system_close(descriptor)

    monkeypatch.setattr(os, "open", remember)
    monkeypatch.setattr(os, "close", forget)
    files = planned(folder, "a", "b")
    with new_files(files) as outputs:
        for file, index in itertools.product(files, range(6, len(CONTENT))):
            pickle.loads(pickle.dumps(outputs)).write(file.path, CONTENT[index : index + 1], index)
            assert len(opened) <= len(files)
    assert contents(folder) == {"a": CONTENT, "b": CONTENT}
    assert opened == set()


def test_short_writes_are_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: whole(descriptor, data[:3], offset))
    write(planned(folder, "a"))
    assert (folder / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("missing", ["posix_fallocate", "posix_fadvise"])
def test_systems_without_a_function_do_without(folder: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delattr(os, missing)
    write(planned(folder, "a"))
    assert (folder / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_system_that_cannot_reserve_space_does_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(code))
    write(planned(folder, "a"))
    assert (folder / "a").read_bytes() == CONTENT


def test_refused_advice_does_no_harm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fadvise", failing(errno.EINVAL))
    write(planned(folder, "a"))
    assert (folder / "a").read_bytes() == CONTENT


# --- copies


@pytest.fixture
def source(tmp_path: Path) -> FileRef:
    """A file that is longer than what is read and written at once."""
    path = tmp_path / "source"
    path.write_bytes(np.random.default_rng(1).bytes(600_000))
    return FileRef.at(path)


def copy(folder: Path, source: FileRef) -> bytes:
    """Copy all but five bytes at both ends, to a place between other bytes; return what lies there."""
    count = source.size - 10
    with new_files(empty(folder, count + 20)) as outputs:
        outputs.write(folder / "a", b"*" * 7, 0)
        outputs.write(folder / "a", b"*" * 13, count + 7)
        outputs.copy(folder / "a", 7, source, 5, count)
    content = (folder / "a").read_bytes()
    assert (content[:7], content[-13:]) == (b"*" * 7, b"*" * 13)
    return content[7:-13]


def by_system(limit: int = 1 << 30, calls: int = 1 << 30) -> Callable[..., int]:
    """A `copy_file_range` of at most `limit` bytes that refuses from call number `calls`, from 0, on."""
    number = itertools.count()
    pread, pwrite = os.pread, os.pwrite

    def copy_file_range(source: int, target: int, count: int, offset: int, target_offset: int) -> int:
        if next(number) >= calls:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pwrite(target, pread(source, min(count, limit), offset), target_offset)

    return copy_file_range


def test_bytes_of_another_file_are_copied(folder: Path, source: FileRef) -> None:
    assert copy(folder, source) == source.path.read_bytes()[5:-5]


def test_bytes_that_the_system_copies_are_not_read(
    folder: Path, source: FileRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", by_system(limit=100_000), raising=False)
    monkeypatch.delattr(os, "preadv")
    monkeypatch.setattr(os, "read", failing(errno.EIO))
    assert copy(folder, source) == source.path.read_bytes()[5:-5]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_bytes_that_the_system_refuses_to_copy_are_read_and_written(
    folder: Path, source: FileRef, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "copy_file_range", failing(code), raising=False)
    assert copy(folder, source) == source.path.read_bytes()[5:-5]


def test_copy_that_the_system_gives_up_is_completed(
    folder: Path, source: FileRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", by_system(limit=1001, calls=3), raising=False)
    assert copy(folder, source) == source.path.read_bytes()[5:-5]


def test_system_that_has_no_copies_does_without(
    folder: Path, source: FileRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    assert copy(folder, source) == source.path.read_bytes()[5:-5]


def test_copy_of_a_file_that_became_shorter_is_an_error(folder: Path, source: FileRef) -> None:
    os.truncate(source.path, 1000)
    with pytest.raises(InputError, match=r"became shorter.*found 1000 bytes, expected at least"):
        copy(folder, source)
    assert names(folder) == []


def test_failed_copy_names_the_file_that_is_to_blame(
    folder: Path, source: FileRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", failing(errno.EIO), raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing(errno.EIO))
        with pytest.raises(InputError, match=r"cannot read file: .*source"):
            copy(folder, source)
    monkeypatch.setattr(os, "pwrite", Fault(os.pwrite, 4, OSError(errno.ENOSPC, "full")))
    with pytest.raises(OutputError, match=r"cannot write: full .*out/a"):
        copy(folder, source)
    assert names(folder) == []


# --- failure


def failing(code: int) -> Any:
    """A function of the operating system that fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


class Fault:
    """Stands in for a function of `os`: before call number `number` (from 1), or never, it raises an error."""

    def __init__(self, function: Callable[..., Any], number: int = 0, error: BaseException | None = None) -> None:
        self.function = function
        self.number = number
        self.error = error
        self.calls = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.number and self.error:
            raise self.error
        return self.function(*arguments, **named)


STEPS = ["open", "posix_fallocate", "pwrite", "fsync", "close", "replace"]
"""Functions of the operating system that a write goes through."""
FOLDER_STEPS = [*STEPS, "mkdir"]


@pytest.mark.parametrize("older", [(), ("a",), ("b",), ("a", "b")], ids="-".join)
@pytest.mark.parametrize("files", [("a",), ("a", "b")], ids="-".join)
@pytest.mark.parametrize("step", STEPS)
def test_whatever_step_fails_everything_is_as_it_was_or_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, files: tuple[str, ...], older: tuple[str, ...]
) -> None:
    before = dict.fromkeys(older, b"old")
    after = before | dict.fromkeys(files, CONTENT)

    def attempt(number: int, error: BaseException) -> tuple[int, dict[str, bytes], BaseException | None]:
        """Let one call fail; return the number of calls, what is there afterwards, and what was raised."""
        folder = tmp_path / f"{number}-{type(error).__name__}"
        folder.mkdir()
        for name in older:
            (folder / name).write_bytes(b"old")
        fault = Fault(getattr(os, step), number, error)
        raised: BaseException | None = None
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fault)
            try:
                write(planned(folder, *files))
            except (OutputError, KeyboardInterrupt) as caught:
                raised = caught
        if isinstance(raised, OutputError):
            assert raised.file in [str(folder / name) for name in files]
            assert os.strerror(errno.ENOSPC) in str(raised)
        return fault.calls, contents(folder), raised

    count, found, _ = attempt(0, KeyboardInterrupt())
    assert found == after
    in_the_end = 1 if step in ("open", "fsync", "close") else 0  # of the folder, when all is done
    for number in range(1, count + 1):
        _, found, raised = attempt(number, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        complete = number > count - in_the_end
        assert (found, raised is None) == (after if complete else before, complete)
        _, found, raised = attempt(number, KeyboardInterrupt())
        assert (found, type(raised)) == (after if complete else before, KeyboardInterrupt)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_whatever_ends_the_block_leaves_everything_as_it_was(folder: Path, error: type[BaseException]) -> None:
    (folder / "a").write_bytes(b"old")
    with pytest.raises(error), new_files(planned(folder, "a", "b")):
        raise error
    assert contents(folder) == {"a": b"old"}


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_failed_step_is_an_error_that_names_the_cause(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    for step in STEPS:
        with monkeypatch.context() as patch:
            patch.setattr(os, step, Fault(getattr(os, step), 1, OSError(code, os.strerror(code))))
            with pytest.raises(OutputError, match=os.strerror(code)):
                write(planned(folder, "a"))


def test_folder_that_cannot_be_synced_does_no_harm_to_the_complete_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", Fault(os.fsync, 2, OSError(errno.EINVAL, "not for folders")))
    write(planned(folder, "a"))
    assert contents(folder) == {"a": CONTENT}


# --- destinations


def check(
    folder: Path, *names: str, inputs: tuple[Path, ...] = (), replace: bool = False, reclaimed: int = 0
) -> None:
    files = tuple(planned(folder, *(names or ("a",))))
    plan = Plan(source=Path("model"), source_format="", inputs=inputs, format="", files=files, transfers=())
    check_destination(plan, replace=replace, reclaimed=reclaimed)


def test_free_place_is_accepted(folder: Path) -> None:
    check(folder)
    assert names(folder) == []


def test_existing_file_is_refused_without_replace(folder: Path) -> None:
    (folder / "a").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"output exists .*--force"):
        check(folder)
    check(folder, replace=True)


def test_existing_shard_is_refused_without_replace(folder: Path) -> None:
    (folder / "b").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"output exists .*/b"):
        check(folder, "a", "b")
    check(folder, "a", "b", replace=True)


def test_broken_link_is_refused_without_replace(folder: Path) -> None:
    (folder / "a").symlink_to("a")
    with pytest.raises(OutputError, match="output exists"):
        check(folder)
    check(folder, replace=True)


def test_pipe_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "a")
    with pytest.raises(OutputError, match="output is a device or a pipe"):
        check(folder, replace=True)


def test_missing_folder_is_refused(folder: Path) -> None:
    with pytest.raises(OutputError, match="output folder does not exist"):
        check(folder / "missing", replace=True)


def test_file_as_folder_is_refused(folder: Path) -> None:
    (folder / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="output folder does not exist"):
        check(folder / "file", replace=True)


def test_folder_as_output_is_refused(folder: Path) -> None:
    (folder / "a").mkdir()
    with pytest.raises(OutputError, match="output is a folder"):
        check(folder, replace=True)


@pytest.mark.parametrize("replace", [False, True])
def test_source_as_output_is_refused(folder: Path, replace: bool) -> None:
    (folder / "a").write_bytes(b"weights")
    with pytest.raises(OutputError, match="output is one of the source files"):
        check(folder, inputs=(folder / "b", folder / "a"), replace=replace)


def test_source_under_another_path_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "a").write_bytes(b"weights")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(OutputError, match="output is one of the source files"):
        check(tmp_path / "link", inputs=(folder / "a",), replace=True)


def test_link_to_a_source_is_refused(folder: Path) -> None:
    (folder / "weights").write_bytes(b"weights")
    (folder / "a").symlink_to(folder / "weights")
    with pytest.raises(OutputError, match="output is one of the source files"):
        check(folder, inputs=(folder / "weights",), replace=True)


def test_full_disk_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files take whole blocks of it."""
    block = os.statvfs(folder).f_frsize
    usage = shutil.disk_usage(folder)._replace(free=2 * block - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check(folder)
    facts = f"found {2 * block - 1} bytes free, expected {2 * block} bytes"
    with pytest.raises(OutputError, match=f"not enough space on the disk .*{facts}"):
        check(folder, "a", "b")


def test_space_of_an_unfinished_output_counts_as_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    plan = Plan(
        source=Path("model"),
        source_format="",
        inputs=(),
        format="",
        files=tuple(planned(folder, "a")),
        transfers=(),
    )
    check_destination(plan, replace=False, reclaimed=os.statvfs(folder).f_frsize)
    with pytest.raises(OutputError, match="not enough space"):
        check_destination(plan, replace=False, reclaimed=1)


@pytest.mark.parametrize("replace", [False, True])
def test_impossible_name_is_refused(folder: Path, replace: bool) -> None:
    with pytest.raises(OutputError, match="File name too long"):
        check(folder, "n" * 300, replace=replace)


# --- folders


def write_folder(folder: Path, *names: str, late: tuple[str, ...] = ()) -> None:
    """Write files to a folder as a whole, and `late` ones as those that the run alone can tell."""
    files = planned(folder, *names)
    with new_folder(folder, files, made_at_the_end=[folder / name for name in (*late, "never made")]) as outputs:
        for file in files:
            outputs.write(file.path, CONTENT[6:], 6)
        for name in late:
            outputs.create(folder / name, CONTENT)


def everything(folder: Path) -> dict[str, object]:
    """What lies in a folder: contents of files, targets of links, the same of folders."""
    return {
        path.name: str(path.readlink())
        if path.is_symlink()
        else everything(path)
        if path.is_dir()
        else path.read_bytes()
        if path.is_file()
        else "special"
        for path in folder.iterdir()
    }


OLD_MODEL = {"config.json": b"old", "model-00001-of-00002.safetensors": b"old", "mxfp4-scales.zip": b"old"}
NEW_MODEL = {"config.json": CONTENT, "model.safetensors": CONTENT}


def make_model(folder: Path) -> None:
    folder.mkdir()
    for name, content in OLD_MODEL.items():
        (folder / name).write_bytes(content)


def make_link_to_model(folder: Path) -> None:
    make_model(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


BEFORE: dict[str, tuple[Callable[[Path], object], dict[str, object]]] = {
    "nothing": (lambda folder: None, {}),
    "empty folder": (Path.mkdir, {"out": {}}),
    "older model": (make_model, {"out": OLD_MODEL}),
    "link to an older model": (make_link_to_model, {"elsewhere": OLD_MODEL, "out": "elsewhere"}),
}
"""What has the name of the output before."""


@pytest.mark.parametrize("before", BEFORE)
def test_folder_appears_with_its_files(tmp_path: Path, before: str) -> None:
    prepare, found = BEFORE[before]
    prepare(tmp_path / "out")
    write_folder(tmp_path / "out", "config.json", "model.safetensors")
    assert everything(tmp_path) == found | {"out": NEW_MODEL}


def test_folder_does_not_appear_before_the_end(tmp_path: Path) -> None:
    make_model(tmp_path / "out")
    with new_folder(tmp_path / "out", planned(tmp_path / "out", "config.json")):
        assert everything(tmp_path / "out") == OLD_MODEL
        (partial,) = [name for name in names(tmp_path) if name != "out"]
        assert partial == "out.partial"
    assert names(tmp_path) == ["out"]


def test_files_made_at_the_end_appear_if_they_were_made(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", "config.json", late=("mxfp4-scales.zip",))
    assert everything(tmp_path) == {"out": {"config.json": CONTENT, "mxfp4-scales.zip": CONTENT}}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("step", FOLDER_STEPS)
def test_whatever_step_fails_the_folder_is_as_it_was_or_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, before: str
) -> None:
    prepare, old = BEFORE[before]
    new = old | {"out": NEW_MODEL | {"mxfp4-scales.zip": CONTENT}}

    def attempt(number: int, error: BaseException) -> tuple[int, dict[str, object], BaseException | None]:
        """Let one call fail; return the number of calls, what is there afterwards, and what was raised."""
        place = tmp_path / f"{number}-{type(error).__name__}"
        place.mkdir()
        prepare(place / "out")
        fault = Fault(getattr(os, step), number, error)
        raised: BaseException | None = None
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fault)
            try:
                write_folder(place / "out", "config.json", "model.safetensors", late=("mxfp4-scales.zip",))
            except (OutputError, KeyboardInterrupt) as caught:
                raised = caught
        if isinstance(raised, OutputError):
            assert str(raised.file).startswith(str(place / "out"))
            assert os.strerror(errno.ENOSPC) in str(raised)
        return fault.calls, everything(place), raised

    count, found, _ = attempt(0, KeyboardInterrupt())
    assert found == new
    for number in range(1, count + 1):
        for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()):
            _, found, raised = attempt(number, error)
            if found.get("out") == new["out"]:
                # What had the name before is of no use any more; where it cannot be removed, it stays aside.
                found = {name: content for name, content in found.items() if not name.startswith("out.older-")}
                assert found == new
                assert not isinstance(raised, OutputError)
            else:
                assert found == old
                assert raised is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
@pytest.mark.parametrize("before", BEFORE)
def test_whatever_ends_the_block_leaves_the_folder_as_it_was(
    tmp_path: Path, before: str, error: type[BaseException]
) -> None:
    prepare, found = BEFORE[before]
    prepare(tmp_path / "out")
    with pytest.raises(error), new_folder(tmp_path / "out", planned(tmp_path / "out", "config.json")):
        raise error
    assert everything(tmp_path) == found


FOREIGN: dict[str, Callable[[Path], object]] = {
    "notes.txt": lambda path: path.write_bytes(b"thesis"),
    "model.gguf": lambda path: path.write_bytes(b"model"),
    ".git": Path.mkdir,
    "checkpoint.safetensors": Path.mkdir,
    "config.json": Path.mkdir,
    "tokenizer.json": lambda path: path.symlink_to("nowhere"),
    "README.md": os.mkfifo,
}
"""What is no file of a checkpoint."""


@pytest.mark.parametrize("name", FOREIGN)
def test_folder_with_something_else_is_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    FOREIGN[name](tmp_path / "out" / name)
    before = everything(tmp_path)
    for replace in (False, True):
        with pytest.raises(OutputError):
            check_folder(tmp_path / "out", replace=replace)
    with pytest.raises(OutputError, match=f"holds something else than a checkpoint .*found {name}") as caught:
        check_folder(tmp_path / "out", replace=True)
    assert caught.value.file == str(tmp_path / "out")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", FOREIGN)
def test_folder_is_not_replaced_if_something_else_came_while_it_was_written(tmp_path: Path, name: str) -> None:
    make_model(tmp_path / "out")
    (tmp_path / "out" / "config.json").unlink()
    context = new_folder(tmp_path / "out", planned(tmp_path / "out", "config.json"))
    context.__enter__()
    FOREIGN[name](tmp_path / "out" / name)
    before = everything(tmp_path / "out")
    with pytest.raises(OutputError, match="holds something else"):
        context.__exit__(None, None, None)
    assert everything(tmp_path) == {"out": before}


def test_file_that_came_while_the_folder_was_written_stays(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="cannot write: Not a directory"),
        new_folder(tmp_path / "out", planned(tmp_path / "out", "config.json")),
    ):
        (tmp_path / "out").write_bytes(b"thesis")
    assert everything(tmp_path) == {"out": b"thesis"}


def check_folder(folder: Path, *, inputs: tuple[Path, ...] = (), replace: bool = False) -> None:
    files = tuple(planned(folder, "config.json", "model.safetensors"))
    plan = Plan(
        source=Path("model"), source_format="", inputs=inputs, format="", folder=folder, files=files, transfers=()
    )
    check_destination(plan, replace=replace)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("before", ["nothing", "empty folder"])
def test_free_or_empty_folder_is_accepted(tmp_path: Path, before: str, replace: bool) -> None:
    BEFORE[before][0](tmp_path / "out")
    check_folder(tmp_path / "out", replace=replace)


@pytest.mark.parametrize("before", ["older model", "link to an older model"])
def test_older_model_is_refused_without_replace(tmp_path: Path, before: str) -> None:
    BEFORE[before][0](tmp_path / "out")
    with pytest.raises(OutputError, match=r"output exists .*--force"):
        check_folder(tmp_path / "out")
    check_folder(tmp_path / "out", replace=True)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    "make",
    [lambda path: path.write_bytes(b"x"), os.mkfifo, lambda path: path.symlink_to("out")],
    ids=["file", "pipe", "link to itself"],
)
def test_what_is_no_folder_is_refused(tmp_path: Path, make: Callable[[Path], object], replace: bool) -> None:
    make(tmp_path / "out")
    with pytest.raises(OutputError, match="output is not a folder"):
        check_folder(tmp_path / "out", replace=replace)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("source", ["out", "out/model.safetensors", "out/original/model.safetensors"])
@pytest.mark.parametrize("way", ["its name", "a link to it", "another path"])
def test_folder_that_holds_the_source_is_refused(tmp_path: Path, source: str, way: str, replace: bool) -> None:
    make_model(tmp_path / "out")
    (tmp_path / "out/original").mkdir()
    (tmp_path / "link").symlink_to("out")
    place = {"its name": "out", "a link to it": "link", "another path": "out/../out"}[way]
    with pytest.raises(OutputError, match="output folder holds the source"):
        check_folder(tmp_path / place, inputs=(tmp_path / "other", tmp_path / source), replace=replace)


def test_source_through_a_link_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path / "out")
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(OutputError, match="output folder holds the source"):
        check_folder(tmp_path / "out", inputs=(tmp_path / "link" / "config.json",), replace=True)


def test_folder_within_the_source_is_accepted(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    check_folder(tmp_path / "model/bf16", inputs=(tmp_path / "model", tmp_path / "model/config.json"))


@pytest.mark.parametrize("place", [".", "here/..", "../link"])
def test_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    make_model(tmp_path / "out")
    (tmp_path / "out" / "here").mkdir()
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(OutputError, match="output is the current folder"):
        check_folder(Path(place).absolute(), replace=True)


def test_folder_around_the_current_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out/here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out/here")
    with pytest.raises(OutputError, match="holds something else than a checkpoint"):
        check_folder(tmp_path / "out", replace=True)


def test_folder_in_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in ("missing/out", "file/out"):
        with pytest.raises(OutputError, match="output folder does not exist"):
            check_folder(tmp_path / place)


def test_folder_that_does_not_fit_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2 * len(CONTENT) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="not enough space on the disk"):
        check_folder(tmp_path / "out")


def test_mode_of_a_folder_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "out", "config.json")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out/config.json").stat().st_mode & 0o777 == 0o640
