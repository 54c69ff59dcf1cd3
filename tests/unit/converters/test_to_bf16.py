"""The recipe for BF16: what the plan says, and what is in the folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert.assets import SIDECAR
from gptoss_convert.checkpoint import Checkpoint, Role, inventory
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.recoding import PLAIN, NamingRecoding
from gptoss_convert.converters.to_bf16 import Bf16Options, plan_bf16
from gptoss_convert.converters.to_mxfp4 import plan_mxfp4
from gptoss_convert.encodings import ENCODINGS, LossClass
from gptoss_convert.encodings.mxfp4_canonical import noncanonical_scales
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.scale_sidecar import read_sidecar
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.conversions import make_checkpoint, to_gguf
from tests.unit.formats.gguf import models

SHAPE = Shape(layers=2, experts=3, experts_per_token=2)
TOKENS = ["t", "1", "t1", *(f"t{index}" for index in range(3, models.VOCAB))]
"""For GGUF files of `models`: the merge makes one of them of two others."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in every form."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "mxfp4", SHAPE, shards=3, placement="shuffled")
    make_checkpoint(folder / "bf16", SHAPE, experts="bf16")
    write_original(folder / "openai", SHAPE)
    to_gguf(folder / "mxfp4", folder / "model.gguf")
    to_gguf(folder / "mxfp4", folder / "f32.gguf", dense="f32", experts="f32")
    to_gguf(folder / "mxfp4", folder / "bf16.gguf", experts="bf16")
    return folder


SOURCES = ("mxfp4", "bf16", "openai", "model.gguf", "f32.gguf", "bf16.gguf")
FROM_MXFP4 = ("mxfp4", "openai", "model.gguf")


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {
        name: tensor.encoding.decode(tensor.read(0, tensor.rows)).view(np.uint32)
        for name, tensor in checkpoint.tensors.items()
    }


@pytest.mark.parametrize("limit", [5_000_000_000, 100_000, 1])
@pytest.mark.parametrize("source", SOURCES)
def test_every_tensor_is_in_bf16_with_the_same_numbers(
    folder: Path, tmp_path: Path, source: str, limit: int
) -> None:
    checkpoint = open_checkpoint(folder / source)
    plan = plan_bf16(checkpoint, tmp_path / "out", Bf16Options(max_shard_size=limit))
    report = execute(plan)
    assert plan.output == tmp_path / "out"
    assert (plan.format, plan.source_format, plan.source) == ("huggingface", checkpoint.format, folder / source)
    found = open_checkpoint(tmp_path / "out")
    found.require_sound()
    assert found.config == checkpoint.config
    assert {tensor.encoding.name for tensor in found.tensors.values()} == {"bf16"}
    original = values(open_checkpoint(folder / "mxfp4"))
    for name, numbers in values(found).items():
        np.testing.assert_array_equal(numbers, original[name], err_msg=name)
    assert report.loss is (LossClass.BYTE_EXACT if source == "bf16" else LossClass.VALUE_EXACT)
    assert plan.nbytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir() if path.name != SIDECAR)


@pytest.mark.parametrize("source", SOURCES)
def test_entries_are_what_the_files_hold(folder: Path, tmp_path: Path, source: str) -> None:
    checkpoint = open_checkpoint(folder / source)
    plan = plan_bf16(checkpoint, tmp_path / "out", Bf16Options(max_shard_size=100_000))
    entries = {entry.name: entry for file in plan.files for entry in file.entries}
    assert list(inventory(checkpoint.config)) == [transfer.target.name for transfer in plan.transfers]
    assert entries.keys() == set(inventory(checkpoint.config))
    for file in plan.files:
        end = len(file.header)
        for entry in sorted(file.entries, key=lambda entry: entry.offset):
            assert entry.offset == end
            end += entry.nbytes
        if file.entries:
            assert end == file.nbytes
    assert [file.path.name for file in plan.files if file.entries] == sorted(
        file.path.name for file in plan.files if file.entries
    )


@pytest.mark.parametrize("source", SOURCES)
def test_scales_are_named_if_the_experts_are_in_mxfp4(folder: Path, tmp_path: Path, source: str) -> None:
    plan = plan_bf16(open_checkpoint(folder / source), tmp_path / "out")
    roles = inventory(open_checkpoint(folder / source).config)
    for transfer in plan.transfers:
        is_expert = roles[transfer.target.name].role is Role.EXPERTS and source in FROM_MXFP4
        assert transfer.recoding == (NamingRecoding() if is_expert else PLAIN)
    assert plan.scale_sidecar == (tmp_path / "out" / SIDECAR if source in FROM_MXFP4 else None)
    report = execute(plan)
    assert (tmp_path / "out" / SIDECAR).exists() == (source in FROM_MXFP4)
    if source not in FROM_MXFP4:
        assert report.named_scales == 0
        return
    experts = {
        name: tensor for name, tensor in open_checkpoint(folder / "mxfp4").tensors.items()
        if tensor.encoding.name == "mxfp4"
    }  # fmt: skip
    named = read_sidecar(tmp_path / "out" / SIDECAR, {name: tensor.shape for name, tensor in experts.items()})
    count = 0
    for name, tensor in experts.items():
        expected = noncanonical_scales(*tensor.read(0, tensor.rows))
        assert expected is not None
        np.testing.assert_array_equal(named[name].read(0, tensor.rows), expected)
        count += int((expected != 255).sum())
    assert report.named_scales == count > 0


