"""The Hugging Face layout as it is planned: read back by our reader and by the libraries that others use."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import transformers
from huggingface_hub.serialization import load_state_dict_from_file
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.checkpoint import Checkpoint, ModelConfig, Role, YarnRope, inventory, parameter_count
from gptoss_convert.encodings import ENCODINGS, Encoding, convert
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats import huggingface
from gptoss_convert.formats.huggingface_writer import config_json, lay_out_folder
from gptoss_convert.formats.weight_folder import WeightFolder
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.layouts import huggingface_config, huggingface_tensors
from tests.unit.formats.moves import Memory

GPT_OSS = Path(__file__).resolve().parents[2] / "data/gpt-oss"
SOURCE = Path("source")
SHAPE = Shape(layers=2, experts=3, experts_per_token=2, vocab=96)
IDS = {"<|return|>": 4, "<|endoftext|>": 1}
INDEX = "model.safetensors.index.json"
MXFP4, BF16 = ENCODINGS["mxfp4"], ENCODINGS["bf16"]


def raw_config(**changes: Any) -> dict[str, Any]:
    return huggingface_config(SHAPE, special_ids=IDS) | changes


def written(
    config: ModelConfig,
    carried: Mapping[str, Any],
    experts: Encoding = MXFP4,
    special_ids: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    text = config_json(config, carried=carried, special_ids=special_ids or {}, experts=experts)
    found: dict[str, Any] = json.loads(text)
    return found


# --- configuration


@pytest.mark.parametrize("model", ["20b", "120b"])
def test_published_configuration_returns_byte_for_byte(model: str) -> None:
    text = (GPT_OSS / model / "config.json").read_bytes()
    raw = json.loads(text)
    config = huggingface.parse_config(raw, SOURCE)
    assert config_json(config, carried=raw, special_ids={}, experts=MXFP4) == text


@pytest.mark.parametrize("model", ["20b", "120b"])
def test_without_a_configuration_all_but_the_version_of_transformers_is_as_published(model: str) -> None:
    raw = json.loads((GPT_OSS / model / "config.json").read_text(encoding="utf-8"))
    config = huggingface.parse_config(raw, SOURCE)
    del raw["transformers_version"]
    special_ids = {"bos": 199998, "eos": 200002, "pad": 199999}
    assert written(config, {}, special_ids=special_ids) == raw


def test_decoded_experts_are_declared() -> None:
    config = huggingface.parse_config(raw_config(), SOURCE)
    for name, dtype in (("bf16", "bfloat16"), ("f16", "float16"), ("f32", "float32")):
        found = written(config, raw_config(), ENCODINGS[name])
        assert found["torch_dtype"] == dtype
        assert "quantization_config" not in found
    assert "torch_dtype" not in written(config, raw_config(torch_dtype="bfloat16", dtype="bfloat16"))


def test_spelling_of_transformers_5_becomes_the_published_one() -> None:
    raw = raw_config(dtype="bfloat16", swiglu_alpha=1.702)
    rope = raw.pop("rope_scaling") | {"rope_theta": raw.pop("rope_theta")}
    del raw["quantization_config"], raw["experts_per_token"]
    raw["rope_parameters"] = rope
    config = huggingface.parse_config(raw, SOURCE)
    assert written(config, raw) == raw_config(swiglu_alpha=1.702)


def test_unknown_keys_of_the_source_are_kept_and_its_shape_is_not() -> None:
    raw = raw_config(
        id2label={"0": "spam"},
        num_local_experts=99,
        hidden_size=1,
        eos_token_id=7,
        rope_theta=1.0,
        future={"a": [1]},
    )
    config = huggingface.parse_config(raw_config(), SOURCE)
    found = written(config, raw, special_ids={"eos": 8, "pad": 9})
    assert found == raw_config(id2label={"0": "spam"}, eos_token_id=7, future={"a": [1]})


@st.composite
def configurations(draw: st.DrawFn) -> ModelConfig:
    numbers, counts = st.floats(1e-6, 1e9), st.integers(1, 1 << 20)
    layers, groups, experts = draw(st.integers(1, 6)), draw(st.integers(1, 16)), draw(counts)
    kinds = st.sampled_from(["sliding_attention", "full_attention"])
    return ModelConfig(
        num_hidden_layers=layers,
        hidden_size=draw(counts),
        intermediate_size=draw(counts),
        num_local_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)),
        num_attention_heads=groups * 8,
        num_key_value_heads=8,
        head_dim=2 * draw(counts),
        vocab_size=draw(counts),
        max_position_embeddings=draw(counts),
        sliding_window=draw(counts),
        layer_types=tuple(draw(st.lists(kinds, min_size=layers, max_size=layers))),
        rope=YarnRope(
            theta=draw(numbers),
            factor=draw(numbers),
            beta_fast=draw(numbers),
            beta_slow=draw(numbers),
            original_context_length=draw(counts),
            truncate=draw(st.booleans()),
        ),
        rms_norm_eps=draw(numbers),
        swiglu_limit=draw(numbers),
    )


@given(configurations(), st.sampled_from(["mxfp4", "bf16"]))
def test_configuration_is_read_as_it_was_written(config: ModelConfig, experts: str) -> None:
    assert huggingface.parse_config(written(config, {}, ENCODINGS[experts]), SOURCE) == config


@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
def test_transformers_reads_the_configuration(experts: str, tmp_path: Path) -> None:
    config = replace(
        huggingface.parse_config(raw_config(), SOURCE),
        layer_types=("full_attention", "sliding_attention"),
        rms_norm_eps=1e-6,
        swiglu_limit=5.0,
    )
    config = replace(config, rope=replace(config.rope, theta=10000.0, factor=16.0, beta_fast=30.0))
    (tmp_path / "config.json").write_bytes(
        config_json(config, carried={}, special_ids={"eos": 4, "pad": 1}, experts=ENCODINGS[experts])
    )
    found: Any = transformers.AutoConfig.from_pretrained(tmp_path)
    for field in (
        "num_hidden_layers", "hidden_size", "intermediate_size", "num_local_experts", "num_experts_per_tok",
        "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
        "sliding_window", "rms_norm_eps", "swiglu_limit",
    ):  # fmt: skip
        assert getattr(found, field) == getattr(config, field), field
    assert tuple(found.layer_types) == config.layer_types
    rope = found.rope_parameters
    assert (rope["rope_theta"], rope["factor"], rope["beta_fast"], rope["beta_slow"], rope["truncate"]) == (
        10000.0, 16.0, 30.0, 1.0, False,
    )  # fmt: skip
    assert (found.eos_token_id, found.pad_token_id) == (4, 1)


# --- tensors


def write(
    checkpoint: Checkpoint, folder: Path, encodings: Mapping[str, Encoding], limit: int | None
) -> WeightFolder:
    """Plan a folder and write it, each tensor in pieces of 7 rows; no byte may be left out or written twice."""
    planned = lay_out_folder(checkpoint.config, encodings, folder, max_shard_size=limit)
    memory = Memory({file.path: bytearray(file.size) for file, _ in planned.files})
    for file, header in planned.files:
        memory.write(file.path, header, 0)
    for name, target in planned.tensors.items():
        source = checkpoint.tensors[name]
        assert (source.shape, encodings[name]) == (target.shape, target.encoding)
        for start in range(0, source.rows, 7):
            chunk = source.read(start, min(start + 7, source.rows))
            target.storage.write(memory, start, convert(chunk, source.encoding, target.encoding))
    folder.mkdir()
    for path, content in memory.files.items():
        assert memory.written[path].all()
        path.write_bytes(content)
    for name, text in planned.texts.items():
        (folder / name).write_bytes(text)
    return planned


def contents(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """What the library finds in all safetensors files of a folder."""
    found = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in safetensors.deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            assert name not in found
            found[name] = (tensor["dtype"], tensor["shape"], bytes(tensor["data"]))
    return found


def kinds(checkpoint: Checkpoint, experts: Encoding, others: Encoding = BF16) -> dict[str, Encoding]:
    return {
        name: experts if spec.role is Role.EXPERTS else others
        for name, spec in inventory(checkpoint.config).items()
    }


LIMITS = pytest.mark.parametrize("limit", [None, 40_000, 1], ids=["one file", "shards", "a file for each"])


@LIMITS
@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
def test_folder_holds_what_transformers_would_have_written(experts: Any, limit: int | None, tmp_path: Path) -> None:
    source = huggingface.read(write_huggingface(tmp_path / "mxfp4", SHAPE))
    expected = write_huggingface(tmp_path / "expected", SHAPE, experts=experts)
    write(source, tmp_path / "out", kinds(source, ENCODINGS[experts]), limit)
    assert contents(tmp_path / "out") == contents(expected)
    assert (tmp_path / "out" / INDEX).exists() == (limit is not None)


@LIMITS
@pytest.mark.parametrize("others", ["bf16", "f32"])
@pytest.mark.parametrize("experts", ["mxfp4", "bf16", "f32"])
def test_what_is_written_is_read_as_it_was_planned(
    experts: str, others: str, limit: int | None, tmp_path: Path
) -> None:
    source = huggingface.read(write_huggingface(tmp_path / "source", SHAPE))
    encodings = kinds(source, ENCODINGS[experts], ENCODINGS[others])
    planned = write(source, tmp_path / "out", encodings, limit)
    (tmp_path / "out/config.json").write_bytes(
        config_json(source.config, carried={}, special_ids={}, experts=ENCODINGS[experts])
    )
    found = huggingface.read(tmp_path / "out")
    found.require_sound()
    assert found.config == source.config
    assert list(found.tensors) == list(planned.tensors) == list(planned.parts) == list(inventory(source.config))
    for name, tensor in found.tensors.items():
        assert tensor.encoding == encodings[name]
        assert planned.tensors[name].storage.files == tensor.storage.files
        original = source.tensors[name]
        np.testing.assert_array_equal(
            tensor.encoding.decode(tensor.read(0, tensor.rows)).view(np.uint32),
            original.encoding.decode(original.read(0, original.rows)).view(np.uint32),
            err_msg=name,
        )


@pytest.mark.parametrize("limit", [None, 40_000])
def test_library_opens_files_and_index(limit: int | None, tmp_path: Path) -> None:
    source = huggingface.read(write_huggingface(tmp_path / "source", SHAPE))
    planned = write(source, tmp_path / "out", kinds(source, BF16), limit)
    names = {tensor.name for tensor in huggingface_tensors(SHAPE, experts="bf16")}
    paths = sorted((tmp_path / "out").glob("*.safetensors"))
    for path in paths:
        with safetensors.safe_open(path, "np") as file:  # type: ignore[no-untyped-call]
            assert file.metadata() == {"format": "pt"}
        assert load_state_dict_from_file(path)
    if limit is None:
        assert planned.texts == {}
        return
    index = json.loads(planned.texts[INDEX])
    assert index["weight_map"].keys() == names
    assert set(index["weight_map"].values()) == {path.name for path in paths}
    assert index["metadata"] == {
        "total_parameters": parameter_count(source.config),
        "total_size": sum(len(data) for _, _, data in contents(tmp_path / "out").values()),
    }
    for name, place in index["weight_map"].items():
        with safetensors.safe_open(tmp_path / "out" / place, "np") as file:  # type: ignore[no-untyped-call]
            assert name in file.keys()  # noqa: SIM118 - the library's object is no mapping


def test_shards_keep_within_their_size(tmp_path: Path) -> None:
    config = huggingface.parse_config(raw_config(), SOURCE)
    encodings = dict.fromkeys(inventory(config), BF16)
    planned = lay_out_folder(config, encodings, tmp_path, max_shard_size=60_000)
    assert len(planned.files) > 2
    for file, header in planned.files:
        inside = [part for parts in planned.parts.values() for part in parts if part.file == file]
        assert file.size - len(header) <= 60_000 or len(inside) == 1


@pytest.mark.parametrize(
    ("role", "encoding"), [(Role.EXPERTS, "q8_0"), (Role.ATTENTION, "mxfp4"), (Role.NORM, "q8_0")]
)
def test_encoding_without_a_place_is_refused(role: Role, encoding: str, tmp_path: Path) -> None:
    config = huggingface.parse_config(raw_config(), SOURCE)
    encodings = {
        name: ENCODINGS[encoding] if spec.role is role else BF16 for name, spec in inventory(config).items()
    }
    with pytest.raises(UnsupportedError, match=f"no place for this encoding .*found {encoding}"):
        lay_out_folder(config, encodings, tmp_path, max_shard_size=None)
