"""What runtimes really take, against what was predicted from headers alone.

Small models: the larger ones are measured by `python -m benchmarks footprint`.
"""

from pathlib import Path

import pytest

from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_onnx import OnnxOptions, plan_onnx
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.footprint.child import IMPORT, LOAD, PREFILL
from gptoss_convert.verify.footprint.footprint import Footprint, MeasureOptions, take_footprint
from gptoss_convert.verify.footprint.parts import Kind
from gptoss_convert.verify.footprint.prediction import conditions_for, model_for
from gptoss_convert.verify.footprint.subject import open_subject
from tests.support.conversions import TINY, make_checkpoint, to_gguf
from tests.support.layouts import Shape

THREADS = 2
MEGABYTE = 1_000_000
WIDE = Shape(layers=2, hidden=768, intermediate=1536, experts=16, heads=12, head_dim=64, vocab=4096)
"""Of a model with 60 MB of experts in MXFP4, so that a part that is forgotten is more than the tolerance."""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    wide = make_checkpoint(folder / "wide", WIDE, edge_blocks=False)
    found = {"tiny": TINY, "wide": wide}
    for name in ("tiny", "wide"):
        found[f"{name}.gguf"] = to_gguf(found[name], folder / f"{name}.gguf")
        found[f"{name}-cpu"] = folder / f"{name}-cpu"
        execute(plan_onnx(open_checkpoint(found[name]), found[f"{name}-cpu"], OnnxOptions(target="cpu")))
    return found


def footprint(
    artifact: Path, runtime: str, *, context: int = 2048, prompt: int = 1024, **options: object
) -> Footprint:
    subject = open_subject(artifact)
    model = model_for(subject, runtime)
    how = conditions_for(subject, model, context=context, threads=THREADS, **options)  # type: ignore[arg-type]
    result = take_footprint(subject, model, how, measuring=MeasureOptions(prompt=prompt, answer=4))
    assert result.measurement is not None
    assert result.comparison is not None, (result.measurement.died_in, result.measurement.reason)
    return result


def error(result: Footprint) -> float:
    assert result.comparison is not None
    return result.comparison.error


@pytest.mark.parametrize(
    ("artifact", "runtime"),
    [
        ("tiny.gguf", "llama.cpp"),
        ("wide.gguf", "llama.cpp"),
        ("tiny-cpu", "onnxruntime"),
        ("wide-cpu", "onnxruntime"),
    ],
)
def test_predictions_are_within_5_percent(artifact: str, runtime: str, artifacts: dict[str, Path]) -> None:
    result = footprint(artifacts[artifact], runtime)
    assert result.failure is None
    assert error(result) == pytest.approx(0, abs=0.05), result.comparison and result.comparison.explanation


@pytest.mark.parametrize(("artifact", "runtime"), [("wide-cpu", "onnxruntime-genai"), ("tiny", "transformers")])
def test_predictions_for_other_runtimes_are_within_10_percent(
    artifact: str, runtime: str, artifacts: dict[str, Path]
) -> None:
    assert error(footprint(artifacts[artifact], runtime)) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("prompt", [256, 1024, 2000])
def test_predictions_for_onnxruntime_genai_are_within_the_error_that_they_state(
    prompt: int, artifacts: dict[str, Path]
) -> None:
    """Its arena takes more or less by one doubling, a tenth of this model; all else has to be right."""
    result = footprint(artifacts["wide-cpu"], "onnxruntime-genai", prompt=prompt)
    assert result.comparison is not None
    prediction, peak = result.comparison.prediction, result.comparison.peak
    arena = next(part for part in prediction.parts if part.name.startswith("buffers"))
    assert abs(peak.bytes) < arena.error * arena.resident
    assert prediction.error < 0.2 * prediction.resident


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_the_cache_of_llama_cpp_takes_what_its_type_says(kv_type: str, artifacts: dict[str, Path]) -> None:
    """Between two contexts nothing that is loaded differs but the cache: 53 MB in float16."""
    small, large = (
        footprint(artifacts["tiny.gguf"], "llama.cpp", context=context, prompt=64, kv_type=kv_type)
        for context in (1024, 50176)
    )
    found = [result.measurement.phase(LOAD) for result in (small, large) if result.measurement]
    grown = (found[1].private or 0) - (found[0].private or 0) if found[0] and found[1] else 0
    predicted = [
        sum(part.needed for part in x.prediction.parts if part.name.startswith("KV cache")) for x in (small, large)
    ]
    assert grown == pytest.approx(predicted[1] - predicted[0], rel=0.02)


def test_llama_cpp_maps_weights_and_lays_experts_out_anew(artifacts: dict[str, Path]) -> None:
    result = footprint(artifacts["wide.gguf"], "llama.cpp")
    assert result.measurement is not None
    imported, loaded = result.measurement.phase(IMPORT), result.measurement.phase(LOAD)
    assert imported is not None
    assert loaded is not None
    assert loaded.artifact_resident == pytest.approx(result.subject.nbytes, rel=0.01)
    copies = sum(part.resident for part in result.prediction.parts if "anew" in part.name)
    assert copies > 50 * MEGABYTE
    assert (loaded.private or 0) - (imported.private or 0) > copies


def test_onnxruntime_maps_weights_and_reads_them_when_they_are_needed(artifacts: dict[str, Path]) -> None:
    result = footprint(artifacts["wide-cpu"], "onnxruntime")
    assert result.measurement is not None
    loaded, computed = result.measurement.phase(LOAD), result.measurement.phase(PREFILL)
    assert loaded is not None
    assert computed is not None
    assert (loaded.artifact_mapped or 0) > 100 * MEGABYTE
    assert (loaded.artifact_resident or 0) < MEGABYTE
    mapped = (
        sum(
            part.resident
            for part in result.comparison.prediction.parts
            if part.kind is Kind.MAPPED and "weights" in part.name
        )
        if result.comparison
        else 0
    )
    assert computed.artifact_resident == pytest.approx(mapped, rel=0.05)
