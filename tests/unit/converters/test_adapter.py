"""Merging of adapters: the numbers, the encodings, and what a plan says about them."""

import pickle
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Checkpoint, Tensor
from gptoss_convert.converters.adapter import MergedStorage, with_adapter
from gptoss_convert.converters.execute import Resources, execute
from gptoss_convert.converters.plan import Plan, Transfer
from gptoss_convert.converters.tasks import LEAST_MEMORY_PER_JOB
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.encodings import ENCODINGS, LossClass
from gptoss_convert.encodings.opaque import Opaque
from gptoss_convert.errors import InputError, OutputError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.peft import open_adapter
from tests.support.adapters import LAYER, pair, write_adapter
from tests.support.checkpoints import write_original
from tests.support.conversions import make_checkpoint, to_gguf
from tests.support.layouts import Shape
from tests.support.memory import InMemory, zeros

SHAPE = Shape()
GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"
DOWN = "model.layers.0.mlp.experts.down_proj"
QUERY = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
SCALING = 2.0
ADAPTER: Mapping[str, NDArray[Any]] = (
    pair(f"{LAYER}.self_attn.q_proj", (2, 64), (128, 2), seed=1)
    | pair(f"{LAYER}.mlp.experts.base_layer", (8, 64), (192, 8), seed=2)
    | pair(f"{LAYER}.mlp.experts", (8, 96), (64, 8), seed=3)
    | {"base_model.model.model.norm.weight": np.linspace(-1, 1, 64, dtype=np.float32)}
)
TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def base(folder: Path) -> Checkpoint:
    return open_checkpoint(make_checkpoint(folder / "base", SHAPE, edge_blocks=False))


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    return write_adapter(folder / "tuned", ADAPTER, target_parameters=TARGETS)


@pytest.fixture(scope="module")
def merged(base: Checkpoint, adapter: Path) -> Checkpoint:
    return with_adapter(base, open_adapter(adapter))