def test_canonical_blocks_need_no_names(folder: Path, tmp_path: Path) -> None:
    """Such as a quantiser makes that knows no other scales."""
    execute(plan_mxfp4(open_checkpoint(folder / "bf16"), tmp_path / "canonical"))
    plan = plan_bf16(open_checkpoint(tmp_path / "canonical"), tmp_path / "out")
    assert execute(plan).named_scales == 0
    assert plan.scale_sidecar is not None
    assert not plan.scale_sidecar.exists()


def test_names_of_scales_travel_with_weights_that_were_decoded_before(folder: Path, tmp_path: Path) -> None:
    execute(plan_bf16(open_checkpoint(folder / "mxfp4"), tmp_path / "first"))
    execute(plan_bf16(open_checkpoint(tmp_path / "first"), tmp_path / "second", Bf16Options(max_shard_size=1)))
    assert (tmp_path / "second" / SIDECAR).read_bytes() == (tmp_path / "first" / SIDECAR).read_bytes()


@pytest.mark.parametrize("source", ["openai", "mxfp4"])
def test_stale_names_beside_other_forms_do_not_travel(folder: Path, tmp_path: Path, source: str) -> None:
    """MXFP4 experts have their own scales, whatever lies beside them."""
    model = tmp_path / "model"
    if source == "openai":
        write_original(model, SHAPE)
    else:
        write_huggingface(model, SHAPE, edge_blocks=False, fill="gauss")
    (model / SIDECAR).write_bytes(b"stale")
    execute(plan_bf16(open_checkpoint(model), tmp_path / "out"))
    found = tmp_path / "out" / SIDECAR
    assert not found.exists() or found.read_bytes() != b"stale"


def test_rounded_source_needs_permission(folder: Path, tmp_path: Path) -> None:
    source = to_gguf(
        make_checkpoint(tmp_path / "tame", SHAPE, edge_blocks=False), tmp_path / "q8.gguf", dense="q8_0"
    )
    with pytest.raises(UnsupportedError, match=r"found q8_0.*--allow-lossy-source"):
        plan_bf16(open_checkpoint(source), tmp_path / "out")
    plan = plan_bf16(open_checkpoint(source), tmp_path / "out", Bf16Options(allow_lossy_source=True))
    assert plan.loss is LossClass.LOSSY
    report = execute(plan)
    assert report.loss is LossClass.LOSSY
    changed = {item.transfer.source.name for item in report.tensors if item.findings.changed}
    rounded = {item.transfer.source.name for item in report.tensors if item.transfer.source.encoding.name == "q8_0"}
    assert changed == rounded


def test_halves_of_different_encodings_become_one_tensor(tmp_path: Path) -> None:
    """Gate in Q8_0 and up in F32: of either, every number arrives as near as BF16 can be."""
    numbers = models.random_values()
    source = models.write(
        tmp_path / "model.gguf",
        numbers,
        encodings={"blk.0.ffn_gate_exps.weight": "q8_0"},
        change={"tokenizer.ggml.tokens": TOKENS},
    )
    checkpoint = open_checkpoint(source)
    execute(plan_bf16(checkpoint, tmp_path / "out", Bf16Options(allow_lossy_source=True)))
    found = open_checkpoint(tmp_path / "out")
    for name, tensor in found.tensors.items():
        original = checkpoint.tensors[name]
        expected = ENCODINGS["bf16"].encode(original.encoding.decode(original.read(0, original.rows)))
        np.testing.assert_array_equal(tensor.read(0, tensor.rows)[0], expected[0], err_msg=name)


def test_rows_of_experts_may_have_any_length(tmp_path: Path) -> None:
    """BF16 has no blocks."""
    rng = np.random.default_rng(3)
    numbers = {
        name: rng.standard_normal([20 if "exps" in name and size == models.INNER else size for size in shape])
        for name, shape in models.SHAPES.items()
    }
    source = models.write(
        tmp_path / "model.gguf",
        {name: array.astype(np.float32) for name, array in numbers.items()},
        change={"gpt-oss.expert_feed_forward_length": 20, "tokenizer.ggml.tokens": TOKENS},
    )
    execute(plan_bf16(open_checkpoint(source), tmp_path / "out"))
    found = open_checkpoint(tmp_path / "out")
    found.require_sound()
    assert found.tensors["model.layers.0.mlp.experts.down_proj"].shape[-1] == 20


def test_unsound_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint = replace(open_checkpoint(folder / "mxfp4"), problems=(InputError("damaged"), InputError("also")))
    with pytest.raises(InputError, match=r"damaged.*1 more"):
        plan_bf16(checkpoint, tmp_path / "out")


def test_plans_are_values(folder: Path, tmp_path: Path) -> None:
    plans: list[Any] = [plan_bf16(open_checkpoint(folder / "mxfp4"), tmp_path / "out") for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0] != plan_bf16(
        open_checkpoint(folder / "mxfp4"), tmp_path / "out", Bf16Options(max_shard_size=100_000)
    )


def test_shards_of_the_source_do_not_matter(folder: Path, tmp_path: Path) -> None:
    split = to_gguf(folder / "mxfp4", tmp_path / "split.gguf", split_max_size=100_000)
    execute(plan_bf16(open_checkpoint(split), tmp_path / "a"))
    execute(plan_bf16(open_checkpoint(folder / "model.gguf"), tmp_path / "b"))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
