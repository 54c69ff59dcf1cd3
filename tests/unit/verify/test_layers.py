"""Every tensor of a model belongs to one group of one layer."""

from dataclasses import replace
from pathlib import Path

import pytest

from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.layers import OUTSIDE, errors_by_layer
from gptoss_convert.verify.weights import TensorComparison, compare_weights
from tests.support.checkpoints import Shape
from tests.support.conversions import make_checkpoint, to_gguf


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> list[TensorComparison]:
    folder: Path = tmp_path_factory.mktemp("layers")
    source = make_checkpoint(folder / "source", Shape(layers=2), fill="gauss", edge_blocks=False)
    lossy = to_gguf(source, folder / "model.gguf", dense="q8_0")
    return list(compare_weights(open_checkpoint(source), open_checkpoint(lossy)))


def test_every_tensor_is_in_one_group(tensors: list[TensorComparison]) -> None:
    found = errors_by_layer(tensors)
    assert [(item.layer, item.group) for item in found] == [
        *((layer, group) for layer in (0, 1) for group in ("attention", "router", "experts", "norms")),
        (None, OUTSIDE),
    ]
    assert sum(item.tensors for item in found) == len(tensors)
    assert sum(item.different for item in found) == sum(item.different > 0 for item in tensors)


def test_error_is_the_largest_of_the_group_and_names_its_tensor(tensors: list[TensorComparison]) -> None:
    changed = [
        replace(item, relative_error=0.5) if item.name == "model.layers.1.self_attn.k_proj.weight" else item
        for item in tensors
    ]
    for item in errors_by_layer(changed):
        if (item.layer, item.group) == (1, "attention"):
            assert (item.relative_error, item.tensor) == (0.5, "model.layers.1.self_attn.k_proj.weight")
        elif item.group in ("router", "experts"):
            assert item.relative_error == 0
