"""The table in docs/onnx.md says what the arithmetic gives; `python -m tests.support.onnx_memory` prints it."""

from dataclasses import replace
from pathlib import Path

import pytest

from gptoss_convert.converters.to_onnx import GRAPHS as TARGETS
from gptoss_convert.converters.to_onnx import build_graph
from gptoss_convert.formats.onnx.graph.options import GraphOptions
from tests.support.onnx_memory import CONFIGS, GRAPHS, MXFP4, memory, table

DOCUMENT = Path(__file__).resolve().parents[4] / "docs/onnx.md"
CUDA = replace(MXFP4, is_standard=False)


def test_document_has_the_table() -> None:
    assert table() in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize(("size", "weights"), [("20b", 13.76e9), ("120b", 65.25e9)])
def test_weights_are_those_of_the_checkpoints(size: str, weights: float) -> None:
    """Sizes of the published checkpoints, of which the graph changes BF16 to float16."""
    found = memory(CONFIGS[size], MXFP4, context=0)
    assert found.weights == pytest.approx(weights, rel=1e-3)
    assert found.cache == found.scores == 0


@pytest.mark.parametrize("target", ["directml", "webgpu", "cuda", "cpu"])
def test_weights_are_those_that_the_graphs_declare(target: str) -> None:
    """One layer of each kind; the default graphs, and whatever else the table has."""
    config = replace(CONFIGS["20b"], num_hidden_layers=2, layer_types=CONFIGS["20b"].layer_types[:2])
    for graph in next(graphs for names, graphs in GRAPHS.items() if target in names.split(", ")):
        options = GraphOptions(
            experts=graph.experts.removesuffix("-block"),
            activations="f32" if graph.others == "f32" else "f16",
            embedding="bf16" if graph.embedding == "bf16" else "f32",
        )
        weights = build_graph(TARGETS[target], config, options).weights.values()
        declared = sum(initialiser.nbytes for weight in weights for initialiser in weight.initialisers)
        assert declared == pytest.approx(memory(config, graph, context=0).weights, rel=1e-3)


def test_cache_takes_two_kilobytes_a_layer_and_token_and_is_written_anew_by_standard_operators() -> None:
    assert memory(CONFIGS["20b"], CUDA, context=1000).cache == 24 * 1000 * 2048
    assert memory(CONFIGS["20b"], MXFP4, context=1000).cache == 2 * 24 * 1000 * 2048


def test_only_graphs_of_standard_operators_decode_experts_and_write_scores() -> None:
    standard, cuda = (memory(CONFIGS["20b"], graph, context=4096) for graph in (MXFP4, CUDA))
    assert (standard.decoded, cuda.decoded) == (4 * 5760 * 2880 * 6, 0)
    assert (standard.scores, cuda.scores) == (64 * 256 * 4096 * 8, 0)
    assert standard.total == standard.weights + standard.scores + standard.cache
    short = memory(CONFIGS["20b"], MXFP4, context=1024)
    assert short.total == short.weights + short.decoded + short.cache
