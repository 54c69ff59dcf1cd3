"""The canonical hash: the same for the same values, whatever holds them, and different for any other."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gptoss_convert import canonical_hash
from gptoss_convert.canonical_hash import (
    DIGEST_BYTES,
    SEGMENT_ROWS,
    hash_checkpoint,
    hash_tensor,
    model_digest,
    segment_digests,
    tensor_digest,
)
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.encodings import ENCODINGS, Array, Chunk, Encoding, EncodingError
from gptoss_convert.encodings.opaque import Opaque
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.conversions import make_checkpoint, to_gguf

F32, F16, BF16, MXFP4, Q8_0 = (ENCODINGS[name] for name in ("f32", "f16", "bf16", "mxfp4", "q8_0"))
DOCUMENT = Path(__file__).resolve().parents[2] / "docs/canonical-hash.md"

Floats = NDArray[np.float32]


@cache
def documented() -> Mapping[str, Any]:
    """The functions of the implementation in the documentation."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace


def digest(encoding: Encoding, chunk: Chunk, matrix_rows: int | None = None) -> bytes:
    return segment_digests(encoding, chunk, 0, matrix_rows or len(chunk[0]))


def documented_digest(values: Floats) -> bytes:
    """The digests of the segments of one matrix by the documentation."""
    starts = range(0, len(values), SEGMENT_ROWS)
    segments = [documented()["segment_bytes"](values[start : start + SEGMENT_ROWS]) for start in starts]
    return b"".join(hashlib.sha256(segment).digest() for segment in segments)


def random_mxfp4(rows: int, blocks: int, scales: tuple[int, int] = (0, 253), seed: int = 0) -> Chunk:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (rows, 16 * blocks), dtype=np.uint8)
    # Some blocks have small codes only, and some none but zeros, so that their scale is not the smallest.
    mask = rng.choice(np.array([0xFF, 0xDD, 0x99, 0x88], np.uint8), (rows, blocks))
    return codes & np.repeat(mask, 16, axis=1), rng.integers(*scales, (rows, blocks), dtype=np.uint8)


def bf16_bits(values: Floats) -> Array:
    return BF16.encode(values)[0]


def in_f_order(chunk: Chunk) -> Chunk:
    return tuple(np.asfortranarray(part) for part in chunk)


mxfp4_chunks = st.builds(
    random_mxfp4,
    st.integers(1, 70),
    st.integers(1, 9),
    st.sampled_from([(0, 253), (0, 4), (110, 125), (249, 253), (2, 5)]),
    st.integers(0, 1000),
)
exponents = st.sampled_from([0, 1, 2, 3, 4, 100, 126, 127, 253, 254, 255])


@st.composite
def bf16_matrices(draw: st.DrawFn) -> Array:
    """Bits near the edges of what MXFP4 holds: few exponents, few bits of mantissa, special numbers."""
    shape = draw(st.sampled_from([(1, 32), (3, 64), (33, 32), (2, 33)]))
    exponent = draw(hnp.arrays(np.uint16, shape, elements=exponents) | st.just(draw(exponents)))
    mantissa = draw(hnp.arrays(np.uint16, shape, elements=st.sampled_from([0, 0, 0x40, 0x20, 0x60, 0x10, 1])))
    sign = draw(hnp.arrays(np.uint16, shape, elements=st.sampled_from([0, 0x8000])))
    bits: Array = np.asarray(sign | np.uint16(exponent) << np.uint16(7) | mantissa, np.uint16)
    return bits


@given(mxfp4_chunks)
def test_mxfp4_has_the_documented_digest(chunk: Chunk) -> None:
    assert digest(MXFP4, chunk) == documented_digest(MXFP4.decode(chunk))


@given(mxfp4_chunks)
def test_all_encodings_of_mxfp4_values_have_the_same_digest(chunk: Chunk) -> None:
    values = MXFP4.decode(chunk)
    expected = digest(MXFP4, chunk)
    assert digest(MXFP4, MXFP4.encode(values)) == expected
    assert digest(BF16, (bf16_bits(values),)) == expected
    assert digest(BF16, in_f_order((bf16_bits(values),))) == expected
    assert digest(F32, (values,)) == expected
    assert digest(F32, in_f_order((values,))) == expected
    assert digest(MXFP4, in_f_order(chunk)) == expected


