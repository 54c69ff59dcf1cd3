"""The tables of docs/scale.md: bytes of whole conversions from their plans, and seconds from a cost model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import gptoss_convert as gc
from tests.support import tokenizers
from tests.support.layouts import REAL_20B, Shape, huggingface_config, huggingface_tensors

SHAPES = {"20b": REAL_20B, "120b": replace(REAL_20B, layers=36, experts=128)}
DISKS: Mapping[str, float] = {"NVMe, 2": 2.0, "network, 1.1": 1.1, "SATA SSD, 0.5": 0.5, "hard disk, 0.15": 0.15}
"""GB/s, read or written."""
CPU_PER_GB: Mapping[str, float] = {"to-gguf": 0.9, "to-bf16": 1.7, "to-mxfp4": 1.1}
"""Seconds of processor time for a gigabyte that is read or written, with rechecking, as measured."""
CORES = 4
FINE_TUNES = 1000
WORKERS = (1, 4, 16, 64)
SHARE = 5.0
"""GB/s that a file server moves for all machines together."""
Experts = Literal["mxfp4", "bf16"]


@dataclass(frozen=True)
class Cost:
    """What a conversion moves, in bytes."""

    read: int
    written: int
    copied: int
    """Of what is written; rechecking reads it in source and output."""

    @property
    def rechecked(self) -> int:
        """Bytes that rechecking reads."""
        return self.written + self.copied

    @property
    def gigabytes(self) -> float:
        """All that goes through a disk if nothing stays in memory."""
        return (self.read + self.written + self.rechecked) / 1e9

    def seconds(self, command: str, disk: float, cores: float) -> float:
        """Return how long it takes where disk (GB/s) and processor work at the same time."""
        return max(self.gigabytes / disk, CPU_PER_GB[command] * (self.read + self.written) / 1e9 / cores)


def cost_of(plan: gc.Plan) -> Cost:
    """Return what a plan moves; files that are copied whole count too."""
    kept = sum(transfer.target.nbytes for transfer in plan.transfers if transfer.same_bytes is not None)
    files = sum(file.nbytes for file in plan.files if file.copied is not None)
    return Cost(
        read=sum(transfer.source.nbytes for transfer in plan.transfers) + files,
        written=plan.nbytes,
        copied=kept + files,
    )


def costs(folder: Path) -> dict[tuple[str, str], Cost]:
    """Return what each conversion of each model moves, planned from checkpoints whose weights are holes."""
    found: dict[tuple[str, str], Cost] = {}
    plans: dict[str, tuple[Experts, Callable[[gc.Checkpoint, Path], gc.Plan]]] = {
        "to-gguf": ("mxfp4", gc.plan_gguf),
        "to-bf16": ("mxfp4", gc.plan_bf16),
        "to-mxfp4": ("bf16", gc.plan_mxfp4),
    }
    for size, shape in SHAPES.items():
        for command, (experts, plan) in plans.items():
            source = folder / f"{size}-{experts}"
            if not source.exists():
                write_holes(source, shape, experts)
            found[command, size] = cost_of(plan(gc.open(source), folder / "out.gguf"))
    return found


def write_holes(folder: Path, shape: Shape, experts: Experts) -> None:
    """Write a checkpoint in one file that takes no space for weights, with the tokenizer as published."""
    ids = tokenizers.write_real_tokenizer(folder)
    header, end = {}, 0
    for tensor in huggingface_tensors(shape, experts=experts):
        offsets = [end, end + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    config = huggingface_config(shape, special_ids=ids, quantized=experts == "mxfp4")
    (folder / "config.json").write_text(json.dumps(config))


def bytes_table(found: Mapping[tuple[str, str], Cost]) -> str:
    """What is moved, in Markdown."""
    lines = ["| conversion | model | read | written | rechecking reads | all |", "|---|---|---|---|---|---|"]
    for (command, size), cost in found.items():
        cells = (cost.read / 1e9, cost.written / 1e9, cost.rechecked / 1e9, cost.gigabytes)
        lines.append(f"| `{command}` | {size} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def seconds_table(found: Mapping[tuple[str, str], Cost]) -> str:
    """How long it takes, in Markdown."""
    lines = [f"| conversion | model | {' | '.join(DISKS)} | processor |", "|---|---|" + "---|" * (len(DISKS) + 1)]
    for (command, size), cost in found.items():
        cells = [_told(cost.seconds(command, disk, CORES)) for disk in DISKS.values()]
        cells.append(_told(cost.seconds(command, 1e9, CORES)))
        lines.append(f"| `{command}` | {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fine_tunes_table(found: Mapping[tuple[str, str], Cost]) -> str:
    """How long a thousand fine-tunes take on workers that share a file server, in Markdown."""
    lines = ["| model | " + " | ".join(f"{count} workers" for count in WORKERS) + " |"]
    lines.append("|---|" + "---|" * len(WORKERS))
    for size in SHAPES:
        cost = found["to-mxfp4", size]
        speeds = [min(count * DISKS["network, 1.1"], SHARE) for count in WORKERS]
        times = [
            FINE_TUNES * cost.seconds("to-mxfp4", speed, CORES * count)
            for speed, count in zip(speeds, WORKERS, strict=True)
        ]
        lines.append(f"| {size} | " + " | ".join(map(_told, times)) + " |")
    return "\n".join(lines)


def _told(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
