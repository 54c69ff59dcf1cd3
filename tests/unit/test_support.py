"""The checkpoints and tokenizers that other tests are built on."""

import hashlib
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import deserialize

from tests.support import checkpoints, layouts, tokenizers, weights
from tests.support.checkpoints import REAL_20B, Shape

SHAPE = Shape(layers=3, experts=5, vocab=530)


def read(folder: Path) -> dict[str, Any]:
    """All tensors of a folder: dtype, shape and data by name."""
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            assert name not in tensors
            tensors[name] = (tensor["dtype"], tensor["shape"], bytes(tensor["data"]))
    return tensors


def stored_order(path: Path) -> list[str]:
    """Names in the order of their data."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return sorted(header, key=lambda name: header[name]["data_offsets"][0])


def array(tensor: tuple[str, list[int], bytes]) -> NDArray[Any]:
    return np.frombuffer(tensor[2], {"U8": "u1", "BF16": "<u2"}[tensor[0]]).reshape(tensor[1])


def dequantise(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Numbers [expert, out, in], straight from the definition of MXFP4."""
    magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    values = []
    for block, scale in zip(blocks.reshape(-1, 16).tolist(), scales.reshape(-1).tolist(), strict=True):
        for byte in block:
            for code in (byte % 16, byte // 16):
                values.append(math.copysign(magnitudes[code % 8], 7.5 - code) * 2.0 ** (scale - 127))
    return np.array(values, np.float32).reshape(*scales.shape[:2], -1)


def test_real_tokenizer_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    special = tokenizers.write_real_tokenizer(tmp_path)
    digest = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    assert digest == tokenizers.TOKENIZER_SHA256
    assert special["<|return|>"] == 200002


def test_small_tokenizer_fits_the_default_checkpoint(tmp_path: Path) -> None:
    special = tokenizers.write_small_tokenizer(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    assert sorted([*vocab.values(), *special.values()]) == list(range(501))
    assert all({left, right, left + right} <= vocab.keys() for left, right in tokenizer["model"]["merges"])
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert {d["content"]: int(i) for i, d in config["added_tokens_decoder"].items()} == special

    checkpoints.write_huggingface(tmp_path, Shape())
    generation = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [special[t] for t in ("<|return|>", "<|endoftext|>", "<|call|>")]


def test_layouts_and_configurations_are_the_published_ones() -> None:
    folder = tokenizers.DATA / "20b"
    special = {"<|startoftext|>": 199998, "<|endoftext|>": 199999, "<|return|>": 200002, "<|call|>": 200012}
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    tensors = layouts.huggingface_tensors(REAL_20B)
    assert [tensor.name for tensor in tensors] == list(index["weight_map"])
    assert sum(tensor.nbytes for tensor in tensors) == index["metadata"]["total_size"]

    dtypes = {tensor.name: layouts.original_dtype(tensor) for tensor, _ in layouts.original_tensors(REAL_20B)}
    assert json.dumps(dtypes) == (folder / "original/dtypes.json").read_text(encoding="utf-8")
    config = json.dumps(layouts.original_config(REAL_20B))
    assert config == (folder / "original/config.json").read_text(encoding="utf-8")

    large = replace(REAL_20B, layers=36, experts=128)
    for shape, size in ((REAL_20B, "20b"), (large, "120b")):
        config = json.dumps(layouts.huggingface_config(shape, special_ids=special), indent=2) + "\n"
        assert config == (tokenizers.DATA / size / "config.json").read_text(encoding="utf-8")
    generation = json.dumps(layouts.generation_config(special_ids=special), indent=2) + "\n"
    assert generation == (tokenizers.DATA / "generation_config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("fill", ["table", "gauss", "every block"])
def test_both_layouts_hold_the_same_numbers(tmp_path: Path, fill: Any) -> None:
    published = read(checkpoints.write_huggingface(tmp_path / "hf", SHAPE, seed=7, fill=fill))
    original = read(checkpoints.write_original(tmp_path / "original", SHAPE, seed=7, fill=fill))
    for tensor, sources in layouts.original_tensors(SHAPE):
        dtype, shape, data = original.pop(tensor.name)
        parts = [published.pop(source.name) for source in sources]
        assert data == b"".join(part[2] for part in parts), tensor.name
        assert {dtype} == {part[0] for part in parts}
        assert shape == [sum(part[1][0] for part in parts), *parts[0][1][1:]]
    assert not original
    assert not published


def test_bf16_experts_are_the_dequantised_blocks(tmp_path: Path) -> None:
    packed = read(checkpoints.write_huggingface(tmp_path / "mxfp4", SHAPE))
    plain = read(checkpoints.write_huggingface(tmp_path / "bf16", SHAPE, experts="bf16"))
    assert "quantization_config" not in (tmp_path / "bf16/config.json").read_text(encoding="utf-8")
    for name in [name.removesuffix("_blocks") for name in packed if name.endswith("_blocks")]:
        expected = dequantise(array(packed.pop(name + "_blocks")), array(packed.pop(name + "_scales")))
        assert np.isfinite(expected).all()
        bits = expected.transpose(0, 2, 1).copy().view(np.uint32)
        assert not (bits & 0xFFFF).any()
        np.testing.assert_array_equal(array(plain.pop(name)), bits >> 16, err_msg=name)
    assert plain == packed


def test_edge_blocks_lead_every_expert(tmp_path: Path) -> None:
    with_edges = read(checkpoints.write_huggingface(tmp_path / "edges", SHAPE))
    without = read(checkpoints.write_huggingface(tmp_path / "none", SHAPE, edge_blocks=False))
    codes, scales = weights.edge_blocks()
    assert {0, 1, 100, 252} <= set(scales.tolist())
    for name in (name.removesuffix("_blocks") for name in without if name.endswith("_blocks")):
        for suffix, edges in (("_blocks", codes), ("_scales", scales)):
            experts = array(with_edges[name + suffix]).reshape(SHAPE.experts, -1, *edges.shape[1:])
            assert (experts[:, : len(edges)] == edges).all()
            plain = array(without[name + suffix]).reshape(experts.shape)
            assert (experts[:, len(edges) :] == plain[:, len(edges) :]).all()
        assert np.ptp(array(without[name + "_scales"])) <= 5


def test_shuffled_placement_stores_every_tensor_once(tmp_path: Path) -> None:
    whole = checkpoints.write_huggingface(tmp_path / "whole", SHAPE)
    shuffled = checkpoints.write_huggingface(tmp_path / "shuffled", SHAPE, shards=4, placement="shuffled")
    index = json.loads((shuffled / "model.safetensors.index.json").read_text(encoding="utf-8"))
    orders = {path.name: stored_order(path) for path in shuffled.glob("*.safetensors")}
    assert sorted(orders) == [f"model-{i:05d}-of-00003.safetensors" for i in range(4)]
    assert {name: file for file, names in orders.items() for name in names} == index["weight_map"]
    assert Counter(name for names in orders.values() for name in names) == Counter(list(index["weight_map"]))
    assert all(names != sorted(names) for names in orders.values())
    assert read(shuffled) == read(whole)


@pytest.mark.parametrize("shards", [2, 5, 20])
def test_published_placement_keeps_blocks_with_their_scales(tmp_path: Path, shards: int) -> None:
    whole = checkpoints.write_huggingface(tmp_path / "whole", SHAPE)
    folder = checkpoints.write_huggingface(tmp_path / "shards", SHAPE, shards=shards)
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    weight_map = index["weight_map"]
    assert len(set(weight_map.values())) == len(list(folder.glob("*.safetensors"))) == shards
    assert list(weight_map.values()) == sorted(weight_map.values())
    for name in weight_map:
        assert weight_map[name] == weight_map[name.replace("_blocks", "_scales")]
    assert read(folder) == read(whole)


def test_seed_changes_every_tensor(tmp_path: Path) -> None:
    first = read(checkpoints.write_huggingface(tmp_path / "0", SHAPE, edge_blocks=False))
    second = read(checkpoints.write_huggingface(tmp_path / "1", SHAPE, edge_blocks=False, seed=1))
    assert all(first[name] != second[name] for name in first)
    assert len({data for _, _, data in first.values()}) == len(first)


def test_broken_files_can_be_made_on_purpose(tmp_path: Path) -> None:
    path = checkpoints.write_safetensors(
        tmp_path / "model.safetensors",
        [("a", "BF16", (3,), b"12345"), ("a", "F4", (1,), b"")],
        header_overrides={"a": {"shape": [-1]}},
    )
    content = path.read_bytes()
    assert content[8:].count(b'"a":') == 2
    assert content.endswith(b"12345")
    with pytest.raises(ValueError, match="4 bytes of data, not 6"):
        checkpoints.write_safetensors(path, [("a", "BF16", (3,), iter([b"1234"]))])
