"""The table of stages covers the model, and its stages can be run one by one."""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from gptoss_convert.checkpoint import inventory
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.forward.batch import Batch
from gptoss_convert.verify.forward.model import EMBEDDING, FINAL_NORM, UNEMBEDDING, Model
from gptoss_convert.verify.forward.precision import PRECISIONS
from gptoss_convert.verify.forward.stages import BLOCKS, HIDDEN, Activations, Layer, Stage, run_layer
from tests.support.checkpoints import Shape, write_huggingface

SHAPE = Shape(layers=2, experts=5, experts_per_token=2, sliding_window=16)
BATCH = Batch.of([range(40), range(7), range(100, 130)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    checkpoint = open_checkpoint(write_huggingface(tmp_path_factory.mktemp("model"), SHAPE, edge_blocks=False))
    with Model(checkpoint, checkpoint.config, PRECISIONS["float32"]) as model:
        yield model


def test_every_tensor_is_used_once(model: Model) -> None:
    used = Counter([EMBEDDING, FINAL_NORM, UNEMBEDDING])
    for layer in model.layers(BATCH):
        used.update(layer.name(tensor) for block in BLOCKS for stage in block for tensor in stage.tensors)
    assert used == Counter(inventory(model.config).keys())


def test_stages_take_what_comes_before_them() -> None:
    for block in BLOCKS:
        known = {HIDDEN}
        for stage in block:
            assert set(stage.takes) <= known
            assert stage.name not in known
            known.add(stage.name)


def test_stages_alone_make_up_the_layer(model: Model) -> None:
    hidden = model.embed(BATCH)
    for layer in model.layers(BATCH):
        seen: list[tuple[str, torch.Tensor]] = []

        def observe(
            layer: Layer, stage: Stage, activations: Activations, seen: list[tuple[str, torch.Tensor]] = seen
        ) -> None:
            seen.append((stage.name, activations[stage.name]))

        after = run_layer(layer, hidden, observe)
        for block in BLOCKS:
            activations = {HIDDEN: hidden}
            for stage in block:
                activations[stage.name] = stage.run(layer, activations)
                name, value = seen.pop(0)
                assert name == stage.name
                assert torch.equal(value, activations[stage.name])
                assert len(value) == BATCH.positions
            hidden = hidden + activations[block[-1].name]
        assert torch.equal(after, hidden)


def test_prompts_do_not_see_each_other(model: Model) -> None:
    whole = model.embed(BATCH)
    for layer in model.layers(BATCH):
        whole = run_layer(layer, whole)
    for prompt, (begin, end) in zip(BATCH.prompts, BATCH.spans, strict=True):
        alone = Batch.of([prompt])
        hidden = model.embed(alone)
        for layer in model.layers(alone):
            hidden = run_layer(layer, hidden)
        torch.testing.assert_close(whole[begin:end], hidden, rtol=1e-5, atol=1e-5)
