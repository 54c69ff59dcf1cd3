"""Execution providers go to the runtimes that have them."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import OptionError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.prompts import Prompt, PromptSet
from gptoss_convert.verify.runners import Runtime
from gptoss_convert.verify.runs import Runs
from gptoss_convert.verify.verification import LogitsOptions, VerifyOptions, verify_artifacts
from tests.support.conversions import TINY, to_gguf
from tests.support.runners import scripted

PROMPTS = PromptSet(name="few", prompts=(Prompt(name="one", kind="chat", ids=(1, 2, 3)),))
ONNX = Runtime(
    name="scripted", module="scripted", formats=("onnx",), needs=(("numpy",),), install="", has_providers=True
)
GGUF = replace(ONNX, formats=("gguf",), has_providers=False)


@pytest.fixture(autouse=True)
def _runners_on_the_path_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(scripted.__file__).parent), prepend=os.pathsep)


def test_runtimes_for_onnx_get_the_provider_and_others_do_not(tmp_path: Path) -> None:
    runs = Runs(prompts=PROMPTS, vocab_size=scripted.COLUMNS, folder=tmp_path, provider="dml", threads=2)
    assert runs.of(ONNX, tmp_path / "model").settings.provider == "dml"
    other = runs.of(replace(GGUF, name="another"), tmp_path / "model")
    assert (other.settings.provider, other.settings.threads) == (None, 2)
    own = runs.of(replace(ONNX, name="own", has_providers=False), tmp_path / "model")
    assert own.settings.provider is None
    assert runs.of(ONNX, tmp_path / "model") is runs.of(ONNX, tmp_path / "model")


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return open_checkpoint(TINY)


def test_provider_for_models_that_have_none_is_refused_at_once(model: Checkpoint, tmp_path: Path) -> None:
    file = to_gguf(TINY, tmp_path / "model.gguf")
    options = VerifyOptions(logits=LogitsOptions(prompts=PROMPTS, provider="dml"))
    with pytest.raises(OptionError, match="only ONNX models are run on execution providers: found dml"):
        verify_artifacts(model, [file], options, progress=lambda count: pytest.fail("weights were compared"))
