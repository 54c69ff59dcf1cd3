"""Measuring tells private memory, mapped files and peaks apart, and says in which phase a process ended."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_onnx import OnnxOptions, plan_onnx
from gptoss_convert.errors import OptionError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.footprint.child import DECODE, IMPORT, LOAD, PREFILL, START
from gptoss_convert.verify.footprint.comparison import compare
from gptoss_convert.verify.footprint.footprint import MeasureOptions, take_footprint
from gptoss_convert.verify.footprint.measurement import PHASE_NAMES, Ending, Measurement, measure
from gptoss_convert.verify.footprint.meter import PhaseMeter
from gptoss_convert.verify.footprint.prediction import conditions_for, model_for, predict
from gptoss_convert.verify.footprint.subject import Subject, open_subject
from tests.support.checkpoints import write_huggingface
from tests.support.conversions import TINY, make_checkpoint, to_gguf
from tests.support.layouts import Shape

MEGABYTE = 1_000_000
SHAPE = Shape(vocab=512, heads=4, head_dim=64, hidden=256, intermediate=256, experts=16)
"""Of a model with 4 MB of weights."""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("model")
    checkpoint = make_checkpoint(folder / "hf", SHAPE, edge_blocks=False)
    return open_subject(to_gguf(checkpoint, folder / "x.gguf"))


def measured(subject: Subject, **options: object) -> Measurement:
    model = model_for(subject)
    how = conditions_for(subject, model, context=512, threads=1)
    return measure(subject, model.runtime, how, **{"prompt": 40, "answer": 3, **options})  # type: ignore[arg-type]


@contextmanager
def killed_as_soon_as(condition: str) -> Iterator[None]:
    """Kill the child with SIGKILL, as the system does when memory runs out, when its command line has a word."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for child in psutil.Process(os.getpid()).children():
                try:
                    if any(condition in word for word in child.cmdline()):
                        time.sleep(0.02)
                        child.kill()
                        return
                except psutil.Error:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_phases_are_told_one_by_one(gguf: Subject) -> None:
    result = measured(gguf)
    assert (result.ending, result.died_in, result.reason) == (Ending.COMPLETED, None, None)
    assert tuple(phase.phase for phase in result.phases) == PHASE_NAMES == (START, IMPORT, LOAD, PREFILL, DECODE)
    for phase in result.phases:
        assert phase.resident is not None
        assert phase.private is not None
        assert phase.mapped is not None
        assert phase.resident == pytest.approx(phase.private + phase.mapped, abs=MEGABYTE / 10)
        assert (phase.peak_resident or 0) >= phase.resident - MEGABYTE
        assert (phase.peak_private or 0) >= phase.private - MEGABYTE
        assert (phase.committed or 0) > phase.private - MEGABYTE


def test_pages_of_the_artifact_are_mapped_from_loading_on(gguf: Subject) -> None:
    result = measured(gguf)
    weights = gguf.path.stat().st_size
    for name in (START, IMPORT):
        phase = result.phase(name)
        assert phase is not None
        assert (phase.artifact_mapped, phase.artifact_resident) == (0, 0)
    loaded = result.phase(LOAD)
    assert loaded is not None
    assert loaded.artifact_resident == pytest.approx(gguf.nbytes, abs=MEGABYTE / 10)
    assert gguf.nbytes <= (loaded.artifact_mapped or 0) <= weights + 8192
    assert loaded.artifact_resident < (loaded.mapped or 0)


