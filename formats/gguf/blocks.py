"""How ggml lays out the blocks of an encoding: scale and codes of a block side by side, in one record.

Source: `block_mxfp4` and `block_q8_0` in ggml/src/ggml-common.h. Plain floats are stored as they are.

An MXFP4 record is the scale byte and 16 bytes of codes in ggml's own order: byte j holds element j in its low
nibble and element j + 16 in its high nibble, where the checkpoint's byte j holds elements 2j and 2j + 1. With b
the checkpoint's 16 bytes and k from 0 to 7, bytes 2k and 2k + 1 of the record are b[k] and b[k + 8] with the high
nibble of the first and the low nibble of the second exchanged. Numbers are never touched.

Ollama's first files keep the checkpoint's order of codes in such a record (`CodeOrder.CHECKPOINT`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gptoss_convert.checkpoint import FileWriter
from gptoss_convert.encodings import Array, Chunk, Encoding, Order
from gptoss_convert.encodings.transpose import row_major
from gptoss_convert.formats.gguf.container import CodeOrder
from gptoss_convert.formats.storage import StoredArray

_MXFP4_RECORD = np.dtype([("scale", "u1"), ("codes", "V16")])
_Q8_0_RECORD = np.dtype([("scale", "<f2"), ("codes", "V32")])
_BLOCKS_AT_ONCE = 16_384
"""Blocks for which the temporaries of the nibble exchange stay in the second-level cache."""


def pack(encoding: Encoding, chunk: Chunk, order: CodeOrder = CodeOrder.GGML) -> Array:
    """Return the rows of `chunk` as they are stored: contiguous, one row after the other."""
    if len(encoding.parts) == 1:
        return row_major(chunk[0])
    return _PACKERS[encoding.name, order](chunk)


def unpack(encoding: Encoding, rows: Array, order: CodeOrder = CodeOrder.GGML) -> Chunk:
    """Return raw bytes `[rows, bytes per row]` as a chunk of `encoding`."""
    if len(encoding.parts) == 1:
        return (rows.view(encoding.parts[0].dtype),)
    return _UNPACKERS[encoding.name, order](rows)


def _pack_mxfp4_unordered(chunk: Chunk) -> Array:
    codes, scales = chunk
    records = np.empty(scales.shape, _MXFP4_RECORD)
    records["scale"] = scales
    records["codes"] = np.ascontiguousarray(codes).view("V16")
    return records


def _unpack_mxfp4_unordered(rows: Array) -> Chunk:
    records = rows.view(_MXFP4_RECORD)
    codes = np.ascontiguousarray(records["codes"]).view("u1")
    return codes, np.ascontiguousarray(records["scale"])


def _pack_mxfp4(chunk: Chunk) -> Array:
    codes, scales = chunk
    rows, blocks = scales.shape
    records = np.empty((rows, blocks), _MXFP4_RECORD)
    records["scale"] = scales
    halves = codes.view("<u8")
    for start, stop in _row_groups(rows, blocks):
        pairs = halves[start:stop, 0::2].copy().view("u1").astype("<u2")
        pairs |= halves[start:stop, 1::2].copy().view("u1").astype("<u2") << 8
        _exchange_middle_nibbles(pairs)
        records["codes"][start:stop] = pairs.view("V16")
    return records


def _unpack_mxfp4(rows: Array) -> Chunk:
    records = rows.view(_MXFP4_RECORD)
    codes = np.empty((rows.shape[0], records.shape[1] * 16), "u1")
    halves = codes.view("<u8")
    for start, stop in _row_groups(*records.shape):
        pairs = np.ascontiguousarray(records["codes"][start:stop]).view("<u2")
        _exchange_middle_nibbles(pairs)
        halves[start:stop, 0::2] = (pairs & 0xFF).astype("u1").view("<u8")
        halves[start:stop, 1::2] = (pairs >> 8).astype("u1").view("<u8")
    return codes, np.ascontiguousarray(records["scale"])


def _row_groups(rows: int, blocks: int) -> list[tuple[int, int]]:
    step = max(_BLOCKS_AT_ONCE // max(blocks, 1), 1)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _exchange_middle_nibbles(pairs: Array) -> None:
    """Exchange, in place, the two middle nibbles of every uint16; its own inverse."""
    four_pairs = pairs.view("<u8")
    different = four_pairs >> 4
    different ^= four_pairs
    different &= 0x00F0_00F0_00F0_00F0
    four_pairs ^= different
    different <<= 4
    four_pairs ^= different


def _pack_q8_0(chunk: Chunk) -> Array:
    codes, scales = chunk
    records = np.empty(scales.shape, _Q8_0_RECORD)
    records["scale"] = scales
    records["codes"] = np.ascontiguousarray(codes).view("V32")
    return records


def _unpack_q8_0(rows: Array) -> Chunk:
    records = rows.view(_Q8_0_RECORD)
    codes = np.ascontiguousarray(records["codes"]).view("i1")
    return codes, np.ascontiguousarray(records["scale"])


_PACKERS: dict[tuple[str, CodeOrder], Callable[[Chunk], Array]] = {
    ("mxfp4", CodeOrder.GGML): _pack_mxfp4,
    ("mxfp4", CodeOrder.CHECKPOINT): _pack_mxfp4_unordered,
    ("q8_0", CodeOrder.GGML): _pack_q8_0,
}
_UNPACKERS: dict[tuple[str, CodeOrder], Callable[[Array], Chunk]] = {
    ("mxfp4", CodeOrder.GGML): _unpack_mxfp4,
    ("mxfp4", CodeOrder.CHECKPOINT): _unpack_mxfp4_unordered,
    ("q8_0", CodeOrder.GGML): _unpack_q8_0,
}


@dataclass(frozen=True)
class RecordStorage:
    """A tensor in a GGUF file."""

    stored: StoredArray
    """Bytes, one row of the tensor per row."""
    encoding: Encoding
    code_order: CodeOrder = CodeOrder.GGML
    row_group: int = field(default=1, init=False)
    order: Order = field(default="C", init=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """The GGUF file."""
        return (self.stored.file.path,)

    @property
    def rows_in_file(self) -> StoredArray | None:
        """The rows, unless they are records of several parts, whose order of codes may differ."""
        return self.stored if len(self.encoding.parts) == 1 else None

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop`."""
        return unpack(self.encoding, self.stored.read(start, stop), self.code_order)

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        """Write `chunk` from row `start` on."""
        self.stored.write(writer, start, pack(self.encoding, chunk, self.code_order).view(np.uint8))
