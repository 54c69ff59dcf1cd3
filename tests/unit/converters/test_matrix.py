"""Every conversion of the table, there and back, does to the numbers what the table says."""

import itertools
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert.canonical_hash import hash_checkpoint
from gptoss_convert.checkpoint import Checkpoint, Role, inventory
from gptoss_convert.converters.execute import Report, execute
from gptoss_convert.converters.matrix import MATRIX, Conversion, Form, Restored, conversion, render
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.to_bf16 import Bf16Options, plan_bf16
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.converters.to_mxfp4 import Mxfp4Options, plan_mxfp4
from gptoss_convert.converters.to_onnx import GRAPHS, OnnxOptions, plan_onnx
from gptoss_convert.encodings import Chunk, LossClass
from gptoss_convert.formats import open_checkpoint
from tests.cli.command import run_here
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.tokenizers import write_small_tokenizer
from tests.unit.formats.gguf import models
from tests.unit.formats.onnx.folders import use_test_graphs

SHAPE = Shape(layers=1, hidden=512, intermediate=160, experts=2, experts_per_token=2, vocab=512)
"""So many blocks that every byte of codes occurs with every scale."""
DOCUMENT = Path(__file__).resolve().parents[3] / "docs/conversions.md"

ENCODINGS = {
    Form.HUGGINGFACE: ("huggingface", "mxfp4", "bf16", "bf16"),
    Form.OPENAI: ("openai", "mxfp4", "bf16", "bf16"),
    Form.BF16: ("huggingface", "bf16", "bf16", "bf16"),
    Form.GGUF: ("gguf", "mxfp4", "bf16", "f32"),
    Form.GGUF_BF16: ("gguf", "bf16", "bf16", "f32"),
    Form.GGUF_F16: ("gguf", "f16", "f16", "f32"),
    Form.GGUF_F32: ("gguf", "f32", "f32", "f32"),
    Form.GGUF_Q8_0: ("gguf", "mxfp4", "q8_0", "f32"),
    Form.GGUF_QUANTISED: ("gguf", "q5_0", "q4_0", "f32"),
    Form.ONNX: ("onnx", "mxfp4", "f32", "f32"),
    Form.ONNX_F16: ("onnx", "mxfp4", "f16", "f16"),
    Form.ONNX_INT8: ("onnx", "int8-block", "f32", "f32"),
    Form.ONNX_INT4: ("onnx", "int4-block", "f32", "f32"),
}
"""Format, and encodings of experts, of other matrices, and of all else."""
SMALL_RANGE = {Form.GGUF_F16, Form.GGUF_Q8_0, Form.ONNX_F16}
"""Forms that cannot hold the numbers of extreme scales, come from one that cannot, or compute in one."""


def convert(source: Path, command: str, output: Path, **how: Any) -> tuple[Plan, Report]:
    """Run a command of the table."""
    name, *words = shlex.split(command)
    options: dict[str, Any] = {}
    while words:
        option = words.pop(0).removeprefix("--").replace("-", "_")
        options[option] = True if not words or words[0].startswith("--") else words.pop(0)
    checkpoint = open_checkpoint(source)
    plan = {
        "to-bf16": lambda: plan_bf16(checkpoint, output, Bf16Options(**options)),
        "to-mxfp4": lambda: plan_mxfp4(checkpoint, output, Mxfp4Options(**options), **how),
        "to-gguf": lambda: plan_gguf(checkpoint, output, GgufOptions(**options)),
        "to-onnx": lambda: plan_onnx(checkpoint, output, OnnxOptions(**options)),
    }[name]().with_manifest()
    return plan, execute(plan)


def tensors(path: Path) -> Mapping[str, Chunk]:
    """Every tensor of a model, in its encoding."""
    return {
        name: tuple(np.ascontiguousarray(part) for part in tensor.read(0, tensor.rows))
        for name, tensor in open_checkpoint(path).tensors.items()
    }


