"""ONNX folders of small models, and changes to them."""

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto

from gptoss_convert.converters import to_onnx
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_onnx import GraphTarget, OnnxOptions, plan_onnx
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.metadata import METADATA_KEY
from tests.support import onnx_graphs
from tests.support.checkpoints import Shape

SHAPE = Shape(layers=1, experts=2, experts_per_token=2)
TARGET = GraphTarget(
    builder=onnx_graphs.BUILDER, experts=("mxfp4", "int8", "int4", "f16"), activations=("f32", "f16")
)
"""Takes every combination, so that each can be read back."""
NORM = "model.norm.weight"
EXPERTS = "model.layers.0.mlp.experts.down_proj"


def use_test_graphs(patch: Callable[..., None]) -> None:
    """Have graphs without arithmetic made for every target; `patch` is `monkeypatch.setattr`."""
    patch(to_onnx, "GRAPHS", dict.fromkeys(to_onnx.GRAPHS, TARGET))


def write_onnx(source: Path, folder: Path, **options: object) -> Path:
    """Convert with test graphs."""
    plan = plan_onnx(open_checkpoint(source), folder, OnnxOptions(**({"target": "cpu"} | options)))  # type: ignore[arg-type]
    execute(plan)
    return folder


def load(folder: Path) -> ModelProto:
    return onnx.load(folder / "model.onnx", load_external_data=False)


def initialiser(model: ModelProto, name: str) -> TensorProto:
    return next(item for item in model.graph.initializer if item.name == name)


def entry(model: ModelProto, name: str, key: str) -> onnx.StringStringEntryProto:
    return next(item for item in initialiser(model, name).external_data if item.key == key)


def metadata(model: ModelProto) -> onnx.StringStringEntryProto:
    return next(item for item in model.metadata_props if item.key == METADATA_KEY)


def changed(folder: Path, change: Callable[[ModelProto], object]) -> Path:
    """Change the graph file of a folder and return the folder."""
    model = load(folder)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder
