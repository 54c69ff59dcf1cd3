"""to-onnx on full-width slices of gpt-oss-20b, against `cp` of what it wrote, made durable as our outputs are."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.measure import Run, median_ratio, prepare_machine, run, table
from tests.support import tokenizers
from tests.support.checkpoints import REAL_20B, write_huggingface

WAYS = {
    "directml, f16": ("directml", "mxfp4", "f16"),
    "directml, f32": ("directml", "mxfp4", "f32"),
    "webgpu, int8, f16": ("webgpu", "int8", "f16"),
}
"""Target, experts and activations."""


@dataclass(frozen=True)
class Result:
    """Runs of our command and of `cp`, by way."""

    layers: int
    runs: dict[str, list[Run]]
    copies: dict[str, list[Run]]
    nbytes: dict[str, int]

    def lines(self) -> list[str]:
        """Return the figures as lines of text."""
        lines = [f"{self.layers} full-width layers"]
        for way, runs in self.runs.items():
            lines += [
                f"{way}: {self.nbytes[way]} bytes of external data",
                *table({"cp and sync of the data": self.copies[way], "to-onnx": runs}, copy=self.copies[way]),
                f"median of the ratios to cp and sync, pair by pair: {median_ratio(runs, self.copies[way]):.2f}",
            ]
        return lines


def measure(folder: Path, *, layers: int, rounds: int) -> Result:
    """Make a checkpoint in `folder`, convert it in every way, and remove everything again."""
    source = folder / "gpt-oss-20b"
    source.mkdir(parents=True)
    try:
        ids = tokenizers.write_real_tokenizer(source)
        write_huggingface(source, replace(REAL_20B, layers=layers), special_ids=ids, edge_blocks=False)
        return _measure(source, folder, layers, rounds)
    finally:
        shutil.rmtree(folder)


def _measure(source: Path, folder: Path, layers: int, rounds: int) -> Result:
    program = Path(sys.executable).with_name("gptoss-convert")
    result = Result(layers, {}, {}, {})
    output, copy = folder / "onnx", folder / "copy"
    needed = 2 * sum(path.stat().st_size for path in source.glob("*.safetensors"))
    for way, (target, experts, activations) in WAYS.items():
        words = [program, "to-onnx", source, "-o", output, "--target", target, "--quiet"]
        words += ["--experts", experts, "--activations", activations]
        result.runs[way], result.copies[way] = [], []
        # The first round fills the file cache and is not counted; what was written is removed before each run.
        for number in range(rounds + 1):
            shutil.rmtree(output, ignore_errors=True)
            prepare_machine(needed)
            ours = run(words)
            prepare_machine(needed)
            theirs = run(["sh", "-c", 'cp "$1" "$2" && exec sync "$2"', "sh", output / "model.onnx.data", copy])
            copy.unlink()
            if number:
                result.runs[way].append(ours)
                result.copies[way].append(theirs)
        result.nbytes[way] = (output / "model.onnx.data").stat().st_size
    return result
