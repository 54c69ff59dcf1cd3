"""OpenAI's implementation reads its layout as we do, and computes from it what transformers does from the other.

So the two layouts that the tests write are one model, and either implementation can judge what we write.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.recoding import PLAIN
from gptoss_convert.converters.weight_folder import Carried, plan_weight_folder
from gptoss_convert.formats import open_checkpoint, openai
from gptoss_convert.formats.openai_writer import lay_out_folder
from tests.peers import openai_reference, transformers_model
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.layouts import original_tensors

POSITIONS = 300
"""More than twice the sliding window."""
ALL_EXPERTS = Shape(layers=4, experts=4, experts_per_token=4)
TWO_EXPERTS = Shape(layers=4, experts=4, experts_per_token=2)
WIDE = Shape(layers=4, hidden=320, intermediate=416, heads=8, kv_heads=2, head_dim=64, experts_per_token=2)


def ids(shape: Shape) -> list[int]:
    drawn: list[int] = np.random.default_rng(0).integers(0, shape.vocab, POSITIONS).tolist()
    return drawn


def float32_rounding(shape: Shape) -> float:
    """How far two sound float32 implementations may be apart, in a model whose activations have unit size.

    A sum of K products that are rounded one by one is off by about sqrt(K) unit roundoffs of its size (Higham and
    Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019); the errors of the sums that follow each
    other on the way through the model add up at worst.
    """
    attention = [shape.hidden, shape.head_dim, POSITIONS, shape.heads * shape.head_dim]
    experts = [shape.hidden, shape.hidden, shape.intermediate, shape.experts_per_token]
    lengths = [*(attention + experts) * shape.layers, shape.hidden]
    return float(np.finfo(np.float32).eps) / 2 * sum(map(math.sqrt, lengths))


class Model:
    """A random model in both layouts, and what transformers computes from it."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.shape = shape
        self.original = write_original(folder / "original", shape, edge_blocks=False, fill="gauss")
        self.huggingface = write_huggingface(folder / "huggingface", shape, edge_blocks=False, fill="gauss")
        self.expected = transformers_model.next_token_logprobs(self.huggingface, ids(shape))

    def distance(self, original: Path) -> NDArray[np.float64]:
        """[positions]: the largest difference of a log-probability that OpenAI's code computes from `original`."""
        found = openai_reference.next_token_logprobs(original, ids(self.shape))
        return np.asarray(np.abs(found - self.expected).max(axis=1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"), ALL_EXPERTS)


def test_both_implementations_compute_the_same(model: Model) -> None:
    assert model.distance(model.original).max() < float32_rounding(ALL_EXPERTS)


@pytest.mark.parametrize("shape", [TWO_EXPERTS, WIDE], ids=["two of four experts", "longer sums"])
def test_both_implementations_compute_the_same_for_routed_experts(shape: Shape, tmp_path: Path) -> None:
    model = Model(tmp_path, shape)
    assert model.distance(model.original).max() < float32_rounding(shape)


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"sliding_window": 129}, 128),
        ({"rope_scaling_factor": 33.0}, 0),
        ({"rope_ntk_alpha": 1.01}, 1),
        ({"rope_ntk_beta": 32.1}, 1),
        ({"initial_context_length": 4097}, 1),
        ({"rope_theta": 150_010}, 1),
        ({"swiglu_limit": 1.0}, 0),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_comparison_finds_a_wrong_configuration(
    change: dict[str, Any], first: int, model: Model, tmp_path: Path
) -> None:
    """From position `first` on, and not before it, the configuration matters."""
    wrong = write_original(
        tmp_path / "wrong", model.shape, edge_blocks=False, fill="gauss", config_overrides=change
    )
    distance = model.distance(wrong)
    assert distance[:first].max(initial=0) < float32_rounding(model.shape)
    assert distance[first:].max() > 3 * float32_rounding(model.shape)