@pytest.mark.parametrize("encoding", [F32, BF16])
def test_every_code_at_every_scale(encoding: Encoding) -> None:
    codes = np.tile(np.arange(16, dtype=np.uint8) * 0x11, (253, 1))
    chunk = codes, np.arange(253, dtype=np.uint8)[:, None]
    expected = documented_digest(MXFP4.decode(chunk))
    assert digest(MXFP4, chunk) == expected
    assert digest(encoding, encoding.encode(MXFP4.decode(chunk))) == expected


@pytest.mark.parametrize("code", range(16))
@pytest.mark.parametrize("encoding", [F32, BF16])
def test_blocks_of_one_code_at_every_scale(code: int, encoding: Encoding) -> None:
    chunk = np.full((253, 16), code * 0x11, np.uint8), np.arange(253, dtype=np.uint8)[:, None]
    expected = documented_digest(MXFP4.decode(chunk))
    assert digest(MXFP4, chunk) == expected
    assert digest(encoding, encoding.encode(MXFP4.decode(chunk))) == expected


@pytest.mark.parametrize(("scale", "code"), [(253, 5), (254, 3), (253, 0), (254, 8)])
def test_scales_beyond_252_are_lowered(scale: int, code: int) -> None:
    chunk = np.full((1, 16), code * 0x11, np.uint8), np.full((1, 1), scale, np.uint8)
    assert digest(MXFP4, chunk) == documented_digest(MXFP4.decode(chunk))


@pytest.mark.parametrize(("scale", "code"), [(253, 6), (254, 4), (254, 7), (255, 0)])
def test_mxfp4_beyond_float32_is_refused(scale: int, code: int) -> None:
    chunk = np.full((1, 16), code * 0x11, np.uint8), np.full((1, 1), scale, np.uint8)
    with pytest.raises(EncodingError, match=f"scale byte {scale}"):
        digest(MXFP4, chunk)


def test_float16_of_mxfp4_values_has_the_same_digest() -> None:
    chunk = random_mxfp4(64, 4, (104, 141))
    assert digest(F16, F16.encode(MXFP4.decode(chunk))) == digest(MXFP4, chunk)


@given(bf16_matrices())
def test_bfloat16_has_the_documented_digest(bits: Array) -> None:
    values = BF16.decode((bits,))
    expected = documented_digest(values)
    assert digest(BF16, (bits,)) == expected
    assert digest(BF16, in_f_order((bits,))) == expected
    assert digest(F32, (values,)) == expected


@given(hnp.arrays(np.uint32, st.sampled_from([(1, 5), (2, 32), (35, 3)])))
def test_float32_has_the_documented_digest(bits: NDArray[np.uint32]) -> None:
    values = bits.view(np.float32)
    assert digest(F32, (values,)) == documented_digest(values)
    assert digest(F32, in_f_order((values,))) == documented_digest(values)


def test_segments_of_a_chunk_have_forms_of_their_own() -> None:
    values = MXFP4.decode(random_mxfp4(6 * 32, 2, (100, 140)))
    values[40, 3] = 1 + 2.0**-7  # bfloat16, found in the ninth row of its segment
    values[64, 3] = 1 + 2.0**-7
    values[100, 3] = 1 + 2.0**-20
    values[128, 3] = 1 + 2.0**-20
    assert digest(F32, (values,)) == documented_digest(values)


def test_q8_0_is_hashed_by_its_values() -> None:
    values = np.random.default_rng(0).standard_normal((33, 64)).astype(np.float32)
    chunk = Q8_0.encode(values)
    assert digest(Q8_0, chunk) == documented_digest(Q8_0.decode(chunk))


@pytest.mark.parametrize("encoding", [F32, F16, BF16])
def test_every_nan_is_the_same(encoding: Encoding) -> None:
    dtype = np.dtype(f"u{encoding.parts[0].dtype.itemsize}")
    width = 8 * dtype.itemsize
    rows = []
    for nan in ((1 << width) - 1, (1 << width - 1) - 1):  # every bit of the mantissa set, negative and positive
        bits = np.zeros((2, 32), dtype)
        bits[1, 5] = nan
        rows.append(digest(encoding, (bits.view(encoding.parts[0].dtype),)))
    values = np.zeros((2, 32), np.float32)
    values[1, 5] = np.nan
    assert rows == [documented_digest(values)] * 2


