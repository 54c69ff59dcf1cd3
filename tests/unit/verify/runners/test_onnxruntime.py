"""Graphs are fed what they ask for, chunk by chunk, and those that ask for something else are refused.

The graph of these tests is no model: its logits are facts about what it was fed.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.verify.runners.onnxruntime import MOST_POSITIONS, RUNNER
from gptoss_convert.verify.runners.protocol import KnowsItsProvider, Scores, Settings

CACHE = (1, 1, "past", 1)
IDS = [5, 3, 8, 1]
# Of a chunk: sum of all positions in the cache, token, length of the attention mask, 0.
EXPECTED = [[0, 5, 1, 0], [1, 3, 2, 0], [3, 8, 3, 0], [6, 1, 4, 0]]


def write_folder(folder: Path, *, cache_type: int = TensorProto.FLOAT16, extra: str = "", **fields: Any) -> Path:
    """Write a graph of one layer, and its genai_config.json with `fields` of the decoder replaced.

    A cache with room for a window keeps as many positions.
    """
    window = fields.get("sliding_window", {}).get("window_size", 0)
    constants = {"axes": [1, 3], "start": [-window if window else 0], "end": [1 << 30], "two": [2], "none": [0]}
    nodes = [
        helper.make_node("Cast", ["position_ids"], ["places"], to=cache_type),
        helper.make_node("Unsqueeze", ["places", "axes"], ["entries"]),
        *(
            node
            for part in ("key", "value")
            for node in (
                helper.make_node("Concat", [f"past_key_values.0.{part}", "entries"], [f"all_{part}"], axis=2),
                helper.make_node("Slice", [f"all_{part}", "start", "end", "two"], [f"present.0.{part}"]),
            )
        ),
        helper.make_node("Cast", ["all_key"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["wide"], ["sum"], keepdims=1),
        helper.make_node("Squeeze", ["sum"], ["sum_alone"]),
        helper.make_node("Cast", ["input_ids"], ["tokens"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["tokens", "last"], ["column"]),
        helper.make_node("Mul", ["column", "no"], ["zeros"]),
        helper.make_node("Add", ["zeros", "sum_alone"], ["sums"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["mask"], ["length"], keepdims=0),
        helper.make_node("Add", ["zeros", "length"], ["lengths"]),
        helper.make_node("Concat", ["sums", "column", "lengths", "zeros"], ["logits_wide"], axis=2),
        helper.make_node("Cast", ["logits_wide"], ["logits"], to=TensorProto.FLOAT16),
    ]
    initialisers = [
        *(helper.make_tensor(name, TensorProto.INT64, [len(data)], data) for name, data in constants.items()),
        helper.make_tensor("last", TensorProto.INT64, [1], [2]),
        helper.make_tensor("no", TensorProto.FLOAT, [], [0.0]),
    ]
    present = (1, 1, "present", 1)
    graph = helper.make_graph(
        nodes,
        "facts",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT32, (1, "positions")),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, (1, "total")),
            helper.make_tensor_value_info("position_ids", TensorProto.INT64, (1, "positions")),
            *(helper.make_tensor_value_info(f"past_key_values.0.{p}", cache_type, CACHE) for p in ("key", "value")),
            *([helper.make_tensor_value_info(extra, TensorProto.FLOAT, (1,))] if extra else []),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT16, (1, "positions", 4)),
            *(helper.make_tensor_value_info(f"present.0.{p}", cache_type, present) for p in ("key", "value")),
        ],
        initialisers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "graph.onnx")
    decoder = {"filename": "graph.onnx", "num_hidden_layers": 1, "num_key_value_heads": 1, "head_size": 1}
    write_config(folder, decoder | fields)
    return folder


def write_config(folder: Path, decoder: dict[str, Any], *, vocab: int = 4, chunk: int | None = 1) -> None:
    config = {"model": {"vocab_size": vocab, "decoder": decoder}, "search": {"chunk_size": chunk}}
    (folder / "genai_config.json").write_text(json.dumps(config))


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[Any]:
    with RUNNER.open(folder, Settings(**settings)) as session:
        yield session


def scores(folder: Path, *prompts: list[int]) -> list[Scores]:
    with opened(folder) as session:
        return list(session.run(prompts))


def test_every_chunk_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    found = scores(write_folder(tmp_path), IDS, IDS[:2])
    assert [(item.prompt, item.start, len(item.logprobs)) for item in found] == [
        (0, 0, 1),
        (0, 1, 1),
        (0, 2, 1),
        (0, 3, 1),
        (1, 0, 1),
        (1, 1, 1),
    ]
    logprobs = np.concatenate([item.logprobs for item in found])
    assert logprobs.dtype == np.float32
    np.testing.assert_allclose(logprobs - logprobs[:, 3:], np.array(EXPECTED + EXPECTED[:2]), atol=1e-5)
    np.testing.assert_allclose(np.exp(logprobs).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("prefix", [0, 2, 3, 4])
def test_what_follows_a_prefix_is_computed_one_by_one_on_the_cache(prefix: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    config = json.loads((folder / "genai_config.json").read_text())
    write_config(folder, config["model"]["decoder"], chunk=None)
    with opened(folder, prefixes=(prefix,)) as session:
        found = list(session.run([IDS]))
    pieces = [(item.start, len(item.logprobs), item.decoded) for item in found]
    assert pieces == [(0, prefix, False)][: bool(prefix)] + [(place, 1, True) for place in range(prefix, 4)]
    logprobs = np.concatenate([item.logprobs for item in found])
    decoded = logprobs[prefix:] - logprobs[prefix:, 3:]
    np.testing.assert_allclose(decoded, np.array(EXPECTED)[prefix:], atol=1e-5)


def test_cache_of_a_window_starts_with_zeros(tmp_path: Path) -> None:
    window = {"window_size": 3, "layers": [0]}
    [first, *_, last] = scores(write_folder(tmp_path, sliding_window=window), list(range(10)))
    assert first.logprobs[0, 0] - first.logprobs[0, 3] == 0
    assert last.logprobs[0, 0] - last.logprobs[0, 3] == 6 + 7 + 8 + 9


def test_chunks_are_bounded_where_the_folder_says_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    config = json.loads((folder / "genai_config.json").read_text())
    write_config(folder, config["model"]["decoder"], chunk=None)
    found = scores(folder, [1] * (MOST_POSITIONS + 6))
    assert [len(item.logprobs) for item in found] == [MOST_POSITIONS, 6]


def test_weights_are_not_packed_where_the_folder_says_so(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, session_options={"session.disable_prepacking": "1", "log_id": "any"})
    with opened(folder) as session:
        options = session.session.get_session_options()
        assert options.get_session_config_entry("session.disable_prepacking") == "1"


def test_threads_and_provider_are_those_that_are_asked_for(tmp_path: Path, capsys: Any) -> None:
    with opened(write_folder(tmp_path), threads=3, provider="CPUExecutionProvider") as session:
        assert session.session.get_session_options().intra_op_num_threads == 3
    assert capsys.readouterr().err == "execution providers: CPUExecutionProvider\n"


def test_unknown_provider_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UnsupportedError, match=r"found NoneSuch, expected .*CPUExecutionProvider"),
        opened(write_folder(tmp_path), provider="NoneSuch"),
    ):
        pass


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"extra": "images"}, "found images"),
        ({"cache_type": TensorProto.DOUBLE}, r"input past_key_values.0.key .*found tensor\(double\)"),
        ({"num_hidden_layers": 2}, r"found past_key_values.1.key, .*present.1.value"),
        ({"outputs": {"logits": "scores"}}, "found scores"),
    ],
)
def test_graph_that_is_not_as_described_is_refused(graph: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message), opened(write_folder(tmp_path, **graph)):
        pass


def test_logits_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    config = json.loads((folder / "genai_config.json").read_text())
    write_config(folder, config["model"]["decoder"], vocab=5)
    with pytest.raises(UnsupportedError, match=r"found \(1, 1, 4\), expected \(1, 1, 5\)"):
        scores(folder, IDS)


@pytest.mark.parametrize(("made_for", "error"), [("cuda", ImportError), ("cpu", InputError)])
def test_graph_without_kernels_is_to_blame_only_where_it_is_made_for_the_provider(
    made_for: str, error: type[Exception], tmp_path: Path
) -> None:
    options = {"provider_options": [] if made_for == "cpu" else [{made_for: {}}]}
    folder = write_folder(tmp_path, session_options=options)
    model = onnx.load(folder / "graph.onnx")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    node = helper.make_node(
        "BiasAdd", ["logits_wide", "bias", "logits_wide"], ["sum_of_all"], domain="com.microsoft"
    )
    model.graph.node.append(node)  # which CUDA has
    model.graph.initializer.append(helper.make_tensor("bias", TensorProto.FLOAT, [4], [0.0] * 4))
    model.graph.output.append(helper.make_tensor_value_info("sum_of_all", TensorProto.FLOAT, (1, "positions", 4)))
    onnx.save(model, folder / "graph.onnx")
    with pytest.raises(error, match="NOT_IMPLEMENTED"), opened(folder):
        pass


def test_damaged_graph_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "graph.onnx").write_bytes((folder / "graph.onnx").read_bytes()[:200])
    with pytest.raises(InputError, match=r"onnxruntime does not load it \(.*graph.onnx\)"), opened(folder):
        pass


def test_cache_of_another_shape_is_refused_when_it_is_fed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="onnxruntime does not run it"):
        scores(write_folder(tmp_path, head_size=2), IDS)


@pytest.mark.parametrize(
    "decoder",
    [
        {},
        {"num_hidden_layers": 1, "num_key_value_heads": 1, "head_size": 0},
        {"num_hidden_layers": 1, "num_key_value_heads": 1, "head_size": 1, "filename": "../graph.onnx"},
        {"num_hidden_layers": 1, "num_key_value_heads": 1, "head_size": 1, "filename": "C:graph.onnx"},
    ],
)
def test_damaged_description_is_refused(decoder: dict[str, Any], tmp_path: Path) -> None:
    write_config(tmp_path, decoder)
    with pytest.raises(InputError, match=r"cannot be understood: .*genai_config.json"), opened(tmp_path):
        pass


def test_folder_without_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"), opened(tmp_path):
        pass
    with pytest.raises(InputError, match="not a folder"):
        RUNNER.memory_needed(tmp_path / "nowhere", Settings())


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", None])
def test_provider_is_known_by_both_names_and_told(name: str | None, tmp_path: Path) -> None:
    with RUNNER.open(write_folder(tmp_path), Settings(provider=name)) as session:
        assert isinstance(session, KnowsItsProvider)
        assert session.provider == "CPUExecutionProvider"


def test_provider_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(
            UnsupportedError, match=r"no such execution provider: found dml, expected .*CPUExecutionProvider"
        ),
        RUNNER.open(write_folder(tmp_path), Settings(provider="dml")),
    ):
        pass


def test_memory_is_that_of_the_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "weights").write_bytes(bytes(1000))
    sizes = [(folder / name).stat().st_size for name in ("graph.onnx", "genai_config.json", "weights")]
    assert RUNNER.memory_needed(folder, Settings()) == sum(sizes)
