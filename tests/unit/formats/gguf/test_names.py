"""Tensor names of llama.cpp."""

import gguf
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptoss_convert.formats.gguf.names import canonical_name, gguf_names
from tests.support.layouts import Shape, huggingface_tensors

LAYERS = 12
CANONICAL = [tensor.name for tensor in huggingface_tensors(Shape(layers=LAYERS), experts="bf16")]
GGUF = [name for canonical in CANONICAL for name in gguf_names(canonical)]


def test_every_tensor_has_names_of_its_own() -> None:
    assert len(set(GGUF)) == len(GGUF) == 19 * LAYERS + 3


def test_names_lead_back() -> None:
    for canonical in CANONICAL:
        assert {canonical_name(name) for name in gguf_names(canonical)} == {canonical}


def test_names_are_those_of_gguf_py() -> None:
    known = {
        gguf.TENSOR_NAMES[kind].format(bid=layer)
        for kind in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.GPT_OSS]
        for layer in range(LAYERS)
    }
    assert {name.removesuffix(".weight").removesuffix(".bias") for name in GGUF} == known


def test_gate_takes_the_even_and_up_the_odd_rows() -> None:
    names = gguf_names("model.layers.3.mlp.experts.gate_up_proj")
    assert names == ("blk.3.ffn_gate_exps.weight", "blk.3.ffn_up_exps.weight")
    biases = gguf_names("model.layers.3.mlp.experts.gate_up_proj_bias")
    assert biases == ("blk.3.ffn_gate_exps.bias", "blk.3.ffn_up_exps.bias")


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens", "model.layers.0.mlp.experts.gate_up_proj_blocks", "model.layers.x.self_attn.sinks", ""],
)
def test_other_names_are_no_canonical_ones(name: str) -> None:
    with pytest.raises(KeyError):
        gguf_names(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "token_embd",
        "token_embd.bias",
        "blk.0.attn_q",
        "blk.0.attn_sinks.bias",
        "blk.0.ffn_norm.weight",
        "blk.-1.attn_q.weight",
        "blk..attn_q.weight",
        "blk.0.attn_q.weight\n",
        " blk.0.attn_q.weight",
        "blk.100000.attn_q.weight",
    ],
)
def test_other_names_are_none_of_gpt_oss(name: str) -> None:
    assert canonical_name(name) is None


@example("00")
@example("٣")
@given(st.from_regex(r"\d{1,4}", fullmatch=True))
def test_no_second_name_leads_to_a_tensor(layer: str) -> None:
    name = f"blk.{layer}.attn_q.weight"
    canonical = canonical_name(name)
    assert canonical is None or name in gguf_names(canonical)