@pytest.mark.parametrize("value", [1 + 2.0**-7, 1 + 2.0**-20, 6.0])
def test_any_other_value_changes_the_digest(value: float) -> None:
    for place in [(0, 0), (31, 63), (17, 40)]:
        values = MXFP4.decode(random_mxfp4(32, 2, (120, 130)))
        changed = values.copy()
        changed[place] = value if values[place] != value else -value
        assert digest(F32, (changed,)) != digest(F32, (values,))


@pytest.mark.parametrize("extra", [0.0, 1 + 2.0**-7, 1 + 2.0**-20])
def test_sign_of_zero_changes_the_digest_in_every_form(extra: float) -> None:
    values = np.zeros((3, 32), np.float32)
    values[2, 31] = extra
    changed = values.copy()
    changed[1, 1] = -0.0
    assert digest(F32, (changed,)) != digest(F32, (values,))


@pytest.mark.parametrize("matrix_rows", [70, 35, 14, 1])
@pytest.mark.parametrize("encoding", [F32, BF16, MXFP4])
def test_chunks_may_end_after_any_segment(encoding: Encoding, matrix_rows: int) -> None:
    chunk = encoding.encode(MXFP4.decode(random_mxfp4(70, 2, (120, 130))))
    starts = [m + r for m in range(0, 70, matrix_rows) for r in range(0, matrix_rows, SEGMENT_ROWS)]
    pieces = [
        segment_digests(encoding, tuple(part[start:stop] for part in chunk), start, matrix_rows)
        for start, stop in zip(starts, [*starts[1:], 70], strict=True)
    ]
    assert {len(piece) for piece in pieces} == {DIGEST_BYTES}
    assert b"".join(pieces) == segment_digests(encoding, chunk, 0, matrix_rows)


@pytest.mark.parametrize(("start", "stop"), [(1, 32), (0, 31), (32, 69), (33, 70)])
def test_chunks_that_cut_a_segment_are_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="whole segments"):
        segment_digests(F32, (np.zeros((stop - start, 4), np.float32),), start, 70)


@pytest.mark.parametrize("shapes", [((2, 96), (3, 64)), ((64, 32), (2, 32, 32)), ((32,), (1, 32))])
def test_shape_changes_the_digest_of_a_tensor(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    one, other = (tensor_digest(shape, b"same segments") for shape in shapes)
    assert one != other


def test_digest_of_a_tensor_is_that_of_the_documentation() -> None:
    values = np.random.default_rng(0).standard_normal((3, 40, 64)).astype(np.float32)
    digests = segment_digests(F32, (values.reshape(120, 64),), 0, 40)
    assert tensor_digest(values.shape, digests) == documented()["tensor_hash"](values)


def test_names_change_the_digest_of_a_model_and_their_order_does_not() -> None:
    assert model_digest({"a": "1", "b": "2"}) == model_digest({"b": "2", "a": "1"})
    assert model_digest({"a": "1", "b": "2"}) != model_digest({"a": "2", "b": "1"})
    assert model_digest({"a": "1"}) != model_digest({"b": "1"})


SHAPE = Shape()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("model"), SHAPE))


def test_model_has_the_documented_hash(checkpoint: Checkpoint) -> None:
    values = {
        name: tensor.encoding.decode(tensor.read(0, tensor.rows)).reshape(tensor.shape)
        for name, tensor in checkpoint.tensors.items()
    }
    found = hash_checkpoint(checkpoint, jobs=2)
    assert found.model == documented()["model_hash"](values)
    assert found.tensors == {name: documented()["tensor_hash"](array) for name, array in values.items()}
    assert list(found.tensors) == list(checkpoint.tensors)


@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_sharding_and_experts_make_no_difference(
    checkpoint: Checkpoint, shards: int, experts: Literal["mxfp4", "bf16"], tmp_path: Path
) -> None:
    other = write_huggingface(tmp_path, SHAPE, shards=shards, placement="shuffled", experts=experts)
    assert hash_checkpoint(open_checkpoint(other), jobs=1) == hash_checkpoint(checkpoint, jobs=2)


