"""genai_config.json says what a graph and its target need, and nothing that a vocabulary has no place for."""

from dataclasses import replace

import pytest
from onnx import parser

from gptoss_convert.checkpoint import FULL, SLIDING
from gptoss_convert.errors import InputError, OptionError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.genai_config import GraphFacts, SpecialIds, genai_config
from tests.support.conversions import TINY

CONFIG = open_checkpoint(TINY).config
STANDARD = GraphFacts(
    has_position_ids=True, shares_cache=False, windowed_cache=False, rounds_if_prepacked=False, prefill_chunk=256
)
FUSED = GraphFacts(
    has_position_ids=False, shares_cache=True, windowed_cache=True, rounds_if_prepacked=True, prefill_chunk=None
)
SPECIAL = SpecialIds(ends=(3504, 3501), bos=3500, pad=3501)


def test_standard_graph_gets_positions_a_growing_cache_and_chunks() -> None:
    made = genai_config(CONFIG, target="directml", graph=STANDARD, special=SPECIAL)
    decoder = made["model"]["decoder"]
    assert decoder["inputs"]["position_ids"] == "position_ids"
    assert "sliding_window" not in decoder
    assert made["search"]["past_present_share_buffer"] is False
    assert made["search"]["max_length"] == CONFIG.max_position_embeddings
    assert made["search"]["chunk_size"] == 256


def test_fused_graph_gets_a_shared_cache_with_windows() -> None:
    made = genai_config(
        replace(CONFIG, layer_types=(FULL, SLIDING, FULL, SLIDING)), target="cpu", graph=FUSED, special=SPECIAL
    )
    decoder = made["model"]["decoder"]
    assert "position_ids" not in decoder["inputs"]
    assert decoder["sliding_window"]["layers"] == [1, 3]
    assert made["search"]["past_present_share_buffer"] is True
    assert made["search"]["max_length"] == 8192
    assert "chunk_size" not in made["search"]


@pytest.mark.parametrize(
    ("target", "providers", "options"),
    [
        ("cpu", [], {"session.disable_prepacking": "1"}),
        ("cuda", ["cuda"], {}),
        ("directml", ["dml"], {"enable_mem_pattern": False}),
        ("webgpu", ["webgpu"], {}),
    ],
)
def test_sessions_are_set_up_for_the_target(target: str, providers: list[str], options: dict[str, object]) -> None:
    made = genai_config(CONFIG, target=target, graph=FUSED, special=SPECIAL)["model"]["decoder"]["session_options"]
    assert [name for entry in made.pop("provider_options") for name in entry] == providers
    assert made == {"log_id": "onnxruntime-genai", **options}


def test_weights_may_be_packed_where_that_rounds_nothing() -> None:
    facts = replace(FUSED, rounds_if_prepacked=False)
    made = genai_config(CONFIG, target="cpu", graph=facts, special=SPECIAL)
    assert "session.disable_prepacking" not in made["model"]["decoder"]["session_options"]


def test_unknown_target_is_refused() -> None:
    with pytest.raises(OptionError, match="unknown target: found npu, expected one of cpu, cuda, directml, webgpu"):
        genai_config(CONFIG, target="npu", graph=STANDARD, special=SPECIAL)


def facts(body: str, inputs: str = "float[n] x") -> GraphFacts:
    head = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'
    model = parser.parse_model(f"{head} agraph ({inputs}) => (float[n] y) {{ {body} }}")
    return GraphFacts.of_model(model, prefill_chunk=None)


def test_facts_are_seen_in_the_graph() -> None:
    assert facts("y = Neg(x)", "float[n] x, int64[1, n] position_ids") == replace(STANDARD, prefill_chunk=None)
    attention = "a = com.microsoft.GroupQueryAttention<sliding_window_cache = 1>(x)"
    assert facts(f"{attention} y = com.microsoft.QMoE<expert_weight_bits = 8>(a)") == FUSED
    assert not facts("y = com.microsoft.QMoE<expert_weight_bits = 4>(x)").rounds_if_prepacked
    branches = ", ".join(
        f"{name} = {name} () => (float[n] {name}_y) {{ {name}_y = com.microsoft.GroupQueryAttention(x) }}"
        for name in ("then_branch", "else_branch")
    )
    assert facts(f"y = If<{branches}>(chosen)", "float[n] x, bool chosen").shares_cache


def test_special_ids_outside_the_vocabulary_are_left_out() -> None:
    stated = {"eos_token_id": [200002, 3504, True, "x", 3504], "pad_token_id": 199999, "bos_token_id": 3500}
    assert SpecialIds.of_generation_config(stated, 3584) == SpecialIds(ends=(3504,), bos=3500, pad=None)
    assert SpecialIds.of_generation_config({"eos_token_id": 7}, 3584).ends == (7,)


@pytest.mark.parametrize("stated", [{}, {"eos_token_id": [200002]}, {"eos_token_id": None}])
def test_model_without_a_token_that_ends_generation_is_refused(stated: dict[str, object]) -> None:
    with pytest.raises(InputError, match="no token ends what is generated"):
        SpecialIds.of_generation_config(stated, 3584)
