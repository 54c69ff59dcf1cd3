"""PEFT saves adapters and merges them; ours are merged while they are read."""

from pathlib import Path

import numpy as np
import pytest

from gptoss_convert.converters.adapter import with_adapter
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.peft import open_adapter
from tests.peers.peft_adapters import merge_with_peft, save_adapter
from tests.support.checkpoints import write_huggingface
from tests.support.layouts import Shape

ROUNDING = 2.0**-24
"""Largest relative error of one float32 operation."""
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

CASES = {
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "r": 4, "lora_alpha": 12},
    "rank-stabilised": {"target_modules": "all-linear", "r": 3, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "o_proj"],
        "target_parameters": BOTH,
        "r": 2,
        "rank_pattern": {"self_attn.q_proj": 5, r"layers\.1\..*down_proj": 3, "0.mlp.experts.down_proj": 1},
        "alpha_pattern": {r"layers.\d+.self_attn.(k|o)_proj": 3, "model.layers.0.mlp.experts.gate_up_proj": 5},
    },
    "experts": {"target_modules": [], "target_parameters": BOTH, "r": 3, "lora_alpha": 4},
    "experts by full name": {
        "target_modules": [],
        "target_parameters": [f"model.layers.0.{name}" for name in BOTH] + ["model.layers.1.mlp.experts.down_proj"],
    },
    "down alone": {"target_modules": [], "target_parameters": BOTH[1:], "r": 2},
    "all of experts": {
        "target_modules": [],
        "target_parameters": [*BOTH, "mlp.experts.down_proj_bias", "mlp.experts.gate_up_proj_bias"],
        "r": 2,
    },
    "router": {"target_modules": ["v_proj"], "target_parameters": ["mlp.router.weight"], "r": 2,
               "rank_pattern": {"router.weight": 3}},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head"], "r": 4},
    "biases of targets": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "all biases": {"target_modules": ["q_proj"], "bias": "all"},
    "whole modules": {
        "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "router", "norm", "experts"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_huggingface(tmp_path_factory.mktemp("base"), Shape(), fill="gauss", edge_blocks=False)


def require_same(base: Path, adapter: Path, *, experts_lie_as_out_in: bool = False) -> set[str]:
    """Compare every number, and return the names of the tensors that the adapter changed.

    PEFT computes r products and sums, a scaling and its rounding to float32, each with an error of up to
    ROUNDING of the magnitude; we round the change once; and both round the sum with the base once.
    """
    expected = merge_with_peft(base, adapter, experts_lie_as_out_in=experts_lie_as_out_in)
    opened = open_adapter(adapter)
    merged = with_adapter(open_checkpoint(base), opened)
    assert merged.tensors.keys() == expected.values.keys()
    changed = set()
    for name, tensor in merged.tensors.items():
        values = tensor.encoding.decode(tensor.read(0, tensor.rows)).reshape(tensor.shape)
        reference, magnitude = expected.values[name], expected.magnitudes[name]
        if name in opened.pairs:
            operations = opened.pairs[name].rank + 3
            bound = ROUNDING * (operations * magnitude.astype(np.float64) + 2 * np.abs(reference)) * (1 + 2**-10)
            assert (np.abs(values.astype(np.float64) - reference) <= bound).all(), name
        else:
            np.testing.assert_array_equal(values, reference, name)
        before = open_checkpoint(base).tensors[name]
        if not np.array_equal(values, before.encoding.decode(before.read(0, before.rows)).reshape(tensor.shape)):
            changed.add(name)
    assert changed == opened.pairs.keys() | opened.replacements.keys()
    return changed


@pytest.mark.parametrize("case", CASES)
def test_merged_numbers_are_those_of_peft(base: Path, tmp_path: Path, case: str) -> None:
    require_same(base, save_adapter(base, tmp_path / "adapter", **CASES[case]))


def test_every_expert_gets_its_own_change(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", **CASES["experts"])
    assert require_same(base, adapter) == {f"model.layers.{i}.{name}" for i in range(2) for name in BOTH}


@pytest.mark.parametrize("targets", [BOTH, BOTH[:1]])
def test_experts_that_peft_took_as_out_in(base: Path, tmp_path: Path, targets: list[str]) -> None:
    config = {"target_modules": [], "target_parameters": targets, "r": 3}
    adapter = save_adapter(base, tmp_path / "adapter", experts_lie_as_out_in=True, **config)
    require_same(base, adapter, experts_lie_as_out_in=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_adapters(base: Path, tmp_path: Path, dtype: str) -> None:
    config = {"target_modules": ["q_proj"], "target_parameters": BOTH}
    require_same(base, save_adapter(base, tmp_path / "adapter", dtype=dtype, **config))


def test_square_experts_are_taken_as_peft_takes_them(tmp_path: Path) -> None:
    square = write_huggingface(tmp_path / "base", Shape(intermediate=64), fill="gauss", edge_blocks=False)
    require_same(square, save_adapter(square, tmp_path / "adapter", **CASES["down alone"]))


def test_experts_stored_in_bf16(tmp_path: Path) -> None:
    dense = write_huggingface(tmp_path / "base", Shape(), fill="gauss", edge_blocks=False, experts="bf16")
    require_same(dense, save_adapter(dense, tmp_path / "adapter", **CASES["experts"]))
