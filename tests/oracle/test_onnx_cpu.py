"""Graphs for the processor compute what transformers does, by onnxruntime and onnxruntime-genai."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxruntime_genai
import pytest
import torch
from numpy.typing import NDArray

from gptoss_convert.checkpoint import SLIDING, ModelConfig
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_onnx import OnnxOptions, plan_onnx
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.graph.cpu import build_cpu_graph
from gptoss_convert.formats.onnx.graph.options import GraphOptions
from tests.peers import transformers_model
from tests.support.checkpoints import write_huggingface
from tests.support.conversions import TINY
from tests.support.layouts import Shape
from tests.support.onnx_folders import write_genai_config, write_onnx

Floats = NDArray[np.float32]
Cache = dict[str, Floats]

EXACT = 1e-4
"""Largest distance of logits; float32 sums in another order make about 2e-5, among logits of about 16."""
UNPACKED = {"session.disable_prepacking": "1"}
LENGTH = 200
"""Of prompts, longer than the attention window."""
RANDOM = Shape(layers=3, hidden=96, intermediate=160, experts=8, heads=6, kv_heads=2, vocab=640, sliding_window=24)


class Model:
    """A checkpoint, its graph in onnxruntime, and what transformers makes of it."""

    def __init__(
        self,
        checkpoint: Path,
        folder: Path,
        experts: str = "int8",
        *,
        embedding: str = "f32",
        windowed_cache: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.config: ModelConfig = open_checkpoint(checkpoint).config
        options = GraphOptions(
            experts=experts, activations="f32", embedding=embedding, windowed_cache=windowed_cache
        )
        self.windowed_cache = windowed_cache
        self.session_options = UNPACKED if experts == "int8" else {}
        self.folder = write_onnx(checkpoint, build_cpu_graph(self.config, options), folder)
        self.session = self.load(self.session_options)

    def load(self, entries: Mapping[str, str], folder: Path | None = None) -> Any:
        options = onnxruntime.SessionOptions()
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        return onnxruntime.InferenceSession(
            (folder or self.folder) / "model.onnx", options, providers=["CPUExecutionProvider"]
        )

    def empty_cache(self, batch: int = 1) -> Cache:
        return {
            f"past_key_values.{layer}.{part}": np.zeros(
                (batch, self.config.num_key_value_heads, self.capacity(layer), self.config.head_dim), np.float32
            )
            for layer in range(self.config.num_hidden_layers)
            for part in ("key", "value")
        }

    def capacity(self, layer: int) -> int:
        """Positions that the cache of a layer has room for at first."""
        windowed = self.windowed_cache and self.config.layer_types[layer] == SLIDING
        return self.config.sliding_window if windowed else 0

    def run(self, ids: Any, mask: Any, cache: Cache, session: Any = None) -> tuple[Floats, Cache]:
        """Logits [batch, positions, vocabulary], and the cache after them."""
        session = session or self.session
        names = [node.name for node in session.get_outputs()]
        feeds = {"input_ids": np.asarray(ids, np.int64), "attention_mask": np.asarray(mask, np.int64)}
        found = dict(zip(names, session.run(None, feeds | cache), strict=True))
        return found.pop("logits"), {name.replace("present", "past_key_values"): found[name] for name in found}

    def run_in_pieces(self, ids: Floats, *lengths: int) -> Floats:
        """Logits [positions, vocabulary] of a sequence that is fed piece by piece."""
        cache, done, found = self.empty_cache(), 0, []
        for length in lengths:
            piece, done = ids[None, done : done + length], done + length
            logits, cache = self.run(piece, np.ones((1, done)), cache)
            found.append(logits[0])
        return np.concatenate(found)

    def expected(self, ids: Any) -> Floats:
        """Logits [positions, vocabulary] by transformers in float32."""
        with torch.inference_mode():
            found = reference(self.checkpoint)(input_ids=torch.tensor(np.asarray(ids)[None]))
        logits: Floats = found.logits[0].numpy()
        return logits


@cache
def reference(checkpoint: Path) -> Any:
    return transformers_model.load(checkpoint, "float32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(TINY, tmp_path_factory.mktemp("trained"), embedding="bf16")


@pytest.fixture(scope="module", params=["trained", "random", "one block"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The built-in model, one of a narrow window that is wider inside than outside, and one of rows of a block."""
    if request.param == "trained":
        return request.getfixturevalue("trained")  # type: ignore[no-any-return]
    shape = RANDOM if request.param == "random" else Shape(hidden=32, intermediate=32, heads=2, head_dim=16)
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    write_huggingface(folder / "model", shape, fill="gauss", edge_blocks=False)
    return Model(folder / "model", folder / "onnx")


def prompt(model: Model, seed: int = 0, length: int = LENGTH) -> Any:
    if model.checkpoint == TINY:
        heldout = np.load(Path(__file__).parents[1] / "data" / "heldout_ids.npy").ravel()
        return heldout[500 * seed : 500 * seed + length].astype(np.int64)
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, length)


def assert_exact(found: Floats, expected: Floats) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


def test_whole_prompt_is_computed_as_by_transformers(model: Model) -> None:
    ids = prompt(model)
    assert_exact(model.run_in_pieces(ids, LENGTH), model.expected(ids))


def test_prompt_in_chunks_and_tokens_one_by_one_are_computed_as_by_transformers(model: Model) -> None:
    ids = prompt(model)
    assert_exact(model.run_in_pieces(ids, 100, 64, *[1] * 30, 6), model.expected(ids))


