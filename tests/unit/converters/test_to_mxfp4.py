"""The recipe for MXFP4: what is kept, what is quantised and how, and what the plan says about it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors

from gptoss_convert.assets import SIDECAR
from gptoss_convert.checkpoint import Checkpoint, Role, inventory
from gptoss_convert.converters.execute import Report, execute
from gptoss_convert.converters.recoding import PLAIN, QuantisingRecoding
from gptoss_convert.converters.to_bf16 import plan_bf16
from gptoss_convert.converters.to_mxfp4 import LARGEST_SINGLE_FILE, Mxfp4Options, plan_mxfp4
from gptoss_convert.encodings import ENCODINGS, LossClass
from gptoss_convert.encodings.mxfp4_quantiser import ScaleRule, quantise
from gptoss_convert.errors import InputError, OptionError, OutputError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.conversions import make_checkpoint, to_gguf
from tests.unit.formats.gguf import models

SHAPE = Shape(layers=2, experts=3, experts_per_token=2)
Layout = Literal["hf", "openai"]
LAYOUTS: tuple[Layout, ...] = ("hf", "openai")
TOKENS = ["t", "1", "t1", *(f"t{index}" for index in range(3, models.VOCAB))]
"""For GGUF files of `models`: the merge makes one of them of two others."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in every form; `named` is in BF16 with the names of scales."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "mxfp4", SHAPE, shards=3, placement="shuffled")
    make_checkpoint(folder / "bf16", SHAPE, experts="bf16")
    write_original(folder / "openai", SHAPE)
    to_gguf(folder / "mxfp4", folder / "model.gguf")
    to_gguf(folder / "mxfp4", folder / "f32.gguf", dense="f32", experts="f32")
    to_gguf(folder / "mxfp4", folder / "bf16.gguf", experts="bf16")
    execute(plan_bf16(open_checkpoint(folder / "mxfp4"), folder / "named"))
    return folder


SOURCES = ("mxfp4", "bf16", "openai", "model.gguf", "f32.gguf", "bf16.gguf", "named")
IN_MXFP4 = ("mxfp4", "openai", "model.gguf")


