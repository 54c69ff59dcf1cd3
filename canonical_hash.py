"""One number for a model's values, the same in every format and encoding that holds them exactly.

docs/canonical-hash.md is the definition, with an independent implementation. In short: a tensor in canonical
orientation is cut into segments of `SEGMENT_ROWS` rows within each matrix, and a segment is hashed in the most
compact form that holds all of its values: MXFP4 with the smallest scales, bfloat16, or float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from gptoss_convert.checkpoint import Checkpoint, Tensor
from gptoss_convert.encodings import ENCODINGS, Array, Chunk, Encoding
from gptoss_convert.encodings.mxfp4_canonical import canonical_blocks, recover_blocks
from gptoss_convert.encodings.mxfp4_format import BLOCK
from gptoss_convert.encodings.transpose import row_major
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.parallel import in_order

SEGMENT_ROWS = 32
"""Rows of a matrix, which is the last two dimensions, that are hashed as one; the last segment may be shorter."""
DIGEST_BYTES = hashlib.sha256().digest_size

PIECE_BYTES = 2 << 20
"""Stored bytes that are read and hashed at once, so that they stay in the cache."""
LARGEST_GROUP = 64 << 20
"""A storage that moves whole matrices best may do so up to this size."""

Progress = Callable[[str, int], None]
"""Called in the main thread with a tensor's name and the number of stored bytes just hashed of it."""

_CANONICAL_NAN = 0x7FC0_0000


@dataclass(frozen=True)
class CheckpointHash:
    """The canonical hash of a model, as hexadecimal SHA-256."""

    model: str
    tensors: Mapping[str, str]
    """By canonical name, in canonical order."""

    def as_dict(self) -> dict[str, Any]:
        """Return the digests as JSON-ready data."""
        return {"model": self.model, "tensors": dict(self.tensors)}


def ignore_progress(tensor: str, nbytes: int) -> None:
    """Do nothing."""


def hash_checkpoint(checkpoint: Checkpoint, *, jobs: int, progress: Progress = ignore_progress) -> CheckpointHash:
    """Hash all tensors of a sound checkpoint with `jobs` threads, each holding no more than a piece of a tensor.

    Raises:
        GptossConvertError: the first problem of a checkpoint that is not sound.
        InputError: a file is damaged.
        UnsupportedError: a tensor has an encoding that cannot be decoded.
    """
    checkpoint.require_sound()
    digests: dict[str, list[bytes]] = {name: [] for name in checkpoint.tensors}
    for tensor in checkpoint.tensors.values():
        _require_decodable(tensor)
    pieces = ((tensor, *piece) for tensor in checkpoint.tensors.values() for piece in _pieces(tensor))
    with ThreadPoolExecutor(jobs) as pool:
        for (tensor, start, stop), digest in in_order(pool, jobs, lambda piece: _hash_rows(*piece), pieces):
            digests[tensor.name].append(digest)
            progress(tensor.name, (stop - start) * tensor.encoding.row_nbytes(tensor.columns))
    tensors = {
        name: tensor_digest(tensor.shape, b"".join(digests[name])) for name, tensor in checkpoint.tensors.items()
    }
    return CheckpointHash(model_digest(tensors), tensors)


def hash_tensor(tensor: Tensor) -> str:
    """Return the digest of one tensor.

    Raises:
        InputError: a file is damaged.
        UnsupportedError: the encoding cannot be decoded.
    """
    _require_decodable(tensor)
    return tensor_digest(tensor.shape, b"".join(_hash_rows(tensor, *piece) for piece in _pieces(tensor)))


