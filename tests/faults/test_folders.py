"""Conversions to folders that must not happen: one line that says why, and everything is as it was."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.command import run_here
from tests.cli.samples import SHAPE, Samples
from tests.faults.checks import assert_one_line, contents
from tests.support.checkpoints import write_huggingface, write_original
from tests.support.tokenizers import write_small_tokenizer
from tests.unit.formats.gguf import models

# A warning of numpy's would be a second line on standard error.
pytestmark = pytest.mark.filterwarnings("error")

SIDECAR = "mxfp4-scales.zip"
OPTION, INPUT, UNSUPPORTED, OUTPUT = 2, 3, 4, 5

Arrange = Callable[[Samples, Path], Path]
"""Puts a source into a folder of its own and returns it."""


def sample(kind: Any) -> Arrange:
    return lambda samples, folder: samples.copy(kind, folder)


def with_sidecar(content: bytes) -> Arrange:
    """A model in BF16 with something in place of names of scales."""

    def arrange(samples: Samples, folder: Path) -> Path:
        source = samples.copy("bf16", folder)
        (source / SIDECAR).write_bytes(content)
        return source

    return arrange


def with_sidecar_of_another_model(samples: Samples, folder: Path) -> Path:
    other = write_huggingface(folder / "other", replace(SHAPE, layers=3))
    assert run_here("to-bf16", other, "-o", folder / "decoded").exit_code == 0
    source = samples.copy("bf16", folder)
    shutil.copyfile(folder / "decoded" / SIDECAR, source / SIDECAR)
    shutil.rmtree(folder / "other")
    shutil.rmtree(folder / "decoded")
    return source


def with_partial_blocks(samples: Samples, folder: Path) -> Path:
    """Experts with rows of 20."""
    numbers = {
        name: np.ones([20 if "exps" in name and size == models.INNER else size for size in shape], np.float32)
        for name, shape in models.SHAPES.items()
    }
    return models.write(folder / "x.gguf", numbers, change={"gpt-oss.expert_feed_forward_length": 20})


def with_odd_merge(samples: Samples, folder: Path) -> Path:
    """A tokenizer of which no files can be made."""
    numbers = models.random_values()
    return models.write(folder / "x.gguf", numbers, change={"tokenizer.ggml.merges": ["no such"]})


def with_rounded_matrices(samples: Samples, folder: Path) -> Path:
    tame = write_huggingface(folder / "tame", SHAPE, edge_blocks=False)
    write_small_tokenizer(tame)
    assert run_here("to-gguf", tame, "-o", folder / "x.gguf", "--dense", "q8_0").exit_code == 0
    shutil.rmtree(tame)
    return folder / "x.gguf"


def with_another_epsilon(samples: Samples, folder: Path) -> Path:
    return write_huggingface(folder / "model", SHAPE, config_overrides={"rms_norm_eps": 1e-6})


def overwritten(model: Path, tensor: str, data: bytes) -> Path:
    """Set the first bytes of a tensor."""
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    offset = start + json.loads(content[8:start])[tensor]["data_offsets"][0]
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return model


def refused(name: str, arrange: Arrange, command: str, exit_code: int, *words: str) -> Any:
    return pytest.param(arrange, command.split(), exit_code, words, id=name)


# fmt: off
REFUSED = [
    refused("partial blocks", with_partial_blocks, "to-mxfp4", UNSUPPORTED,
            "x.gguf", "down_proj", "found 20 elements", "a multiple of 32"),
    refused("partial blocks, OpenAI's layout", with_partial_blocks, "to-mxfp4 --layout openai", UNSUPPORTED,
            "x.gguf", "down_proj", "found 20 elements", "a multiple of 32"),
    refused("tokenizer that no files hold", with_odd_merge, "to-bf16", INPUT, "merge", "no such"),
    refused("rounded matrices", with_rounded_matrices, "to-bf16", UNSUPPORTED, "q8_0", "--allow-lossy-source"),
    refused("rounded matrices, MXFP4", with_rounded_matrices, "to-mxfp4", UNSUPPORTED,
            "q8_0", "--allow-lossy-source"),
    refused("what OpenAI's layout cannot express", with_another_epsilon, "to-mxfp4 --layout openai", UNSUPPORTED,
            "rms_norm_eps", "1e-06"),
    refused("sidecar is no archive", with_sidecar(b"scales"), "to-mxfp4", INPUT, SIDECAR, "damaged file of scales"),
    refused("sidecar is empty", with_sidecar(b""), "to-mxfp4", INPUT, SIDECAR, "damaged file of scales"),
    refused("sidecar of another model", with_sidecar_of_another_model, "to-mxfp4", INPUT,
            SIDECAR, "model.layers.2", "that the model has not"),
]
# fmt: on


@pytest.mark.parametrize(("arrange", "command", "exit_code", "words"), REFUSED)
def test_source_that_cannot_become_a_folder_is_refused(
    arrange: Arrange, command: Sequence[str], exit_code: int, words: Sequence[str], samples: Samples, tmp_path: Path
) -> None:
    source = arrange(samples, tmp_path)
    before = contents(tmp_path)
    name, *options = command

    outcome = run_here(name, source, "-o", tmp_path / "out", *options)

    assert_one_line(outcome, exit_code, words, tmp_path)
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [[], ["--layout", "openai"]])
def test_number_that_has_no_code_is_refused_while_it_is_written(
    options: Sequence[str], samples: Samples, tmp_path: Path
) -> None:
    infinity = b"\x80\x7f"
    source = overwritten(samples.copy("bf16", tmp_path), "model.layers.1.mlp.experts.down_proj", infinity)
    outcome = run_here("to-mxfp4", source, "-o", tmp_path / "out", *options, "--quiet")
    assert_one_line(outcome, INPUT, ["model.safetensors", "model.layers.1.mlp.experts.down_proj"], tmp_path)
    assert not (tmp_path / "out").exists()


# --- the model to take scales from


def another_shape(samples: Samples, folder: Path) -> Path:
    return write_huggingface(folder / "base", replace(SHAPE, intermediate=128))


def fewer_layers(samples: Samples, folder: Path) -> Path:
    return write_original(folder / "base", replace(SHAPE, layers=1))


def damaged(samples: Samples, folder: Path) -> Path:
    base = write_huggingface(folder / "base", SHAPE)
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return base


def quantised_otherwise(samples: Samples, folder: Path) -> Path:
    numbers = models.random_values()
    return models.write(folder / "base.gguf", numbers)


def scale_that_is_no_number(samples: Samples, folder: Path) -> Path:
    base = write_huggingface(folder / "base", SHAPE)
    return overwritten(base, "model.layers.0.mlp.experts.down_proj_scales", b"\xff")


# fmt: off
BASES = [
    pytest.param(sample("bf16"), OPTION, ["model", "not in MXFP4", "found bf16"], id="in BF16"),
    pytest.param(another_shape, OPTION, ["base", "another one", "[4, 256, 64]", "[4, 192, 64]"], id="wider"),
    pytest.param(fewer_layers, OPTION, ["base", "another one", "model.layers.1", "nothing"], id="fewer layers"),
    pytest.param(quantised_otherwise, OPTION, ["base.gguf", "another one"], id="another model"),
    pytest.param(damaged, INPUT, ["base", "model.safetensors"], id="damaged"),
    pytest.param(scale_that_is_no_number, INPUT, ["base", "255", "down_proj"], id="damaged scale"),
    pytest.param(lambda samples, folder: folder / "missing", INPUT, ["missing"], id="missing"),
]
# fmt: on


@pytest.mark.parametrize(("arrange", "exit_code", "words"), BASES)
def test_base_that_does_not_fit_is_refused(
    arrange: Arrange, exit_code: int, words: Sequence[str], samples: Samples, tmp_path: Path
) -> None:
    base = arrange(samples, tmp_path)
    before = contents(tmp_path)
    source = samples.path("bf16")

    outcome = run_here("to-mxfp4", source, "-o", tmp_path / "out", "--scales-from", base)

    error = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert [word for word in words if word not in error[0]] == []
    assert outcome.exit_code == exit_code
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


# --- a source without a tokenizer


@pytest.mark.parametrize("command", [["to-bf16"], ["to-mxfp4"], ["to-mxfp4", "--layout", "openai"]])
def test_model_without_a_tokenizer_is_converted_and_the_user_told(command: list[str], tmp_path: Path) -> None:
    """Weights alone are of use; `to-gguf`, whose files need a tokenizer, refuses."""
    source = write_original(tmp_path / "weights", SHAPE)
    name, *options = command
    outcome = run_here(name, source, "-o", tmp_path / "out", *options)
    assert outcome.exit_code == 0
    assert "no tokenizer" in outcome.stdout + outcome.stderr
    assert not (tmp_path / "out/tokenizer.json").exists()
    assert run_here("to-gguf", source, "-o", tmp_path / "x.gguf").exit_code == INPUT


# --- outputs


def old_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_bytes(b"old")


def old_thesis(folder: Path) -> None:
    old_model(folder)
    (folder / "thesis.tex").write_bytes(b"years of work")


def old_file(folder: Path) -> None:
    folder.write_bytes(b"old")


@pytest.mark.parametrize("command", ["to-bf16", "to-mxfp4"])
@pytest.mark.parametrize(
    ("arrange", "options", "words"),
    [
        (old_model, [], ["output exists", "--force"]),
        (old_thesis, [], ["output exists", "--force"]),
        (old_thesis, ["--force"], ["something else than a checkpoint", "thesis.tex"]),
        (old_file, [], ["output is not a folder"]),
        (old_file, ["--force"], ["output is not a folder"]),
    ],
)
def test_output_that_must_not_be_replaced_stays(
    arrange: Callable[[Path], None],
    options: Sequence[str],
    words: Sequence[str],
    command: str,
    samples: Samples,
    tmp_path: Path,
) -> None:
    arrange(tmp_path / "out")
    before = contents(tmp_path)
    outcome = run_here(command, samples.path("gguf"), "-o", tmp_path / "out", *options)
    assert_one_line(outcome, OUTPUT, words, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("output", [".", "..", "model", "model/../model", "model/.."])
def test_folder_of_the_source_is_never_replaced(
    output: str, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = samples.copy("huggingface", tmp_path)
    before = contents(tmp_path)
    for place in (tmp_path, source):
        monkeypatch.chdir(place)
        outcome = run_here("to-bf16", source, "-o", output, "--force")
        if place == source and output == "model":
            assert outcome.exit_code == 0  # a new folder within the source
            shutil.rmtree(source / "model")
            continue
        assert outcome.exit_code == OUTPUT, output
        assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["to-bf16", "to-mxfp4"])
def test_force_replaces_an_older_model_as_a_whole(command: str, samples: Samples, tmp_path: Path) -> None:
    old_model(tmp_path / "out")
    (tmp_path / "out/model-00001-of-00099.safetensors").write_bytes(b"old")
    assert run_here(command, samples.path("gguf"), "-o", tmp_path / "out", "--force").exit_code == 0
    assert run_here("inspect", tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out/model-00001-of-00099.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
