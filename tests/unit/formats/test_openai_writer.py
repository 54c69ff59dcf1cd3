"""OpenAI's layout as it is planned: the published files to the byte, and what it cannot express."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.checkpoint import Checkpoint, ModelConfig, YarnRope, alternating_layers, inventory
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats import huggingface, openai
from gptoss_convert.formats.openai_writer import (
    DTYPES,
    PUBLISHED_SHARD_SIZE,
    config_json,
    encodings,
    lay_out_folder,
)
from gptoss_convert.formats.weight_folder import WeightFolder
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.layouts import original_config, original_tensors
from tests.unit.formats.moves import Memory

GPT_OSS = Path(__file__).resolve().parents[2] / "data/gpt-oss"
SOURCE = Path("source")
SHAPE = Shape(layers=3, experts=3, experts_per_token=2, vocab=96)
SMALL = openai.parse_config(original_config(SHAPE), SOURCE)
INDEX = "model.safetensors.index.json"


def published(model: str) -> ModelConfig:
    """The configuration in the Hugging Face layout."""
    raw = json.loads((GPT_OSS / model / "config.json").read_text(encoding="utf-8"))
    return huggingface.parse_config(raw, SOURCE)


# --- published files


def test_files_of_20b_are_the_published_ones(tmp_path: Path) -> None:
    planned = lay_out_folder(published("20b"), tmp_path, max_shard_size=None, source=SOURCE)
    [(file, _)] = planned.files
    assert (file.path, file.size) == (tmp_path / "model.safetensors", 13_761_300_984)
    original = GPT_OSS / "20b/original"
    assert planned.texts == {name: (original / name).read_bytes() for name in ("config.json", "dtypes.json")}


def test_files_of_120b_are_the_published_ones(tmp_path: Path) -> None:
    """Sizes and SHA-256 of openai/gpt-oss-120b at b5c939de, `original/`."""
    planned = lay_out_folder(published("120b"), tmp_path, max_shard_size=PUBLISHED_SHARD_SIZE, source=SOURCE)
    assert {file.path.name: file.size for file, _ in planned.files} == {
        "model--00001-of-00007.safetensors": 10_544_040_680,
        "model--00002-of-00007.safetensors": 10_488_721_680,
        "model--00003-of-00007.safetensors": 10_488_721_688,
        "model--00004-of-00007.safetensors": 10_488_721_672,
        "model--00005-of-00007.safetensors": 10_488_721_680,
        "model--00006-of-00007.safetensors": 10_433_402_600,
        "model--00007-of-00007.safetensors": 2_316_539_800,
    }
    assert len({part.name for parts in planned.parts.values() for part in parts}) == 543
    digests = {name: hashlib.sha256(planned.texts[name]).hexdigest() for name in ("config.json", INDEX)}
    assert digests == {
        "config.json": "063aaa98e012cac330d58d18471700f0b0eb90bb15c58fb227809d45090f3e65",
        INDEX: "40ffac1e58f77c5307f20990cdb89910ad86961ed556952feda8aaa1c0d5ac97",
    }


# --- tensors


def written(checkpoint: Checkpoint, folder: Path, limit: int | None) -> WeightFolder:
    """Plan a folder and write it, each tensor in pieces of 7 rows; no byte may be left out or written twice."""
    planned = lay_out_folder(checkpoint.config, folder, max_shard_size=limit, source=checkpoint.path)
    memory = Memory({file.path: bytearray(file.size) for file, _ in planned.files})
    for file, header in planned.files:
        memory.write(file.path, header, 0)
    for name, target in planned.tensors.items():
        source = checkpoint.tensors[name]
        assert (source.shape, source.encoding) == (target.shape, target.encoding)
        for start in range(0, source.rows, 7):
            target.storage.write(memory, start, source.read(start, min(start + 7, source.rows)))
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


@pytest.mark.parametrize("limit", [None, 40_000, 1], ids=["one file", "shards", "a file for each"])
@pytest.mark.parametrize("layout", ["openai", "huggingface"])
def test_either_layout_becomes_the_original(layout: str, limit: int | None, tmp_path: Path) -> None:
    original = write_original(tmp_path / "original", SHAPE)
    if layout == "openai":
        checkpoint = openai.read(original)
    else:
        checkpoint = huggingface.read(write_huggingface(tmp_path / "huggingface", SHAPE))
    output = tmp_path / "written"
    written(checkpoint, output, limit)
    assert contents(output) == contents(original)
    for name in ("config.json", DTYPES):
        assert (output / name).read_bytes() == (original / name).read_bytes()
    assert (output / INDEX).exists() == (limit is not None)


@pytest.mark.parametrize("limit", [None, 40_000])
def test_what_is_written_is_read_as_it_was_planned(limit: int | None, tmp_path: Path) -> None:
    checkpoint = openai.read(write_original(tmp_path / "original", SHAPE))
    planned = written(checkpoint, tmp_path / "written", limit)
    found = openai.read(tmp_path / "written")
    found.require_sound()
    assert found.config == checkpoint.config
    assert list(found.tensors) == list(planned.tensors) == list(planned.parts) == list(inventory(checkpoint.config))
    for name, tensor in found.tensors.items():
        assert tensor.encoding == encodings(found.config)[name]
        assert planned.tensors[name].storage.files == tensor.storage.files


def test_parts_are_where_the_storages_write(tmp_path: Path) -> None:
    """Each canonical tensor is told with the bytes that it takes: none between them, and none twice."""
    planned = lay_out_folder(SMALL, tmp_path, max_shard_size=None, source=SOURCE)
    [(file, header)] = planned.files
    end = len(header)
    for part in sorted((part for parts in planned.parts.values() for part in parts), key=lambda part: part.offset):
        assert part.offset == end
        assert part.file == file
        end += part.nbytes
    assert end == file.size
    for name, parts in planned.parts.items():
        tensor = planned.tensors[name]
        assert sum(part.nbytes for part in parts) == tensor.nbytes
        kinds = ["", ""] if tensor.encoding.name == "bf16" else [".blocks", ".scales"]
        assert all(part.name.endswith(kind) for part, kind in zip(parts, kinds, strict=False))
    prefix = "model.layers.1.self_attn."
    fused = [planned.parts[f"{prefix}{letter}_proj.weight"] for letter in "qkv"]
    assert {part.name for parts in fused for part in parts} == {"block.1.attn.qkv.weight"}
    starts = [parts[0].offset - fused[0][0].offset for parts in fused]
    row = 2 * SHAPE.hidden
    query, key = SHAPE.heads * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim
    assert starts == [0, query * row, (query + key) * row]


def test_shards_are_filled_by_name(tmp_path: Path) -> None:
    planned = lay_out_folder(SMALL, tmp_path, max_shard_size=40_000, source=SOURCE)
    placed = {part.name: part.file for parts in planned.parts.values() for part in parts}
    files = [placed[tensor.name] for tensor, _ in original_tensors(SHAPE)]
    by_name = [placed[name].path.name for name in sorted(placed)]
    assert len(set(files)) > 2
    assert by_name == sorted(by_name)
    assert by_name[0] == f"model--00001-of-{len(set(files)):05d}.safetensors"


# --- what the layout cannot express


def with_rope(**changes: Any) -> ModelConfig:
    return replace(SMALL, rope=replace(SMALL.rope, **changes))


INEXPRESSIBLE: Mapping[str, tuple[ModelConfig, str]] = {
    "layers of one kind": (
        replace(SMALL, layer_types=("sliding_attention",) * 3),
        r"layer_types\[1\].*found sliding_attention, expected full_attention",
    ),
    "full layers first": (
        replace(SMALL, layer_types=alternating_layers(4)[1:]),
        r"layer_types\[0\].*found full_attention, expected sliding_attention",
    ),
    "rounded YaRN range": (with_rope(truncate=True), "rope.truncate.*found True, expected False"),
    "epsilon": (replace(SMALL, rms_norm_eps=1e-6), "rms_norm_eps.*found 1e-06, expected 1e-05"),
    "context length": (
        replace(SMALL, max_position_embeddings=131_071),
        "max_position_embeddings.*found 131071, expected 131072",
    ),
    "factor below 1": (replace(with_rope(factor=0.5), max_position_embeddings=2048), "rope_scaling_factor"),
    "impossible context length": (
        replace(with_rope(original_context_length=1 << 24, factor=1000.0), max_position_embeddings=1000 << 24),
        "context length is impossible",
    ),
}


@pytest.mark.parametrize("case", INEXPRESSIBLE)
def test_what_the_layout_cannot_express_is_refused(case: str, tmp_path: Path) -> None:
    config, message = INEXPRESSIBLE[case]
    with pytest.raises(UnsupportedError, match=f"cannot express .*{message}") as caught:
        lay_out_folder(config, tmp_path, max_shard_size=None, source=SOURCE)
    assert caught.value.file == str(SOURCE)


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size"])
def test_experts_that_are_no_whole_blocks_are_refused(field: str, tmp_path: Path) -> None:
    config = replace(SMALL, **{field: 80})  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=r"MXFP4 only.*found rows of 80, expected whole blocks of 32"):
        lay_out_folder(config, tmp_path, max_shard_size=None, source=SOURCE)


# --- configuration


@st.composite
def configurations(draw: st.DrawFn) -> ModelConfig:
    numbers, counts = st.floats(1e-6, 1e9), st.integers(1, 1 << 20)
    layers, initial, factor = draw(st.integers(1, 40)), draw(counts), draw(st.floats(1, 1000))
    experts, groups = draw(counts), draw(st.integers(1, 16))
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
        max_position_embeddings=int(initial * factor),
        sliding_window=draw(counts),
        layer_types=alternating_layers(layers),
        rope=YarnRope(
            theta=draw(numbers),
            factor=factor,
            beta_fast=draw(numbers),
            beta_slow=draw(numbers),
            original_context_length=initial,
            truncate=False,
        ),
        rms_norm_eps=1e-5,
        swiglu_limit=draw(numbers),
    )


@given(configurations())
def test_configuration_is_read_as_it_was_written(config: ModelConfig) -> None:
    assert openai.parse_config(json.loads(config_json(config, source=SOURCE)), SOURCE) == config


def test_every_field_of_the_configuration_is_told_apart() -> None:
    """Another value of any one field makes another file, or is refused."""
    seen = {config_json(SMALL, source=SOURCE)}
    others: list[ModelConfig] = [
        replace(SMALL, **{name: getattr(SMALL, name) * 2})
        for name in (
            "hidden_size", "intermediate_size", "num_local_experts", "num_attention_heads", "num_key_value_heads",
            "head_dim", "vocab_size", "sliding_window", "swiglu_limit",
        )
    ]  # fmt: skip
    others += [with_rope(**{name: getattr(SMALL.rope, name) * 2}) for name in ("theta", "beta_fast", "beta_slow")]
    others += [
        replace(SMALL, num_experts_per_tok=1),
        replace(SMALL, num_hidden_layers=2, layer_types=alternating_layers(2)),
        replace(with_rope(factor=64.0), max_position_embeddings=64 * 4096),
        replace(with_rope(original_context_length=8192), max_position_embeddings=32 * 8192),
    ]
    for config in others:
        text = config_json(config, source=SOURCE)
        assert text not in seen
        seen.add(text)
