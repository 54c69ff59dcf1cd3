"""Small sound models in every form that can be read, each written once and copied for every test."""

import shutil
from pathlib import Path
from typing import Literal

from tests.cli.command import run_here
from tests.support import checkpoints, tokenizers
from tests.support.checkpoints import Shape

Kind = Literal["huggingface", "sharded", "bf16", "original", "gguf", "split", "onnx"]

SHAPE = Shape()
SHARDS = tuple(f"model-{index:05d}-of-00002.safetensors" for index in range(3))
SPLIT_SIZE = 200_000
"""Bytes of tensor data per file of the split GGUF."""


class Samples:
    """Models under one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, kind: Kind) -> Path:
        """Return the folder or the GGUF file to name as SRC; it must stay as it is."""
        folder = self._folder / kind / "model"
        if not folder.exists():
            self._write(kind, folder)
        return source_in(folder)

    def copy(self, kind: Kind, parent: Path) -> Path:
        """Return the SRC of a copy in `parent`."""
        self.path(kind)
        folder = parent / "model"
        shutil.copytree(self._folder / kind / "model", folder)
        return source_in(folder)

    def _write(self, kind: Kind, folder: Path) -> None:
        if kind in ("gguf", "split"):
            source = self.path("huggingface")
            folder.mkdir(parents=True)
            options = ["--split-max-size", str(SPLIT_SIZE)] if kind == "split" else []
            outcome = run_here("to-gguf", source, "-o", folder / "model.gguf", "--license", "mit", *options)
            assert outcome.exit_code == 0, outcome.stderr
            return
        if kind == "onnx":
            folder.parent.mkdir(parents=True)
            outcome = run_here("to-onnx", self.path("huggingface"), "-o", folder, "--target", "cpu", "-q")
            assert outcome.exit_code == 0, outcome.stderr
            return
        tokenizers.write_small_tokenizer(folder)
        if kind == "original":
            checkpoints.write_original(folder, SHAPE)
        elif kind == "bf16":
            checkpoints.write_huggingface(folder, SHAPE, experts="bf16")
        else:
            checkpoints.write_huggingface(folder, SHAPE, shards=len(SHARDS) if kind == "sharded" else 1)


def source_in(folder: Path) -> Path:
    """Return what to name as SRC: the (first) GGUF file in `folder` if there is one, else the folder."""
    return min(folder.glob("*.gguf"), default=folder)
