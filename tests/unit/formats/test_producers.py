"""Folders as other tools write them hold the same tensors as the published layout, byte by byte."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.description import Description
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.huggingface import read
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.conversions import make_checkpoint, to_gguf
from tests.support.foreign_layouts import (
    AUTO_ROUND,
    COMPRESSED_BY_AUTO_ROUND,
    COMPRESSED_PARTS,
    COMPRESSED_TENSORS,
    MLX,
    MODELOPT,
    QUARK,
    QUARK_PARTS,
    Arrays,
    compressed_tensors,
    mlx,
    model_arrays,
    nested_experts,
    per_expert,
    quark,
    quark_quantizers,
    split_experts,
    unsloth,
    write_folder,
)

GOLDEN = Path(__file__).resolve().parents[2] / "data/golden"
SHAPE = Shape(layers=2, experts=3, experts_per_token=2, vocab=64)
EXPERTS = "model.layers.0.mlp.experts."
GATE_UP = EXPERTS + "gate_up_proj"
DOWN = EXPERTS + "down_proj"


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read(write_huggingface(tmp_path_factory.mktemp("published"), SHAPE))


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read(write_huggingface(tmp_path_factory.mktemp("dense"), SHAPE, experts="bf16"))


def assert_same(checkpoint: Checkpoint, expected: Checkpoint) -> None:
    """Every tensor has the same encoding and bytes, read whole and in ranges that cut experts."""
    checkpoint.require_sound()
    assert list(checkpoint.tensors) == list(expected.tensors)
    for name, tensor in expected.tensors.items():
        found = checkpoint.tensors[name]
        assert (found.encoding, found.shape) == (tensor.encoding, tensor.shape)
        whole = tensor.read(0, tensor.rows)
        for start, stop in {
            (0, tensor.rows),
            (tensor.rows // 3 - 1, tensor.rows // 2 + 2),
            (tensor.rows - 1, tensor.rows),
        }:
            start, stop = max(start, 0), min(stop, tensor.rows)
            for part, other in zip(found.read(start, stop), whole, strict=True):
                np.testing.assert_array_equal(part, other[start:stop], err_msg=name)


def problems(checkpoint: Checkpoint) -> list[str]:
    return [str(problem) for problem in checkpoint.problems]


# --- each tool


PACKED: dict[str, tuple[Callable[[Arrays], Arrays], dict[str, Any], str | None]] = {
    "compressed-tensors 0.20.0": (compressed_tensors, COMPRESSED_TENSORS, None),
    "compressed-tensors 0.16.0": (compressed_tensors, COMPRESSED_TENSORS | {"version": "0.16.0"}, None),
    "llm-compressor 0.11": (nested_experts, COMPRESSED_TENSORS | {"version": "0.16.0"}, None),
    "llm-compressor before 0.12": (nested_experts, COMPRESSED_TENSORS | {"version": "0.16.1.a20260608"}, None),
    "auto-round, llm_compressor": (compressed_tensors, COMPRESSED_BY_AUTO_ROUND, None),
    "auto-round": (compressed_tensors, AUTO_ROUND, None),
    "auto-round with activations": (compressed_tensors, AUTO_ROUND | {"act_bits": 4}, "how activations"),
    "compressed-tensors 0.18.0": (
        lambda arrays: compressed_tensors(arrays, rows="halves"),
        COMPRESSED_TENSORS | {"version": "0.18.0"},
        "first and the second half",
    ),
    "quark": (quark, QUARK, "scales of activations"),
    "quark, named after quantizers": (quark_quantizers, QUARK, "scales of activations"),
    "modelopt": (lambda arrays: arrays, MODELOPT, None),
    "mlx": (mlx, MLX, None),
}


@pytest.mark.parametrize("tool", PACKED)
def test_mxfp4_of_other_tools_is_read_byte_by_byte(tool: str, tmp_path: Path, published: Checkpoint) -> None:
    layout, quantization, remark = PACKED[tool]
    checkpoint = read(write_folder(tmp_path, SHAPE, layout(model_arrays(SHAPE)), quantization=quantization))
    assert_same(checkpoint, published)
    assert (remark is None) is (checkpoint.remarks == ())
    assert remark is None or remark in "\n".join(checkpoint.remarks)


@pytest.mark.parametrize("layout", [per_expert, split_experts, unsloth])
def test_dense_experts_of_other_tools_are_read_byte_by_byte(
    layout: Callable[[Arrays], Arrays], tmp_path: Path, dense: Checkpoint
) -> None:
    checkpoint = read(write_folder(tmp_path, SHAPE, layout(model_arrays(SHAPE, experts="bf16"))))
    assert_same(checkpoint, dense)
    assert bool(checkpoint.remarks) is (layout is split_experts)


def test_dense_experts_of_llm_compressor_0_11_leave_no_doubt(tmp_path: Path, dense: Checkpoint) -> None:
    arrays = split_experts(model_arrays(SHAPE, experts="bf16"))
    arrays = {re.sub(r"\.experts\.(\d)", r".experts.experts.\1", name): array for name, array in arrays.items()}
    checkpoint = read(write_folder(tmp_path, SHAPE, arrays))
    assert_same(checkpoint, dense)
    assert checkpoint.remarks == ()


def test_mlx_may_state_its_quantization_under_its_own_key(tmp_path: Path, published: Checkpoint) -> None:
    assert_same(
        read(write_folder(tmp_path, SHAPE, mlx(model_arrays(SHAPE)), config={"quantization": MLX})), published
    )


def test_scales_of_compressed_tensors_0_13_are_two_too_low(tmp_path: Path) -> None:
    """Edge blocks have scales below 2, which that version could not store: they are lifted first."""
    arrays = {
        name: (dtype, np.maximum(array, 2) if name.endswith("_scales") else array)
        for name, (dtype, array) in model_arrays(SHAPE).items()
    }
    expected = read(write_folder(tmp_path / "expected", SHAPE, arrays, quantization={"quant_method": "mxfp4"}))
    low = per_expert(arrays, COMPRESSED_PARTS)
    low = {
        name: (dtype, array - np.uint8(2) if name.endswith("weight_scale") else array)
        for name, (dtype, array) in low.items()
    }
    checkpoint = read(
        write_folder(tmp_path / "low", SHAPE, low, quantization=COMPRESSED_TENSORS | {"version": "0.13.0"})
    )
    assert_same(checkpoint, expected)
    assert "scales are stored 2 too small" in checkpoint.remarks[0]


@pytest.mark.parametrize("suffixes", [("weight_packed", "weight_scale"), ("weight", "weight_scale")])
def test_attention_may_be_mxfp4(suffixes: tuple[str, str], tmp_path: Path) -> None:
    arrays = model_arrays(SHAPE)
    codes = np.arange(128 * 32, dtype="u1").reshape(128, 32)
    scales = np.full((128, 2), 120, "u1")
    base = "model.layers.1.self_attn.q_proj."
    del arrays[base + "weight"]
    arrays |= {base + suffixes[0]: ("U8", codes), base + suffixes[1]: ("U8", scales)}
    tensor = read(write_folder(tmp_path, SHAPE, arrays)).tensors[base + "weight"]
    assert (tensor.encoding.name, tensor.shape) == ("mxfp4", (128, 64))
    for part, expected in zip(tensor.read(3, 128), (codes, scales), strict=True):
        np.testing.assert_array_equal(part, expected[3:])


def test_layers_may_differ_in_encoding_and_layout(tmp_path: Path, published: Checkpoint, dense: Checkpoint) -> None:
    packed, floats = model_arrays(SHAPE), per_expert(model_arrays(SHAPE, experts="bf16"))
    first, second = "model.layers.0.", "model.layers.1."
    mixed = {name: array for name, array in packed.items() if not name.startswith(second)}
    mixed |= {name: array for name, array in floats.items() if name.startswith(second)}
    q_proj = first + "self_attn.q_proj.weight"
    mixed[q_proj] = ("F16", np.full(mixed[q_proj][1].shape, 0x3C00, "<u2"))
    k_proj = first + "self_attn.k_proj.weight"
    mixed[k_proj] = ("F32", np.ones(mixed[k_proj][1].shape, "<f4"))
    checkpoint = read(write_folder(tmp_path, SHAPE, mixed, quantization={"quant_method": "mxfp4"}))
    checkpoint.require_sound()
    for name, expected in ((GATE_UP, published), (second + "mlp.experts.gate_up_proj", dense)):
        tensor, other = checkpoint.tensors[name], expected.tensors[name]
        assert tensor.encoding == other.encoding
        for part, wanted in zip(tensor.read(0, tensor.rows), other.read(0, other.rows), strict=True):
            np.testing.assert_array_equal(part, wanted)
    for name in (q_proj, k_proj):
        tensor = checkpoint.tensors[name]
        assert (tensor.encoding.decode(tensor.read(0, tensor.rows)) == 1).all()
    assert [checkpoint.tensors[name].encoding.name for name in (q_proj, k_proj)] == ["f16", "f32"]


def test_weights_that_compressed_tensors_packed_mean_what_it_unpacks(tmp_path: Path) -> None:
    with np.load(GOLDEN / "compressed-tensors-mxfp4.npz") as golden:
        packed, scales, values = golden["weight_packed"], golden["weight_scale"], golden["values"]
    arrays = compressed_tensors(model_arrays(SHAPE))
    arrays |= {
        EXPERTS + "1.down_proj.weight_packed": ("U8", packed),
        EXPERTS + "1.down_proj.weight_scale": ("U8", scales),
    }
    tensor = read(write_folder(tmp_path, SHAPE, arrays, quantization=COMPRESSED_TENSORS)).tensors[DOWN]
    np.testing.assert_array_equal(tensor.encoding.decode(tensor.read(64, 128)), values)


# --- transformers


@pytest.mark.parametrize("save_original_format", [True, False])
def test_dequantised_experts_of_transformers_are_read(save_original_format: bool, tmp_path: Path) -> None:
    """transformers 5.23 saves them as *_blocks by default; from that folder it would load random experts itself."""
    import torch
    from transformers import GptOssForCausalLM, Mxfp4Config

    shape = Shape(layers=1, experts=2, experts_per_token=2, vocab=64)
    source = write_huggingface(tmp_path / "source", shape)
    model = GptOssForCausalLM.from_pretrained(
        source, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(tmp_path / "saved", save_original_format=save_original_format)
    checkpoint = read(tmp_path / "saved")
    assert_same(checkpoint, read(write_huggingface(tmp_path / "dense", shape, experts="bf16")))
    assert checkpoint.config == read(source).config
    assert ["2 tensors named *_blocks" in remark for remark in checkpoint.remarks] == [True] * save_original_format


def test_name_in_a_remark_has_a_bounded_length(tmp_path: Path) -> None:
    arrays = model_arrays(SHAPE) | {"x" * 5000 + ".input_scale": ("F32", np.ones((), "<f4"))}
    (remark,) = read(write_folder(tmp_path, SHAPE, arrays)).remarks
    assert len(remark) < 400


def test_remarks_are_among_the_notes_of_a_conversion(tmp_path: Path) -> None:
    shape = Shape(layers=1, experts=2, experts_per_token=2)
    make_checkpoint(tmp_path, shape, experts="bf16")
    write_folder(tmp_path, shape, quark(model_arrays(shape)), quantization=QUARK)
    checkpoint = read(tmp_path)
    notes = plan_gguf(checkpoint, tmp_path / "model.gguf", GgufOptions()).notes
    assert [f"source: {remark}" for remark in checkpoint.remarks] == list(notes[: len(checkpoint.remarks)])
    assert checkpoint.remarks


def test_folders_of_other_tools_become_the_same_gguf(tmp_path: Path) -> None:
    shape = Shape(layers=1, experts=3, experts_per_token=2)
    named = Description(name="any")
    expected = to_gguf(make_checkpoint(tmp_path / "source", shape), tmp_path / "expected.gguf", description=named)
    for name, layout, quantization in (
        ("split", compressed_tensors, COMPRESSED_TENSORS),
        ("fused", quark, QUARK),
    ):
        make_checkpoint(tmp_path / name, shape)
        write_folder(tmp_path / name, shape, layout(model_arrays(shape)), quantization=quantization)
        assert (
            to_gguf(tmp_path / name, tmp_path / f"{name}.gguf", description=named).read_bytes()
            == expected.read_bytes()
        )


# --- one clear line for what is wrong


def changed(tmp_path: Path, arrays: Arrays, change: dict[str, tuple[str, Any] | None], **options: Any) -> list[str]:
    """The problems of a folder where some tensors of experts are replaced, added or (None) missing."""
    wanted = arrays | {EXPERTS + name: array for name, array in change.items()}
    kept = {name: array for name, array in wanted.items() if array is not None}
    return problems(read(write_folder(tmp_path, SHAPE, kept, **options)))


def assert_problem(found: list[str], message: str) -> None:
    assert any(re.search(message, problem) for problem in found), found
    assert all("\n" not in problem and len(problem) < 1500 for problem in found)


ROW = ("BF16", np.zeros((192, 64), "<u2"))
HALF = ("BF16", np.zeros((96, 64), "<u2"))


def zeros(dtype: str, *shape: int) -> tuple[str, Any]:
    return dtype, np.zeros(shape, {"U8": "u1", "I32": "<u4"}.get(dtype, "<u2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.gate_up_proj.weight": None}, r"gate_up_proj\): found 2 experts, number 1 is not there, expected 3"),
        ({"2.down_proj.bias": None}, r"experts are missing .*down_proj_bias\): found 2 experts, number 2 "),
        ({"3.gate_up_proj.weight": ROW}, r"number of an expert is beyond .*found 3, expected 0 to 2"),
        ({"1000000000.gate_up_proj.weight": ROW}, "beyond the count .*found 1000000000, expected 0 to 2"),
        ({"9" * 9000 + ".gate_up_proj.weight": ROW}, "number of an expert is not plainly spelled"),
        ({"01.gate_up_proj.weight": ROW}, "not plainly spelled .*found 01, expected 0, 1, 2"),
        ({"-1.gate_up_proj.weight": ROW}, "unknown tensor .*experts.-1.gate_up_proj"),
        ({"gate_up_projs.1.weight": ROW}, "tensor occurs twice under two names .*found .*1.gate_up"),
        ({"gate_up_proj": zeros("BF16", 3, 64, 192)}, "tensor occurs twice, perhaps in two encodings"),
        ({"1.gate_proj.weight": HALF}, "tensor occurs twice, perhaps in two encodings"),
        ({"1.gate_up_proj.weight": zeros("BF16", 64, 192)}, r"found bf16 \[64, 192\], expected bf16 \[192, 64\]"),
        (
            {"1.gate_up_proj.weight": zeros("F16", 192, 64)},
            "differ in shape or encoding .*found f16 .*expected bf16",
        ),
        ({"0.gate_up_proj.weight": zeros("BF16", 64)}, r"wrong number of dimensions .*found \[64\], expected 2"),
        ({"0.gate_up_proj.bias": ROW}, r"wrong number of dimensions .*_bias\): found .*expected 1"),
        ({"1.gate_up_proj.weight": zeros("BF16", 0, 64)}, "tensor is empty"),
        ({"1.gate_up_proj.weight": zeros("U8", 192, 32)}, "weight without scales"),
        ({"1.gate_up_proj.weight_scale": zeros("U8", 192, 2)}, "not packed codes .*found BF16"),
        ({"1.gate_up_proj.weight": zeros("I32", 192, 8)}, "unexpected dtype .*found I32"),
    ],
)
def test_wrong_experts_are_one_clear_problem(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    arrays = per_expert(model_arrays(SHAPE, experts="bf16"))
    assert_problem(changed(tmp_path, arrays, change), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.gate_proj.weight_packed": None}, "scales without weight .*experts.1.gate_proj.weight_scale"),
        ({"1.gate_proj.weight_scale": None}, "weight without scales .*experts.1.gate_proj.weight_packed"),
        (
            {"1.gate_proj.weight_packed": None, "1.gate_proj.weight_scale": None},
            "up_proj without gate_proj .*expert 1",
        ),
        ({"1.up_proj.bias": None}, "gate_proj without up_proj .*gate_up_proj_bias.*expert 1"),
        ({"1.gate_proj.weight": HALF}, "tensor occurs twice under two names"),
        ({"0.up_proj.weight_scale": zeros("U8", 96, 3)}, r"scales do not fit .*\[96, 3\], expected \[96, 2\]"),
        ({"0.up_proj.weight_scale": zeros("BF16", 96, 2)}, "scales are not bytes .*found BF16"),
        ({"0.up_proj.weight_packed": zeros("U8", 96, 34)}, r"no rows of whole blocks .*U8 \[96, 34\]"),
        ({"0.up_proj.weight_packed": zeros("U8", 32)}, r"no rows of whole blocks .*U8 \[32\]"),
        (
            {"0.down_proj.weight_packed": zeros("U8", 64, 32), "0.down_proj.weight_scale": zeros("U8", 64, 2)},
            "differ in shape",
        ),
    ],
)
def test_wrong_packed_experts_are_one_clear_problem(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    arrays = compressed_tensors(model_arrays(SHAPE))
    assert_problem(changed(tmp_path, arrays, change, quantization=COMPRESSED_TENSORS), message)


def test_router_under_two_names_is_a_problem(tmp_path: Path) -> None:
    arrays = model_arrays(SHAPE) | {"model.layers.0.mlp.router.linear.weight": ROW}
    assert_problem(problems(read(write_folder(tmp_path, SHAPE, arrays))), "tensor occurs twice under two names")


@pytest.mark.parametrize(
    ("layout", "quantization", "hint"),
    [
        (compressed_tensors, COMPRESSED_TENSORS | {"version": "0.18.1.a20260820"}, 'set "version"'),
        (compressed_tensors, COMPRESSED_TENSORS | {"version": "0.17.0"}, 'set "version"'),
        (lambda arrays: split_experts(arrays, QUARK_PARTS), QUARK, "written by quark"),
        (mlx, COMPRESSED_TENSORS | {"version": "0.18.0"}, 'set "version"'),
    ],
)  # fmt: skip
def test_gate_and_up_of_unknown_rows_are_a_problem(
    layout: Callable[[Arrays], Arrays], quantization: dict[str, Any], hint: str, tmp_path: Path
) -> None:
    checkpoint = read(write_folder(tmp_path, SHAPE, layout(model_arrays(SHAPE)), quantization=quantization))
    with pytest.raises(UnsupportedError, match="cannot be told which rows gate_proj and up_proj hold") as caught:
        checkpoint.require_sound()
    assert hint in str(caught.value)


def test_whole_gate_up_needs_no_rule_for_its_halves(tmp_path: Path, published: Checkpoint) -> None:
    arrays = per_expert(model_arrays(SHAPE), COMPRESSED_PARTS)
    quantization = COMPRESSED_TENSORS | {"version": "0.17.0"}
    assert_same(read(write_folder(tmp_path, SHAPE, arrays, quantization=quantization)), published)


# --- embedding and lm_head


def test_tied_embedding_is_read_as_lm_head_too(tmp_path: Path) -> None:
    arrays = model_arrays(SHAPE)
    del arrays["lm_head.weight"]
    checkpoint = read(write_folder(tmp_path, SHAPE, arrays, config={"tie_word_embeddings": True}))
    checkpoint.require_sound()
    tensors = checkpoint.tensors
    assert tensors["lm_head.weight"].storage == tensors["model.embed_tokens.weight"].storage
    assert tensors["lm_head.weight"].name == "lm_head.weight"
    assert checkpoint.remarks == (
        "lm_head.weight is absent and tie_word_embeddings is true: it is read from the embedding's bytes",
    )


def test_tied_embedding_beside_an_lm_head_is_a_question_to_the_owner(tmp_path: Path) -> None:
    checkpoint = read(write_folder(tmp_path, SHAPE, model_arrays(SHAPE), config={"tie_word_embeddings": True}))
    with pytest.raises(
        UnsupportedError, match=r"lm_head is the embedding, but there is.*set tie_word_embeddings to false"
    ):
        checkpoint.require_sound()


@pytest.mark.parametrize(("tied", "missing"), [(False, "lm_head"), (True, "lm_head model.embed_tokens")])
def test_missing_lm_head_is_explained(tied: bool, missing: str, tmp_path: Path) -> None:
    arrays = model_arrays(SHAPE)
    for name in missing.split():
        del arrays[f"{name}.weight"]
    checkpoint = read(write_folder(tmp_path, SHAPE, arrays, config={"tie_word_embeddings": tied}))
    (problem,) = (problem for problem in checkpoint.problems if problem.tensor == "lm_head.weight")
    assert isinstance(problem, InputError)
    assert "gpt-oss does not share it with the embedding" in str(problem)