def same_bytes(first: Path, second: Path) -> list[str]:
    """The tensors that differ."""
    left, right = tensors(first), tensors(second)
    assert left.keys() == right.keys()
    return [
        name
        for name in left
        if [part.tobytes() for part in left[name]] != [part.tobytes() for part in right[name]]
        or [part.dtype for part in left[name]] != [part.dtype for part in right[name]]
    ]


@cache
def digest(path: Path) -> str:
    return hash_checkpoint(open_checkpoint(path), jobs=1).model


class Models:
    """One model in every form; `tame` is one whose numbers have ordinary sizes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, form: Form, tame: bool) -> Path:
        path = self._folder / ("tame" if tame else "all blocks") / form.name / "model"
        if form.name.startswith("GGUF"):
            path = path.with_suffix(".gguf")
        if not path.exists():
            path.parent.mkdir(parents=True)
            self._write(form, tame, path)
        return path

    def _write(self, form: Form, tame: bool, path: Path) -> None:
        if form is Form.GGUF_QUANTISED:
            names = [name for name, shape in models.SHAPES.items() if len(shape) > 1 and "bias" not in name]
            kinds = {name: "q5_0" if "exps" in name else "q4_0" for name in names if "ffn_gate_inp" not in name}
            tokens = ["t", "1", "t1", *(f"t{index}" for index in range(3, models.VOCAB))]
            models.write(path, models.random_values(), encodings=kinds, change={"tokenizer.ggml.tokens": tokens})
            return
        if form.name.startswith(("GGUF", "ONNX")):
            way = conversion(Form.HUGGINGFACE, form)
            assert way is not None
            convert(self.path(Form.HUGGINGFACE, tame), way.command, path)
            return
        write_small_tokenizer(path)
        filling: dict[str, Any] = {"edge_blocks": False} if tame else {"fill": "every block"}
        if form is Form.OPENAI:
            write_original(path, SHAPE, **filling)
        else:
            write_huggingface(path, SHAPE, experts="bf16" if form is Form.BF16 else "mxfp4", **filling)


@pytest.fixture(scope="module", autouse=True)
def _test_graphs() -> Iterator[None]:
    """Graphs hand out their weights, in every combination of encodings."""
    with pytest.MonkeyPatch.context() as patch:
        use_test_graphs(patch.setattr)
        yield


@pytest.fixture(scope="module")
def models_of(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("matrix"))


def is_tame(*forms: Form) -> bool:
    return not SMALL_RANGE.isdisjoint(forms)


def encodings_by_role(checkpoint: Checkpoint) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"experts": set(), "matrices": set(), "others": set()}
    matrices = (Role.EMBEDDING, Role.UNEMBEDDING, Role.ATTENTION)
    for name, spec in inventory(checkpoint.config).items():
        kind = "experts" if spec.role is Role.EXPERTS else "matrices" if spec.role in matrices else "others"
        found[kind].add(checkpoint.tensors[name].encoding.name)
    return found


def output_for(folder: Path, form: Form, name: str) -> Path:
    return folder / (f"{name}.gguf" if form.name.startswith("GGUF") else name)


def loses_signs(item: Conversion) -> bool:
    """Whether zeros lose their sign, of which every model has some that can have them."""
    return item.target is Form.ONNX_INT8 and item.source not in (Form.ONNX_INT8, Form.ONNX_INT4)


def without_signs_of_zero(encoding: str, parts: list[bytes]) -> list[bytes]:
    """Bytes of a tensor with all zeros alike."""
    match encoding:
        case "mxfp4":
            codes = np.frombuffer(parts[0], np.uint8).copy()
            codes[codes & 0x0F == 0x08] &= 0xF0
            codes[codes & 0xF0 == 0x80] &= 0x0F
            return [codes.tobytes(), parts[1]]
        case "f16" | "bf16":
            bits = np.frombuffer(parts[0], np.uint16)
            return [np.where(bits == 0x8000, 0, bits).astype(np.uint16).tobytes()]
        case "f32":
            return [(np.frombuffer(parts[0], np.float32) + np.float32(0)).tobytes()]
        case _:
            return parts


def stored(path: Path) -> Mapping[str, tuple[str, list[bytes]]]:
    """Encoding and parts of every tensor."""
    encodings = {name: tensor.encoding.name for name, tensor in open_checkpoint(path).tensors.items()}
    return {name: (encodings[name], [part.tobytes() for part in chunk]) for name, chunk in tensors(path).items()}


def label(item: Conversion) -> str:
    return f"{item.source.name}-{item.target.name}"


# --- the table


def test_every_pair_of_forms_is_in_the_table_once() -> None:
    pairs = [(item.source, item.target) for item in MATRIX]
    assert len(pairs) == len(set(pairs))
    made_by_others = Form.GGUF_QUANTISED
    written = [form for form in Form if form is not made_by_others]
    assert set(pairs) == {*itertools.product(Form, written), (made_by_others, made_by_others)} - {
        (made_by_others, Form.GGUF_Q8_0)
    }


def test_documentation_is_that_of_the_table() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render(), (
        "write it anew: python -m gptoss_convert.converters.matrix > docs/conversions.md"
    )


@pytest.mark.parametrize("tame", [True, False])
@pytest.mark.parametrize("form", Form)
def test_models_are_of_their_form(form: Form, tame: bool, models_of: Models) -> None:
    if is_tame(form) and not tame:
        tame = True
    checkpoint = open_checkpoint(models_of.path(form, tame))
    checkpoint.require_sound()
    name, experts, matrices, others = ENCODINGS[form]
    assert checkpoint.format == name
    assert encodings_by_role(checkpoint) == {"experts": {experts}, "matrices": {matrices}, "others": {others}}


def test_model_has_every_byte_of_codes_with_every_scale(models_of: Models) -> None:
    seen = np.zeros((256, 256), bool)
    for name, chunk in tensors(models_of.path(Form.HUGGINGFACE, tame=False)).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            codes, scales = chunk
            seen[np.repeat(scales, 16, axis=1), codes] = True
    assert seen[:253].all()
    assert not seen[253:].any()


# --- every conversion


@pytest.mark.parametrize("item", MATRIX, ids=label)
def test_conversion_does_what_the_table_says(item: Conversion, models_of: Models, tmp_path: Path) -> None:
    source = models_of.path(item.source, is_tame(item.source, item.target))
    plan, report = convert(source, item.command, output_for(tmp_path, item.target, "out"))
    artifact = open_checkpoint(plan.output)
    artifact.require_sound()
    name, experts, matrices, others = ENCODINGS[item.target]
    assert artifact.format == name
    assert encodings_by_role(artifact) == {"experts": {experts}, "matrices": {matrices}, "others": {others}}
    assert plan.loss is item.promised
    assert report.hash is not None
    assert report.hash.model == digest(plan.output)
    if item.found is None:
        assert report.loss.severity <= plan.loss.severity
    else:
        assert report.loss is item.found
    assert (digest(plan.output) == digest(source)) == (report.loss is not LossClass.LOSSY and not loses_signs(item))


@pytest.mark.parametrize("item", MATRIX, ids=label)
def test_way_back_restores_what_the_table_says(item: Conversion, models_of: Models, tmp_path: Path) -> None:
    source = models_of.path(item.source, is_tame(item.source, item.target))
    there = output_for(tmp_path, item.target, "there")
    convert(source, item.command, there)
    way_back = conversion(item.target, item.source)
    if way_back is None:
        assert item.source is Form.GGUF_QUANTISED
        assert item.restored is Restored.ROUNDED
        return
    back = output_for(tmp_path, item.source, "back")
    convert(there, way_back.command, back)
    different = same_bytes(source, back)
    match item.restored:
        case Restored.BYTES:
            assert different == []
        case Restored.VALUES | Restored.VALUES_ONLY:
            assert digest(back) == digest(source)
            assert different
            assert all("experts" in name for name in different)
        case Restored.UNSIGNED:
            assert different
            before, after = stored(source), stored(back)
            for name, (encoding, parts) in before.items():
                assert after[name] == (encoding, without_signs_of_zero(encoding, parts)), name
        case Restored.ROUNDED:
            assert digest(back) != digest(source)
    if item.restored is Restored.VALUES:
        with_base = output_for(tmp_path, item.source, "with base")
        convert(there, way_back.command, with_base, base=open_checkpoint(source))
        assert same_bytes(source, with_base) == []


@pytest.mark.parametrize("command", sorted({item.command for item in MATRIX if "to-onnx" in item.command}))
def test_targets_take_what_the_table_asks_of_them(command: str) -> None:
    _, *words = shlex.split(command)
    target = GRAPHS[words[words.index("--target") + 1]]
    assert words[words.index("--experts") + 1] in target.experts
    assert words[words.index("--activations") + 1] in target.activations


# --- longer ways


@pytest.mark.parametrize(
    "way",
    [
        (Form.HUGGINGFACE, Form.GGUF, Form.HUGGINGFACE),
        (Form.HUGGINGFACE, Form.OPENAI, Form.HUGGINGFACE),
        (Form.HUGGINGFACE, Form.BF16, Form.HUGGINGFACE),
        (Form.HUGGINGFACE, Form.BF16, Form.BF16, Form.OPENAI, Form.GGUF, Form.BF16, Form.HUGGINGFACE),
        (Form.OPENAI, Form.GGUF, Form.BF16, Form.OPENAI),
        (Form.HUGGINGFACE, Form.ONNX, Form.GGUF, Form.ONNX, Form.BF16, Form.ONNX, Form.HUGGINGFACE),
    ],
    ids=lambda way: "-".join(form.name for form in way),
)
def test_tensors_are_the_same_bytes_at_the_end_of_a_way(
    way: tuple[Form, ...], models_of: Models, tmp_path: Path
) -> None:
    start = place = models_of.path(way[0], tame=False)
    for index, (source, target) in enumerate(itertools.pairwise(way)):
        step = conversion(source, target)
        assert step is not None
        stop = output_for(tmp_path, target, str(index))
        convert(place, step.command, stop)
        assert digest(stop) == digest(start)
        place = stop
    assert same_bytes(start, place) == []


@pytest.mark.parametrize("layout", ["hf", "openai"])
@pytest.mark.parametrize("base", [Form.HUGGINGFACE, Form.OPENAI, Form.GGUF])
@pytest.mark.parametrize("decoded", [Form.BF16, Form.GGUF_BF16, Form.GGUF_F32])
def test_scales_can_be_taken_from_the_original_in_any_form(
    decoded: Form, base: Form, layout: str, models_of: Models, tmp_path: Path
) -> None:
    original = open_checkpoint(models_of.path(base, tame=False))
    source = models_of.path(decoded, tame=False)  # written without names of scales
    _, report = convert(source, f"to-mxfp4 --layout {layout}", tmp_path / "out", base=original)
    assert same_bytes(models_of.path(Form.HUGGINGFACE, tame=False), tmp_path / "out") == []
    assert report.loss is LossClass.VALUE_EXACT
    survivals = [tensor.findings.survival for tensor in report.tensors if tensor.findings.survival.values]
    assert len(survivals) == 2
    assert [(found.tuned, found.moved) for found in survivals] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("command", sorted({item.command for item in MATRIX}))
def test_command_line_takes_every_command(command: str, models_of: Models, tmp_path: Path) -> None:
    item = next(item for item in MATRIX if item.command == command)
    source = models_of.path(item.source, is_tame(item.source, item.target))
    name, *options = shlex.split(command)
    output = output_for(tmp_path, item.target, "out")
    outcome = run_here(name, source, "-o", output, "--dry-run", *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert item.promised in outcome.stdout
