"""Start-up, and reading the headers of a checkpoint like gpt-oss-120b, whose weights are holes in its files."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Run, run
from tests.support import tokenizers
from tests.support.checkpoints import REAL_20B
from tests.support.layouts import Tensor, huggingface_config, huggingface_tensors

REAL_120B = replace(REAL_20B, layers=36, experts=128)
SHARDS = 15
"""As published."""


def write_hollow(folder: Path) -> int:
    """Write a checkpoint of the shape of gpt-oss-120b that takes no space for weights, and return their bytes."""
    folder.mkdir(parents=True)
    ids = tokenizers.write_real_tokenizer(folder)
    tensors = huggingface_tensors(REAL_120B, experts="mxfp4")
    total = sum(tensor.nbytes for tensor in tensors)
    weight_map: dict[str, str] = {}
    done = 0
    shards: list[list[Tensor]] = [[] for _ in range(SHARDS)]
    for tensor in tensors:
        shards[min(done * SHARDS // total, SHARDS - 1)].append(tensor)
        done += tensor.nbytes
    for number, content in enumerate(shards):
        header, end = {}, 0
        for tensor in content:
            offsets = [end, end + tensor.nbytes]
            header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
            end += tensor.nbytes
        name = f"model-{number:05d}-of-{SHARDS - 1:05d}.safetensors"
        weight_map |= dict.fromkeys(header, name)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(huggingface_config(REAL_120B, special_ids=ids)))
    return total


def measure(folder: Path, *, rounds: int) -> tuple[int, dict[str, list[Run]]]:
    """Return the bytes of weights, and runs of each command that reads headers only."""
    total = write_hollow(folder)
    program = Path(sys.executable).with_name("gptoss-convert")
    commands = {
        "--help": [program, "--help"],
        "inspect": [program, "inspect", folder],
        "to-gguf --dry-run": [program, "to-gguf", folder, "-o", folder / "x.gguf", "--dry-run"],
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(rounds + 1):  # the first round fills the file cache and is not counted
        for name, command in commands.items():
            measured = run(command)
            if number:
                runs[name].append(measured)
    return total, runs
