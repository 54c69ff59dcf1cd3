"""The recipe for GGUF: encodings, places, splits."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.execute import Resources, execute
from gptoss_convert.converters.plan import Entry, Plan
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.description import Description, Reference
from gptoss_convert.encodings import LossClass
from gptoss_convert.errors import InputError, OptionError, OutputError, UnsupportedError
from gptoss_convert.formats import open_checkpoint, open_tokenizer
from gptoss_convert.formats.gguf.container import Value, read_header
from gptoss_convert.formats.storage import FileRef
from tests.support import gguf_files, ollama
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


# --- files whose numbers were rounded


EMBEDDING, GATE, UP, DOWN = (
    "token_embd.weight",
    "blk.0.ffn_gate_exps.weight",
    "blk.0.ffn_up_exps.weight",
    "blk.0.ffn_down_exps.weight",
)


def rounded(folder: Path, encodings: Mapping[str, str], **keys: Any) -> Path:
    """A model in encodings of others; gguf-py makes them."""
    return models.write(folder / "source.gguf", models.random_values(), encodings=encodings, change=keys)


def written(source: Path, **options: Any) -> Path:
    """Convert to another GGUF file."""
    plan = plan_gguf(open_checkpoint(source), source.with_name("out.gguf"), GgufOptions(**options))
    execute(plan, resources=Resources(jobs=2, memory=1 << 20))
    return plan.output


ROUNDED = {EMBEDDING: "q4_0", GATE: "q5_0", UP: "q5_0", DOWN: "q4_1", "output.weight": "q8_0"}
DIVIDED = {EMBEDDING: "q4_0", GATE: "q5_1", UP: "mxfp4", DOWN: "q4_0"}


@pytest.mark.parametrize("encodings", [ROUNDED, DIVIDED, dict.fromkeys(ROUNDED, "q5_1")])
def test_rounded_numbers_are_copied_bit_by_bit(tmp_path: Path, encodings: dict[str, str]) -> None:
    source = rounded(tmp_path, encodings)
    assert gguf_files.tensors(written(source)) == gguf_files.tensors(source)


def test_plan_of_a_copy_says_that_every_byte_is_kept(tmp_path: Path) -> None:
    source = rounded(tmp_path, DIVIDED)
    plan = plan_gguf(open_checkpoint(source), tmp_path / "out.gguf")
    assert plan.loss is LossClass.BYTE_EXACT
    assert {entry.name: entry.encoding.name for entry in entries(plan)}.items() >= DIVIDED.items()
    assert {entry.loss for entry in entries(plan)} == {LossClass.BYTE_EXACT}
    assert plan.data_nbytes == sum(entry.nbytes for entry in entries(plan))


def test_types_that_cannot_be_decoded_are_copied_too(tmp_path: Path) -> None:
    source = rounded(tmp_path, {})
    content = bytearray(source.read_bytes())
    place = content.index(b"\0output.weight") + len("\0output.weight") + 4 + 2 * 8
    content[place : place + 4] = int(gguf.GGMLQuantizationType.I32).to_bytes(4, "little")
    source.write_bytes(content)
    assert gguf_files.tensors(written(source))["output.weight"][0] == "I32"
    with pytest.raises(UnsupportedError, match=r"cannot be decoded.*lm_head\.weight.*i32"):
        written(source, dense="f32", allow_lossy_source=True)


@pytest.mark.parametrize(
    ("encodings", "options", "name", "kind"),
    [
        (ROUNDED, {"dense": "f16"}, "model.embed_tokens.weight", "q4_0"),
        (ROUNDED, {"experts": "mxfp4"}, "gate_up_proj", "q5_0"),
        (DIVIDED, {"experts": "bf16"}, "gate_up_proj", "q5_1.mxfp4"),
        ({EMBEDDING: "q8_0"}, {"dense": "bf16"}, "model.embed_tokens.weight", "q8_0"),
        ({"blk.0.ffn_gate_inp.weight": "q4_0"}, {}, "router.weight", "q4_0"),
    ],
)
def test_rounded_numbers_are_decoded_with_permission_only(
    tmp_path: Path, encodings: dict[str, str], options: dict[str, Any], name: str, kind: str
) -> None:
    source = rounded(tmp_path, encodings)
    with pytest.raises(UnsupportedError, match=f"{name}.*{kind}.*--allow-lossy-source"):
        plan_gguf(open_checkpoint(source), tmp_path / "out.gguf", GgufOptions(**options))
    assert written(source, **options, allow_lossy_source=True).exists()


@pytest.mark.parametrize("encodings", [ROUNDED, DIVIDED])
def test_decoded_numbers_are_those_of_gguf_py(tmp_path: Path, encodings: dict[str, str]) -> None:
    source = rounded(tmp_path, encodings)
    found = gguf_files.dequantised(written(source, dense="f32", experts="f32", allow_lossy_source=True))
    for name, values in gguf_files.dequantised(source).items():
        np.testing.assert_array_equal(found[name].ravel(), values.ravel(), err_msg=name)


def test_pattern_that_divides_gate_and_up_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(rounded(tmp_path, DIVIDED))
    options = GgufOptions(overrides=[(GATE, "bf16")], allow_lossy_source=True)
    with pytest.raises(OptionError, match="halves of one tensor"):
        plan_gguf(checkpoint, tmp_path / "out.gguf", options)


@pytest.mark.parametrize("name", ["q4_0", "q4_k"])
def test_encoding_that_can_only_be_copied_cannot_be_asked_for(checkpoint: Checkpoint, name: str) -> None:
    with pytest.raises(OptionError, match=name):
        planned(checkpoint, experts=name)


@pytest.mark.parametrize(
    ("encodings", "options", "expected"),
    [
        (ROUNDED, {}, 38),
        (ROUNDED, {"dense": "f16"}, FILE_TYPES.MOSTLY_Q4_1),
        ({DOWN: "q5_0"}, {"dense": "f16"}, FILE_TYPES.MOSTLY_Q5_0),
        ({}, {"dense": "f16"}, FILE_TYPES.ALL_F32),
    ],
)
def test_file_type_is_kept_if_all_encodings_are(
    tmp_path: Path, encodings: dict[str, str], options: dict[str, Any], expected: int
) -> None:
    source = rounded(tmp_path, encodings, **{"general.file_type": 38})
    plan = plan_gguf(
        open_checkpoint(source), tmp_path / "out.gguf", GgufOptions(**options, allow_lossy_source=True)
    )
    assert metadata(plan, tmp_path)["general.file_type"].value == expected


@pytest.mark.parametrize("stated", ["9" * 5000, "-1", "x", "", (1 << 32) - 1, 0.5, [1, 2]])
def test_file_type_that_is_none_is_not_kept(tmp_path: Path, stated: Any) -> None:
    source = rounded(tmp_path, {DOWN: "q5_0"}, **{"general.file_type": stated})
    plan = plan_gguf(open_checkpoint(source), tmp_path / "out.gguf")
    assert metadata(plan, tmp_path)["general.file_type"].value == FILE_TYPES.MOSTLY_Q5_0


@pytest.mark.parametrize("style", [ollama.LIBRARY, ollama.LATER], ids=["library", "later"])
def test_file_of_ollama_becomes_the_file_of_its_source(tmp_path: Path, style: ollama.Style) -> None:
    ids = write_small_tokenizer(tmp_path / "model")
    source = write_huggingface(tmp_path / "model", Shape(layers=2), special_ids=ids)
    theirs = ollama.write_ollama(tmp_path / "ollama.gguf", source, style)
    dense = "f16" if style.dense == ollama.F16 else "bf16"
    expected = plan_gguf(open_checkpoint(source), tmp_path / "expected.gguf", GgufOptions(dense=dense))
    execute(expected)
    found = written(theirs)
    assert gguf_files.tensors(found) == gguf_files.tensors(expected.output)
    keys, expected_keys = (gguf_files.metadata(path) for path in (found, expected.output))
    different = {key for key in keys | expected_keys if keys.get(key) != expected_keys.get(key)}
    # What Ollama's file states otherwise, or not at all.
    assert different == {"general.name", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.padding_token_id"}


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
