"""Rotary tables are those of transformers: frequencies to the last bit, so that far positions give its logits."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

from gptoss_convert.checkpoint import YarnRope
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.graph.options import GraphOptions
from gptoss_convert.formats.onnx.graph.rope import inverse_frequencies, rotation_tables
from gptoss_convert.formats.onnx.graph.standard import build_standard_graph
from tests.peers import transformers_model
from tests.support.conversions import TINY
from tests.support.onnx_models import Model, write_model

PUBLISHED = YarnRope(
    theta=150_000, factor=32, beta_fast=32, beta_slow=1, original_context_length=4096, truncate=False
)
ROPES = {
    "published": PUBLISHED,
    "truncated": replace(PUBLISHED, truncate=True),
    "unscaled": replace(PUBLISHED, factor=1.0, theta=10_000),
    "of another base": replace(PUBLISHED, factor=8.0, theta=1e6, original_context_length=8192),
    "of a base that is no power": replace(PUBLISHED, theta=1234.5, beta_fast=16),
}
CONTEXT = 131072
ULP = 2.0**-23
"""Of numbers from 1 to 2, among them the largest in the tables."""


def embedding(rope: YarnRope, head_dim: int) -> GptOssRotaryEmbedding:
    parameters = {
        "rope_type": "yarn",
        "rope_theta": rope.theta,
        "factor": rope.factor,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "truncate": rope.truncate,
        "original_max_position_embeddings": rope.original_context_length,
    }
    return GptOssRotaryEmbedding(GptOssConfig(head_dim=head_dim, rope_parameters=parameters))


@pytest.mark.parametrize("head_dim", [16, 64, 128, 256])
@pytest.mark.parametrize("name", ROPES)
def test_frequencies_are_those_of_transformers(name: str, head_dim: int) -> None:
    found = inverse_frequencies(ROPES[name], head_dim)
    np.testing.assert_array_equal(found, embedding(ROPES[name], head_dim).inv_freq.numpy())


POWERS = """
import numpy as np, torch
from gptoss_convert.formats.onnx.graph.vector_power import vector_power

bases = np.exp(np.random.default_rng(0).uniform(np.log(1.01), np.log(1e8), 500)).tolist()
for pairs in (16, 48, 64):
    exponents = torch.arange(pairs, dtype=torch.float32) / pairs
    for base in bases:
        assert (vector_power(base, exponents.numpy()) == (base**exponents).numpy()).all(), (base, pairs)
print("equal")
"""


def test_powers_are_those_of_torch_for_any_base() -> None:
    """With AVX2, of which every size here is a multiple."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", POWERS],
        env=os.environ | {"ATEN_CPU_CAPABILITY": "avx2"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "equal\n", done.stderr


def test_tables_are_those_of_transformers_to_one_unit_of_the_last_place() -> None:
    config = open_checkpoint(TINY).config
    peer = embedding(config.rope, config.head_dim)
    with torch.inference_mode():
        expected = peer(torch.zeros(1), torch.arange(CONTEXT)[None])
    for found, table in zip(rotation_tables(config), expected, strict=True):
        [wanted] = table.numpy()
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=ULP)
        assert (found == wanted).mean() > 0.9


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with windows as long as its context, so that a few tokens anywhere see each other."""
    folder = shutil.copytree(TINY, tmp_path_factory.mktemp("wide") / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": CONTEXT}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def far_logits(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[int], int], np.ndarray]:
    """Logits [tokens, vocab] of the graph for tokens at positions from a first one on."""
    checkpoint = open_checkpoint(wide)
    graph = build_standard_graph(checkpoint.config, GraphOptions(activations="f32"))
    model = Model(write_model(graph, checkpoint, tmp_path_factory.mktemp("graph")))

    def logits(ids: list[int], first: int) -> np.ndarray:
        state, found = model.start(), []
        for index, token in enumerate(ids):
            # One by one, for keys are at the places of the mask: none is behind a query that is so far on.
            step, state = model.step(np.array([[token]]), state, places=np.array([[first + index]]))
            found.append(step[0])
        return np.concatenate(found)

    return logits


@pytest.mark.parametrize("first", [0, 10_000, 65_000, CONTEXT - 64])
def test_logits_of_far_positions_are_those_of_transformers(
    first: int, wide: Path, far_logits: Callable[[list[int], int], np.ndarray]
) -> None:
    ids = np.load(Path(__file__).parents[1] / "data" / "heldout_ids.npy").ravel()[:48].tolist()
    places = torch.arange(first, first + len(ids))[None]
    with torch.inference_mode():
        expected = transformers_model.load(wide, "float32")(
            input_ids=torch.tensor([ids]), position_ids=places, use_cache=False
        )
    found = far_logits(ids, first)
    np.testing.assert_allclose(found, expected.logits[0].double().numpy(), rtol=0, atol=1e-4)
