"""ONNX folders of full-width slices of gpt-oss-20b on the processor, beside that of onnxruntime-genai's builder."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Run, run
from gptoss_convert.verify.metrics.positions import position_figures
from gptoss_convert.verify.metrics.summary import summarise
from gptoss_convert.verify.prompts import Prompt, PromptSet
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runners.launch import Status, run_in_child
from gptoss_convert.verify.runners.protocol import Settings
from tests.peers import onnxruntime_genai_builder
from tests.support import tokenizers
from tests.support.checkpoints import REAL_20B, Shape, write_huggingface

BUILDER = "builder, int4"
WAYS = {
    "standard, mxfp4, f32": ("directml", "mxfp4", "f32"),
    "standard, mxfp4, f16": ("directml", "mxfp4", "f16"),
    "cpu, int8": ("cpu", "int8", "f32"),
    "cpu, int4": ("cpu", "int4", "f32"),
}
"""Target, experts and activations of our folders."""
VOCAB = 20_000
"""Tokens of the slices: a tenth of the published ones, so that experts are most of a slice as of the whole."""
COMPARED = 160
"""Positions of the prompt by which distributions are compared, some of them beyond the attention window."""

_CHILD = """
import json, sys, time
import numpy as np, onnxruntime_genai
folder, results, threads, prefill, decode = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
ids = np.random.default_rng(1).integers(0, 20000, prefill + decode).astype(np.int32)
config = onnxruntime_genai.Config(folder)
config.clear_providers()
options = {"intra_op_num_threads": threads, "session.intra_op.allow_spinning": "0"}
config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
def now():
    return np.array([time.perf_counter(), time.process_time()])
begin = now()
model = onnxruntime_genai.Model(config)
loaded = now()
parameters = onnxruntime_genai.GeneratorParams(model)
parameters.set_search_options(max_length=max(prefill + decode + 1, 128))
generator = onnxruntime_genai.Generator(model, parameters)
ready = now()
generator.append_tokens(ids[:prefill])
prefilled = now()
for token in ids[prefill:]:
    generator.append_tokens(np.array([token], np.int32))
done = now()
seconds = {"load": loaded - begin, "prefill": prefilled - ready, "decode": done - prefilled}
open(results, "w").write(json.dumps({name: pair.tolist() for name, pair in seconds.items()}))
"""
"""Arguments: folder, file for the results, threads, positions at once, positions one by one. Results are seconds by
the clock and of the processor: where other programs run too, the latter say more. Threads do not spin while they
wait, which would count as work."""


@dataclass(frozen=True)
class Seconds:
    """What something took."""

    clock: float
    processor: float
    """Of all threads together."""

    def rate(self, tokens: int, threads: int) -> str:
        """Return tokens a second by the clock, and, in brackets, as if the threads had a core each all the time."""
        return f"{tokens / self.clock:.3g} ({tokens * threads / self.processor:.3g})"


@dataclass(frozen=True)
class Measured:
    """One folder in onnxruntime-genai, each prompt in a process of its own."""

    prefill: int
    """Tokens of the prompt."""
    decoded: int
    """Single tokens after it."""
    load: Seconds
    prefill_time: Seconds
    decode_time: Seconds
    resident: int
    """Peak bytes, with pages of mapped files."""
    private: int
    """Peak bytes without them."""


@dataclass(frozen=True)
class Folder:
    """What was found out about one folder."""

    name: str
    nbytes: int
    """Of the graph and its weights."""
    mean_kl: float | None
    """From the reference runner's distributions, in nats; None if it was not compared."""
    measured: list[Measured]


