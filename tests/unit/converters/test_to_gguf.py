"""The recipe for GGUF: encodings, places, splits."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.plan import Entry, Plan
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.description import Description, Reference
from gptoss_convert.encodings import LossClass
from gptoss_convert.errors import InputError, OptionError, OutputError, UnsupportedError
from gptoss_convert.formats import open_checkpoint, open_tokenizer
from gptoss_convert.formats.gguf.container import Value, read_header
from gptoss_convert.formats.storage import FileRef
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.tokenizers import write_small_tokenizer
from tests.unit.formats.gguf import models

LAYERS = 2
DENSE = [
    "token_embd.weight",
    "output.weight",
    *(f"blk.{layer}.attn_{part}.weight" for layer in range(LAYERS) for part in ("q", "k", "v", "output")),
]
EXPERTS = [f"blk.{layer}.ffn_{part}_exps.weight" for layer in range(LAYERS) for part in ("gate", "up", "down")]
FILE_TYPES = gguf.LlamaFileType


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    write_small_tokenizer(folder / "mxfp4")
    return open_checkpoint(write_huggingface(folder / "mxfp4", Shape(layers=LAYERS)))


@pytest.fixture(scope="module")
def dense_checkpoint(folder: Path) -> Checkpoint:
    write_small_tokenizer(folder / "bf16")
    return open_checkpoint(write_huggingface(folder / "bf16", Shape(layers=LAYERS), experts="bf16"))


def planned(checkpoint: Checkpoint, **options: Any) -> Plan:
    return plan_gguf(checkpoint, checkpoint.path / "out.gguf", GgufOptions(**options))


def entries(plan: Plan) -> list[Entry]:
    return [entry for file in plan.files for entry in file.entries]


def encodings(plan: Plan) -> dict[str, str]:
    return {entry.name: entry.encoding.name for entry in entries(plan)}


def metadata(plan: Plan, folder: Path, index: int = 0) -> Mapping[str, Value]:
    """What the header of a planned file says."""
    file, path = plan.files[index], folder / "header.gguf"
    path.write_bytes(file.header.ljust(file.nbytes, b"\0"))
    return read_header(FileRef.at(path)).metadata


# --- which tensors, and where


def test_every_tensor_has_its_place(checkpoint: Checkpoint) -> None:
    plan = planned(checkpoint)
    assert len(entries(plan)) == len(encodings(plan)) == 19 * LAYERS + 3


@pytest.mark.parametrize("split_max_size", [None, 1, 20_000, 10**9])
def test_tensors_are_aligned_disjoint_and_fill_the_files(
    checkpoint: Checkpoint, split_max_size: int | None
) -> None:
    for file in planned(checkpoint, split_max_size=split_max_size).files:
        tensors = sorted(file.entries, key=lambda entry: entry.offset)
        assert tensors[0].offset == len(file.header)
        assert all(tensor.offset % 32 == 0 for tensor in tensors)
        for left, right in pairwise(tensors):
            assert 0 <= right.offset - (left.offset + left.nbytes) < 32
        assert 0 <= file.nbytes - (tensors[-1].offset + tensors[-1].nbytes) < 32


def test_every_tensor_of_the_source_becomes_the_same_tensor_of_the_output(checkpoint: Checkpoint) -> None:
    plan = planned(checkpoint)
    assert [transfer.source for transfer in plan.transfers] == list(checkpoint.tensors.values())
    for transfer in plan.transfers:
        assert (transfer.target.name, transfer.target.shape) == (transfer.source.name, transfer.source.shape)
        assert set(transfer.target.storage.files) <= {file.path for file in plan.files}


def test_shapes_are_those_of_the_source_or_half_of_them(checkpoint: Checkpoint) -> None:
    shapes = {entry.name: entry.shape for entry in entries(planned(checkpoint))}
    assert shapes["token_embd.weight"] == (512, 64)
    assert shapes["blk.0.ffn_gate_exps.weight"] == shapes["blk.0.ffn_up_exps.weight"] == (4, 96, 64)
    assert shapes["blk.0.ffn_gate_exps.bias"] == shapes["blk.0.ffn_up_exps.bias"] == (4, 96)
    assert shapes["blk.0.ffn_down_exps.weight"] == (4, 64, 96)


def test_written_file_is_as_large_as_planned(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plan = plan_gguf(checkpoint, tmp_path / "out.gguf")
    execute(plan)
    assert plan.output == tmp_path / "out.gguf"
    assert plan.output.stat().st_size == plan.nbytes


def test_all_inputs_are_known(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    plan = plan_gguf(checkpoint, tmp_path / "out.gguf", tokenizer=open_tokenizer(tmp_path))
    assert {checkpoint.path, *checkpoint.path.iterdir(), tmp_path / "tokenizer.json"} <= set(plan.inputs)
    assert set(checkpoint.files) <= set(plan.inputs)


# --- splits


@given(limit=st.integers(1, 400_000))
def test_file_ends_where_the_next_tensor_would_pass_the_limit(checkpoint: Checkpoint, limit: int) -> None:
    files = [file.entries for file in planned(checkpoint, split_max_size=limit).files]
    for tensors in files:
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors) <= limit
    for tensors, following in pairwise(files):
        first = min(following, key=lambda tensor: tensor.offset)
        assert sum(tensor.nbytes for tensor in tensors) + first.nbytes > limit


def test_first_part_is_the_one_to_open_and_has_the_metadata(checkpoint: Checkpoint) -> None:
    plan = planned(checkpoint, split_max_size=100_000)
    names = [file.path.name for file in plan.files]
    assert names == [f"out-{number + 1:05d}-of-{len(names):05d}.gguf" for number in range(len(names))]
    assert plan.output.name == names[0]
    assert b"tokenizer.ggml.tokens" in plan.files[0].header
    assert not any(b"tokenizer.ggml.tokens" in file.header for file in plan.files[1:])


def test_parts_know_their_number(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plan = planned(checkpoint, split_max_size=100_000)
    for index in range(len(plan.files)):
        said = metadata(plan, tmp_path, index)
        assert said["split.no"].value == index
        assert said["split.count"].value == len(plan.files)
        assert said["split.tensors.count"].value == len(entries(plan))


def test_model_that_fits_is_not_split(checkpoint: Checkpoint) -> None:
    plan = planned(checkpoint, split_max_size=10**9)
    assert [file.path.name for file in plan.files] == ["out.gguf"]
    assert b"split." not in plan.files[0].header


# --- encodings


def test_numbers_stay_as_they_are_but_vectors_are_f32(checkpoint: Checkpoint) -> None:
    found = encodings(planned(checkpoint))
    assert {found.pop(name) for name in DENSE} == {"bf16"}
    assert {found.pop(name) for name in EXPERTS} == {"mxfp4"}
    assert set(found.values()) == {"f32"}


def test_default_loses_nothing(checkpoint: Checkpoint, dense_checkpoint: Checkpoint) -> None:
    assert planned(checkpoint).loss is LossClass.VALUE_EXACT
    assert planned(dense_checkpoint).loss is LossClass.VALUE_EXACT


@pytest.mark.parametrize("dense", ["bf16", "f16", "f32", "q8_0"])
@pytest.mark.parametrize("experts", ["mxfp4", "bf16", "f16", "f32", "q8_0"])
def test_encodings_can_be_chosen(checkpoint: Checkpoint, dense: str, experts: str) -> None:
    found = encodings(planned(checkpoint, dense=dense, experts=experts))
    assert {found.pop(name) for name in DENSE} == {dense}
    assert {found.pop(name) for name in EXPERTS} == {experts}
    assert set(found.values()) == {"f32"}


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({"dense": "f32", "experts": "bf16"}, LossClass.VALUE_EXACT),
        ({"dense": "f16"}, LossClass.LOSSY),
        ({"dense": "q8_0"}, LossClass.LOSSY),
        ({"experts": "f16"}, LossClass.LOSSY),
    ],
)
def test_loss_of_a_choice(checkpoint: Checkpoint, options: dict[str, str], loss: LossClass) -> None:
    assert planned(checkpoint, **options).loss is loss


def test_dense_experts_stay_dense(dense_checkpoint: Checkpoint) -> None:
    assert {encodings(planned(dense_checkpoint))[name] for name in EXPERTS} == {"bf16"}


def test_dense_experts_become_mxfp4_on_demand(dense_checkpoint: Checkpoint) -> None:
    plan = planned(dense_checkpoint, experts="mxfp4")
    assert {encodings(plan)[name] for name in EXPERTS} == {"mxfp4"}
    assert plan.loss is LossClass.LOSSY


def test_override_changes_what_its_pattern_matches(checkpoint: Checkpoint) -> None:
    found = encodings(planned(checkpoint, overrides=[("blk.*.attn_q.weight", "q8_0")]))
    assert {name for name, encoding in found.items() if encoding == "q8_0"} == {
        "blk.0.attn_q.weight",
        "blk.1.attn_q.weight",
    }


def test_last_override_wins(checkpoint: Checkpoint) -> None:
    overrides = [
        ("*.attn_?.weight", "q8_0"),
        ("blk.1.attn_k.*eight", "f16"),
        ("blk.0.ffn_*_exps.weight", "f32"),
        ("blk.0.ffn_[gu]*_exps.weight", "bf16"),
    ]
    found = encodings(planned(checkpoint, dense="f32", overrides=overrides))
    assert found["blk.0.attn_k.weight"] == "q8_0"
    assert found["blk.1.attn_k.weight"] == "f16"
    assert found["blk.0.ffn_up_exps.weight"] == found["blk.0.ffn_gate_exps.weight"] == "bf16"
    assert found["blk.0.ffn_down_exps.weight"] == "f32"
    assert found["blk.1.ffn_up_exps.weight"] == "mxfp4"
    assert found["output.weight"] == "f32"


@pytest.mark.parametrize(
    "overrides",
    [
        [("blk.0.ffn_up_exps.weight", "bf16")],
        [("*.ffn_gate_exps.weight", "bf16"), ("*.ffn_up_exps.weight", "f32")],
        [("*_exps.weight", "bf16"), ("*.ffn_gate_exps.weight", "f32")],
    ],
)
def test_halves_of_a_tensor_cannot_have_different_encodings(
    checkpoint: Checkpoint, overrides: list[tuple[str, str]]
) -> None:
    with pytest.raises(OptionError, match=r"gate_exps.*up_exps.* need the same encoding; use .*ffn_\*_exps.weight"):
        planned(checkpoint, overrides=overrides)


def test_override_without_match_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(OptionError, match=r"no tensor of the output matches.*blk\.9\.\*"):
        planned(checkpoint, overrides=[("blk.9.*", "f16")])


@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.1.attn_q.bias"])
def test_vectors_and_router_cannot_be_overridden(checkpoint: Checkpoint, name: str) -> None:
    with pytest.raises(OptionError, match=f"llama.cpp needs tensor {name} in f32"):
        planned(checkpoint, overrides=[(name, "bf16")])
    assert encodings(planned(checkpoint, overrides=[(name, "f32")]))[name] == "f32"


@pytest.mark.parametrize("options", [{"dense": "q4_k"}, {"experts": ""}, {"overrides": [("output.weight", "x")]}])
def test_unknown_encoding_is_refused(checkpoint: Checkpoint, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="GGUF has no such encoding"):
        planned(checkpoint, **options)


# 3 heads of 10 dimensions: rows of attn_output are 30 elements.
ODD_HEADS = Shape(layers=1, heads=3, kv_heads=1, head_dim=10)


def test_rows_of_broken_blocks_fall_back(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    plan = planned(open_checkpoint(write_huggingface(tmp_path, ODD_HEADS)), dense="q8_0")
    fallen = {tensor.name: (tensor.encoding.name, tensor.note) for tensor in entries(plan) if tensor.note}
    assert fallen == {
        "blk.0.attn_output.weight": ("f16", "rows of 30 are not whole blocks of 32: f16, not q8_0"),
    }
    assert encodings(plan)["blk.0.attn_q.weight"] == "q8_0"
    assert any("1 tensors are not stored as asked: blk.0.attn_output.weight" in note for note in plan.notes)


def test_rows_that_are_no_mxfp4_fall_back_to_bf16(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    checkpoint = open_checkpoint(write_huggingface(tmp_path, ODD_HEADS))
    assert (
        encodings(planned(checkpoint, overrides=[("*.attn_output.weight", "mxfp4")]))["blk.0.attn_output.weight"]
        == "bf16"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, FILE_TYPES.MOSTLY_MXFP4_MOE),
        ({"dense": "f16"}, FILE_TYPES.MOSTLY_MXFP4_MOE),
        ({"dense": "q8_0"}, FILE_TYPES.MOSTLY_Q8_0),
        ({"experts": "bf16"}, FILE_TYPES.MOSTLY_BF16),
        ({"experts": "f16", "dense": "f16"}, FILE_TYPES.MOSTLY_F16),
        ({"experts": "f32", "dense": "f32"}, FILE_TYPES.ALL_F32),
        ({"experts": "q8_0", "dense": "q8_0"}, FILE_TYPES.MOSTLY_Q8_0),
    ],
)
def test_file_type(checkpoint: Checkpoint, tmp_path: Path, options: dict[str, str], expected: int) -> None:
    assert metadata(planned(checkpoint, **options), tmp_path)["general.file_type"].value == expected


# --- what cannot be planned


def test_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_huggingface(tmp_path, Shape(layers=1)))
    with pytest.raises(InputError, match=r"no tokenizer beside the weights.*--tokenizer"):
        plan_gguf(checkpoint, tmp_path / "out.gguf")


def test_tokenizer_of_another_folder_can_be_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_huggingface(tmp_path / "model", Shape(layers=1)))
    write_small_tokenizer(tmp_path / "tokenizer")
    plan = plan_gguf(checkpoint, tmp_path / "out.gguf", tokenizer=open_tokenizer(tmp_path / "tokenizer"))
    assert f"tokenizer: {tmp_path / 'tokenizer' / 'tokenizer.json'}" in plan.notes


@pytest.mark.parametrize("output", [Path(), Path("/")])
def test_folder_as_output_is_refused(checkpoint: Checkpoint, output: Path) -> None:
    with pytest.raises(OutputError, match="output is a folder"):
        plan_gguf(checkpoint, output)


def test_model_with_problems_is_refused(checkpoint: Checkpoint) -> None:
    broken = replace(checkpoint, problems=(InputError("tensor is missing"),))
    with pytest.raises(InputError, match="tensor is missing"):
        planned(broken)


def test_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    checkpoint = open_checkpoint(write_huggingface(tmp_path, Shape(layers=1, vocab=500)))
    with pytest.raises(InputError, match="more tokens than the embedding has rows"):
        planned(checkpoint)


def test_swiglu_limit_that_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    folder = write_huggingface(tmp_path, Shape(layers=1), config_overrides={"swiglu_limit": 5.0})
    with pytest.raises(UnsupportedError, match="swiglu limit"):
        planned(open_checkpoint(folder))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("token_embd.weight", {}),
        ("token_embd.weight", {"dense": "f16"}),
        ("blk.0.ffn_gate_inp.weight", {}),
    ],
)
def test_numbers_that_cannot_be_decoded_are_refused_whatever_is_asked_for(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    checkpoint = open_checkpoint(
        models.write(tmp_path / "m.gguf", models.random_values(), encodings={name: "q4_0"})
    )
    with pytest.raises(UnsupportedError, match=r"cannot be decoded.*q4_0"):
        plan_gguf(checkpoint, tmp_path / "out.gguf", GgufOptions(**options))


# --- description


def test_stated_description_is_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    stated = Description(
        name="My model",
        license="mit",
        source_revision="6cee5e81",
        base_models=(Reference(repo_url="https://huggingface.co/openai/gpt-oss-20b"),),
    )
    said = metadata(planned(checkpoint, description=stated), tmp_path)
    assert said["general.architecture"].value == "gpt-oss"
    assert said["general.type"].value == "model"
    assert said["general.name"].value == "My model"
    assert said["general.license"].value == "mit"
    assert said["general.base_model.0.repo_url"].value == "https://huggingface.co/openai/gpt-oss-20b"
    assert said["gptoss_convert.source.revision"].value == "6cee5e81"


def test_what_is_not_stated_is_taken_from_the_source_or_its_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    silent = replace(checkpoint, describe=Description)
    assert metadata(planned(silent), tmp_path)["general.name"].value == "mxfp4"
    described = replace(checkpoint, describe=lambda: Description(name="Card", author="Somebody"))
    said = metadata(planned(described, description=Description(author="Me")), tmp_path)
    assert (said["general.name"].value, said["general.author"].value) == ("Card", "Me")


def test_missing_licence_is_noted(checkpoint: Checkpoint) -> None:
    assert any(note.startswith("licence: not stated") for note in planned(checkpoint).notes)
    stated = planned(checkpoint, description=Description(license="apache-2.0"))
    assert not any(note.startswith("licence") for note in stated.notes)
