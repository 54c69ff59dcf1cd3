"""Files that travel to a folder beside the weights."""

import json
import shutil
from pathlib import Path

import pytest

from gptoss_convert.assets import CARRIED, TOKENIZER_FILES
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.to_bf16 import plan_bf16
from gptoss_convert.converters.to_mxfp4 import Mxfp4Options, plan_mxfp4
from gptoss_convert.converters.weight_folder import carried_configuration, carry_over, require_folder_name
from gptoss_convert.errors import InputError, OutputError
from gptoss_convert.formats import open_checkpoint, open_tokenizer
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.conversions import make_checkpoint, to_gguf
from tests.support.tokenizers import write_small_tokenizer

SHAPE = Shape(layers=1, experts=2, experts_per_token=2)
TEXTS = ("README.md", "LICENSE", "NOTICE", "USAGE_POLICY")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A complete repository, with files that have no place in a converted one."""
    folder = make_checkpoint(tmp_path / "model", SHAPE)
    for name in TEXTS:
        (folder / name).write_text(f"the text of {name}\n", encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "manifest.json").write_bytes(b"{}")
    return folder


def written(plan: Plan) -> Path:
    execute(plan)
    return plan.output


def test_small_files_travel_as_they_are(model: Path, tmp_path: Path) -> None:
    output = written(plan_bf16(open_checkpoint(model), tmp_path / "out"))
    names = {*TOKENIZER_FILES, *TEXTS, "generation_config.json"}
    assert {path.name for path in output.iterdir()} == {
        *names, "config.json", "model.safetensors", "mxfp4-scales.zip",
    }  # fmt: skip
    for name in names:
        assert (output / name).read_bytes() == (model / name).read_bytes()


def test_small_files_of_the_repository_travel_from_the_original_folder(model: Path, tmp_path: Path) -> None:
    write_original(model / "original", SHAPE)
    output = written(plan_bf16(open_checkpoint(model / "original"), tmp_path / "out"))
    for name in CARRIED:
        assert (output / name).read_bytes() == (model / name).read_bytes()
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    published = json.loads((model / "config.json").read_text(encoding="utf-8"))
    del published["quantization_config"]
    assert config == published | {"torch_dtype": "bfloat16"}


def test_original_folder_alone_has_no_tokenizer(tmp_path: Path) -> None:
    source = open_checkpoint(write_original(tmp_path / "original", SHAPE))
    plan = plan_mxfp4(source, tmp_path / "out")
    assert any("no tokenizer" in note and "--tokenizer" in note for note in plan.notes)
    output = written(plan)
    assert {path.name for path in output.iterdir()} == {"config.json", "model.safetensors"}
    found = open_checkpoint(output)
    found.require_sound()
    assert found.config == source.config


def test_tokenizer_of_another_folder_takes_the_place_of_the_own_one(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_small_tokenizer(other, 400)
    plan = plan_bf16(open_checkpoint(model), tmp_path / "out", tokenizer=open_tokenizer(other))
    assert f"tokenizer: {other / 'tokenizer.json'}" in plan.notes
    assert other / "tokenizer.json" in plan.inputs
    output = written(plan)
    for name in TOKENIZER_FILES:
        assert (output / name).read_bytes() == (other / name).read_bytes()


def test_tokenizers_of_two_folders_are_not_mixed(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_small_tokenizer(other)
    for name in TOKENIZER_FILES[1:]:
        (other / name).unlink(missing_ok=True)
    carried = carry_over(open_checkpoint(model), open_tokenizer(other))
    assert {name: path for name, path in carried.copies.items() if name in TOKENIZER_FILES} == {
        "tokenizer.json": other / "tokenizer.json"
    }
    assert {*TEXTS, "generation_config.json"} <= carried.copies.keys()


@pytest.mark.parametrize("layout", ["hf", "openai"])
def test_tokenizer_of_a_gguf_file_is_written_anew(model: Path, tmp_path: Path, layout: str) -> None:
    source = open_checkpoint(to_gguf(model, tmp_path / "model.gguf"))
    plan = plan_mxfp4(source, tmp_path / "out", Mxfp4Options(layout=layout))  # type: ignore[arg-type]
    assert f"tokenizer files: written anew from {tmp_path / 'model.gguf'}" in plan.notes
    output = written(plan)
    for name in TOKENIZER_FILES:
        assert (output / name).read_bytes() == (model / name).read_bytes()
    ours, theirs = (open_checkpoint(path).tokenizer for path in (output, model))
    if layout == "hf":
        assert ours is not None
        assert theirs is not None
        assert ours.vocabulary() == theirs.vocabulary()


def test_special_ids_of_a_gguf_file_get_into_the_configuration(model: Path, tmp_path: Path) -> None:
    source = open_checkpoint(to_gguf(model, tmp_path / "model.gguf"))
    output = written(plan_bf16(source, tmp_path / "out"))
    found, published = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (output, model)
    )
    for key in ("eos_token_id", "pad_token_id"):
        assert found[key] == published[key]


def test_damaged_tokenizer_of_a_gguf_file_is_an_error(model: Path, tmp_path: Path) -> None:
    path = to_gguf(model, tmp_path / "model.gguf")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"tokenizer.ggml.merges", b"tokenizer.ggml.mergez"))
    with pytest.raises(InputError, match="merges"):
        carry_over(open_checkpoint(path), None)


def test_configuration_of_another_model_is_not_carried(tmp_path: Path) -> None:
    """OpenAI's own config.json has other keys."""
    assert carried_configuration(open_checkpoint(write_original(tmp_path / "openai", SHAPE))) == {}
    checkpoint = open_checkpoint(write_huggingface(tmp_path / "hf", SHAPE))
    assert carried_configuration(checkpoint)["model_type"] == "gpt_oss"


def test_every_file_that_is_read_is_an_input(model: Path, tmp_path: Path) -> None:
    plan = plan_bf16(open_checkpoint(model), tmp_path / "out")
    read = {model, model / "model.safetensors", *(model / name for name in (*CARRIED, "config.json"))}
    assert read <= set(plan.inputs)


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_output_without_a_name_is_refused(path: str, model: Path) -> None:
    with pytest.raises(OutputError, match="output has no name"):
        require_folder_name(Path(path))
    checkpoint = open_checkpoint(model)
    with pytest.raises(OutputError, match="output has no name"):
        plan_bf16(checkpoint, Path(path))
    with pytest.raises(OutputError, match="output has no name"):
        plan_mxfp4(checkpoint, Path(path))


def test_relative_output_means_the_same_folder_wherever_it_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_bf16(open_checkpoint(Path("model")), Path("out"))
    monkeypatch.chdir("/")
    assert written(plan) == tmp_path / "out"
    assert (tmp_path / "out/config.json").exists()


def test_files_that_are_links_are_copied(model: Path, tmp_path: Path) -> None:
    """As in the cache of the Hugging Face Hub."""
    blobs, snapshot = tmp_path / "cache/blobs", tmp_path / "cache/snapshots/abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in list(model.iterdir()):
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    output = written(plan_bf16(open_checkpoint(snapshot), tmp_path / "out"))
    assert not any(path.is_symlink() for path in output.iterdir())
    shutil.rmtree(blobs)
    open_checkpoint(output).require_sound()


def test_copied_file_that_changed_is_refused(model: Path, tmp_path: Path) -> None:
    plan = plan_bf16(open_checkpoint(model), tmp_path / "out")
    (model / "LICENSE").write_text("longer than before, in any case", encoding="utf-8")
    with pytest.raises(InputError, match=r"file changed while it was in use .*LICENSE"):
        execute(plan)
    assert not (tmp_path / "out").exists()
