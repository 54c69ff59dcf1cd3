"""A pack says what its reference says, and holds what was computed."""

from pathlib import Path

import numpy as np
import pytest

from gptoss_convert.canonical_hash import hash_checkpoint
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import InputError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.pack.fingerprint import sample
from gptoss_convert.verify.pack.reader import Pack, read_pack
from gptoss_convert.verify.recording import Recording
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runners.launch import run_in_child
from gptoss_convert.verify.runners.protocol import Settings
from gptoss_convert.verify.structure import compare_structure
from tests.support.checkpoints import Shape
from tests.support.conversions import make_checkpoint, to_gguf
from tests.support.packs import IDS, make_pack, read_arrays
from tests.support.recordings import prompt_set

TOP = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `model`, `whole.pack` and `listed.pack` lie."""
    folder = tmp_path_factory.mktemp("packs")
    model = make_checkpoint(folder / "model", Shape(), fill="gauss", edge_blocks=False)
    make_pack(model, folder / "whole.pack")
    make_pack(model, folder / "listed.pack", top=TOP)
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Checkpoint:
    return open_checkpoint(folder / "model")


@pytest.fixture(scope="module", params=["whole", "listed"])
def pack(request: pytest.FixtureRequest, folder: Path) -> Pack:
    return read_pack(folder / f"{request.param}.pack")


@pytest.fixture(scope="module")
def computed(folder: Path) -> dict[str | None, Recording]:
    """What the reference runner makes of the model, anew."""
    found: dict[str | None, Recording] = {}
    for imitates in (None, "llama.cpp"):
        place = folder / f"run-{imitates}"
        settings = Settings(threads=1, imitates=imitates)
        found[imitates] = run_in_child(RUNTIMES["reference"], folder / "model", IDS, place, settings).recording()
    return found


def test_model_is_described_as_by_its_own_files(pack: Pack, reference: Checkpoint) -> None:
    assert pack.model.config == reference.config
    assert pack.model.format == "huggingface"
    assert {name: (tensor.shape, tensor.encoding) for name, tensor in pack.model.tensors.items()} == {
        name: (tensor.shape, tensor.encoding) for name, tensor in reference.tensors.items()
    }
    assert reference.tokenizer is not None
    assert pack.model.tokenizer is not None
    assert pack.model.tokenizer.vocabulary() == reference.tokenizer.vocabulary()


def test_structure_is_compared_as_with_the_model_itself(pack: Pack, reference: Checkpoint, folder: Path) -> None:
    for artifact in (reference, open_checkpoint(to_gguf(folder / "model", folder / f"{id(pack)}.gguf"))):
        assert compare_structure(pack.model, artifact) == compare_structure(reference, artifact)


def test_prompts_are_those_that_were_recorded(pack: Pack) -> None:
    assert pack.prompts == prompt_set(IDS)


def test_hashes_and_samples_are_those_of_the_model(pack: Pack, reference: Checkpoint) -> None:
    hashes = hash_checkpoint(reference, jobs=1)
    assert pack.canonical_hash == hashes.model
    assert {name: kept.sha256 for name, kept in pack.fingerprints.items()} == hashes.tensors
    for name, tensor in reference.tensors.items():
        np.testing.assert_array_equal(pack.samples(name), sample(tensor))


def test_numbers_of_the_model_are_not_there(pack: Pack) -> None:
    with pytest.raises(InputError, match="a pack has no weights"):
        pack.model.tensors["model.norm.weight"].read(0, 1)


@pytest.mark.parametrize("imitates", [None, "llama.cpp"])
def test_runs_are_those_of_the_reference_runner(
    imitates: str | None, pack: Pack, computed: dict[str | None, Recording], tmp_path: Path
) -> None:
    pack.runs[imitates].extract(tmp_path)
    found, expected = Recording(tmp_path), computed[imitates]
    assert found.prompt_lengths == expected.prompt_lengths
    np.testing.assert_array_equal(found.routing(), expected.routing())
    np.testing.assert_array_equal(found.router_margins(), expected.router_margins())
    right = expected.distributions(0, expected.positions).logprobs
    side = found.distributions(0, found.positions)
    if found.is_whole:
        np.testing.assert_allclose(side.logprobs, right, atol=1e-6)
        return
    order = np.argsort(-right, axis=1, kind="stable")[:, :TOP]
    np.testing.assert_array_equal(side.tokens, order)
    np.testing.assert_allclose(side.logprobs, np.take_along_axis(right, order, axis=1), atol=1e-6)
    left = np.exp(right).sum(axis=1) - np.exp(np.take_along_axis(right, order, axis=1)).sum(axis=1)
    np.testing.assert_allclose(side.rest, left, rtol=1e-5)


def test_the_two_runs_differ(pack: Pack, tmp_path: Path) -> None:
    """As they should where a runtime departs from what was published."""
    arrays = [read_arrays(pack.path)[f"{name}.logprobs"] for name in ("reference", "llama.cpp")]
    assert not np.array_equal(*arrays)


def test_small_vocabularies_are_whole(folder: Path) -> None:
    assert read_pack(folder / "whole.pack").runs[None].is_whole
    assert not read_pack(folder / "listed.pack").runs[None].is_whole


def test_size_is_told_beforehand(folder: Path) -> None:
    report = make_pack(folder / "model", folder / "again.pack", top=TOP)
    assert report.nbytes == (folder / "again.pack").stat().st_size
    assert abs(report.plan.nbytes - report.nbytes) < 20_000  # hashes of positive zeros that were not needed
    assert 0 < report.coverage < 1


def test_packs_of_the_same_model_differ_in_nothing_but_the_time_that_it_took(folder: Path) -> None:
    first, second = (read_arrays(folder / name) for name in ("listed.pack", "again.pack"))
    assert first.keys() == second.keys()
    assert [name for name in first if name != "facts" and not np.array_equal(first[name], second[name])] == []