def model_digest(tensors: Mapping[str, str]) -> str:
    """Return the digest of a model whose tensors have these digests by canonical name.

    It is the SHA-256 of lines as `sha256sum` prints them, sorted by name. Canonical names contain no line break.
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(tensors.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def tensor_digest(shape: Sequence[int], digests: bytes) -> str:
    """Return the digest of a tensor from the digests of all its segments in order, `DIGEST_BYTES` each."""
    header = f"tensor {'x'.join(map(str, shape))}\n"
    return hashlib.sha256(header.encode() + digests).hexdigest()


def rows_per_matrix(shape: Sequence[int]) -> int:
    """Return the rows of one matrix of a tensor: its last dimension but one, or 1 for a vector."""
    return shape[-2] if len(shape) > 1 else 1


def segment_digests(encoding: Encoding, chunk: Chunk, first_row: int, matrix_rows: int) -> bytes:
    """Return the digests of the segments of a chunk, one after the other, `DIGEST_BYTES` each.

    Args:
        encoding: of the chunk.
        chunk: rows of a tensor in C or F order, as many as make whole segments.
        first_row: number of the chunk's first row in the tensor, all dimensions but the last flattened.
        matrix_rows: as `rows_per_matrix` says.

    Raises:
        EncodingError: the chunk holds bytes that are no numbers of the encoding.
        ValueError: the chunk starts or ends within a segment.
    """
    segments = _segments(first_row, len(chunk[0]), matrix_rows)
    if encoding == ENCODINGS["mxfp4"]:
        return b"".join(_mxfp4_digests(row_major(chunk[0]), row_major(chunk[1]), segments))
    if encoding == ENCODINGS["bf16"]:
        return b"".join(_bf16_digests(chunk[0], segments))
    return b"".join(_f32_digests(row_major(encoding.decode(chunk)), segments))


def _require_decodable(tensor: Tensor) -> None:
    if not tensor.encoding.can_decode:
        raise UnsupportedError(
            "tensor has an encoding that cannot be decoded, so its values cannot be hashed",
            file=tensor.file,
            tensor=tensor.name,
            found=tensor.encoding.name,
        )


def _pieces(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that are whole segments, of about `PIECE_BYTES`."""
    matrix_rows = rows_per_matrix(tensor.shape)
    row_nbytes = tensor.encoding.row_nbytes(tensor.columns)
    step = max(PIECE_BYTES // row_nbytes, SEGMENT_ROWS)
    group = tensor.storage.row_group
    if step < group and group * row_nbytes <= LARGEST_GROUP:
        step = group
    if step >= matrix_rows:
        step -= step % matrix_rows
        for start in range(0, tensor.rows, step):
            yield start, min(start + step, tensor.rows)
    else:
        step -= step % SEGMENT_ROWS
        for matrix in range(0, tensor.rows, matrix_rows):
            for start in range(matrix, matrix + matrix_rows, step):
                yield start, min(start + step, matrix + matrix_rows)


def _hash_rows(tensor: Tensor, start: int, stop: int) -> bytes:
    chunk = tensor.read(start, stop)
    with tensor.named_errors():
        return segment_digests(tensor.encoding, chunk, start, rows_per_matrix(tensor.shape))


def _segments(first_row: int, count: int, matrix_rows: int) -> list[slice]:
    """Return the rows of each segment, counted from the start of the chunk."""
    segments = []
    row = first_row
    while row < first_row + count:
        within = row % matrix_rows
        length = min(SEGMENT_ROWS, matrix_rows - within)
        if within % SEGMENT_ROWS or row + length > first_row + count:
            raise ValueError(f"rows {first_row} to {first_row + count} are not whole segments of {SEGMENT_ROWS}")
        segments.append(slice(row - first_row, row - first_row + length))
        row += length
    return segments


def _digest(form: bytes, *parts: Array) -> bytes:
    digest = hashlib.sha256(form)
    for part in parts:
        digest.update(part.data)
    return digest.digest()


def _mxfp4_digests(codes: Array, scales: Array, segments: list[slice]) -> Iterator[bytes]:
    codes, scales = canonical_blocks(codes, scales)
    for rows in segments:
        yield _digest(b"mxfp4\n", codes[rows], scales[rows])


def _bf16_digests(bits: Array, segments: list[slice]) -> Iterator[bytes]:
    """Yield the digests of numbers given as bits, uint16 `[rows, columns]` in C or F order."""
    plain: Array | None = None
    for candidates, rows, run in _runs(segments, lambda segment: _may_be_mxfp4(bits[segment.start])):
        recovered = recover_blocks(bits[rows]) if candidates else None
        for segment in run:
            own = slice(segment.start - rows.start, segment.stop - rows.start)
            if recovered is not None and recovered.exact[own].all():
                yield _digest(b"mxfp4\n", recovered.codes[own], recovered.scales[own])
            else:
                plain = row_major(bits) if plain is None else plain
                yield _digest(b"bf16\n", _with_one_nan(plain[segment]))


def _with_one_nan(bits: Array) -> Array:
    """Return bfloat16 bits with every NaN replaced by the canonical one; the same array if there is none."""
    magnitudes = bits & 0x7FFF
    if magnitudes.max() <= 0x7F80:
        return bits
    return np.where(magnitudes > 0x7F80, np.uint16(_CANONICAL_NAN >> 16), bits)


def _f32_digests(values: Array, segments: list[slice]) -> Iterator[bytes]:
    """Yield the digests of float32 `[rows, columns]`, C-contiguous."""
    nan = np.isnan(values)
    bits = values.view(np.uint32)
    if nan.any():
        bits = np.where(nan, np.uint32(_CANONICAL_NAN), bits)

    def is_bf16(rows: slice) -> bool:
        """Look at the first row before all others: numbers of full precision are found there already."""
        return not ((bits[rows.start] & 0xFFFF).any() or (bits[rows] & 0xFFFF).any())

    for narrow, rows, run in _runs(segments, is_bf16):
        if narrow:
            shifted = [slice(item.start - rows.start, item.stop - rows.start) for item in run]
            yield from _bf16_digests((bits[rows] >> 16).astype(np.uint16), shifted)
        else:
            for segment in run:
                yield _digest(b"f32\n", bits[segment])


def _runs(segments: list[slice], key: Callable[[slice], bool]) -> Iterator[tuple[bool, slice, list[slice]]]:
    """Yield what `key` says, and adjacent segments of which it says the same: the rows they take, and each."""
    for answer, run in groupby(segments, key):
        items = list(run)
        yield answer, slice(items[0].start, items[-1].stop), items


def _may_be_mxfp4(row: Array) -> bool:
    """Return whether no bfloat16 number of a row has a bit set that MXFP4 never sets: cheap, and mostly no."""
    return len(row) % BLOCK == 0 and not (row & 0x1F).any()
