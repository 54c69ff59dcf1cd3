"""The reference runner on full-width slices of gpt-oss-20b in float32, against transformers."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.measure import Run, prepare_machine, run
from tests.support.checkpoints import REAL_20B, write_huggingface

_KEPT = 16
"""Last positions whose log-probabilities are compared."""

_OURS = f"""
import sys, time
from pathlib import Path
import numpy as np
from gptoss_convert.verify.runners.protocol import Settings
from gptoss_convert.verify.runners.reference import RUNNER
ids = np.load(sys.argv[2]).tolist()
started = time.perf_counter()
last = np.empty((0, 0), np.float32)
with RUNNER.open(Path(sys.argv[1]), Settings(threads=int(sys.argv[4]))) as session:
    loaded = time.perf_counter()
    for scores in session.run([ids]):
        last = np.concatenate([last.reshape(-1, scores.logprobs.shape[1]), scores.logprobs])[-{_KEPT}:]
np.savez(sys.argv[3], logprobs=last, seconds=[loaded - started, time.perf_counter() - loaded])
"""
"""Arguments: checkpoint, ids, where the results go, threads."""

_TRANSFORMERS = f"""
import sys, time
import numpy as np, torch
from transformers import GptOssForCausalLM, Mxfp4Config
torch.set_num_threads(int(sys.argv[4]))
ids = np.load(sys.argv[2]).tolist()
started = time.perf_counter()
model = GptOssForCausalLM.from_pretrained(
    sys.argv[1],
    dtype=torch.float32,
    attn_implementation="eager",
    quantization_config=Mxfp4Config(dequantize=True),
).eval()
loaded = time.perf_counter()
with torch.inference_mode():
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    for few in logits.split(32):
        last = torch.log_softmax(few.double(), dim=-1).float().numpy()
np.savez(sys.argv[3], logprobs=last[-{_KEPT}:], seconds=[loaded - started, time.perf_counter() - loaded])
"""


@dataclass(frozen=True)
class Measured:
    """One run of a program."""

    process: Run
    load: float
    """Seconds until the model was loaded."""
    forward: float
    """Seconds from there to the last log-probability."""


@dataclass(frozen=True)
class Result:
    """Runs of both programs on the same checkpoint and tokens."""

    layers: int
    tokens: int
    checkpoint_bytes: int
    runs: dict[str, list[Measured]]
    largest_difference: float | None
    """Of a log-probability at the last positions; None without runs of transformers."""

    def lines(self) -> list[str]:
        """Return the figures as lines of text."""
        headings = ("wall s", "load s", "forward s", "min", "cpu s", "RSS MB", "private MB")
        lines = [
            f"{self.layers} full-width layers, {self.checkpoint_bytes} bytes, {self.tokens} tokens, float32",
            " " * 16 + "".join(heading.rjust(11) for heading in headings),
        ]
        for name, runs in self.runs.items():
            if runs:
                times = [
                    statistics.median(item.process.wall for item in runs),
                    statistics.median(item.load for item in runs),
                    statistics.median(item.forward for item in runs),
                    min(item.forward for item in runs),
                    statistics.median(item.process.cpu for item in runs),
                ]
                sizes = [max(item.process.resident for item in runs), max(item.process.private for item in runs)]
                lines.append(
                    f"{name:16}" + "".join(f"{x:11.2f}" for x in times) + "".join(f"{x / 1e6:11.0f}" for x in sizes)
                )
        if self.largest_difference is not None:
            lines.append(f"largest difference of a log-probability: {self.largest_difference:.1e}")
        return lines


def measure(folder: Path, *, layers: int, tokens: int, rounds: int, peer_rounds: int) -> Result:
    """Make a checkpoint in `folder`, run it with each program in turn, and remove everything again."""
    source = folder / "gpt-oss-20b"
    source.mkdir(parents=True)
    try:
        shape = replace(REAL_20B, layers=layers)
        write_huggingface(source, shape, shards=max(layers // 8, 1), edge_blocks=False)
        ids = folder / "ids.npy"
        np.save(ids, np.random.default_rng(0).integers(0, shape.vocab, tokens))
        return _measure(source, ids, layers, tokens, rounds, peer_rounds)
    finally:
        shutil.rmtree(folder)


def _measure(source: Path, ids: Path, layers: int, tokens: int, rounds: int, peer_rounds: int) -> Result:
    scripts = {"gptoss-convert": (_OURS, rounds), "transformers": (_TRANSFORMERS, peer_rounds)}
    runs: dict[str, list[Measured]] = {name: [] for name in scripts}
    last: dict[str, Sequence[float]] = {}
    nbytes = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    for number in range(max(rounds, peer_rounds)):
        for name, (script, count) in scripts.items():
            if number < count:
                results = ids.with_name("results.npz")
                prepare_machine(2 << 30)
                arguments = [source, ids, results, str(os.cpu_count() or 1)]
                process = run([sys.executable, "-P", "-c", script, *arguments])
                with np.load(results) as found:
                    runs[name].append(Measured(process, *found["seconds"].tolist()))
                    last[name] = found["logprobs"].astype(np.float64)
    difference = None
    if len(last) == len(scripts):
        difference = float(np.abs(np.subtract(*last.values())).max())
    return Result(layers, tokens, nbytes, runs, difference)
