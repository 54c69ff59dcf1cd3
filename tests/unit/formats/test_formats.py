"""How the format of a path is found."""

import errno
from pathlib import Path

import pytest

from gptoss_convert.errors import InputError
from gptoss_convert.formats import FORMATS, format_named, open_checkpoint
from tests.support.checkpoints import Shape, write_huggingface, write_original

SHAPE = Shape(layers=1, vocab=64)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_name_and_a_title(name: str) -> None:
    module = format_named(name)
    assert name == module.NAME
    assert module.TITLE


@pytest.mark.parametrize("as_text", [True, False])
def test_format_is_found_by_the_contents(tmp_path: Path, as_text: bool) -> None:
    for folder, expected in (
        (write_huggingface(tmp_path / "original", SHAPE), "huggingface"),
        (write_original(tmp_path / "hf", SHAPE), "openai"),
    ):
        checkpoint = open_checkpoint(str(folder) if as_text else folder)
        assert checkpoint.format == expected
        assert checkpoint.path == folder
        checkpoint.require_sound()


def test_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is there"):
        open_checkpoint(tmp_path / "missing")


def test_folder_of_something_else_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a checkpoint"):
        open_checkpoint(tmp_path)


def test_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="not a checkpoint"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_path_with_an_impossible_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_checkpoint(tmp_path / ("n" * 300))


def test_file_that_cannot_be_opened_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError):
        open_checkpoint(tmp_path / "model.gguf")
