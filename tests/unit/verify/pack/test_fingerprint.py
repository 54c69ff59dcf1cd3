"""What a pack keeps of the numbers of a tensor."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.canonical_hash import hash_checkpoint, hash_tensor, ignore_progress
from gptoss_convert.checkpoint import Checkpoint, Tensor
from gptoss_convert.encodings import ENCODINGS
from gptoss_convert.encodings.opaque import Opaque
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.pack.fingerprint import (
    SAMPLED_BLOCKS,
    fingerprints,
    sample,
    sampled_numbers,
    sampled_places,
)
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.memory import InMemory

MXFP4 = ENCODINGS["mxfp4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_huggingface(tmp_path_factory.mktemp("model"), Shape(), fill="gauss"))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=3).map(tuple))
def test_places_lie_in_the_tensor_and_never_overlap(shape: tuple[int, ...]) -> None:
    places = sampled_places(shape)
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    assert 1 <= len(places) <= SAMPLED_BLOCKS
    assert all(0 <= place.row < rows and 0 <= place.start < place.stop <= columns for place in places)
    for before, after in itertools.pairwise(places):
        assert (before.row, before.stop) <= (after.row, after.start) or before.row < after.row
    assert sampled_numbers(shape) == sum(place.stop - place.start for place in places)


def test_small_tensors_are_kept_whole() -> None:
    assert sampled_numbers((5, 70)) == 350


def test_places_meet_every_expert_gate_and_up_and_many_columns() -> None:
    """In a tensor of gpt-oss-20b, where equal steps would meet column 0 of even rows only."""
    places = sampled_places((32, 5760, 2880))
    assert {place.row // 5760 for place in places} == set(range(32))
    parities = [place.row % 2 for place in places]
    assert 20 < sum(parities) < 44
    assert len({place.start for place in places}) > 40


def test_sample_is_the_numbers_at_the_places(checkpoint: Checkpoint) -> None:
    tensor = checkpoint.tensors["model.layers.0.mlp.experts.down_proj"]
    values = tensor.encoding.decode(tensor.read(0, tensor.rows))
    expected = [values[place.row, place.start : place.stop] for place in sampled_places(tensor.shape)]
    np.testing.assert_array_equal(sample(tensor), np.concatenate(expected))


def test_hashes_are_the_canonical_ones(checkpoint: Checkpoint) -> None:
    found = {tensor.name: kept for tensor, kept, _ in fingerprints(checkpoint, jobs=2, progress=ignore_progress)}
    assert {name: kept.sha256 for name, kept in found.items()} == hash_checkpoint(checkpoint, jobs=1).tensors
    assert list(found) == list(checkpoint.tensors)


def test_hash_of_positive_zeros_is_that_of_an_encoding_without_signs_of_zero(checkpoint: Checkpoint) -> None:
    int8 = ENCODINGS["int8-block"]
    seen = 0
    for tensor, kept, _ in fingerprints(checkpoint, jobs=1, progress=ignore_progress):
        if tensor.encoding != MXFP4:
            assert kept.sha256_of_positive_zeros is None
            continue
        chunk = int8.encode(tensor.encoding.decode(tensor.read(0, tensor.rows)))
        stored = Tensor(tensor.name, tensor.shape, int8, InMemory(chunk))
        assert hash_tensor(stored) == kept.sha256_of_positive_zeros != kept.sha256
        seen += 1
    assert seen == 4


def test_positive_zeros_are_not_told_where_there_are_no_others(checkpoint: Checkpoint) -> None:
    chunk = MXFP4.encode(np.ones((4, 64), np.float32))
    tensor = Tensor("t", (4, 64), MXFP4, InMemory(chunk))
    ((_, kept, _),) = fingerprints(replace(checkpoint, tensors={"t": tensor}), jobs=1, progress=ignore_progress)
    assert kept.sha256_of_positive_zeros is None


def test_encodings_without_a_name_of_their_own_are_refused(checkpoint: Checkpoint) -> None:
    strange = Tensor("t", (1, 32), Opaque("iq1_s", 32, 32), InMemory((np.zeros((1, 32), np.uint8),)))
    with pytest.raises(UnsupportedError, match="a pack cannot be made of numbers in this encoding"):
        list(fingerprints(replace(checkpoint, tensors={"t": strange}), jobs=1, progress=ignore_progress))
