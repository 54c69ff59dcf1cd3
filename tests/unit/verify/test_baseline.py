"""The most exact file for a runtime holds the numbers of the model, in types that runtimes compute best with."""

from pathlib import Path

import pytest

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify import baseline
from gptoss_convert.verify.baseline import make_baseline
from gptoss_convert.verify.weights import verify_weights
from tests.support.checkpoints import Shape
from tests.support.conversions import make_checkpoint


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("reference"), Shape(layers=1), fill="gauss"))


@pytest.mark.parametrize(("format_name", "encodings"), [("gguf", {"f32"}), ("huggingface", {"bf16"})])
def test_holds_the_numbers_of_the_model(
    format_name: str, encodings: set[str], reference: Checkpoint, tmp_path: Path
) -> None:
    path = make_baseline(reference, format_name, tmp_path)
    assert path is not None
    made = open_checkpoint(path)
    assert made.format == format_name
    assert {tensor.encoding.name for tensor in made.tensors.values()} == encodings
    weights = verify_weights(reference, made)
    assert weights.passed
    assert sum(tensor.different for tensor in weights.tensors) == 0


@pytest.mark.parametrize("format_name", ["openai", "onnx"])
def test_other_formats_have_none(format_name: str, reference: Checkpoint, tmp_path: Path) -> None:
    assert make_baseline(reference, format_name, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_none_is_made_of_a_large_model(
    reference: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline, "LARGEST", 4 * 1000)
    assert make_baseline(reference, "gguf", tmp_path) is None
    assert list(tmp_path.iterdir()) == []
