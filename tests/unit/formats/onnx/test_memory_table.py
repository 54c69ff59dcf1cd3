"""The table in docs/onnx.md says what the arithmetic gives; `python -m tests.support.onnx_memory` prints it."""

from pathlib import Path

import pytest

from gptoss_convert.encodings import ENCODINGS
from tests.support.onnx_memory import CONFIGS, memory, table

DOCUMENT = Path(__file__).resolve().parents[4] / "docs/onnx.md"
MXFP4, F16 = ENCODINGS["mxfp4"], ENCODINGS["f16"]


def test_document_has_the_table() -> None:
    assert table() in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize(("size", "weights"), [("20b", 13.76e9), ("120b", 65.25e9)])
def test_weights_are_those_of_the_checkpoints(size: str, weights: float) -> None:
    """Sizes of the published checkpoints, of which the graph changes BF16 to float16."""
    found = memory(CONFIGS[size], experts=MXFP4, others=F16, context=0, decodes=True, windowed_cache=False)
    assert found.weights == pytest.approx(weights, rel=1e-3)
    assert found.cache == 0


def test_cache_takes_two_kilobytes_a_layer_and_token_of_those_it_keeps() -> None:
    config = CONFIGS["20b"]

    def cache(context: int, *, windowed: bool) -> int:
        return memory(
            config, experts=MXFP4, others=F16, context=context, decodes=True, windowed_cache=windowed
        ).cache

    assert cache(1000, windowed=False) == 24 * 1000 * 2048
    assert cache(1000, windowed=True) == 12 * (1000 + 128) * 2048
    assert cache(100, windowed=True) == 24 * 100 * 2048


def test_only_graphs_that_decode_experts_need_room_for_them() -> None:
    graph = {"experts": MXFP4, "others": F16, "context": 0, "windowed_cache": False}
    assert memory(CONFIGS["20b"], decodes=True, **graph).decoded == 4 * 5760 * 2880 * 6
    assert memory(CONFIGS["20b"], decodes=False, **graph).decoded == 0
