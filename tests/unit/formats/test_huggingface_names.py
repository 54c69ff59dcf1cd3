"""What a stored tensor is, by its name."""

import pytest

from gptoss_convert.checkpoint import inventory
from gptoss_convert.formats.huggingface_names import Half, Layout, Part, Piece, recognise
from tests.unit.formats.test_huggingface import GPT_OSS_20B

EXPERTS = "model.layers.7.mlp.experts."
GATE_UP, DOWN = EXPERTS + "gate_up_proj", EXPERTS + "down_proj"


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        (GATE_UP, Piece(GATE_UP, Layout.TRANSPOSED)),
        (DOWN + "_blocks", Piece(DOWN, Layout.BLOCKS)),
        (DOWN + "_scales", Piece(DOWN, Layout.BLOCKS, Part.SCALES)),
        (EXPERTS + "12.down_proj.weight", Piece(DOWN, Layout.PER_EXPERT, expert="12")),
        (EXPERTS + "12.down_proj.weight_scale", Piece(DOWN, Layout.PER_EXPERT, Part.SCALES, "12")),
        (EXPERTS + "12.gate_up_proj.bias", Piece(GATE_UP + "_bias", Layout.PER_EXPERT, expert="12")),
        (
            EXPERTS + "0.up_proj.weight_packed",
            Piece(GATE_UP, Layout.PER_EXPERT, Part.NUMBERS, "0", Half.UP),
        ),
        (
            EXPERTS + "0.gate_proj.bias",
            Piece(GATE_UP + "_bias", Layout.PER_EXPERT, Part.NUMBERS, "0", Half.GATE),
        ),
        (
            EXPERTS + "experts.0.gate_proj.weight_packed",
            Piece(GATE_UP, Layout.PER_EXPERT, Part.NUMBERS, "0", Half.GATE, nested=True),
        ),
        (
            EXPERTS + "0.down_proj.weight_quantizer.scale",
            Piece(DOWN, Layout.PER_EXPERT, Part.SCALES, "0"),
        ),
        (
            "model.layers.7.self_attn.k_proj.output_quantizer.scale",
            Piece("model.layers.7.self_attn.k_proj.output_quantizer.scale", Layout.LEFT_OUT),
        ),
        (EXPERTS + "gate_up_projs.3.weight", Piece(GATE_UP, Layout.PER_EXPERT, expert="3")),
        (EXPERTS + "down_projs.3.bias", Piece(DOWN + "_bias", Layout.PER_EXPERT, expert="3")),
        (EXPERTS + "gate_proj.scales", Piece(GATE_UP, Layout.WHOLE, Part.SCALES, None, Half.GATE)),
        (EXPERTS + "down_proj.bias", Piece(DOWN + "_bias", Layout.WHOLE)),
        ("model.layers.7.mlp.router.linear.bias", Piece("model.layers.7.mlp.router.bias", Layout.WHOLE)),
        ("model.layers.7.mlp.router.linear.weight", Piece("model.layers.7.mlp.router.weight", Layout.WHOLE)),
        (
            "model.layers.7.self_attn.q_proj.weight_scale",
            Piece("model.layers.7.self_attn.q_proj.weight", Layout.WHOLE, Part.SCALES),
        ),
        (
            EXPERTS + "3.down_proj.input_scale",
            Piece(EXPERTS + "3.down_proj.input_scale", Layout.LEFT_OUT),
        ),
        (
            "model.layers.7.self_attn.v_proj.output_scale",
            Piece("model.layers.7.self_attn.v_proj.output_scale", Layout.LEFT_OUT),
        ),
        ("model.layers.7.self_attn.k_scale", Piece("model.layers.7.self_attn.k_scale", Layout.LEFT_OUT)),
        ("anything.else", Piece("anything.else", Layout.WHOLE)),
        ("", Piece("", Layout.WHOLE)),
    ],
)
def test_name_tells_the_canonical_tensor_and_the_layout(name: str, piece: Piece) -> None:
    assert recognise(name) == piece


def test_every_canonical_name_is_that_of_its_own_tensor() -> None:
    for name in inventory(GPT_OSS_20B):
        piece = recognise(name)
        assert (piece.tensor, piece.part, piece.expert, piece.half) == (name, Part.NUMBERS, None, None)
        is_matrix_of_experts = name.endswith(("experts.gate_up_proj", "experts.down_proj"))
        assert piece.layout is (Layout.TRANSPOSED if is_matrix_of_experts else Layout.WHOLE)
