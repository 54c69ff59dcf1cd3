"""Folders that we write, as transformers and OpenAI's implementation read them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_convert.checkpoint import inventory
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_bf16 import Bf16Options, plan_bf16
from gptoss_convert.converters.to_mxfp4 import Mxfp4Options, plan_mxfp4
from gptoss_convert.formats import open_checkpoint
from tests.oracle.test_openai_reference import float32_rounding, ids
from tests.peers import openai_reference, transformers_model
from tests.support.checkpoints import Shape, write_original
from tests.support.conversions import make_checkpoint, to_gguf

SHAPE = Shape(
    layers=2, hidden=96, intermediate=64, experts=3, experts_per_token=2, heads=6, kv_heads=3, head_dim=16
)
"""Every dimension differs from every other one that it could be taken for."""
CALM = Shape(layers=2, hidden=96, intermediate=64, experts=4, experts_per_token=4)
"""A model that is run; all experts take part, so that rounding changes no choice."""
SOURCES = ("huggingface", "sharded", "openai", "gguf", "bf16", "named")


class Sources:
    """One model in every form, its numbers as transformers decodes them."""

    def __init__(self, folder: Path, shape: Shape, **filling: Any) -> None:
        self._folder = folder
        make_checkpoint(folder / "huggingface", shape, **filling)
        make_checkpoint(folder / "sharded", shape, shards=4, placement="shuffled", **filling)
        make_checkpoint(folder / "bf16", shape, experts="bf16", **filling)
        write_original(folder / "openai", shape, **filling)
        to_gguf(folder / "huggingface", folder / "gguf")
        execute(plan_bf16(open_checkpoint(folder / "huggingface"), folder / "named"))

    def path(self, name: str) -> Path:
        return self._folder / name


@pytest.fixture(scope="module", params=[True, False], ids=["edge blocks", "usual blocks"])
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """With extreme scales among them, and without: numbers of usual size take a faster way."""
    return Sources(tmp_path_factory.mktemp("sources"), SHAPE, edge_blocks=request.param)


@pytest.fixture(scope="module")
def expected(sources: Sources) -> Mapping[str, NDArray[np.uint16]]:
    """What transformers makes of the published layout: bits of every tensor."""
    return bits(sources.path("huggingface"))


def bits(folder: Path) -> dict[str, NDArray[np.uint16]]:
    import torch

    state = transformers_model.dequantised_tensors(folder)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    return {name: tensor.contiguous().view(torch.uint16).numpy() for name, tensor in state.items()}


def assert_same(found: Mapping[str, NDArray[np.uint16]], expected: Mapping[str, NDArray[np.uint16]]) -> None:
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        np.testing.assert_array_equal(found[name], numbers, err_msg=name)


# --- BF16


@pytest.mark.parametrize("shard_size", [5_000_000_000, 50_000])
@pytest.mark.parametrize("source", SOURCES)
def test_bf16_folder_is_the_model_that_transformers_decodes(
    source: str, shard_size: int, sources: Sources, expected: Mapping[str, NDArray[np.uint16]], tmp_path: Path
) -> None:
    """With blocks of extreme scales and negative zeros; a tensor that is missing or unexpected is an error."""
    checkpoint = open_checkpoint(sources.path(source))
    execute(plan_bf16(checkpoint, tmp_path / "out", Bf16Options(max_shard_size=shard_size)))
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shard_size == 50_000)
    found = bits(tmp_path / "out")
    assert_same(found, expected)
    assert found.keys() == inventory(checkpoint.config).keys()


def test_bf16_folder_holds_the_file_that_transformers_would_save(
    sources: Sources, expected: Mapping[str, NDArray[np.uint16]], tmp_path: Path
) -> None:
    """Names, dtypes and shapes of the stored tensors are those of `save_pretrained`."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    execute(plan_bf16(open_checkpoint(sources.path("huggingface")), tmp_path / "ours"))
    model = transformers.GptOssForCausalLM.from_pretrained(tmp_path / "ours", dtype="bfloat16")
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name].view(torch.uint16), tensor.view(torch.uint16)), name
    save_file(theirs, tmp_path / "again.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "ours/model.safetensors").read_bytes()


# --- MXFP4


@pytest.mark.parametrize("shard_size", [None, 30_000])
@pytest.mark.parametrize("source", SOURCES)
def test_mxfp4_folder_is_the_same_model_for_transformers(
    source: str,
    shard_size: int | None,
    sources: Sources,
    expected: Mapping[str, NDArray[np.uint16]],
    tmp_path: Path,
) -> None:
    options = Mxfp4Options(max_shard_size=shard_size)
    execute(plan_mxfp4(open_checkpoint(sources.path(source)), tmp_path / "out", options))
    assert_same(bits(tmp_path / "out"), expected)


@pytest.mark.parametrize("source", SOURCES)
def test_openai_folder_has_the_same_tensors_for_their_code(source: str, sources: Sources, tmp_path: Path) -> None:
    import torch

    options = Mxfp4Options(layout="openai", max_shard_size=30_000 if source == "gguf" else None)
    execute(plan_mxfp4(open_checkpoint(sources.path(source)), tmp_path / "out", options))
    found = openai_reference.dequantised_tensors(tmp_path / "out")
    original = openai_reference.dequantised_tensors(sources.path("openai"))
    assert found.keys() == original.keys()
    for name, tensor in original.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint16), tensor.view(torch.uint16)), name


# --- logits


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("calm"), CALM, edge_blocks=False, fill="gauss")


@pytest.fixture(scope="module")
def logprobs(calm: Sources) -> NDArray[np.float64]:
    return transformers_model.next_token_logprobs(calm.path("huggingface"), ids(CALM))


@pytest.mark.parametrize("source", SOURCES)
def test_openai_computes_what_transformers_does(
    source: str, calm: Sources, logprobs: NDArray[np.float64], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(calm.path(source))
    execute(plan_mxfp4(checkpoint, tmp_path / "out", Mxfp4Options(layout="openai")))
    found = openai_reference.next_token_logprobs(tmp_path / "out", ids(CALM))
    assert np.abs(found - logprobs).max() < float32_rounding(CALM)


@pytest.mark.parametrize("target", ["bf16", "mxfp4"])
@pytest.mark.parametrize("source", ["openai", "gguf", "bf16"])
def test_transformers_computes_the_same_from_every_folder(
    source: str, target: Literal["bf16", "mxfp4"], calm: Sources, logprobs: NDArray[np.float64], tmp_path: Path
) -> None:
    """To the last bit."""
    checkpoint = open_checkpoint(calm.path(source))
    plan = plan_bf16 if target == "bf16" else plan_mxfp4
    execute(plan(checkpoint, tmp_path / "out"))
    found = transformers_model.next_token_logprobs(tmp_path / "out", ids(CALM))
    np.testing.assert_array_equal(found, logprobs)
