"""The steps in one call each: what programs use."""

from pathlib import Path

import pytest

import gptoss_convert as gc
from gptoss_convert.api import Location
from gptoss_convert.converters.conversions import CONVERSIONS
from gptoss_convert.errors import OptionError
from gptoss_convert.verify.judgement import Outcome
from tests.support.conversions import TINY


@pytest.mark.parametrize("to", ["gguf", gc.GgufOptions(dense="f32")], ids=["by name", "by options"])
@pytest.mark.parametrize("source", [TINY, str(TINY), gc.open(TINY)], ids=["path", "text", "open"])
def test_convert_writes_what_plan_and_execute_write(
    source: "Location | gc.Checkpoint", to: "str | gc.GgufOptions", tmp_path: Path
) -> None:
    options = gc.GgufOptions() if isinstance(to, str) else to
    gc.execute(gc.plan_gguf(gc.open_checkpoint(TINY), tmp_path / "tiny.gguf", options))
    (tmp_path / "here").mkdir()
    converted = gc.convert(source, tmp_path / "here" / "tiny.gguf", to)
    assert converted.output.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert converted.report.loss <= converted.plan.loss


def test_the_way_there_and_back(tmp_path: Path) -> None:
    tuned = gc.convert(TINY, tmp_path / "bf16", gc.Bf16Options(), manifest=True)
    back = gc.convert(tuned.output, tmp_path / "mxfp4", "mxfp4", scales_from=TINY)
    assert gc.hash_checkpoint(gc.open(back.output), jobs=2) == gc.hash_checkpoint(gc.open(TINY), jobs=2)
    assert gc.verify(TINY, tuned.output, back.output).outcome is Outcome.PASS


def test_verify_fails_for_another_model(tmp_path: Path) -> None:
    lossy = gc.convert(TINY, tmp_path / "q8.gguf", gc.GgufOptions(dense="q8_0"))
    exact_only = tmp_path / "other.gguf"
    gc.convert(lossy.output, exact_only, gc.GgufOptions(dense="f32", allow_lossy_source=True))
    assert gc.verify(TINY, exact_only).outcome is Outcome.FAIL


def test_verify_runs_runtimes_on_prompts(tmp_path: Path) -> None:
    gguf = gc.convert(TINY, tmp_path / "tiny.gguf", "gguf").output
    result = gc.verify(gc.open(TINY), gguf, prompts="quick", max_tokens=4, weights=False, runtimes=("reference",))
    (artifact,) = result.artifacts
    assert artifact.weights is None
    assert [item.runtime for item in artifact.logits] == ["reference"]


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such conversion"):
        gc.convert(TINY, tmp_path / "x", "zip")
    with pytest.raises(OptionError, match="has no defaults"):
        gc.convert(TINY, tmp_path / "x", "onnx")
    with pytest.raises(OptionError, match="takes no scales"):
        gc.convert(TINY, tmp_path / "x", "bf16", scales_from=TINY)
    with pytest.raises(OptionError, match="nothing to verify"):
        gc.verify(TINY, TINY, weights=False)
    assert list(tmp_path.iterdir()) == []


def test_every_conversion_has_a_command() -> None:
    from gptoss_convert.cli import COMMANDS

    assert {f"to-{name}" for name in CONVERSIONS} == {name for name in COMMANDS if name.startswith("to-")}
