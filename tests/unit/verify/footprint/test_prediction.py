"""Predictions: what runtimes say in their logs, what grows with what, and the largest context that fits."""

from dataclasses import replace
from pathlib import Path

import pytest

from gptoss_convert.checkpoint import ModelConfig, alternating_layers
from gptoss_convert.errors import OptionError, UnsupportedError
from gptoss_convert.verify.footprint.kv_cache import llama_cpp_cache
from gptoss_convert.verify.footprint.llama_cpp import compute_buffer
from gptoss_convert.verify.footprint.parts import Conditions, Kind
from gptoss_convert.verify.footprint.prediction import (
    CONTEXT_STEP,
    MODELS,
    Prediction,
    conditions_for,
    largest_context,
    model_for,
    predict,
)
from gptoss_convert.verify.footprint.subject import open_subject
from gptoss_convert.verify.footprint.weights import FORMS
from tests.support.conversions import TINY
from tests.support.onnx_memory import CONFIGS

SLICE = replace(CONFIGS["20b"], num_hidden_layers=2, layer_types=alternating_layers(2))
NARROW = replace(
    SLICE, num_hidden_layers=6, layer_types=alternating_layers(6), hidden_size=1024, intermediate_size=2048
)
MEBIBYTE = 1 << 20


def how(context: int = 4096, batch: int = 512, **changes: object) -> Conditions:
    usual = Conditions(context=context, positions=context, batch=batch, kv_type="f16", threads=2)
    return replace(usual, **changes)  # type: ignore[arg-type]


def prediction_of(path: Path, form: str, runtime: str | None = None, **options: object) -> Prediction:
    subject = open_subject(path, form)
    model = model_for(subject, runtime)
    return predict(subject, model, conditions_for(subject, model, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "context", "batch", "said"),
    [
        (SLICE, 4096, 512, 100.40),
        (SLICE, 4096, 256, 50.08),
        (SLICE, 4096, 1024, 201.80),
        (SLICE, 16384, 512, 112.40),
        (NARROW, 4096, 512, 62.78),
        (NARROW, 4096, 1024, 126.55),
    ],
)
def test_llama_cpp_reserves_the_compute_buffer_that_its_log_says(
    config: ModelConfig, context: int, batch: int, said: float
) -> None:
    """`CPU compute buffer size`, in MiB, in logs of xllamacpp 2026.10.11549 for random models of these shapes."""
    cache = llama_cpp_cache(config, context, batch, "f16")
    found = compute_buffer(config, how(context, batch), window_cells=cache.window_cells, cells=cache.full_cells)
    assert found / MEBIBYTE == pytest.approx(said, abs=0.05)


def test_all_logits_of_a_batch_make_the_buffer_that_others_report() -> None:
    """398.38 MiB for gpt-oss-20b with a batch of 512, as programs print that want the logits of all of it."""
    numbers = compute_buffer(CONFIGS["20b"], how(logits_for_all=True), window_cells=0, cells=0)
    assert numbers / MEBIBYTE == pytest.approx(398.38, abs=0.005)


def test_totals_are_sums_of_parts(bare: dict[str, Path]) -> None:
    for form in FORMS:
        for device in ("cpu", "gpu"):
            for runtime, model in MODELS.items():
                if FORMS[form].format not in model.formats:
                    continue
                found = prediction_of(bare["20b"], form, runtime, device=device)
                ours = [part for part in found.parts if device == "cpu" or not part.on_host]
                assert 0 < found.needed <= sum(part.needed for part in ours)
                assert found.private + found.mapped >= found.resident or found.load_peak == found.resident
                assert found.resident <= sum(part.resident for part in ours)
                assert device == "cpu" or all(part.kind is Kind.PRIVATE for part in ours)
                assert found.error < 0.25 * found.resident


@pytest.mark.parametrize("form", ["gguf", "onnx-directml", "onnx-cpu", "mxfp4"])
def test_more_context_and_a_larger_batch_never_take_less(form: str, bare: dict[str, Path]) -> None:
    runtimes = [name for name, model in MODELS.items() if FORMS[form].format in model.formats]
    for runtime in runtimes:
        needs = [prediction_of(bare["20b"], form, runtime, context=n).needed for n in (256, 4096, 32768, 131072)]
        assert needs == sorted(needs)
        needs = [prediction_of(bare["20b"], form, runtime, batch=n).needed for n in (1, 64, 512)]
        assert needs == sorted(needs)


def test_the_cache_of_llama_cpp_grows_by_its_type(bare: dict[str, Path]) -> None:
    sizes = {}
    for kv_type in ("f32", "f16", "q8_0"):
        found = prediction_of(bare["20b"], "gguf", context=131072, kv_type=kv_type)
        sizes[kv_type] = next(part.needed for part in found.parts if part.name == "KV cache")
        assert found.least_cache < sizes[kv_type] < 1.01 * found.least_cache
    assert sizes["f32"] == 2 * sizes["f16"]
    assert sizes["q8_0"] == sizes["f16"] * 17 // 32


@pytest.mark.parametrize("form", ["gguf", "onnx-cuda", "mxfp4"])
@pytest.mark.parametrize("gigabytes", [14, 16, 20, 24])
def test_the_largest_context_fits_and_the_next_one_does_not(
    form: str, gigabytes: int, bare: dict[str, Path]
) -> None:
    subject = open_subject(bare["20b"], form)
    model = model_for(subject, None)
    conditions = conditions_for(subject, model, device="gpu")

    def needed(context: int) -> int:
        tried = replace(conditions, context=context, positions=context, batch=min(conditions.batch, context))
        return predict(subject, model, tried).needed

    longest = largest_context(subject, model, conditions, gigabytes * 10**9)
    if longest is None:
        assert needed(CONTEXT_STEP) > gigabytes * 10**9
        return
    assert needed(longest) <= gigabytes * 10**9
    assert longest == subject.config.max_position_embeddings or needed(longest + CONTEXT_STEP) > gigabytes * 10**9


def test_no_context_fits_where_weights_do_not(bare: dict[str, Path]) -> None:
    subject = open_subject(bare["120b"], "gguf")
    model = model_for(subject, None)
    assert largest_context(subject, model, conditions_for(subject, model), 24 * 10**9) is None


def test_an_artifact_takes_what_its_form_was_said_to_take(tmp_path: Path) -> None:
    written = open_subject(TINY)
    imagined = open_subject(TINY, "mxfp4")
    assert replace(written, form="mxfp4", header_bytes=0) == imagined


def test_what_cannot_be_predicted_is_refused(bare: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match=r"no weights beside the configuration .* say with --as in which form"):
        open_subject(bare["20b"])
    with pytest.raises(OptionError, match="no such form: found exl2, expected gguf or"):
        open_subject(bare["20b"], "exl2")
    gguf = open_subject(bare["20b"], "gguf")
    with pytest.raises(UnsupportedError, match="onnxruntime does not load this format"):
        model_for(gguf, "onnxruntime")
    with pytest.raises(OptionError, match="memory of this runtime cannot be predicted: found reference"):
        model_for(gguf, "reference")
    with pytest.raises(OptionError, match="the model has no such context: found 131073, expected up to 131072"):
        conditions_for(gguf, model_for(gguf), context=131073)
    graph = open_subject(bare["20b"], "onnx-cpu")
    with pytest.raises(OptionError, match="onnxruntime has no KV cache of this type here: found f16, expected f32"):
        conditions_for(graph, model_for(graph), kv_type="f16")