def test_original_layout_has_the_same_hash(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = open_checkpoint(write_original(tmp_path, SHAPE))
    assert hash_checkpoint(other, jobs=1) == hash_checkpoint(checkpoint, jobs=1)


@pytest.mark.parametrize(
    "options",
    [{}, {"dense": "f32"}, {"experts": "bf16"}, {"experts": "f32"}, {"split_max_size": 200_000}],
    ids=str,
)
def test_exact_gguf_files_have_the_same_hash(
    checkpoint: Checkpoint, options: dict[str, Any], tmp_path: Path
) -> None:
    other = open_checkpoint(to_gguf(checkpoint.path, tmp_path / "model.gguf", **options))
    assert hash_checkpoint(other, jobs=2) == hash_checkpoint(checkpoint, jobs=1)


def test_rounded_tensors_are_told_from_exact_ones(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = open_checkpoint(to_gguf(checkpoint.path, tmp_path / "model.gguf", dense="q8_0"))
    expected, found = hash_checkpoint(checkpoint, jobs=1), hash_checkpoint(other, jobs=1)
    different = {name for name in expected.tensors if expected.tensors[name] != found.tensors[name]}
    assert different == {name for name, tensor in other.tensors.items() if tensor.encoding == Q8_0}
    assert found.model != expected.model


def test_other_numbers_have_another_hash(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = hash_checkpoint(open_checkpoint(write_huggingface(tmp_path, SHAPE, seed=1)), jobs=1)
    expected = hash_checkpoint(checkpoint, jobs=1)
    assert all(other.tensors[name] != expected.tensors[name] for name in expected.tensors)


def test_large_tensors_are_hashed_piece_by_piece(tmp_path: Path) -> None:
    """Experts of more than a piece, whose matrices are no multiple of a segment's rows."""
    shape = Shape(
        layers=1, hidden=1056, intermediate=1056 + 32, experts=3, experts_per_token=1, heads=1, kv_heads=1
    )
    kinds: tuple[Literal["mxfp4"], Literal["bf16"]] = ("mxfp4", "bf16")
    models = [open_checkpoint(write_huggingface(tmp_path / kind, shape, experts=kind)) for kind in kinds]
    pieces: list[tuple[str, int]] = []
    hashes = [
        hash_checkpoint(models[0], jobs=2, progress=lambda *news: pieces.append(news)),
        hash_checkpoint(models[1], jobs=2),
    ]
    assert hashes[0] == hashes[1]
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert [item for item, _ in pieces].count(name) > 1
    assert sum(nbytes for _, nbytes in pieces) == sum(tensor.nbytes for tensor in models[0].tensors.values())
    tensor = models[0].tensors[name]
    values = MXFP4.decode(tensor.read(0, tensor.rows)).reshape(tensor.shape)
    assert hash_tensor(tensor) == hashes[0].tensors[name] == documented()["tensor_hash"](values)


@pytest.mark.parametrize("piece_bytes", [1, 1500, 5000, 7001, 20_000])
@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
def test_size_of_pieces_makes_no_difference(
    checkpoint: Checkpoint,
    experts: Literal["mxfp4", "bf16"],
    piece_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = hash_checkpoint(checkpoint, jobs=1)
    monkeypatch.setattr(canonical_hash, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(canonical_hash, "LARGEST_GROUP", 20_000)
    other = open_checkpoint(write_huggingface(tmp_path, SHAPE, experts=experts))
    assert hash_checkpoint(other, jobs=2) == expected


def test_unsound_checkpoint_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="broken"):
        hash_checkpoint(replace(checkpoint, problems=(InputError("broken"),)), jobs=1)


def test_damaged_numbers_are_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write_huggingface(tmp_path, SHAPE) / "model.safetensors"
    name = "model.layers.1.mlp.experts.down_proj"
    start = open_checkpoint(tmp_path).tensors[name].storage.parts[1].offset  # type: ignore[attr-defined]
    with path.open("r+b") as file:
        file.seek(start + 100)
        file.write(b"\xff")
    with pytest.raises(InputError, match="255") as caught:
        hash_checkpoint(open_checkpoint(tmp_path), jobs=2)
    assert caught.value.tensor == name


def test_encodings_that_cannot_be_decoded_are_refused(checkpoint: Checkpoint) -> None:
    name = "lm_head.weight"
    tensor = replace(checkpoint.tensors[name], encoding=Opaque("q6_k", 32, 26))
    with pytest.raises(UnsupportedError, match="q6_k") as caught:
        hash_checkpoint(replace(checkpoint, tensors={**checkpoint.tensors, name: tensor}), jobs=1)
    assert caught.value.tensor == name
