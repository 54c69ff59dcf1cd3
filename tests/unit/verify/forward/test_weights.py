"""Weights come as the checkpoint has them, one group of matrices ahead."""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.encodings import ENCODINGS, Chunk, Encoding
from gptoss_convert.encodings.opaque import Opaque
from gptoss_convert.errors import InputError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.forward import weights as module
from gptoss_convert.verify.forward.precision import PRECISIONS
from gptoss_convert.verify.forward.weights import Rows, Weights
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.memory import InMemory

SHAPE = Shape(layers=1, experts=5, experts_per_token=2)
GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"
DOWN = "model.layers.0.mlp.experts.down_proj"
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_huggingface(tmp_path_factory.mktemp("model"), SHAPE))


def decoded(checkpoint: Checkpoint, name: str) -> np.ndarray:
    tensor = checkpoint.tensors[name]
    return tensor.encoding.decode(tensor.read(0, tensor.rows)).reshape(tensor.shape)


def with_encoding(checkpoint: Checkpoint, name: str, encoding: Encoding, chunk: Chunk) -> Checkpoint:
    tensor = replace(checkpoint.tensors[name], encoding=encoding, storage=InMemory(chunk))
    return replace(checkpoint, tensors={**checkpoint.tensors, name: tensor})


@pytest.mark.parametrize("step", [1, 700, 1 << 20])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [GATE_UP, QUERY, "model.norm.weight"])
def test_published_numbers_are_exact_in_every_precision(
    checkpoint: Checkpoint, name: str, precision: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STEP_BYTES", step)
    with Weights(checkpoint, PRECISIONS[precision]) as weights:
        whole, exact = weights.whole(name), weights.exact(name)
    assert whole.dtype == PRECISIONS[precision].dtype
    assert exact.dtype == (torch.float64 if precision == "float64" else torch.float32)
    np.testing.assert_array_equal(whole.double().numpy(), decoded(checkpoint, name))
    np.testing.assert_array_equal(exact.numpy(), decoded(checkpoint, name))


def test_other_numbers_are_rounded_in_bfloat16_alone(checkpoint: Checkpoint) -> None:
    numbers = np.random.default_rng(0).normal(size=(128, 64)).astype(np.float32)
    f32 = with_encoding(checkpoint, QUERY, ENCODINGS["f32"], (numbers,))
    with Weights(f32, PRECISIONS["bfloat16"]) as weights:
        assert torch.equal(weights.whole(QUERY), torch.from_numpy(numbers).bfloat16())
        assert torch.equal(weights.exact(QUERY), torch.from_numpy(numbers))
    with Weights(f32, PRECISIONS["float64"]) as weights:
        assert torch.equal(weights.whole(QUERY), torch.from_numpy(numbers).double())


@pytest.mark.parametrize("columns_first", [False, True])
def test_every_encoding_can_be_read(checkpoint: Checkpoint, columns_first: bool) -> None:
    numbers = np.random.default_rng(0).normal(size=(128, 64)).astype(np.float32)
    for encoding in ENCODINGS.values():
        chunk = encoding.encode(numbers)
        expected = encoding.decode(chunk)
        if columns_first:
            chunk = tuple(np.asfortranarray(part) for part in chunk)
        with Weights(with_encoding(checkpoint, QUERY, encoding, chunk), PRECISIONS["float32"]) as weights:
            np.testing.assert_array_equal(weights.whole(QUERY).numpy(), expected, err_msg=encoding.name)


def test_rows_are_read_once_each(checkpoint: Checkpoint) -> None:
    name = "model.embed_tokens.weight"
    counted = Counting(checkpoint.tensors[name].storage)  # type: ignore[arg-type]
    tensors = {**checkpoint.tensors, name: replace(checkpoint.tensors[name], storage=counted)}
    indices = np.array([511, 3, 3, 0, 511])
    with Weights(replace(checkpoint, tensors=tensors), PRECISIONS["float32"]) as weights:
        found = weights.rows(name, indices)
    np.testing.assert_array_equal(found.numpy(), decoded(checkpoint, name)[indices])
    assert counted.reads == [(0, 1), (3, 4), (511, 512)]


def groups_of(experts: list[int]) -> list[tuple[Rows, Rows]]:
    return [(Rows(GATE_UP, 192 * e, 192 * (e + 1)), Rows(DOWN, 64 * e, 64 * (e + 1))) for e in experts]


def test_stream_yields_the_groups_in_order(checkpoint: Checkpoint) -> None:
    first, second = decoded(checkpoint, GATE_UP), decoded(checkpoint, DOWN)
    with Weights(checkpoint, PRECISIONS["float32"]) as weights:
        for experts in ([4, 0, 1, 3], [2], [], [1, 2, 3, 4, 0]):
            found = [(a.clone().numpy(), b.clone().numpy()) for a, b in weights.stream(groups_of(experts))]
            assert len(found) == len(experts)
            for index, (gate_up, down) in zip(experts, found, strict=True):
                np.testing.assert_array_equal(gate_up, first[index])
                np.testing.assert_array_equal(down, second[index])


def test_next_group_is_decoded_meanwhile_and_elsewhere(checkpoint: Checkpoint) -> None:
    counted = Counting(checkpoint.tensors[DOWN].storage)  # type: ignore[arg-type]
    tensors = {**checkpoint.tensors, DOWN: replace(checkpoint.tensors[DOWN], storage=counted)}
    with Weights(replace(checkpoint, tensors=tensors), PRECISIONS["float32"]) as weights:
        stream = weights.stream(groups_of([0, 1, 2, 3]))
        _, present = next(stream)
        assert counted.finished.acquire(timeout=10)
        assert counted.finished.acquire(timeout=10)  # the second one, while nobody asked for it
        np.testing.assert_array_equal(present.numpy(), decoded(checkpoint, DOWN)[0])
        assert len(counted.reads) == 2
        stream.close()


def test_stream_that_is_left_does_not_disturb_the_next(checkpoint: Checkpoint) -> None:
    expected = decoded(checkpoint, GATE_UP)
    with Weights(checkpoint, PRECISIONS["float32"]) as weights:
        for _ in range(20):
            stream = weights.stream(groups_of([0, 1, 2, 3]))
            next(stream)
            stream.close()
            (found, _), *_ = weights.stream(groups_of([4]))
            np.testing.assert_array_equal(found.numpy(), expected[4])


def test_damage_is_named_where_it_is_met(checkpoint: Checkpoint) -> None:
    tensor = checkpoint.tensors[GATE_UP]
    codes, scales = tensor.read(0, tensor.rows)
    scales = scales.copy()
    scales[2 * 192] = 255
    damaged = with_encoding(checkpoint, GATE_UP, tensor.encoding, (codes, scales))
    with Weights(damaged, PRECISIONS["float32"]) as weights:
        stream = weights.stream(groups_of([0, 2, 1]))
        next(stream)
        with pytest.raises(InputError, match=GATE_UP):
            next(stream)
        assert len(list(weights.stream(groups_of([0, 1])))) == 2


def test_encoding_without_codec_is_refused(checkpoint: Checkpoint) -> None:
    opaque = with_encoding(checkpoint, QUERY, Opaque("q9", 64, 10), (np.zeros((128, 10), np.uint8),))
    with Weights(opaque, PRECISIONS["float32"]) as weights, pytest.raises(InputError, match=r"q9 .*decoded"):
        weights.whole(QUERY)


@dataclass(frozen=True, eq=False)
class Counting:
    """Another storage, and what was read of it."""

    storage: InMemory
    reads: list[tuple[int, int]] = field(default_factory=list)
    finished: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @property
    def files(self) -> tuple[Path, ...]:
        return self.storage.files

    @property
    def row_group(self) -> int:
        return self.storage.row_group

    @property
    def order(self) -> str:
        return self.storage.order

    def read(self, start: int, stop: int) -> Chunk:
        self.reads.append((start, stop))
        chunk = self.storage.read(start, stop)
        self.finished.release()
        return chunk
