"""Paths on the Hub answer as paths on this machine do."""

import pickle
from pathlib import Path, PurePosixPath

import pytest

from gptoss_convert.errors import InputError
from gptoss_convert.hub.path import HubPath, Snapshot, open_remote
from gptoss_convert.hub.reference import HubReference
from tests.support.hub_server import HubServer

MODEL = HubReference("owner", "model")
NAMES = ("", "config.json", "original", "original/config.json", "missing", "missing/x", "x-00001-of-00002.gguf")


@pytest.fixture
def root(server: HubServer) -> Path:
    return open_remote(MODEL)


@pytest.mark.parametrize("name", NAMES)
def test_questions_are_answered_as_by_pathlib(name: str, root: Path, server: HubServer) -> None:
    here, there = server.folder / name, root / name
    for question in ("exists", "is_file", "is_dir", "is_symlink"):
        assert getattr(there, question)() == getattr(here, question)()
    if name:
        assert (there.name, there.stem, there.suffix) == (here.name, here.stem, here.suffix)
        assert there.with_name("z").name == "z"
    if here.is_file():
        assert there.stat().st_size == here.stat().st_size
        assert there.read_bytes() == here.read_bytes()
        with there.open("rb") as stream:
            assert stream.read(4) == here.read_bytes()[:4]
            assert stream.read() == here.read_bytes()[4:]
    if here.is_dir():
        assert sorted(item.name for item in there.iterdir()) == sorted(item.name for item in here.iterdir())
        for pattern in ("*.safetensors", "*.bin", "*"):
            assert sorted(p.name for p in there.glob(pattern)) == sorted(p.name for p in here.glob(pattern))
    if not here.exists():
        with pytest.raises(FileNotFoundError):
            there.stat()


def test_root_is_called_as_the_repository(root: Path, server: HubServer) -> None:
    assert root.name == "model"
    assert str(root) == f"hf://owner/model@{server.commit}"
    assert str(root / "a" / "b") == f"hf://owner/model@{server.commit}/a/b"
    assert (root / "a").parent == root
    assert root.parent == root
    assert (root / "a").is_relative_to(root)
    assert not root.is_relative_to(Path("/"))


def test_paths_are_values_and_can_be_sorted_with_others(root: Path) -> None:
    copy = pickle.loads(pickle.dumps(root / "a"))
    assert copy == root / "a"
    assert len({copy, root / "a", root}) == 2
    assert sorted([root / "b", Path("/z"), root / "a", Path("a")]) == [
        Path("/z"),
        Path("a"),
        root / "a",
        root / "b",
    ]


def test_looking_around_makes_one_request(server: HubServer) -> None:
    root = open_remote(MODEL)
    assert [path.is_file() for path in root.iterdir()]
    assert not (root / "missing").exists()
    assert len(server.seen) == 1


def test_small_files_are_fetched_once(root: Path, server: HubServer) -> None:
    for _ in range(3):
        assert (root / "tokenizer.json").read_bytes() == b"{}"
        assert (root / "config.json").read_bytes() == b"config.json"
    assert len([request for request in server.seen if request.method == "GET"]) == 1 + 2


def test_what_is_not_there_is_named(server: HubServer) -> None:
    with pytest.raises(InputError, match="nothing there that can be read"):
        open_remote(HubReference("owner", "model", None, "nothing"))
    with pytest.raises(InputError, match="no such repository"):
        open_remote(HubReference("owner", "nothing"))
    with pytest.raises(InputError, match="no such revision"):
        open_remote(HubReference("owner", "model", "nothing"))


def test_snapshot_is_the_commit_that_a_revision_has(server: HubServer) -> None:
    assert Snapshot.of(MODEL).commit == server.commit
    assert Snapshot.of(HubReference("owner", "model", "main")) == Snapshot.of(MODEL)


def test_files_are_only_read(root: Path) -> None:
    assert isinstance(root, HubPath)
    with pytest.raises(ValueError, match="only read"):
        HubPath(root.snapshot, PurePosixPath("config.json")).open("wb")
