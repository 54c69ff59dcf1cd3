"""All conversions beside `cp` and the peers, as one table in Markdown and as JSON."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import folders, headers, to_gguf, to_onnx
from benchmarks.measure import Run


@dataclass(frozen=True)
class Row:
    """Runs of a command, and of what it is measured against, on the same checkpoint."""

    what: str
    layers: int
    runs: Sequence[Run]
    copies: Sequence[Run] = ()

    def cells(self) -> list[str]:
        """Return medians: seconds, seconds of `cp`, median of the ratios in pairs, processor seconds, MB."""
        walls = [item.wall for item in self.runs]
        paired = [mine.wall / other.wall for mine, other in zip(self.runs, self.copies, strict=False)]
        return [
            self.what,
            str(self.layers),
            f"{statistics.median(walls):.2f}",
            f"{statistics.median(item.wall for item in self.copies):.2f}" if self.copies else "",
            f"{statistics.median(paired):.2f}" if paired else "",
            f"{statistics.median(item.cpu for item in self.runs):.2f}",
            f"{max(item.private for item in self.runs) / 1e6:.0f}",
        ]


HEADINGS = ("command", "layers", "seconds", "`cp`, seconds", "ratio", "processor seconds", "private memory, MB")


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table ready for docs/performance.md."""
    yield "| " + " | ".join(HEADINGS) + " |"
    yield "|---" * len(HEADINGS) + "|"
    for row in rows:
        yield "| " + " | ".join(row.cells()) + " |"


def measure(
    work: Path | None,
    *,
    gguf_layers: Sequence[int],
    folder_layers: Sequence[int],
    onnx_layers: Sequence[int],
    rounds: int,
    peer_rounds: int,
) -> Iterator[Row]:
    """Run all benchmarks, one checkpoint on the disk at a time, and yield rows as they are known."""
    for layers in gguf_layers:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            done = to_gguf.measure(Path(folder) / "work", layers=layers, rounds=rounds, peer_rounds=peer_rounds)
        yield Row("`to-gguf`", layers, done.ours, done.copies)
        if done.peer:
            yield Row("convert_hf_to_gguf.py", layers, done.peer, done.copies)
    for layers in folder_layers:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            found = folders.measure(Path(folder) / "work", layers=layers, rounds=rounds, peer_rounds=peer_rounds)
        copies = found.runs["cp of the BF16 folder"]
        for name, runs in found.runs.items():
            if runs and runs is not copies:
                yield Row(f"`{name}`" if name.startswith("to-") else name, layers, runs, copies)
    for layers in onnx_layers:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            ways = to_onnx.measure(Path(folder) / "work", layers=layers, rounds=rounds)
        for way, runs in ways.runs.items():
            yield Row(f"`to-onnx` ({way}); `cp` with sync", layers, runs, ways.copies[way])
    with tempfile.TemporaryDirectory(dir=work) as folder:
        total, by_command = headers.measure(Path(folder) / "work", rounds=rounds)
    for name, runs in by_command.items():
        yield Row(f"`{name}`, {total / 1e9:.0f} GB checkpoint", headers.REAL_120B.layers, runs)


def as_json(rows: Sequence[Row]) -> str:
    """Return every run of every row."""
    return json.dumps([asdict(row) for row in rows], indent=2) + "\n"
