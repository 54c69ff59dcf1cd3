"""Outputs that cannot be written, or must not be."""

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests.cli.command import run_here
from tests.cli.foreign import with_metadata_apart
from tests.cli.samples import SHARDS, SPLIT_SIZE, Kind, Samples
from tests.faults.checks import assert_one_line, contents
from tests.support.tokenizers import write_small_tokenizer

OLD = b"an older model"
SPLIT = ("--split-max-size", str(SPLIT_SIZE))

Arrange = Callable[[Path], object]
"""Puts something where the output would go."""


def nothing(path: Path) -> None:
    """Leave the place empty."""


def old_file(path: Path) -> None:
    path.write_bytes(OLD)


def old_second_part(path: Path) -> None:
    path.with_name(f"{path.stem}-00002-of-00002.gguf").write_bytes(OLD)


def file_for_folder(path: Path) -> None:
    path.parent.write_bytes(OLD)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def refused(name: str, arrange: Arrange, output: str, *words: str, options: Sequence[str] = ()) -> Any:
    return pytest.param(arrange, output, words, options, id=name)


# fmt: off
REFUSED = [
    refused("exists", old_file, "x.gguf", "x.gguf", "output exists", "--force"),
    refused("a part exists", old_second_part, "x.gguf", "x-00002-of-00002.gguf", "output exists", options=SPLIT),
    refused("folder", Path.mkdir, "x.gguf", "x.gguf", "output is a folder"),
    refused("folder, with --force", Path.mkdir, "x.gguf", "x.gguf", "output is a folder", options=["--force"]),
    refused("this folder", nothing, ".", "output is a folder"),
    refused("this folder, in parts", nothing, ".", "folder", options=SPLIT),
    refused("in no folder", nothing, "nowhere/x.gguf", "nowhere", "output folder does not exist"),
    refused("in a file", file_for_folder, "file/x.gguf", "file", "output folder does not exist"),
    refused("name of 300 letters", nothing, "x" * 300, "name too long"),
    refused("pipe, with --force", os.mkfifo, "x.gguf", "x.gguf", options=["--force"]),
]
# fmt: on


@pytest.mark.parametrize(("arrange", "output", "words", "options"), REFUSED)
def test_output_that_cannot_be_written_is_refused(
    arrange: Arrange,
    output: str,
    words: Sequence[str],
    options: Sequence[str],
    samples: Samples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = samples.path("huggingface")
    monkeypatch.chdir(tmp_path)
    arrange(tmp_path / output)
    before = everything(tmp_path)

    outcome = run_here("to-gguf", source, "-o", output, *options)

    assert_one_line(outcome, 5, words, tmp_path)
    assert everything(tmp_path) == before


def everything(folder: Path) -> dict[Path, object]:
    """The kind of everything below a folder, with the contents of regular files."""
    files = contents(folder)
    return {path: (stat.S_IFMT(path.lstat().st_mode), files.get(path)) for path in folder.rglob("*")}


def test_force_replaces_an_output(samples: Samples, tmp_path: Path) -> None:
    output = tmp_path / "x.gguf"
    output.write_bytes(OLD)
    assert run_here("to-gguf", samples.path("huggingface"), "-o", output, "--force").exit_code == 0
    assert gguf.GGUFReader(output).tensors
    assert list(tmp_path.iterdir()) == [output]


def test_force_replaces_a_link_and_not_the_file_behind_it(samples: Samples, tmp_path: Path) -> None:
    output = tmp_path / "x.gguf"
    (tmp_path / "old").write_bytes(OLD)
    output.symlink_to("old")
    assert run_here("to-gguf", samples.path("huggingface"), "-o", output, "--force").exit_code == 0
    assert not output.is_symlink()
    assert (tmp_path / "old").read_bytes() == OLD


@pytest.mark.parametrize("options", [(), ("--force",)], ids=["", "--force"])
@pytest.mark.parametrize("way", ["its name", "a link", "another path"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("huggingface", "model.safetensors"),
        ("sharded", SHARDS[1]),
        ("original", "model.safetensors"),
        ("gguf", "model.gguf"),
        ("split", "model-00001-of-00002.gguf"),
        ("split", "model-00002-of-00002.gguf"),
        pytest.param("sharded", "model.safetensors.index.json"),
        pytest.param("huggingface", "config.json"),
        pytest.param("huggingface", "generation_config.json"),
        pytest.param("huggingface", "tokenizer.json"),
        pytest.param("huggingface", "tokenizer_config.json"),
        pytest.param("huggingface", "chat_template.jinja"),
    ],
)
def test_a_file_of_the_source_is_never_replaced(
    kind: Kind, name: str, way: str, options: Sequence[str], samples: Samples, tmp_path: Path
) -> None:
    source = samples.copy(kind, tmp_path)
    folder = tmp_path / "model"
    (tmp_path / "link").symlink_to(folder / name)
    paths = {"its name": folder / name, "a link": tmp_path / "link", "another path": folder / "../model" / name}
    output = paths[way]
    before = contents(tmp_path)

    outcome = run_here("to-gguf", source, "-o", output, *options)

    assert_one_line(outcome, 5, [output.name, "output is one of the source files"], tmp_path)
    assert contents(tmp_path) == before


def test_the_file_behind_a_link_in_the_source_is_never_replaced(samples: Samples, tmp_path: Path) -> None:
    source = samples.copy("huggingface", tmp_path)
    blob = (source / "model.safetensors").rename(tmp_path / "blob")  # as in the cache of the Hugging Face Hub
    (source / "model.safetensors").symlink_to(blob)
    outcome = run_here("to-gguf", source, "-o", blob, "--force")
    assert_one_line(outcome, 5, ["blob", "output is one of the source files"], tmp_path)


def test_the_tokenizer_of_another_folder_is_never_replaced(samples: Samples, tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    output = tmp_path / "tokenizer.json"
    outcome = run_here("to-gguf", samples.path("huggingface"), "--tokenizer", tmp_path, "-o", output, "--force")
    assert_one_line(outcome, 5, ["tokenizer.json", "output is one of the source files"], tmp_path)


def test_a_first_part_without_tensors_is_never_replaced(samples: Samples, tmp_path: Path) -> None:
    first = with_metadata_apart(samples.path("gguf"), tmp_path)
    outcome = run_here("to-gguf", first, "-o", first, "--force")
    assert_one_line(outcome, 5, [first.name, "output is one of the source files"], tmp_path)
