"""A model, and its ONNX folder."""

import shutil
from pathlib import Path

import pytest

from tests.support.conversions import make_checkpoint
from tests.unit.formats.onnx.folders import SHAPE, use_test_graphs, write_onnx


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("onnx") / "model", SHAPE, edge_blocks=False)


@pytest.fixture(autouse=True)
def _test_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_graphs(monkeypatch.setattr)


@pytest.fixture(scope="session")
def _written(model: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        use_test_graphs(patch.setattr)
        return write_onnx(model, model.parent / "onnx", experts="mxfp4", activations="f32")


@pytest.fixture
def folder(_written: Path, tmp_path: Path) -> Path:
    """A copy of the model's ONNX folder, experts in MXFP4 and all else in f32."""
    shutil.copytree(_written, tmp_path / "folder")
    return tmp_path / "folder"
