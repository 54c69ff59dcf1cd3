"""Predicted and measured memory of random models of several sizes, full-width slices of gpt-oss-20b among them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_gguf import plan_gguf
from gptoss_convert.converters.to_onnx import OnnxOptions, plan_onnx
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.footprint.footprint import MeasureOptions, take_footprint
from gptoss_convert.verify.footprint.prediction import conditions_for, model_for
from gptoss_convert.verify.footprint.subject import open_subject
from tests.support import tokenizers
from tests.support.checkpoints import REAL_20B, Shape, write_huggingface
from tests.support.conversions import TINY

SHAPES: dict[str, Shape | None] = {
    "built-in model": None,
    "6 layers, hidden size 1,024": replace(
        REAL_20B, layers=6, hidden=1024, intermediate=2048, experts=16, heads=16, kv_heads=4
    ),
    "2 layers of full width": replace(REAL_20B, layers=2),
}
"""By name; None for the built-in model. Random ones have the real vocabulary."""
RUNTIMES = ("llama.cpp", "onnxruntime", "onnxruntime-genai", "transformers")
CONTEXT = 4096


@dataclass(frozen=True, kw_only=True)
class Row:
    """One artifact in one runtime, in bytes."""

    model: str
    runtime: str
    weights: int
    prompt: int
    predicted: int
    measured: int
    private: int
    """Largest private memory that was measured."""
    predicted_private: int

    @property
    def error(self) -> float:
        """By how much of the measurement the prediction is off."""
        return self.predicted / self.measured - 1


def lines(rows: Iterator[Row]) -> Iterator[str]:
    """Yield a table in Markdown."""
    yield "| model | runtime | weights | prompt | predicted | measured | off by | private, predicted | measured |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        sizes = (row.predicted, row.measured, row.predicted_private, row.private)
        predicted, measured, own, private = (f"{size / 1e6:,.0f} MB" for size in sizes)
        yield (
            f"| {row.model} | {row.runtime} | {row.weights / 1e6:,.0f} MB | {row.prompt} "
            f"| {predicted} | {measured} | {row.error:+.1%} | {own} | {private} |"
        )


def measure(folder: Path, *, runtimes: tuple[str, ...], prompt: int, threads: int) -> Iterator[Row]:
    """Make models in `folder`, yield what each takes, and remove them again."""
    for model, shape in SHAPES.items():
        place = folder / "model"
        place.mkdir(parents=True)
        try:
            source = TINY if shape is None else _random(place / "hf", shape)
            for runtime in runtimes:
                yield _row(model, _converted(source, runtime, place), runtime, prompt, threads)
        finally:
            shutil.rmtree(place)


def _random(folder: Path, shape: Shape) -> Path:
    ids = tokenizers.write_real_tokenizer(folder)
    return write_huggingface(folder, shape, special_ids=ids, edge_blocks=False)


def _converted(source: Path, runtime: str, folder: Path) -> Path:
    if runtime == "transformers":
        return source
    output = folder / ("x.gguf" if runtime == "llama.cpp" else "onnx")
    if not output.exists():
        checkpoint = open_checkpoint(source)
        gguf = runtime == "llama.cpp"
        execute(plan_gguf(checkpoint, output) if gguf else plan_onnx(checkpoint, output, OnnxOptions(target="cpu")))
    return output


def _row(model: str, artifact: Path, runtime: str, prompt: int, threads: int) -> Row:
    subject = open_subject(artifact)
    memory = model_for(subject, runtime)
    how = conditions_for(subject, memory, context=CONTEXT, threads=threads)
    result = take_footprint(subject, memory, how, measuring=MeasureOptions(prompt=prompt))
    comparison, measurement = result.comparison, result.measurement
    if comparison is None or measurement is None:
        raise RuntimeError(f"{model} in {runtime}: {measurement and measurement.reason}")
    return Row(
        model=model,
        runtime=runtime,
        weights=subject.nbytes,
        prompt=prompt,
        predicted=comparison.peak.predicted,
        measured=comparison.peak.measured,
        private=measurement.peak_private or 0,
        predicted_private=comparison.prediction.private,
    )
