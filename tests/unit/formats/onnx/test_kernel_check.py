"""Nodes that an execution provider has no kernel for are found, wherever they are, and named."""

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, parser

from gptoss_convert.errors import OptionError, UnsupportedError
from gptoss_convert.formats.onnx.kernel_check import (
    KernelTable,
    Miss,
    check_kernels,
    read_kernel_table,
    require_kernels,
)
from tests.support.kernel_tables import table_of_the_cpu

DIRECTML = read_kernel_table("directml")
CPU = read_kernel_table("cpu")

DECODES_MXFP4 = """
    agraph (uint8[rows, 16] codes, uint8[rows, 1] exponents, float[n, 32] x) => (float[n, rows] y)
    <uint8[1] four = {4}, uint8[1] low = {15}, float[16] values = {
        0., 0.5, 1., 1.5, 2., 3., 4., 6., -0., -0.5, -1., -1.5, -2., -3., -4., -6.}, int64[2] flat = {-1, 32},
     int64[1] last = {-1}, float two = {2.}, float bias = {127.}>
    {
        first = BitwiseAnd(codes, low)
        second = BitShift<direction = "RIGHT">(codes, four)
        a = Unsqueeze(first, last)
        b = Unsqueeze(second, last)
        both = Concat<axis = -1>(a, b)
        index = Cast<to = 6>(both)
        looked_up = Gather(values, index)
        rows_of_values = Reshape(looked_up, flat)
        exponent = Cast<to = 1>(exponents)
        unbiased = Sub(exponent, bias)
        scale = Pow(two, unbiased)
        weights = Mul(rows_of_values, scale)
        y = Gemm<transB = 1>(x, weights)
    }
"""
"""What a DirectML graph is made of."""


def model(graph: str, opset: int, contrib: bool = False) -> onnx.ModelProto:
    domains = f'["" : {opset}, "com.microsoft" : 1]' if contrib else f'["" : {opset}]'
    return parser.parse_model(f"<ir_version: 10, opset_import: {domains}> {graph}")


def only_miss(graph: onnx.ModelProto, table: KernelTable = DIRECTML) -> Miss:
    [miss] = check_kernels(graph, table)
    return miss


@pytest.mark.parametrize("opset", [20, 21, 22])
@pytest.mark.parametrize("table", [DIRECTML, CPU], ids=["directml", "cpu"])
def test_graph_of_operators_that_are_there_passes(table: KernelTable, opset: int) -> None:
    graph = model(DECODES_MXFP4, opset)
    assert check_kernels(graph, table) == ()
    require_kernels(graph, table)
    onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def branches(body: str, opset: int) -> onnx.ModelProto:
    return model(
        f"""agraph (bool chosen, float[n] x) => (float[n] y) {{
            [choice] y = If <
                then_branch = yes () => (float[n] a) {{ {body} }},
                else_branch = no () => (float[n] b) {{ b = Identity(x) }}
            > (chosen)
        }}""",
        opset,
    )


def test_operator_of_a_version_that_came_later_is_missed() -> None:
    later = branches("a = Neg(x)", 21)
    assert only_miss(later) == Miss(
        node="choice", operator="ai.onnx.If-21", needed="version 21", available="version 19 or 16 or 13 or 11 or 7"
    )
    assert check_kernels(branches("a = Neg(x)", 20), DIRECTML) == ()
    assert check_kernels(later, CPU) == ()


def test_nodes_of_branches_are_checked_and_named_with_the_way_to_them() -> None:
    assert check_kernels(branches("[odd] a = Hardmax(x)", 20), DIRECTML) == ()
    miss = only_miss(branches("[odd] a = HardSwish(x)", 20))
    assert (miss.node, miss.available) == ("choice/then_branch/odd", "another operator")


def test_element_type_without_a_kernel_is_missed() -> None:
    graph = model("agraph (float[n] x) => (bfloat16[n] y) { [narrow] y = Cast<to = 16>(x) }", 20)
    miss = only_miss(graph)
    assert (miss.node, miss.operator, miss.needed) == ("narrow", "ai.onnx.Cast-19", "output y of type bfloat16")
    assert "bfloat16" not in miss.available
    assert check_kernels(graph, CPU) == ()