@dataclass(frozen=True)
class Result:
    """All folders of one slice."""

    layers: int
    threads: int
    folders: list[Folder]

    def lines(self) -> list[str]:
        """Return the figures as lines of text."""
        headings = ("MB", "mean KL", "tokens", "load s", "prefill/s", "decode/s", "RSS MB", "private MB")
        lines = [
            f"{self.layers} full-width layers, {VOCAB} tokens, {self.threads} threads (by processor time)",
            " " * 24 + "".join(heading.rjust(16) for heading in headings),
        ]
        for folder in self.folders:
            kl = "-" if folder.mean_kl is None else f"{folder.mean_kl:.2g}"
            for tokens in sorted({item.prefill for item in folder.measured}):
                runs = [item for item in folder.measured if item.prefill == tokens]
                best = min(runs, key=lambda item: item.prefill_time.processor)
                cells = (
                    f"{folder.nbytes / 1e6:.0f}",
                    kl,
                    str(tokens),
                    f"{best.load.clock:.2f} ({best.load.processor:.2f})",
                    best.prefill_time.rate(tokens, self.threads),
                    best.decode_time.rate(best.decoded, self.threads) if best.decoded else "-",
                    f"{max(item.resident for item in runs) / 1e6:.0f}",
                    f"{max(item.private for item in runs) / 1e6:.0f}",
                )
                lines.append(f"{folder.name:24}" + "".join(cell.rjust(16) for cell in cells))
        return [*lines, *self._ratios()]

    def _ratios(self) -> list[str]:
        """Processor time relative to the builder's in the same round."""
        theirs = next((folder for folder in self.folders if folder.name == BUILDER), None)
        if theirs is None:
            return []
        lines = []
        for folder in self.folders:
            pairs = [
                (mine, other)
                for mine, other in zip(folder.measured, theirs.measured, strict=True)
                if folder is not theirs
            ]
            for tokens in sorted({mine.prefill for mine, _ in pairs}):
                ratios = [
                    mine.prefill_time.processor / other.prefill_time.processor
                    for mine, other in pairs
                    if mine.prefill == tokens
                ]
                lines.append(
                    f"{folder.name}: prefill of {tokens} takes {statistics.median(ratios):.2f} times the builder's"
                )
            ratios = [
                mine.decode_time.processor / other.decode_time.processor for mine, other in pairs if mine.decoded
            ]
            if ratios:
                lines.append(f"{folder.name}: decode takes {statistics.median(ratios):.2f} times the builder's")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-ready data."""
        return asdict(self)


def measure(
    work: Path,
    *,
    layers: int,
    rounds: int,
    prompts: Sequence[int] = (256, 1024),
    decode: int = 8,
    ways: Sequence[str] = (*WAYS, BUILDER),
    compared: bool = True,
    shape: Shape = REAL_20B,
) -> Result:
    """Make a checkpoint in `work` and a folder in every way, run them in turn, and remove everything again."""
    source = work / "gpt-oss-20b"
    source.mkdir(parents=True)
    try:
        ids = tokenizers.write_small_tokenizer(source)
        slice_ = replace(shape, layers=layers, vocab=VOCAB)
        write_huggingface(source, slice_, special_ids=ids, fill="gauss", edge_blocks=False)
        return _measure(source, work, layers, rounds, prompts, decode, ways, compared)
    finally:
        shutil.rmtree(work)


def _measure(
    source: Path,
    work: Path,
    layers: int,
    rounds: int,
    prompts: Sequence[int],
    decode: int,
    ways: Sequence[str],
    compared: bool,
) -> Result:
    folders = {way: _written(source, work / f"folder-{number}", way) for number, way in enumerate(ways)}
    threads = os.cpu_count() or 1
    found: dict[str, list[Measured]] = {way: [] for way in ways}
    for _ in range(rounds):
        for number, tokens in enumerate(prompts):
            for way, folder in folders.items():
                found[way].append(_run(folder, threads, tokens, 0 if number else decode))
                print(f"{way}: {found[way][-1]}", file=sys.stderr, flush=True)
    divergences: dict[str, float | None] = dict.fromkeys(ways)
    if compared:
        divergences |= _divergences(source, folders, work)
    return Result(
        layers,
        threads,
        [Folder(way, _nbytes(folder), divergences[way], found[way]) for way, folder in folders.items()],
    )


def _written(source: Path, folder: Path, way: str) -> Path:
    if way == BUILDER:
        made = onnxruntime_genai_builder.build(source, folder, precision="int4")
        shutil.rmtree(folder.with_name(f"{folder.name}-cache"), ignore_errors=True)
        return made
    target, experts, activations = WAYS[way]
    program = Path(sys.executable).with_name("gptoss-convert")
    words = [program, "to-onnx", source, "-o", folder, "--target", target, "--quiet"]
    subprocess.run([*words, "--experts", experts, "--activations", activations], check=True)
    return folder


def _run(folder: Path, threads: int, prefill: int, decode: int) -> Measured:
    results = folder.with_name("results.json")
    arguments = (folder, results, str(threads), str(prefill), str(decode))
    process: Run = run([sys.executable, "-P", "-c", _CHILD, *arguments])
    seconds = json.loads(results.read_text(encoding="utf-8"))
    return Measured(
        prefill=prefill,
        decoded=decode,
        load=Seconds(*seconds["load"]),
        prefill_time=Seconds(*seconds["prefill"]),
        decode_time=Seconds(*seconds["decode"]),
        resident=process.resident,
        private=process.private,
    )


def _divergences(source: Path, folders: dict[str, Path], work: Path) -> dict[str, float | None]:
    ids = np.random.default_rng(2).integers(0, VOCAB, COMPARED).tolist()
    prompts = PromptSet(name="random", prompts=(Prompt(name="random", kind="random", ids=tuple(ids)),))

    def recorded(runtime: str, path: Path, name: str) -> Any:
        provider = "cpu" if RUNTIMES[runtime].has_providers else None
        made = run_in_child(RUNTIMES[runtime], path, [ids], work / name, Settings(provider=provider))
        if made.status is not Status.COMPLETED:
            raise RuntimeError(f"{path} in {runtime}: {made.status}, {made.reason}\n{made.log_tail}")
        return made.recording()

    reference = recorded("reference", source, "reference")
    found: dict[str, float | None] = {}
    for way, folder in folders.items():
        test = recorded("onnxruntime", folder, f"{folder.name}-run")
        divergence = summarise(position_figures(reference, test, prompts)).divergence
        found[way] = None if divergence is None else divergence.mean.mean
    return found


def _nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model.onnx*"))
