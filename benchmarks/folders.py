"""to-bf16 and to-mxfp4 on full-width slices of gpt-oss-20b, against `cp` and transformers."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.measure import Run, median_ratio, median_wall, prepare_machine, run, table
from gptoss_convert.canonical_hash import hash_checkpoint
from gptoss_convert.formats import open_checkpoint
from tests.support import tokenizers
from tests.support.checkpoints import REAL_20B, write_huggingface

_DEQUANTISE = """
import sys, torch
from transformers import GptOssForCausalLM, Mxfp4Config
torch.set_num_threads(2)
model = GptOssForCausalLM.from_pretrained(
    sys.argv[1], dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True)
)
model.save_pretrained(sys.argv[2], save_original_format=False)
"""
"""How transformers loads, decodes and saves; without the last option it saves experts under wrong names."""

_COPY_AND_SYNC = 'cp "$@" && for folder; do :; done && exec sync "$folder"/*'
"""A shell script that does what `cp` does with its arguments, and makes it durable, as all our outputs are."""


@dataclass(frozen=True)
class Result:
    """Runs of each tool on the same checkpoint."""

    layers: int
    experts: int
    """Weights in expert matrices."""
    runs: dict[str, list[Run]]
    same_hash: bool

    def lines(self) -> list[str]:
        """Return the figures as lines of text."""
        copy = self.runs["cp of the BF16 folder"]
        lines = [
            f"{self.layers} full-width layers, {self.experts} weights in experts",
            *table(self.runs, copy=copy),
            *(
                f"to-bf16: median of the ratios to {name}, pair by pair: "
                f"{median_ratio(self.runs['to-bf16'], self.runs[name]):.2f}"
                for name in ("cp of the BF16 folder", "cp and sync of it")
            ),
        ]
        for rule in ("mse", "floor"):
            cpu = statistics.median(item.cpu for item in self.runs[f"to-mxfp4 --rule {rule}"])
            lines.append(
                f"to-mxfp4 --rule {rule}: {2 * self.experts / cpu / 1e6:.0f} MB of BF16 experts a CPU second"
            )
        if self.runs["transformers"]:
            ratio = median_wall(self.runs["transformers"]) / median_wall(self.runs["to-bf16"])
            lines.append(f"to-bf16: times faster than transformers' load, dequantise and save: {ratio:.1f}")
        lines.append(f"canonical hash equal at every stop: {self.same_hash}")
        return lines


def measure(folder: Path, *, layers: int, rounds: int, peer_rounds: int) -> Result:
    """Make a checkpoint in `folder`, convert it with each tool in turn, and remove everything again."""
    source = folder / "gpt-oss-20b"
    source.mkdir(parents=True)
    try:
        ids = tokenizers.write_real_tokenizer(source)
        write_huggingface(source, replace(REAL_20B, layers=layers), special_ids=ids, edge_blocks=False)
        return _measure(source, folder, layers, rounds, peer_rounds)
    finally:
        shutil.rmtree(folder)


def _measure(source: Path, folder: Path, layers: int, rounds: int, peer_rounds: int) -> Result:
    program = Path(sys.executable).with_name("gptoss-convert")
    bf16, copy, mxfp4, theirs = (folder / name for name in ("bf16", "copy", "mxfp4", "theirs"))

    def command(*words: str | Path) -> Callable[[], Run]:
        return lambda: run([*words])

    def copy_weights(script: str) -> Run:
        copy.mkdir()
        return run(["sh", "-c", script, "sh", *sorted(bf16.glob("*.safetensors")), copy])

    tools: dict[str, tuple[Path, Callable[[], Run]]] = {
        "to-bf16": (bf16, command(program, "to-bf16", source, "-o", bf16, "--quiet")),
        "cp of the BF16 folder": (copy, lambda: copy_weights('exec cp "$@"')),
        "cp and sync of it": (copy, lambda: copy_weights(_COPY_AND_SYNC)),
    }
    for rule in ("mse", "floor"):
        words = (program, "to-mxfp4", bf16, "-o", mxfp4, "--quiet", "--rule", rule)
        tools[f"to-mxfp4 --rule {rule}"] = (mxfp4, command(*words))
    words = (program, "to-mxfp4", bf16, "-o", mxfp4, "--quiet", "--scales-from", source)
    tools["to-mxfp4 --scales-from"] = (mxfp4, command(*words))
    runs: dict[str, list[Run]] = {name: [] for name in (*tools, "transformers")}
    needed = 4 * sum(path.stat().st_size for path in source.glob("*.safetensors"))
    # The first round fills the file cache and is not counted. Each output is removed right before it is written
    # again, so that all tools find the machine in the same state.
    for number in range(rounds + 1):
        for name, (output, tool) in tools.items():
            shutil.rmtree(output, ignore_errors=True)
            prepare_machine(needed)
            measured = tool()
            if number:
                runs[name].append(measured)
    hashes = {hash_checkpoint(open_checkpoint(path), jobs=2).model for path in (source, bf16, mxfp4)}
    shutil.rmtree(copy)
    for _ in range(peer_rounds):
        shutil.rmtree(theirs, ignore_errors=True)
        prepare_machine(needed)
        runs["transformers"].append(run([sys.executable, "-P", "-c", _DEQUANTISE, source, theirs]))
    shape = replace(REAL_20B, layers=layers)
    weights = 3 * shape.layers * shape.experts * shape.hidden * shape.intermediate
    return Result(layers, weights, runs, len(hashes) == 1)
