"""ONNX folders before they are written, and what other programs find in them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from gptoss_convert.canonical_hash import hash_checkpoint
from gptoss_convert.checkpoint import Checkpoint, ModelConfig, Role, inventory
from gptoss_convert.converters import to_onnx
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.weights import Graph
from gptoss_convert.formats.onnx.writer import LARGE, lay_out_graph
from gptoss_convert.formats.weight_folder import WeightFolder
from tests.support import onnx_graphs
from tests.support.layouts import REAL_20B
from tests.unit.formats.onnx.folders import EXPERTS, NORM, initialiser, load, metadata, write_onnx


@pytest.fixture
def source(model: Path) -> Checkpoint:
    return open_checkpoint(model)


def graph(config: ModelConfig, experts: str = "mxfp4", others: str = "f32") -> Graph:
    encodings = {name: experts if spec.role is Role.EXPERTS else others for name, spec in inventory(config).items()}
    return onnx_graphs.build_with(config, encodings)


def lay_out(config: ModelConfig, limit: int | None = None) -> WeightFolder:
    return lay_out_graph(graph(config), config, Path("/out"), max_shard_size=limit)


def arrays(folder: WeightFolder) -> list[tuple[str, int, int]]:
    """File, start and stop of every array, in order."""
    return [
        (part.file.path.name, part.offset, part.offset + part.nbytes)
        for parts in folder.parts.values()
        for part in parts
    ]


# --- places


def published_width(config: ModelConfig) -> ModelConfig:
    return replace(
        config,
        hidden_size=REAL_20B.hidden,
        intermediate_size=REAL_20B.intermediate,
        num_local_experts=REAL_20B.experts,
        vocab_size=REAL_20B.vocab,
    )


def test_arrays_lie_in_canonical_order_and_aligned(source: Checkpoint) -> None:
    folder = lay_out(published_width(source.config))
    end = 0
    alignments = set()
    for name, start, stop in arrays(folder):
        alignment = 1 << 16 if stop - start >= LARGE else 64
        alignments.add(alignment)
        assert name == "model.onnx.data"
        assert start % alignment == 0
        assert end <= start < end + alignment
        end = stop
    assert alignments == {1 << 16, 64}
    assert [(file.path.name, file.size) for file, _ in folder.files[1:]] == [("model.onnx.data", end)]


@pytest.mark.parametrize("limit", [1, 10_000, 100_000, 1 << 40])
def test_files_keep_to_the_limit(limit: int, source: Checkpoint) -> None:
    folder = lay_out(source.config, limit)
    _, *data = folder.files
    inside: dict[str, list[tuple[int, int]]] = {}
    for name, start, stop in arrays(folder):
        inside.setdefault(name, []).append((start, stop))
    assert list(inside) == [file.path.name for file, _ in data]
    for file, header in data:
        places = inside[file.path.name]
        assert header == b""
        assert places == sorted(places)
        assert places[0][0] == 0
        assert file.size == places[-1][1]
        assert file.size <= limit or len(places) == 1
    count = len(data)
    names = [f"model-{index:05d}-of-{count:05d}.onnx.data" for index in range(1, count + 1)]
    assert list(inside) == (names if count > 1 else ["model.onnx.data"])


def test_layout_depends_on_nothing_but_its_arguments(source: Checkpoint) -> None:
    assert lay_out(source.config, 50_000) == lay_out(source.config, 50_000)


def test_graph_is_left_as_it_is(source: Checkpoint) -> None:
    made = graph(source.config)
    before = made.model.SerializeToString(deterministic=True)
    lay_out_graph(made, source.config, Path("/out"), max_shard_size=None)
    assert made.model.SerializeToString(deterministic=True) == before


# --- graphs that do not fit


def undeclared(model: ModelProto) -> None:
    initialiser(model, NORM).name = "other"


def within_the_graph(model: ModelProto) -> None:
    initialiser(model, NORM).data_location = TensorProto.DEFAULT


def of_another_shape(model: ModelProto) -> None:
    initialiser(model, NORM).dims[0] = 3


def with_our_metadata(model: ModelProto) -> None:
    model.metadata_props.add(key="gptoss_convert", value="{}")


def declared_twice(model: ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(initialiser(model, NORM))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (undeclared, "other: an external initialiser of no weight"),
        (within_the_graph, f"{NORM}: a weight that the graph does not declare"),
        (of_another_shape, rf"{NORM}: declared as \[3\]"),
        (with_our_metadata, "has metadata"),
        (declared_twice, f"{NORM}: .*declared twice"),
    ],
)
def test_graph_that_does_not_declare_its_weights_is_a_mistake(
    change: Callable[[ModelProto], None], words: str, source: Checkpoint
) -> None:
    made = graph(source.config)
    change(made.model)
    with pytest.raises(ValueError, match=words):
        lay_out_graph(made, source.config, Path("/out"), max_shard_size=None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"data_type": TensorProto.INT8}, "data type 3"), ({"dims": (1,)}, "dims"), ({"nbytes": 1}, "1 bytes")],
)
def test_weights_that_are_no_parts_of_their_tensor_are_a_mistake(
    fields: dict[str, object], words: str, source: Checkpoint
) -> None:
    made = graph(source.config)
    weight = made.weights[EXPERTS]
    codes, scales = weight.initialisers
    wrong = replace(weight, initialisers=(replace(codes, **fields), scales))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        lay_out_graph(
            replace(made, weights={**made.weights, EXPERTS: wrong}),
            source.config,
            Path("/out"),
            max_shard_size=None,
        )


# --- what other programs find


COMBINATIONS = [("mxfp4", "f32"), ("mxfp4", "f16"), ("int8", "f32"), ("int4", "f16"), ("f16", "f16")]


@pytest.mark.parametrize("limit", [None, 60_000])
@pytest.mark.parametrize(("experts", "activations"), COMBINATIONS)
def test_onnx_finds_the_model_sound(
    experts: str, activations: str, limit: int | None, model: Path, tmp_path: Path
) -> None:
    folder = write_onnx(model, tmp_path / "x", experts=experts, activations=activations, max_shard_size=limit)
    onnx.checker.check_model(folder / "model.onnx", full_check=True)


@pytest.mark.parametrize("limit", [None, 60_000])
@pytest.mark.parametrize(("experts", "activations"), COMBINATIONS)
def test_onnx_and_onnxruntime_find_the_numbers_where_we_do(
    experts: str, activations: str, limit: int | None, model: Path, tmp_path: Path
) -> None:
    folder = write_onnx(model, tmp_path / "x", experts=experts, activations=activations, max_shard_size=limit)
    loaded = {item.name: numpy_helper.to_array(item) for item in onnx.load(folder / "model.onnx").graph.initializer}
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [item.name.removesuffix(":out") for item in session.get_outputs()]
    run = dict(zip(names, session.run(None, {}), strict=True))
    assert loaded.keys() == run.keys()
    for name, tensor in open_checkpoint(folder).tensors.items():
        for part, array in zip(tensor.encoding.parts, tensor.read(0, tensor.rows), strict=True):
            stored = name if len(tensor.encoding.parts) == 1 else f"{name}.{part.name}"
            for found in (loaded[stored], run[stored]):
                assert found.tobytes() == np.ascontiguousarray(array).tobytes(), stored


def test_bytes_between_arrays_are_zeros(model: Path, folder: Path) -> None:
    content = np.fromfile(folder / "model.onnx.data", np.uint8)
    source = open_checkpoint(model)
    covered = np.zeros(content.size, bool)
    for _, start, stop in arrays(lay_out(source.config)):
        covered[start:stop] = True
    assert not covered.all()
    assert not content[~covered].any()


def test_file_says_who_wrote_it_and_what_is_in_it(folder: Path) -> None:
    model = load(folder)
    assert model.producer_name == "gptoss-convert"
    assert [item.key for item in model.metadata_props] == ["gptoss_convert"]
    assert '"layout_version":1' in metadata(model).value
    assert (
        f'"{EXPERTS}":{{"encoding":"mxfp4","initialisers":["{EXPERTS}.codes","{EXPERTS}.scales"]}}'
        in metadata(model).value
    )


# --- tables of the graph


COSINES, SINES = np.arange(700, dtype=np.float32).reshape(70, 10), np.full((3, 5), 0.5, np.float16)


def with_tables(made: Graph) -> Graph:
    """The same graph with two tables, which it hands out."""
    tables = {"cosines": COSINES, "sines": SINES}
    for name, table in tables.items():
        data_type = onnx.helper.np_dtype_to_tensor_dtype(table.dtype)
        made.model.graph.initializer.add(
            name=name, dims=table.shape, data_type=data_type, data_location=TensorProto.EXTERNAL
        )
        made.model.graph.node.append(onnx.helper.make_node("Identity", [name], [f"{name}:out"]))
        made.model.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}:out", data_type, table.shape))
    return replace(made, tables=tables)


@pytest.mark.parametrize("limit", [None, 1, 3000, 60_000])
def test_tables_lie_before_the_weights(
    limit: int | None, model: Path, source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = to_onnx.build_graph
    monkeypatch.setattr(to_onnx, "build_graph", lambda *arguments: with_tables(original(*arguments)))
    folder = write_onnx(model, tmp_path / "x", max_shard_size=limit)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for name, table in (("cosines", COSINES), ("sines", SINES)):
        [found] = session.run([f"{name}:out"], {})
        np.testing.assert_array_equal(found, table)
    assert hash_checkpoint(open_checkpoint(folder), jobs=1) == hash_checkpoint(source, jobs=1)
    plan = to_onnx.plan_onnx(source, folder, to_onnx.OnnxOptions(target="cpu", max_shard_size=limit))
    assert {file.path.name: file.nbytes for file in plan.files} == {
        path.name: path.stat().st_size for path in folder.iterdir()
    }