def exchange(first: str, second: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """Exchange all tensors whose names begin so."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(first)]:
            other = second + name.removeprefix(first)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return change


def add_last_bit(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """Change the last bit of the first number of a tensor."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].reshape(-1)[:1].view(torch.uint8)[0] ^= 1

    return change


def negate_first(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """Change the sign of the first number of a tensor."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].reshape(-1)[0].neg_()

    return change


def without_sinks(tensors: dict[str, torch.Tensor]) -> None:
    tensors["block.1.attn.sinks"].fill_(-torch.inf)


def with_halves_for_pairs(tensors: dict[str, torch.Tensor]) -> None:
    """Gate and up one after the other instead of in turn."""
    for part in ("blocks", "scales"):
        name = f"block.2.mlp.mlp1_weight.{part}"
        tensors[name] = torch.cat([tensors[name][:, 0::2], tensors[name][:, 1::2]], dim=1)


def with_key_before_query(tensors: dict[str, torch.Tensor]) -> None:
    query = ALL_EXPERTS.heads * ALL_EXPERTS.head_dim
    key = ALL_EXPERTS.kv_heads * ALL_EXPERTS.head_dim
    name = "block.0.attn.qkv.weight"
    q, k, v = tensors[name].split([query, key, key])
    tensors[name] = torch.cat([k, q, v])


@pytest.mark.parametrize(
    "change",
    [
        exchange("block.1.", "block.3."),
        exchange("block.0.attn.norm.", "block.0.mlp.norm."),
        without_sinks,
        with_halves_for_pairs,
        with_key_before_query,
        add_last_bit("block.0.attn.sinks"),
        add_last_bit("block.0.mlp.mlp1_weight.blocks"),
        add_last_bit("block.3.mlp.mlp2_weight.scales"),
        negate_first("block.0.mlp.mlp2_bias"),
    ],
    ids=["layers", "norms", "sinks", "gate and up", "qkv", "bit of a sink", "code", "scale", "sign of a bias"],
)
def test_comparison_finds_a_wrong_tensor(
    change: Callable[[dict[str, torch.Tensor]], None], model: Model, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(model.original, wrong)
    tensors = safetensors.torch.load_file(wrong / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, wrong / "model.safetensors"
    )
    assert model.distance(wrong).max() > 3 * float32_rounding(model.shape)


def test_bfloat16_is_rounded_and_the_same_model(model: Model) -> None:
    """As they run it: half a BF16 unit, 2**-9, per rounding takes the place of half a float32 unit, 2**-24."""
    found = openai_reference.next_token_logprobs(model.original, ids(model.shape), dtype="bfloat16")
    distance = np.abs(found - model.expected).max()
    assert float32_rounding(model.shape) < distance < float32_rounding(model.shape) * 2**15


# --- what we write


def write(checkpoint: Path, output: Path, max_shard_size: int | None) -> Path:
    source = open_checkpoint(checkpoint)
    weights = lay_out_folder(source.config, output, max_shard_size=max_shard_size, source=checkpoint)
    plan = plan_weight_folder(
        source,
        output,
        weights,
        format_name="openai",
        recoding=lambda source, target: PLAIN,
        carried=Carried({}, {}, {}, ()),
        texts={},
        notes=(),
        allow_lossy_source=False,
    )
    execute(plan)
    return output


@pytest.mark.parametrize("max_shard_size", [None, 100_000])
def test_they_compute_the_same_from_what_we_write(max_shard_size: int | None, model: Model, tmp_path: Path) -> None:
    """From the Hugging Face layout, and to the last bit."""
    output = write(model.huggingface, tmp_path / "written", max_shard_size)
    assert (len(list(output.glob("*.safetensors"))) > 1) == (max_shard_size is not None)
    ours = openai_reference.next_token_logprobs(output, ids(model.shape))
    assert np.array_equal(ours, openai_reference.next_token_logprobs(model.original, ids(model.shape)))


# --- every tensor


def float32_bits(tensor: Tensor) -> NDArray[np.uint32]:
    values = tensor.encoding.decode(tensor.read(0, tensor.rows))
    return values.reshape(tensor.shape).view(np.uint32)


@pytest.mark.parametrize("shards", [1, 3])
def test_their_tensors_are_ours_bit_by_bit(shards: int, tmp_path: Path) -> None:
    """With MXFP4 blocks of extreme scales, and negative zeros."""
    shape = Shape(layers=2, experts=3, experts_per_token=2)
    write_original(tmp_path, shape, edge_blocks=True, shards=shards)
    ours = openai.read(tmp_path)
    ours.require_sound()
    theirs = openai_reference.dequantised_tensors(tmp_path)
    compared: set[str] = set()
    for stored, parts in original_tensors(shape):
        names = [part.name.removesuffix("_blocks") for part in parts]
        if stored.kind != "scales":
            found = theirs[stored.name.removesuffix(".blocks")].float().numpy().view(np.uint32)
            expected = np.concatenate([float32_bits(ours.tensors[name]) for name in names])
            np.testing.assert_array_equal(found, expected, err_msg=stored.name)
            compared.update(names)
    assert compared == set(ours.tensors)
    assert len(theirs) == len(original_tensors(shape)) - 2 * shape.layers  # two of them have scales
