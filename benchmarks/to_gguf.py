"""to-gguf on full-width slices of gpt-oss-20b, against `cp` and llama.cpp's converter."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.measure import Run, median_ratio, median_wall, prepare_machine, run, table
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.gguf.container import read_header
from gptoss_convert.formats.storage import FileRef
from tests.peers.llama_cpp_source import converter_source
from tests.support import tokenizers
from tests.support.checkpoints import REAL_20B, write_huggingface

COMPARED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Result:
    """Runs of each tool on the same checkpoint."""

    layers: int
    source_bytes: int
    output_bytes: int
    copies: list[Run]
    ours: list[Run]
    peer: list[Run]
    equal_tensors: str

    def lines(self) -> list[str]:
        """Return the figures as lines of text."""
        tools = {"cp": self.copies, "gptoss-convert": self.ours, "convert_hf_to_gguf.py": self.peer}
        lines = [
            f"{self.layers} full-width layers: {self.source_bytes} bytes in, {self.output_bytes} bytes out",
            *table(tools, copy=self.copies),
            f"median of the ratios to cp, pair by pair: {median_ratio(self.ours, self.copies):.2f}",
        ]
        if self.peer:
            lines.append(f"times faster than the peer: {median_wall(self.peer) / median_wall(self.ours):.1f}")
            lines.append(f"tensors equal to the peer's, byte for byte: {self.equal_tensors}")
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
    weights = sorted(source.glob("*.safetensors"))
    ours, theirs, copy = folder / "ours.gguf", folder / "theirs.gguf", folder / "copy"
    program = Path(sys.executable).with_name("gptoss-convert")
    convert: list[str | Path] = [program, "to-gguf", source, "-o", ours, "--quiet"]
    copies, our_runs, peer_runs = [], [], []
    needed = sum(path.stat().st_size for path in weights) * 5 // 4
    # The first round fills the file cache and is not counted. Each output is removed right before it is written
    # again, so that both tools find the machine in the same state.
    for _ in range(rounds + 1):
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        prepare_machine(needed)
        copies.append(run(["cp", *weights, copy]))
        ours.unlink(missing_ok=True)
        prepare_machine(needed)
        our_runs.append(run(convert))
    del copies[0], our_runs[0]
    shutil.rmtree(copy)
    for _ in range(peer_rounds):
        theirs.unlink(missing_ok=True)
        prepare_machine(needed)
        script = converter_source() / "convert_hf_to_gguf.py"
        peer_runs.append(run([sys.executable, script, source, "--outfile", theirs, "--outtype", "auto"]))
    return Result(
        layers=layers,
        source_bytes=sum(path.stat().st_size for path in weights),
        output_bytes=ours.stat().st_size,
        copies=copies,
        ours=our_runs,
        peer=peer_runs,
        equal_tensors=_equal_tensors(ours, theirs) if peer_runs else "",
    )


def _equal_tensors(ours: Path, theirs: Path) -> str:
    """Compare the bytes of all tensors of two GGUF files."""
    assert not open_checkpoint(ours).problems
    left, right = FileRef.at(ours), FileRef.at(theirs)
    expected, found = read_header(right).tensors, read_header(left).tensors
    assert expected.keys() == found.keys()
    equal = 0
    for name, info in expected.items():
        mine = found[name]
        same = (info.shape, info.encoding) == (mine.shape, mine.encoding)
        for start in range(0, info.nbytes if same else 0, COMPARED_AT_ONCE):
            count = min(COMPARED_AT_ONCE, info.nbytes - start)
            same = same and left.read(mine.offset + start, count) == right.read(info.offset + start, count)
        equal += same
    return f"{equal} of {len(expected)}"