def values(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.encoding.decode(tensor.read(0, tensor.rows)).reshape(tensor.shape)


def change(name: str) -> NDArray[np.float64]:
    """What the adapter adds to a tensor, computed expert by expert from the arrays that were written."""
    module = {QUERY: f"{LAYER}.self_attn.q_proj", GATE_UP: f"{LAYER}.mlp.experts.base_layer"}
    prefix = module.get(name, f"{LAYER}.mlp.experts")
    a = ADAPTER[f"{prefix}.lora_A.weight"].astype(np.float64)
    b = ADAPTER[f"{prefix}.lora_B.weight"].astype(np.float64)
    if name == QUERY:
        return SCALING * b @ a
    experts = SHAPE.experts
    return SCALING * np.stack([b[:, expert::experts] @ a[2 * expert : 2 * expert + 2] for expert in range(experts)])


@pytest.mark.parametrize("name", [QUERY, GATE_UP, DOWN])
def test_the_change_is_rounded_once_and_added_once(base: Checkpoint, merged: Checkpoint, name: str) -> None:
    expected = values(base.tensors[name]) + change(name).astype(np.float32)
    found = values(merged.tensors[name])
    # A float64 sum in another order may round to the other float32 neighbour, at most 1 ulp of the change.
    assert (np.abs(found - expected) <= 2.0**-23 * (np.abs(change(name)) + np.abs(expected))).all()
    assert (found == expected).mean() > 0.999


def test_tensors_without_adapter_are_the_same_objects(base: Checkpoint, merged: Checkpoint) -> None:
    same = {name for name, tensor in merged.tensors.items() if tensor is base.tensors[name]}
    assert merged.tensors.keys() - same == {QUERY, GATE_UP, DOWN, NORM}
    assert list(merged.tensors) == list(base.tensors)


def test_a_replaced_tensor_has_the_numbers_of_the_adapter(merged: Checkpoint) -> None:
    np.testing.assert_array_equal(values(merged.tensors[NORM]), np.linspace(-1, 1, 64, dtype=np.float32))


@given(data=st.data(), name=st.sampled_from([QUERY, GATE_UP, DOWN]))
def test_numbers_do_not_depend_on_the_rows_that_are_read_together(
    merged: Checkpoint, data: st.DataObject, name: str
) -> None:
    tensor = merged.tensors[name]
    start = data.draw(st.integers(0, tensor.rows - 1))
    stop = data.draw(st.integers(start + 1, tensor.rows))
    whole = tensor.read(0, tensor.rows)[0]
    np.testing.assert_array_equal(tensor.read(start, stop)[0].view("u4"), whole[start:stop].view("u4"))


def in_memory(name: str, array: NDArray[np.float32]) -> Tensor:
    """`array` `[matrices, rows, columns]` as a tensor."""
    return Tensor(name, array.shape, ENCODINGS["f32"], InMemory((array.reshape(-1, array.shape[-1]),)))


@given(bounds=st.tuples(st.integers(0, 600), st.integers(0, 600)).map(sorted))
def test_nor_where_a_matrix_takes_several_tiles(bounds: list[int]) -> None:
    rng = np.random.default_rng(0)
    base, left, right = (rng.standard_normal((2, *size), np.float32) for size in ((300, 1024), (300, 7), (1024, 7)))
    storage = MergedStorage(in_memory("x", base), in_memory("x", left), in_memory("x", right), scaling=0.3)
    (whole,) = storage.read(0, 600)
    np.testing.assert_allclose(whole.reshape(base.shape), base + 0.3 * left @ right.transpose(0, 2, 1), atol=1e-4)
    np.testing.assert_array_equal(storage.read(*bounds)[0].view("u4"), whole[slice(*bounds)].view("u4"))


@pytest.mark.parametrize("source", ["original", "gguf"])
def test_other_formats_of_the_base_give_the_same_numbers(
    merged: Checkpoint, adapter: Path, folder: Path, source: str
) -> None:
    if source == "original":
        path = write_original(folder / "original", SHAPE, edge_blocks=False)
    else:
        path = to_gguf(folder / "base", folder / "base.gguf")
    other = with_adapter(open_checkpoint(path), open_adapter(adapter))
    for name, tensor in merged.tensors.items():
        np.testing.assert_array_equal(values(other.tensors[name]), values(tensor), name)


def test_encodings_that_are_kept(merged: Checkpoint) -> None:
    facts = {name: (merged.tensors[name].encoding.name, merged.tensors[name].kept_encoding.name)
             for name in (QUERY, GATE_UP, NORM, "lm_head.weight")}  # fmt: skip
    assert facts == {
        QUERY: ("f32", "bf16"),
        GATE_UP: ("f32", "bf16"),
        NORM: ("f32", "bf16"),
        "lm_head.weight": ("bf16", "bf16"),
    }


def planned(checkpoint: Checkpoint, output: Path, **options: Any) -> Plan:
    return plan_gguf(checkpoint, output, GgufOptions(**options))


def test_a_plan_tells_what_happens_to_merged_tensors(merged: Checkpoint, tmp_path: Path) -> None:
    found = {
        entry.name: (entry.source_encoding.name, entry.encoding.name, entry.loss)
        for file in planned(merged, tmp_path / "x.gguf").files
        for entry in file.entries
    }
    assert found["blk.0.attn_q.weight"] == ("f32", "bf16", LossClass.LOSSY)
    assert found["blk.0.ffn_gate_exps.weight"] == ("f32", "bf16", LossClass.LOSSY)
    assert found["output_norm.weight"] == ("f32", "f32", LossClass.BYTE_EXACT)
    assert found["blk.1.ffn_gate_exps.weight"] == ("mxfp4", "mxfp4", LossClass.BYTE_EXACT)
    assert found["blk.1.attn_q.weight"] == ("bf16", "bf16", LossClass.BYTE_EXACT)


def test_experts_are_quantised_again_where_that_is_asked_for(merged: Checkpoint, tmp_path: Path) -> None:
    plan = planned(merged, tmp_path / "x.gguf", experts="mxfp4")
    execute(plan)
    written = open_checkpoint(plan.output)
    assert written.tensors[GATE_UP].encoding.name == "mxfp4"
    exact = values(merged.tensors[GATE_UP]).astype(np.float64)
    noise = ((values(written.tensors[GATE_UP]) - exact) ** 2).sum()
    assert (exact**2).sum() / noise > 10 ** (ENCODINGS["mxfp4"].least_signal_to_noise / 10)


def test_notes_name_the_adapter_and_what_experts_become(merged: Checkpoint, tmp_path: Path) -> None:
    notes = planned(merged, tmp_path / "x.gguf").notes
    assert notes[0].startswith("adapter tuned, trained on someone/base: merged in float32 into 4 of 37 tensors")
    assert notes[0].endswith("(3 of rank 2, 1 replaced as a whole)")
    assert notes[1:2] == ("2 of them are no longer mxfp4: they become bf16 where no other encoding is asked for",)


def test_files_hold_the_merged_numbers_whatever_the_resources(merged: Checkpoint, tmp_path: Path) -> None:
    written_bytes = set()
    for jobs, memory in ((1, LEAST_MEMORY_PER_JOB), (3, 3 * LEAST_MEMORY_PER_JOB), (2, 64 << 20)):
        plan = planned(merged, tmp_path / f"{jobs}.gguf")
        execute(plan, resources=Resources(jobs=jobs, memory=memory))
        written_bytes.add(plan.output.read_bytes())
    assert len(written_bytes) == 1
    written = open_checkpoint(tmp_path / "1.gguf")
    for name, tensor in merged.tensors.items():
        encoding = written.tensors[name].encoding
        rows = values(tensor).reshape(-1, tensor.columns)
        expected = tensor.read(0, tensor.rows) if encoding == tensor.encoding else encoding.encode(rows)
        for part, other in zip(written.tensors[name].read(0, tensor.rows), expected, strict=True):
            np.testing.assert_array_equal(part, other, name)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_of_the_adapter_are_never_written_to(merged: Checkpoint, adapter: Path, name: str) -> None:
    before = (adapter / name).read_bytes()
    with pytest.raises(OutputError, match="output is one of the source files"):
        execute(planned(merged, adapter / name), replace=True)
    assert (adapter / name).read_bytes() == before


def test_reading_takes_the_memory_that_a_plan_counts_with() -> None:
    experts, rows, columns, rank = 64, 512, 2048, 8
    base = zeros("x", (experts, rows, columns), "mxfp4")
    storage = MergedStorage(
        base, zeros("x", (experts, rows, rank)), zeros("x", (experts, columns, rank)), scaling=1
    )
    tensor = Tensor("x", base.shape, ENCODINGS["f32"], storage)
    counted = rows * Transfer(tensor, tensor).holding_bytes_per_row
    working = 8 << 20
    assert 8 * (counted + working) < tensor.nbytes
    tracemalloc.start()
    tensor.read(rows // 2, rows + rows // 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= counted + working


def test_merged_storages_are_plain_values(merged: Checkpoint, base: Checkpoint, adapter: Path) -> None:
    again = with_adapter(base, open_adapter(adapter)).tensors[GATE_UP]
    assert pickle.loads(pickle.dumps(merged.tensors[GATE_UP])) == merged.tensors[GATE_UP] == again


def test_merged_storages_are_never_written(merged: Checkpoint) -> None:
    with pytest.raises(TypeError, match="can only be read"):
        merged.tensors[QUERY].storage.write(None, 0, ())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tensors",
    [
        pair("base_model.model.model.layers.2.self_attn.q_proj", (2, 64), (128, 2)),
        pair(f"{LAYER}.mlp.gate_proj", (2, 64), (128, 2)),
        {"base_model.model.classifier.weight": np.zeros((2, 2), np.float32)},
    ],
)
def test_tensors_that_the_model_has_not(base: Checkpoint, tmp_path: Path, tensors: Any) -> None:
    with pytest.raises(InputError, match=r"the model has not.*adapter_model\.safetensors"):
        with_adapter(base, open_adapter(write_adapter(tmp_path, tensors)))


def test_a_replacement_of_another_shape(base: Checkpoint, tmp_path: Path) -> None:
    tensors = {"base_model.model.lm_head.weight": np.zeros((513, 64), np.float32)}
    with pytest.raises(InputError, match=r"does not fit the model.*\[513, 64\].*\[512, 64\]"):
        with_adapter(base, open_adapter(write_adapter(tmp_path, tensors)))


@pytest.mark.parametrize("number", [np.inf, np.nan, 3e38])
def test_changes_that_are_not_finite(base: Checkpoint, tmp_path: Path, number: float) -> None:
    tensors = pair(f"{LAYER}.self_attn.q_proj", (2, 64), (128, 2))
    tensors[f"{LAYER}.self_attn.q_proj.lora_A.weight"][:] = number
    merged = with_adapter(base, open_adapter(write_adapter(tmp_path, tensors, lora_alpha=1e8)))
    with pytest.raises(InputError, match=rf"not finite.*adapter_model\.safetensors, tensor {QUERY}"):
        merged.tensors[QUERY].read(0, 1)


def test_a_base_that_cannot_be_decoded(base: Checkpoint, adapter: Path) -> None:
    opaque = replace(base.tensors[QUERY], encoding=Opaque("q4_k", 32, 18))
    with pytest.raises(UnsupportedError, match=f"cannot be decoded.*{QUERY}.*q4_k"):
        with_adapter(replace(base, tensors={**base.tensors, QUERY: opaque}), open_adapter(adapter))


def test_square_experts_alone_are_noted(tmp_path: Path) -> None:
    square = open_checkpoint(make_checkpoint(tmp_path / "base", Shape(intermediate=64)))
    tensors = pair(f"{LAYER}.mlp.experts", (8, 64), (64, 8))
    adapter = write_adapter(tmp_path / "tuned", tensors, target_parameters=["experts.down_proj"])
    assert "square" in with_adapter(square, open_adapter(adapter)).notes[-1]


def test_an_unsound_checkpoint_is_refused(tmp_path: Path, adapter: Path) -> None:
    path = make_checkpoint(tmp_path, SHAPE, config_overrides={"num_hidden_layers": 3})
    with pytest.raises(InputError):
        with_adapter(open_checkpoint(path), open_adapter(adapter))