def tensors(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """What the library finds in all safetensors files of a folder."""
    found = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in safetensors.deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            found[name] = (tensor["dtype"], tensor["shape"], bytes(tensor["data"]))
    return found


def convert(source: Path, output: Path, base: Path | None = None, **options: Any) -> Report:
    original = None if base is None else open_checkpoint(base)
    return execute(plan_mxfp4(open_checkpoint(source), output, Mxfp4Options(**options), base=original))


# --- what is in the folder


@pytest.mark.parametrize("limit", [None, 50_000])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", [*IN_MXFP4, "named"])
def test_every_source_with_known_scales_becomes_the_published_tensors(
    folder: Path, tmp_path: Path, source: str, layout: Layout, limit: int | None
) -> None:
    report = convert(folder / source, tmp_path / "out", layout=layout, max_shard_size=limit)
    assert tensors(tmp_path / "out") == tensors(folder / {"hf": "mxfp4", "openai": "openai"}[layout])
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (limit is not None)
    assert report.loss is (LossClass.BYTE_EXACT if source in ("mxfp4", "openai") else LossClass.VALUE_EXACT)
    found = open_checkpoint(tmp_path / "out")
    found.require_sound()
    assert found.config == open_checkpoint(folder / source).config


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", ["bf16", "f32.gguf", "bf16.gguf"])
def test_other_sources_become_the_same_numbers(folder: Path, tmp_path: Path, source: str, layout: Layout) -> None:
    report = convert(folder / source, tmp_path / "out", layout=layout)
    found, expected = open_checkpoint(tmp_path / "out"), open_checkpoint(folder / "mxfp4")
    for name, tensor in found.tensors.items():
        original = expected.tensors[name]
        assert tensor.encoding == original.encoding
        np.testing.assert_array_equal(
            tensor.encoding.decode(tensor.read(0, tensor.rows)).view(np.uint32),
            original.encoding.decode(original.read(0, original.rows)).view(np.uint32),
        )
    assert report.loss is LossClass.VALUE_EXACT


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", ["bf16", "f32.gguf", "bf16.gguf", "named"])
@pytest.mark.parametrize("base", IN_MXFP4)
def test_scales_of_a_base_restore_every_byte(
    folder: Path, tmp_path: Path, source: str, base: str, layout: Layout
) -> None:
    report = convert(folder / source, tmp_path / "out", folder / base, layout=layout)
    assert tensors(tmp_path / "out") == tensors(folder / {"hf": "mxfp4", "openai": "openai"}[layout])
    quantised = [tensor for tensor in report.tensors if tensor.findings.quantisation.values]
    assert len(quantised) == 2 * SHAPE.layers
    for tensor in quantised:
        found = tensor.findings
        assert found.quantisation.kept_blocks == found.quantisation.blocks
        assert (found.survival.tuned, found.survival.moved) == (0, 0)
        assert found.survival.values == found.quantisation.values
        assert not found.survival.rounded_away


# --- fine-tuned weights


@pytest.fixture(scope="module")
def tuned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model `named`, each expert's first row far from the base and all others changed too little."""
    output = tmp_path_factory.mktemp("tuned") / "model"
    write_huggingface(output, SHAPE, experts="bf16", edge_blocks=False)
    path = output / "model.safetensors"
    data = bytearray(path.read_bytes())
    bf16 = ENCODINGS["bf16"]
    for name, tensor in open_checkpoint(output).tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            storage: Any = tensor.storage
            start = storage.stored.offset
            stored = np.frombuffer(data, np.uint16, tensor.nbytes // 2, start).reshape(-1, tensor.shape[1])
            values = bf16.decode((stored,))
            values[:, 0] *= 2
            values[:, 1:] *= np.float32(1.01)
            stored[:] = bf16.encode(values)[0]
    path.write_bytes(data)
    return output


@pytest.mark.parametrize("rule", ScaleRule)
def test_rule_decides_about_weights_that_never_were_in_mxfp4(tuned: Path, tmp_path: Path, rule: ScaleRule) -> None:
    report = convert(tuned, tmp_path / "out", rule=rule)
    assert report.loss is LossClass.LOSSY
    source, found = open_checkpoint(tuned), open_checkpoint(tmp_path / "out")
    for item in report.tensors:
        name = item.transfer.source.name
        figures = item.findings.quantisation
        if not name.endswith(("gate_up_proj", "down_proj")):
            assert item.loss is LossClass.BYTE_EXACT
            continue
        assert item.loss is LossClass.LOSSY
        chunk = source.tensors[name].read(0, source.tensors[name].rows)
        expected = quantise(chunk[0], rule)
        codes, scales = found.tensors[name].read(0, found.tensors[name].rows)
        np.testing.assert_array_equal(codes, expected.codes)
        np.testing.assert_array_equal(scales, expected.scales)
        assert figures.relative_error == pytest.approx(expected.figures.relative_error, rel=1e-9)
        assert figures.clipped_blocks == expected.figures.clipped_blocks
        assert figures.kept_blocks == 0
        assert figures.values == np.prod(source.tensors[name].shape)


def test_what_is_left_of_a_change_is_measured(tuned: Path, tmp_path: Path) -> None:
    base = write_huggingface(tmp_path / "base", SHAPE, edge_blocks=False)
    report = convert(tuned, tmp_path / "out", base)
    source, original, found = (open_checkpoint(path) for path in (tuned, base, tmp_path / "out"))

    def values(checkpoint: Checkpoint, name: str) -> Any:
        tensor = checkpoint.tensors[name]
        return tensor.encoding.decode(tensor.read(0, tensor.rows)).astype(np.float64)

    measured = 0
    for item in report.tensors:
        name, left = item.transfer.source.name, item.findings.survival
        if not left.values:
            continue
        measured += 1
        wanted = values(source, name) - values(original, name)
        kept = values(found, name) - values(original, name)
        assert left.tuned == np.count_nonzero(wanted)
        assert left.moved == np.count_nonzero(kept)
        assert left.share_kept == pytest.approx((wanted * kept).sum() / (wanted * wanted).sum(), rel=1e-9)
        assert 0 < left.share_moved < left.share_tuned
    assert measured == 2 * SHAPE.layers


def test_stale_names_of_scales_do_no_harm(tuned: Path, folder: Path, tmp_path: Path) -> None:
    """They are names for other weights: no block is worse for them."""
    (tmp_path / "model").mkdir()
    for path in tuned.iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    plain = convert(tmp_path / "model", tmp_path / "without")
    (tmp_path / "model" / SIDECAR).write_bytes((folder / "named" / SIDECAR).read_bytes())
    stale = convert(tmp_path / "model", tmp_path / "with")
    for one, other in zip(plain.tensors, stale.tensors, strict=True):
        assert other.findings.quantisation.squared_error <= one.findings.quantisation.squared_error


# --- encodings of all else


@pytest.mark.parametrize("source", ["mxfp4", "f32.gguf", "bf16.gguf"])
def test_other_tensors_can_keep_their_encoding(folder: Path, tmp_path: Path, source: str) -> None:
    checkpoint = open_checkpoint(folder / source)
    convert(folder / source, tmp_path / "out", dense=None)
    found = open_checkpoint(tmp_path / "out")
    found.require_sound()
    for name, spec in inventory(checkpoint.config).items():
        expected = "mxfp4" if spec.role is Role.EXPERTS else checkpoint.tensors[name].encoding.name
        assert found.tensors[name].encoding.name == expected


@pytest.mark.parametrize("dense", ["f16", "f32"])
def test_other_tensors_can_get_another_encoding(folder: Path, tmp_path: Path, dense: str) -> None:
    convert(folder / "mxfp4", tmp_path / "out", dense=dense)
    found = open_checkpoint(tmp_path / "out")
    found.require_sound()
    assert {tensor.encoding.name for tensor in found.tensors.values()} == {"mxfp4", dense}


# --- what the plan says


@pytest.mark.parametrize(
    ("source", "base", "note"),
    [
        ("mxfp4", None, "experts: in MXFP4 already, every bit is kept"),
        ("model.gguf", None, "experts: in MXFP4 already, every bit is kept"),
        ("mxfp4", "openai", "experts: in MXFP4 already, every bit is kept"),
        ("bf16", None, "experts: 4 tensors are quantised, scales by rule even"),
        (
            "named",
            None,
            f"experts: 4 tensors are quantised, scales by rule even, or that in {SIDECAR} where it is as good",
        ),
        (
            "bf16",
            "mxfp4",
            "experts: 4 tensors are quantised, scales by rule even, or that of BASE where it is as good",
        ),
    ],
)
def test_plan_tells_where_scales_come_from(
    folder: Path, tmp_path: Path, source: str, base: str | None, note: str
) -> None:
    checkpoint = open_checkpoint(folder / source)
    original = None if base is None else open_checkpoint(folder / base)
    plan = plan_mxfp4(checkpoint, tmp_path / "out", Mxfp4Options(rule=ScaleRule.EVEN), base=original)
    assert note.replace("BASE", str(folder / (base or ""))) in plan.notes
    experts = [
        transfer.recoding
        for transfer in plan.transfers
        if inventory(checkpoint.config)[transfer.target.name].role is Role.EXPERTS
    ]
    others = [transfer.recoding for transfer in plan.transfers if transfer.recoding not in experts]
    assert set(others) <= {PLAIN}
    if source in IN_MXFP4:
        assert set(experts) == {PLAIN}
    else:
        for recoding in experts:
            assert isinstance(recoding, QuantisingRecoding)
            assert recoding.rule is ScaleRule.EVEN
            assert (recoding.base is not None, recoding.named is not None) == (base is not None, source == "named")


def test_files_of_the_base_are_inputs(folder: Path, tmp_path: Path) -> None:
    base = open_checkpoint(folder / "mxfp4")
    plan = plan_mxfp4(open_checkpoint(folder / "bf16"), tmp_path / "out", base=base)
    assert {base.path, *base.files} <= set(plan.inputs)
    inside = plan_mxfp4(open_checkpoint(folder / "bf16"), folder / "mxfp4", base=base)
    with pytest.raises(OutputError, match="output folder holds the source"):
        execute(inside, replace=True)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_entries_are_what_the_files_hold(folder: Path, tmp_path: Path, source: str, layout: Layout) -> None:
    """Each canonical tensor is told with all of its parts: no byte between them, and none twice."""
    checkpoint = open_checkpoint(folder / source)
    plan = plan_mxfp4(checkpoint, tmp_path / "out", Mxfp4Options(layout=layout, max_shard_size=50_000))
    assert {entry.source for file in plan.files for entry in file.entries} == set(inventory(checkpoint.config))
    for file in plan.files:
        end = len(file.header)
        for entry in sorted(file.entries, key=lambda entry: entry.offset):
            assert entry.offset == end
            end += entry.nbytes
        if file.entries:
            assert end == file.nbytes
    assert plan.data_nbytes == sum(entry.nbytes for file in plan.files for entry in file.entries)
    assert plan_mxfp4(checkpoint, tmp_path / "out", Mxfp4Options(layout=layout, max_shard_size=50_000)) == plan


def test_small_models_are_one_file_as_published(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder / "mxfp4")
    plan = plan_mxfp4(checkpoint, tmp_path / "out", Mxfp4Options(layout="openai"))
    assert plan.nbytes < LARGEST_SINGLE_FILE
    assert [file.path.name for file in plan.files if file.entries] == ["model.safetensors"]


# --- what is refused


def test_base_that_is_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder / "bf16")
    fewer = write_huggingface(tmp_path / "fewer", replace(SHAPE, layers=1))
    with pytest.raises(OptionError, match=r"another one .*layers\.1.*found nothing, expected shape \[3, 192, 64\]"):
        plan_mxfp4(checkpoint, tmp_path / "out", base=open_checkpoint(fewer))
    wider = write_huggingface(tmp_path / "wider", replace(SHAPE, intermediate=128))
    with pytest.raises(
        OptionError, match=r"another one .*found shape \[3, 256, 64\], expected shape \[3, 192, 64\]"
    ):
        plan_mxfp4(checkpoint, tmp_path / "out", base=open_checkpoint(wider))


@pytest.mark.parametrize("base", ["bf16", "f32.gguf"])
def test_base_that_is_not_in_mxfp4_is_refused(folder: Path, tmp_path: Path, base: str) -> None:
    kind = "bf16" if base == "bf16" else "f32"
    with pytest.raises(OptionError, match=f"not in MXFP4 .*found {kind}, expected mxfp4") as caught:
        plan_mxfp4(open_checkpoint(folder / "named"), tmp_path / "out", base=open_checkpoint(folder / base))
    assert caught.value.file == str(folder / base)


def test_unsound_base_is_refused(folder: Path, tmp_path: Path) -> None:
    base = replace(open_checkpoint(folder / "mxfp4"), problems=(InputError("damaged base"),))
    with pytest.raises(InputError, match="damaged base"):
        plan_mxfp4(open_checkpoint(folder / "bf16"), tmp_path / "out", base=base)


@pytest.mark.parametrize("dense", ["f32", None])
def test_other_encodings_have_no_place_in_the_layout_of_openai(
    folder: Path, tmp_path: Path, dense: str | None
) -> None:
    with pytest.raises(OptionError, match="OpenAI's layout has bf16 only"):
        plan_mxfp4(open_checkpoint(folder / "mxfp4"), tmp_path / "out", Mxfp4Options(layout="openai", dense=dense))


@pytest.mark.parametrize("dense", ["q8_0", "mxfp4"])
def test_blocks_have_no_place_outside_of_experts(folder: Path, tmp_path: Path, dense: str) -> None:
    with pytest.raises(UnsupportedError, match=f"no place for this encoding .*found {dense}"):
        plan_mxfp4(open_checkpoint(folder / "mxfp4"), tmp_path / "out", Mxfp4Options(dense=dense))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_experts_that_are_no_whole_blocks_are_refused(tmp_path: Path, layout: Layout) -> None:
    numbers = {
        name: np.ones([20 if "exps" in name and size == models.INNER else size for size in shape], np.float32)
        for name, shape in models.SHAPES.items()
    }
    source = models.write(
        tmp_path / "model.gguf",
        numbers,
        change={"gpt-oss.expert_feed_forward_length": 20, "tokenizer.ggml.tokens": TOKENS},
    )
    with pytest.raises(UnsupportedError, match=r"not whole blocks .*found 20 elements, expected a multiple of 32"):
        plan_mxfp4(open_checkpoint(source), tmp_path / "out", Mxfp4Options(layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rounded_source_needs_permission(tmp_path: Path, layout: Layout) -> None:
    tame = make_checkpoint(tmp_path / "tame", SHAPE, edge_blocks=False)
    source = open_checkpoint(to_gguf(tame, tmp_path / "q8.gguf", dense="q8_0"))
    with pytest.raises(UnsupportedError, match=r"found q8_0.*--allow-lossy-source"):
        plan_mxfp4(source, tmp_path / "out", Mxfp4Options(layout=layout))
    options = Mxfp4Options(layout=layout, allow_lossy_source=True)
    assert execute(plan_mxfp4(source, tmp_path / "out", options)).loss is LossClass.LOSSY


def test_layout_that_cannot_express_the_model_is_refused(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path / "model", SHAPE, config_overrides={"rms_norm_eps": 1e-6})
    with pytest.raises(UnsupportedError, match=r"cannot express .*rms_norm_eps"):
        plan_mxfp4(open_checkpoint(folder), tmp_path / "out", Mxfp4Options(layout="openai"))
    plan_mxfp4(open_checkpoint(folder), tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"not a zip" * 30])
def test_damaged_names_of_scales_are_an_error(folder: Path, tmp_path: Path, content: bytes) -> None:
    model = make_checkpoint(tmp_path / "model", SHAPE, experts="bf16")
    (model / SIDECAR).write_bytes(content)
    with pytest.raises(InputError, match=f"damaged file of scales.*{SIDECAR}"):
        plan_mxfp4(open_checkpoint(model), tmp_path / "out")
    # With a base they are not needed.
    plan_mxfp4(open_checkpoint(model), tmp_path / "out", base=open_checkpoint(folder / "mxfp4"))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_number_that_is_not_finite_is_an_error_that_names_the_tensor(tmp_path: Path, value: float) -> None:
    model = make_checkpoint(tmp_path / "model", SHAPE, experts="bf16")
    name = "model.layers.1.mlp.experts.down_proj"
    storage: Any = open_checkpoint(model).tensors[name].storage
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(storage.stored.offset)
        file.write(ENCODINGS["bf16"].encode(np.full((1, 1), value, np.float32))[0].tobytes())
    with pytest.raises(InputError, match=f"not finite .*{name}"):
        convert(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
