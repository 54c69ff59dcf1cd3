"""MXFP4 quantisers of others against ours: same scales, same codes up to documented habits, no smaller error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_convert.encodings import ENCODINGS, Chunk
from gptoss_convert.encodings.mxfp4_quantiser import Quantised, ScaleRule, quantise
from tests.peers.quantisers import PEERS
from tests.support.weight_kinds import Bits16, to_bfloat16, trained_experts, weight_kinds

MXFP4, BF16 = ENCODINGS["mxfp4"], ENCODINGS["bf16"]
GOLDEN = Path(__file__).resolve().parents[1] / "data/golden/mxfp4-quantisers.npz"

RULE_OF = {
    "torchao FLOOR": ScaleRule.FLOOR,
    "torchao RCEIL": ScaleRule.RCEIL,
    "torchao CEIL": ScaleRule.CEIL,
    "torchao EVEN": ScaleRule.EVEN,
    "compressed-tensors": ScaleRule.EVEN,
    "gguf-py": ScaleRule.FLOOR,
    "MLX": ScaleRule.RCEIL,
}
TORCHAO = [name for name in RULE_OF if name.startswith("torchao")]
TIES_TOWARDS_ZERO = {"gguf-py", "MLX", "ModelOpt"}
ZEROS_WITHOUT_SIGN = {"gguf-py", "MLX"}
"""Of whatever is rounded to zero; compressed-tensors drops the sign of numbers that are zero already."""

KINDS = weight_kinds(128, 1440)


def load_golden() -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def numbers() -> Bits16:
    """Random rows of very different sizes, and rows of codes, of ties and of numbers at which rules change."""
    rng = np.random.default_rng(3)
    random = rng.standard_normal((200, 320)) * np.exp2(rng.integers(-20, 20, (200, 1)))
    edges = [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 6.03125, 6.96875, 7, 7.96875]
    coarse = rng.choice(edges, (200, 320)) * rng.choice([-1, 1], (200, 320))
    small = coarse * np.exp2(rng.integers(-9, 1, coarse.shape))
    values = np.concatenate([random, coarse, small])
    values[:, ::32] = np.where(values[:, ::32] == 0, 4, values[:, ::32])
    return to_bfloat16(values)


def nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)


def with_habits(ours: Quantised, bits: Bits16, peer: str) -> NDArray[np.uint8]:
    """Our codes, one to a byte, as `peer` would have them."""
    codes = nibbles(ours.codes)
    values = BF16.decode((bits,))
    units = np.abs(np.ldexp(values, 127 - np.repeat(ours.scales, 32, axis=1).astype(np.int32)))
    if peer in TIES_TOWARDS_ZERO:
        codes -= np.isin(units, [0.75, 1.75, 3.5])
    if peer in ZEROS_WITHOUT_SIGN:
        codes[codes == 8] = 0
    if peer == "compressed-tensors":
        codes[values == 0] = 0
    if peer == "ModelOpt":
        codes[values == 0] = 8
    return codes


@pytest.mark.parametrize("peer", RULE_OF)
def test_peers_choose_the_same_scales_and_codes(peer: str) -> None:
    bits = numbers()
    codes, scales = PEERS[peer](bits)
    ours = quantise(bits, RULE_OF[peer])
    np.testing.assert_array_equal(scales, ours.scales)
    np.testing.assert_array_equal(nibbles(codes), with_habits(ours, bits, peer))


def test_all_peers_are_compared() -> None:
    assert RULE_OF.keys() == PEERS.keys()


@pytest.mark.parametrize("peer", TORCHAO)
@pytest.mark.parametrize("exponent", [-124, -100, 100, 124])
def test_torchao_does_the_same_far_from_one(peer: str, exponent: int) -> None:
    values = np.random.default_rng(0).uniform(-2, 2, (50, 96))
    values[:, ::32] = 3
    bits = to_bfloat16(np.ldexp(values, exponent))
    codes, scales = PEERS[peer](bits)
    ours = quantise(bits, RULE_OF[peer])
    np.testing.assert_array_equal(scales, ours.scales)
    np.testing.assert_array_equal(codes, ours.codes)


@pytest.mark.parametrize(
    ("peer", "scale"), [*((name, 0) for name in TORCHAO), ("gguf-py", 0), ("MLX", 127)], ids=str
)
def test_scale_of_a_block_of_zeros(peer: str, scale: int) -> None:
    """Ours is 0."""
    assert PEERS[peer](np.zeros((1, 32), np.uint16))[1].item() == scale
    assert quantise(np.zeros((1, 32), np.uint16)).scales.item() == 0


# --- quantisers that are kept as golden files


def test_modelopt_rounds_scales_up_and_ties_towards_zero() -> None:
    golden = load_golden()
    ours = quantise(golden["values"], ScaleRule.RCEIL)
    np.testing.assert_array_equal(golden["modelopt_scales"], ours.scales)
    np.testing.assert_array_equal(
        nibbles(golden["modelopt_codes"]), with_habits(ours, golden["values"], "ModelOpt")
    )


def test_quark_chooses_even_scales() -> None:
    golden = load_golden()
    np.testing.assert_array_equal(golden["quark_scales"], quantise(golden["values"], ScaleRule.EVEN).scales)


@pytest.mark.parametrize(
    ("kind", "rule"), [("auto_round", ScaleRule.FLOOR), ("auto_round_searched", ScaleRule.MSE)]
)
def test_auto_round_chooses_floor_scales_or_those_of_the_smallest_error(kind: str, rule: ScaleRule) -> None:
    """Its search has the next smaller scale too, and finds nothing better there; zeros have scale byte 126."""
    golden = load_golden()
    ours = quantise(golden["values"], rule)
    zero = ~nibbles(ours.codes & 0x77).reshape(*ours.scales.shape, 32).any(axis=-1)
    assert zero.sum() == 1
    np.testing.assert_array_equal(golden[f"{kind}_scales"], np.where(zero, 126, ours.scales))
    np.testing.assert_array_equal(golden[f"{kind}_values"], MXFP4.decode((ours.codes, ours.scales)))


# --- how much is lost


def squared_error(bits: Bits16, chunk: Chunk) -> float:
    return float(np.square(MXFP4.decode(chunk).astype(np.float64) - BF16.decode((bits,))).sum())


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_peer_has_a_smaller_error(kind: str, peer: str) -> None:
    for bits in KINDS[kind]:
        assert quantise(bits).figures.squared_error <= squared_error(bits, PEERS[peer](bits))


@pytest.mark.parametrize("peer", [name for name in RULE_OF if name != "torchao CEIL"])
def test_peers_too_return_the_values_of_trained_experts(peer: str) -> None:
    codes, scales = trained_experts()[0]
    values = MXFP4.decode((codes, scales))
    (bits,) = BF16.encode(values)
    np.testing.assert_array_equal(MXFP4.decode(PEERS[peer](bits)), values)
    ours = quantise(bits, RULE_OF[peer], scales)
    np.testing.assert_array_equal(ours.codes, codes)
    np.testing.assert_array_equal(ours.scales, scales)
