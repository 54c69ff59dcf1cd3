"""Small files beside the weights."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.assets import LARGEST_TEXT, Assets, read_json_object, read_small_file
from gptoss_convert.errors import InputError


def written(folder: Path, content: bytes) -> Path:
    path = folder / "file.json"
    path.write_bytes(content)
    return path


def test_assets_of_a_folder(tmp_path: Path) -> None:
    written(tmp_path, b'{"a": 1}')
    assets = Assets(tmp_path)
    assert assets.path("file.json") == tmp_path / "file.json"
    assert assets.read("file.json") == b'{"a": 1}'
    assert assets.read_json_object("file.json") == {"a": 1}


def test_paths_are_those_of_known_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "LICENSE").mkdir()
    assert Assets(tmp_path).paths() == (tmp_path / "config.json",)


@pytest.mark.parametrize("folder", [None, Path("missing")])
def test_assets_that_are_missing(folder: Path | None) -> None:
    assets = Assets(folder)
    assert (assets.path("a"), assets.read("a"), assets.read_json_object("a")) == (None, None, None)


def test_no_folder_has_no_files() -> None:
    assert Assets(None).paths() == ()


def test_folder_is_no_asset(tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    assert Assets(tmp_path).path("README.md") is None


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert read_json_object(written(tmp_path, b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object .*found list"),
        (b"null", "not a JSON object .*found NoneType"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\n <!DOCTYPE html>", "web page"),
    ],
)
def test_damaged_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_json_object(written(tmp_path, content))


def test_large_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, b"")
    os.truncate(path, LARGEST_TEXT + 1)
    with pytest.raises(InputError, match=f"file is too large .*found {LARGEST_TEXT + 1} bytes"):
        read_small_file(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file is missing"):
        read_small_file(tmp_path / "missing")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a regular file"):
        read_small_file(tmp_path)


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, b"")

    def refuse(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="cannot read file: Permission denied"):
        read_small_file(path)


# --- links


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """Else a stranger's folder could carry a private file into an output that gets published."""
    (tmp_path / "secret").write_bytes(b'{"a": 1}')
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").symlink_to("../secret")
    for look in (Assets(folder).path, Assets(folder).read, Assets(folder).read_json_object):
        with pytest.raises(InputError, match=r"link that leads out of its folder.*README\.md.*secret"):
            look("README.md")
    with pytest.raises(InputError, match="link that leads out"):
        read_json_object(folder / "README.md")


@pytest.mark.parametrize("place", ["blobs/x", "other/blobs/x", "snapshots/abc/blobs/x"])
def test_only_the_blobs_of_its_own_cache_are_as_good_as_the_folder(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots/abc/original"
    folder.mkdir(parents=True)
    target = tmp_path / place
    target.parent.mkdir(parents=True)
    target.write_bytes(b'{"a": 1}')
    (folder / "file.json").symlink_to(target)
    if place == "blobs/x":
        assert read_json_object(folder / "file.json") == {"a": 1}
    else:
        with pytest.raises(InputError, match="link that leads out"):
            read_json_object(folder / "file.json")


def test_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    written(tmp_path, b'{"a": 1}')
    (tmp_path / "link").symlink_to("file.json")
    assert Assets(tmp_path).read("link") == b'{"a": 1}'


def test_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a key occurs twice"):
        read_json_object(written(tmp_path, b'{"a": {"b": 1, "b": 2}}'))


def test_link_that_is_put_in_place_after_it_was_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret"
    folder.mkdir()
    secret.write_bytes(b"secret")
    card = folder / "README.md"
    card.write_bytes(b"card")
    system_open = os.open

    def swapped(path: Path, *arguments: int) -> int:
        card.unlink()
        card.symlink_to(secret)
        return system_open(path, *arguments)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(InputError, match="link that leads out of its folder"):
        Assets(folder).read("README.md")


def test_pipe_that_is_put_in_place_of_a_small_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(b"card")
    system_open = os.open

    def swapped(place: Path, *arguments: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return system_open(place, *arguments)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(InputError, match="not a regular file"):
        read_small_file(path)