def test_sequences_of_a_batch_are_padded_at_their_ends(model: Model) -> None:
    long, short = prompt(model), prompt(model, seed=1)[:-60]
    first, steps = 180, 20
    ids, mask = np.zeros((2, first), np.int64), np.zeros((2, first), np.int64)
    for row, sequence in enumerate((long, short)):
        length = len(sequence) - steps
        ids[row, :length], mask[row, :length] = sequence[:length], 1
    logits, cache = model.run(ids, mask, model.empty_cache(2))
    found = [[logits[row, : mask[row].sum()]] for row in range(2)]
    for step in range(steps):
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        following = [[sequence[len(sequence) - steps + step]] for sequence in (long, short)]
        logits, cache = model.run(following, mask, cache)
        for row in range(2):
            found[row].append(logits[row])
    for sequence, rows in zip((long, short), found, strict=True):
        assert_exact(np.concatenate(rows), model.expected(sequence))


def test_cache_of_the_window_is_moved_on(tmp_path: Path) -> None:
    model = Model(TINY, tmp_path, windowed_cache=True)
    ids = prompt(model)
    expected = model.expected(ids)
    assert_exact(model.run_in_pieces(ids, LENGTH), expected)
    assert_exact(model.run_in_pieces(ids, 100, 64, *[1] * 30, 6), expected)
    _, cache = model.run(ids[None], np.ones((1, LENGTH)), model.empty_cache())
    assert [cache[f"past_key_values.{layer}.key"].shape[2] for layer in range(4)] == [128, 200, 128, 200]


def test_converted_folder_is_computed_as_by_transformers(trained: Model, tmp_path: Path) -> None:
    execute(plan_onnx(open_checkpoint(TINY), tmp_path / "onnx", OnnxOptions(target="cpu")))
    ids = prompt(trained)
    session = trained.load(UNPACKED, tmp_path / "onnx")
    logits, _ = trained.run(ids[None], np.ones((1, LENGTH)), trained.empty_cache(), session)
    assert_exact(logits[0], trained.expected(ids))


def test_embedding_keeps_its_bytes_and_is_never_widened_as_a_whole(trained: Model) -> None:
    """Bytes of the vocabulary in bfloat16, and the type of the rows that are picked in the graph as it runs."""
    weights = open_checkpoint(TINY).tensors["model.embed_tokens.weight"]
    optimised = trained.folder / "optimised.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimised.data")
    onnxruntime.InferenceSession(trained.folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    graph = onnx.load(optimised, load_external_data=False).graph
    [gather] = [node for node in graph.node if "model.embed_tokens.weight" in node.input]
    [cast] = [node for node in graph.node if gather.output[0] in node.input]
    assert (gather.op_type, cast.op_type) == ("Gather", "Cast")
    [stored] = [item for item in graph.initializer if item.name == "model.embed_tokens.weight"]
    assert (stored.data_type, list(stored.dims)) == (onnx.TensorProto.BFLOAT16, list(weights.shape))


def test_packed_weights_are_another_model(trained: Model) -> None:
    """Should this ever fail, onnxruntime has become exact, and weights may be packed."""
    ids = prompt(trained)
    logits, _ = trained.run(ids[None], np.ones((1, LENGTH)), trained.empty_cache(), trained.load({}))
    assert np.abs(logits[0] - trained.expected(ids)).max() > 100 * EXACT


def test_small_experts_lose_what_four_bits_lose(tmp_path: Path) -> None:
    model = Model(TINY, tmp_path, "int4")
    ids = prompt(model)
    expected = torch.log_softmax(torch.tensor(model.expected(ids)).double(), dim=-1)
    found = torch.log_softmax(torch.tensor(model.run_in_pieces(ids, LENGTH)).double(), dim=-1)
    divergence = (expected.exp() * (expected - found)).sum(-1).mean().item()
    assert 1e-3 < divergence < 2e-2


@pytest.mark.parametrize("windowed_cache", [False, True])
def test_onnxruntime_genai_computes_the_same(trained: Model, windowed_cache: bool, tmp_path: Path) -> None:
    model = Model(TINY, tmp_path, windowed_cache=True) if windowed_cache else trained
    write_genai_config(model.folder, model.config, session_options=model.session_options, windowed=windowed_cache)
    loaded = onnxruntime_genai.Model(str(model.folder))
    parameters = onnxruntime_genai.GeneratorParams(loaded)
    parameters.set_search_options(max_length=LENGTH + 1)
    generator = onnxruntime_genai.Generator(loaded, parameters)
    ids, found = prompt(model), []
    for start, stop in [(0, 150), *((index, index + 1) for index in range(150, LENGTH))]:
        generator.append_tokens(ids[start:stop].astype(np.int32))
        found.append(np.array(generator.get_output("logits"))[0])
    assert_exact(np.concatenate(found), model.expected(ids))


LOADS = """
import onnxruntime, sys
from gptoss_convert.verify.runners.memory import PeakMeter

options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.disable_prepacking", sys.argv[2])
with PeakMeter() as meter:
    before = meter.peak().private
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    print(meter.peak().private - before)
"""


def test_weights_are_mapped_and_not_copied(tmp_path: Path) -> None:
    shape = Shape(layers=1, hidden=512, intermediate=512, experts=48)
    checkpoint = write_huggingface(tmp_path / "model", shape, edge_blocks=False)
    config = replace(open_checkpoint(checkpoint).config, max_position_embeddings=256)
    options = GraphOptions(experts="int8", activations="f32")
    folder = write_onnx(checkpoint, build_cpu_graph(config, options), tmp_path / "onnx")
    weights = (folder / "model.onnx.data").stat().st_size
    assert weights > 40e6

    def taken(disable_prepacking: str) -> int:
        command = [sys.executable, "-P", "-c", LOADS, folder / "model.onnx", disable_prepacking]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)

    assert taken("1") < weights / 4
    assert taken("0") > weights / 2