@pytest.mark.parametrize("kind", ["UINT4", "INT4", "FLOAT4E2M1"])
def test_gathering_elements_below_a_byte_is_missed(kind: str) -> None:
    code = TensorProto.DataType.Value(kind)
    nodes = [helper.make_node("Gather", ["codes", "index"], ["row"], name="pick")]
    graph = helper.make_graph(
        nodes,
        "agraph",
        [
            helper.make_tensor_value_info("codes", code, [4, 32]),
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("row", code, [32])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    miss = only_miss(proto)
    assert (miss.node, miss.needed) == ("pick", f"input codes of type {kind.lower()}")


MIXTURE = """
    agraph (float[n, 64] x, float[n, 4] router, uint8[4, 128, 32] w1, float[4, 128] s1, uint8[4, 64, 32] w2,
            float[4, 64] s2) => (float[n, 64] y) {
        [experts] mixed = com.microsoft.QMoE<k = 2>(x, router, w1, s1, , w2, s2)
        y = Neg(mixed)
    }
"""


def test_operator_of_onnxruntime_that_the_provider_has_not_is_missed() -> None:
    miss = only_miss(model(MIXTURE, 21, contrib=True))
    assert (miss.node, miss.operator) == ("experts", "com.microsoft.QMoE-1")


def test_element_types_are_known_behind_operators_of_onnxruntime() -> None:
    assert check_kernels(model(MIXTURE, 21, contrib=True), CPU) == ()
    wrong = model(MIXTURE.replace("uint8[4, 64, 32] w2", "int8[4, 64, 32] w2"), 21, contrib=True)
    assert only_miss(wrong, CPU).needed == "input w2 of type int8"


ATTENTION = """
    agraph (float16[1, n, 256] q, float16[1, n, 128] k, float16[1, n, 128] v, float16[1, 2, p, 64] pk,
            float16[1, 2, p, 64] pv, int32[1] lengths, int32 total, float16[4] sinks) => (float16[1, n, 256] y) {{
        [attention] y = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2, {attributes}>
            (q, k, v, pk, pv, lengths, total{inputs})
    }}
"""


@pytest.mark.parametrize(
    ("attributes", "inputs", "needed"),
    [
        ("local_window_size = -1, softcap = 0.0", "", None),
        ("local_window_size = 128", "", "attribute local_window_size"),
        ("do_rotary = 1", "", "attribute do_rotary"),
        ("do_rotary = 0", ", , , , , sinks", "input sinks"),
    ],
)
def test_kernel_that_does_not_look_at_what_the_node_asks_for_is_missed(
    attributes: str, inputs: str, needed: str | None
) -> None:
    graph = model(ATTENTION.format(attributes=attributes, inputs=inputs), 20, contrib=True)
    assert [miss.needed for miss in check_kernels(graph, DIRECTML)] == ([] if needed is None else [needed])


def test_more_dimensions_than_every_operator_takes_are_missed() -> None:
    graph = model("agraph (float[1, 2, 3, 4, 5] x) => (float[1, 2, 3, 4, 5] y) { [wide] y = Neg(x) }", 20)
    assert only_miss(graph).needed == "input x of 5 dimensions"
    assert check_kernels(graph, CPU) == ()


def test_refusal_names_the_first_node_and_counts_the_others() -> None:
    with pytest.raises(UnsupportedError) as refusal:
        require_kernels(branches("[narrow] c = HardSwish(x)  a = Mish(c)", 21), DIRECTML)
    assert str(refusal.value) == (
        "DmlExecutionProvider of onnxruntime 1.24 does not run node choice/then_branch/narrow, nor 2 others: "
        "found ai.onnx.HardSwish-14 with any inputs, expected another operator"
    )


def test_what_other_providers_have_is_not_known() -> None:
    with pytest.raises(OptionError, match="no table of kernels: found webgpu, expected directml or cpu"):
        read_kernel_table("webgpu")


def test_table_of_the_cpu_is_that_of_the_installed_onnxruntime() -> None:
    assert table_of_the_cpu() == CPU, "write it anew: python -m tests.support.kernel_tables"