def test_a_peak_is_that_of_its_phase_alone(tmp_path: Path) -> None:
    """50 MB that are private and 30 MB of a mapped file, one after the other, each given back before the next."""
    import mmap

    file = tmp_path / "weights"
    file.write_bytes(bytes(30 * MEGABYTE))
    meter = PhaseMeter(str(tmp_path))

    def peaks() -> tuple[int, int]:
        figures = meter.end()
        resident, private = figures["peak_resident"], figures["peak_private"]
        assert resident is not None
        assert private is not None
        return resident, private

    meter.begin()
    time.sleep(0.02)
    resident, private = peaks()
    meter.begin()
    # From the system: the heap of a process that has run many tests may have as much to reuse.
    with mmap.mmap(-1, 50 * MEGABYTE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for page in range(0, 50 * MEGABYTE, mmap.PAGESIZE):
            block[page] = 1
        time.sleep(0.1)
    with_block = peaks()
    assert with_block[0] - resident == pytest.approx(50 * MEGABYTE, abs=3 * MEGABYTE)
    assert with_block[1] - private == pytest.approx(50 * MEGABYTE, abs=3 * MEGABYTE)
    meter.begin()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert sum(pages[:: mmap.PAGESIZE]) == 0
        figures = meter.end()
    assert figures["artifact_mapped"] == pytest.approx(30 * MEGABYTE, abs=8192)
    assert figures["artifact_resident"] == pytest.approx(30 * MEGABYTE, abs=8192)
    assert (figures["peak_resident"] or 0) - resident == pytest.approx(30 * MEGABYTE, abs=3 * MEGABYTE)
    assert (figures["peak_private"] or 0) - private < 3 * MEGABYTE


@pytest.mark.parametrize(("limit", "phase"), [(20 * MEGABYTE, START), (90 * MEGABYTE, LOAD)])
def test_a_process_without_memory_fails_in_the_phase_in_which_it_ended(
    limit: int, phase: str, gguf: Subject
) -> None:
    """A cache for the whole context of this model takes 69 MB, and libraries and threads the rest."""
    model = model_for(gguf)
    how = conditions_for(gguf, model, context=131072, threads=1)
    result = take_footprint(gguf, model, how, measuring=MeasureOptions(prompt=40, answer=3, limit=limit))
    found = result.measurement
    assert found is not None
    assert (found.ending, found.died_in, found.limit) == (Ending.OUT_OF_MEMORY, phase, limit)
    assert found.reason
    assert [item.phase for item in found.phases] == list(PHASE_NAMES[: PHASE_NAMES.index(phase)])
    assert result.is_over_budget
    assert (result.comparison, result.failure) == (None, None)


def test_a_process_that_is_killed_ran_out_of_memory(gguf: Subject) -> None:
    with killed_as_soon_as("gptoss_convert.verify.footprint.child"):
        result = measured(gguf)
    assert result.ending is Ending.OUT_OF_MEMORY
    assert result.died_in in PHASE_NAMES
    assert "SIGKILL" in (result.reason or "")


def test_a_process_that_takes_too_long_is_ended(gguf: Subject) -> None:
    result = measured(gguf, timeout=0.02)
    assert (result.ending, result.reason) == (Ending.TIMED_OUT, "not finished after 0.02 seconds")


def test_a_graph_that_the_runtime_refuses_is_not_out_of_memory(tmp_path: Path) -> None:
    """An operator that nobody knows; initialisers and configuration are sound."""
    folder = tmp_path / "onnx"
    execute(plan_onnx(open_checkpoint(TINY), folder, OnnxOptions(target="cpu")))
    graph = folder / "model.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"RMSNormalization", b"XMSNormalization"))
    result = measured(open_subject(folder))
    assert (result.ending, result.died_in) == (Ending.REFUSED, LOAD)
    assert "XMSNormalization" in (result.reason or "")


def test_differences_name_the_part_that_they_lie_in(gguf: Subject) -> None:
    result = measured(gguf)
    comparison = compare(predict(gguf, model_for(gguf), result.conditions), result)
    assert comparison is not None
    by_name = {cause.name: cause for cause in comparison.causes}
    assert list(by_name) == ["private memory once loaded", "private memory while computing", "mapped files"]
    assert "KV cache" in by_name["private memory once loaded"].source
    assert by_name["private memory while computing"].source == "compute buffer"
    parts = sum(cause.measured for cause in comparison.causes)
    assert parts == pytest.approx(comparison.peak.measured, rel=0.02)


def test_what_cannot_be_measured_is_refused(gguf: Subject, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="prompt and answer do not fit the context: found 512, expected 511"):
        measured(gguf, prompt=509)
    checkpoint = write_huggingface(tmp_path / "hf", SHAPE)
    imagined = open_subject(checkpoint, "gguf")
    with pytest.raises(
        OptionError, match="a form that is not there cannot be measured: found gguf; convert it first"
    ):
        measured(imagined)


def test_a_runtime_that_is_not_installed_is_said(gguf: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_convert.verify.runners.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"llama.cpp is not installed; pip install xllamacpp"):
        measured(gguf)
