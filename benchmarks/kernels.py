"""The conversion kernels on one expert of gpt-oss, beside memcpy in the same process."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gptoss_convert.canonical_hash import segment_digests
from gptoss_convert.encodings import ENCODINGS, Chunk, Encoding, convert
from gptoss_convert.encodings.bf16_to_f16 import bf16_to_f16
from gptoss_convert.encodings.mxfp4_canonical import canonical_blocks, recover_blocks
from gptoss_convert.encodings.mxfp4_to_bf16 import decode_to_bf16
from gptoss_convert.encodings.transpose import transpose_into, transposed

ROWS, COLUMNS = 5760, 2880
"""Gate and up of one expert."""
HASHED_ROWS = 1024
"""Rows of a chunk that is hashed at once; a multiple of a segment's."""
STEP_ROWS = 64
"""Rows that are encoded or decoded at once where float32 is in between."""


@dataclass(frozen=True)
class Kernel:
    """A kernel with its work: `nbytes` is the size of what its name says is counted."""

    name: str
    counted: str
    nbytes: int
    work: Callable[[], object]


def measure(rounds: int) -> list[str]:
    """Run all kernels `rounds` times in turn, and return lines of text with medians."""
    kernels = _kernels()
    seconds: dict[str, list[float]] = {kernel.name: [] for kernel in kernels}
    for _ in range(rounds + 1):  # the first round is not counted
        for kernel in kernels:
            started = time.perf_counter()
            kernel.work()
            seconds[kernel.name].append(time.perf_counter() - started)
    speeds = {item.name: item.nbytes / statistics.median(seconds[item.name][1:]) / 1e9 for item in kernels}
    memcpy = speeds[kernels[0].name]
    lines = [f"one expert, {ROWS} x {COLUMNS}, one thread, median of {rounds} rounds"]
    lines.append(f"{'kernel':44}{'counted':20}{'GB/s':>8}{'x memcpy':>10}")
    for item in kernels:
        speed = speeds[item.name]
        lines.append(f"{item.name:44}{item.counted:20}{speed:8.2f}{speed / memcpy:10.3f}")
    return lines


def _kernels() -> list[Kernel]:
    mxfp4, bf16, f32 = (ENCODINGS[name] for name in ("mxfp4", "bf16", "f32"))
    int8, int4 = ENCODINGS["int8-block"], ENCODINGS["int4-block"]
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (ROWS, COLUMNS // 2), dtype=np.uint8)
    scales = rng.integers(115, 121, (ROWS, COLUMNS // 32), dtype=np.uint8)
    codes, scales = canonical = canonical_blocks(codes, scales)
    lowerable = codes.reshape(ROWS, -1, 16).copy()
    lowerable[rng.random(scales.shape) < 0.27] &= 0xDD  # the share that rounding scales up leaves
    other = lowerable.reshape(codes.shape), scales
    rows, columns = decode_to_bf16(codes, scales, "C"), decode_to_bf16(codes, scales, "F")
    dense = rng.standard_normal((ROWS, COLUMNS), np.float32)
    (normal,) = bf16.encode(np.float32(0.02) * dense)
    target, stored = np.empty_like(rows), np.empty((COLUMNS, ROWS), np.uint16)
    stored_bytes, packed = np.empty(codes.shape[::-1], np.uint8), rows.nbytes
    chunk_bytes = codes.nbytes + scales.nbytes
    message = rows.data
    return [
        Kernel("memcpy", "bytes copied", packed, lambda: np.copyto(target, rows)),
        Kernel("transpose 1-byte items", "bytes moved", codes.nbytes, lambda: transpose_into(stored_bytes, codes)),
        Kernel("transpose 2-byte items", "bytes moved", packed, lambda: transpose_into(stored, rows)),
        Kernel("transpose 4-byte items", "bytes moved", dense.nbytes, lambda: transposed(dense)),
        Kernel("MXFP4 to BF16, C order", "BF16 out", packed, lambda: decode_to_bf16(codes, scales, "C")),
        Kernel("MXFP4 to BF16, F order", "BF16 out", packed, lambda: decode_to_bf16(codes, scales, "F")),
        Kernel("MXFP4 to int8 blocks", "int8 values out", dense.size, lambda: convert(canonical, mxfp4, int8)),
        Kernel("BF16 to F16, rounding counted", "F16 out", packed, lambda: bf16_to_f16(normal)),
        Kernel(
            "F32 to int8 blocks", "F32 in", dense.nbytes, _stepwise(lambda chunk: int8.encode(chunk[0]), (dense,))
        ),
        Kernel(
            "F32 to int4 blocks", "F32 in", dense.nbytes, _stepwise(lambda chunk: int4.encode(chunk[0]), (dense,))
        ),
        Kernel("MXFP4 to F32", "F32 out", dense.nbytes, _stepwise(mxfp4.decode, canonical)),
        Kernel("F32 to BF16", "F32 in", dense.nbytes, _stepwise(lambda chunk: bf16.encode(chunk[0]), (dense,))),
        Kernel("MXFP4 to canonical, is so", "MXFP4 in", chunk_bytes, lambda: canonical_blocks(codes, scales)),
        Kernel("MXFP4 to canonical, 27 % is not", "MXFP4 in", chunk_bytes, lambda: canonical_blocks(*other)),
        Kernel("BF16 to canonical MXFP4, C order", "BF16 in", packed, lambda: recover_blocks(rows)),
        Kernel("BF16 to canonical MXFP4, F order", "BF16 in", packed, lambda: recover_blocks(columns)),
        Kernel("SHA-256 alone", "bytes hashed", packed, lambda: hashlib.sha256(message).digest()),
        Kernel("hash MXFP4, canonical", "MXFP4 in", chunk_bytes, _hashing(mxfp4, canonical)),
        Kernel("hash MXFP4, 27 % not canonical", "MXFP4 in", chunk_bytes, _hashing(mxfp4, other)),
        Kernel("hash BF16 that was MXFP4, C order", "BF16 in", packed, _hashing(bf16, (rows,))),
        Kernel("hash BF16 that was MXFP4, F order", "BF16 in", packed, _hashing(bf16, (columns,))),
        Kernel("hash BF16", "BF16 in", packed, _hashing(bf16, bf16.encode(dense))),
        Kernel("hash F32", "F32 in", dense.nbytes, _hashing(f32, (dense,))),
    ]


def _stepwise(convert: Callable[[Chunk], object], chunk: Chunk) -> Callable[[], None]:
    """Return work on the chunk a few rows at a time, as conversions do it."""

    def work() -> None:
        for start in range(0, ROWS, STEP_ROWS):
            convert(tuple(part[start : start + STEP_ROWS] for part in chunk))

    return work


def _hashing(encoding: Encoding, chunk: Chunk) -> Callable[[], None]:
    def work() -> None:
        for start in range(0, ROWS, HASHED_ROWS):
            segment_digests(encoding, tuple(part[start : start + HASHED_ROWS] for part in chunk), start, ROWS)

    return work
