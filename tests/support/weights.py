"""Random numbers for every tensor of a gpt-oss checkpoint, generated in chunks.

Each tensor draws from a stream of its own, keyed by its Hugging Face name (experts: by name and index), so
the numbers depend neither on the layout nor on the order in which tensors are written.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tests.support.layouts import Tensor

Bytes = NDArray[np.uint8]
Bits16 = NDArray[np.uint16]
Item = TypeVar("Item", np.uint8, np.uint16)

Fill = Literal["table", "gauss", "every block"]

_CHUNK = 1 << 18
"""Table look-ups per chunk: 512 KB, which stays in the cache."""

_BAND = 64
"""Rows of an expert that are dequantised or quantised together."""

MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
"""Value of the MXFP4 codes 0-7; codes 8-15 are the same, negative."""

_CODE_SHARES = np.array([0.1089, 0.2069, 0.1785, 0.1421, 0.1489, 0.1211, 0.0768, 0.0168])
"""Share of each magnitude after quantising Gaussian weights."""

_SCALE_SHARES = np.array([0.005, 0.05, 0.4, 0.44, 0.095, 0.01])
"""Share of six neighbouring exponents; real checkpoints have four to six per tensor."""


@dataclass(frozen=True, kw_only=True)
class Filling:
    """How random numbers are made.

    "table" draws codes and scales independently from tables; "gauss" quantises normal numbers, more slowly.
    "every block" has every byte of codes with every scale from 0 to 252, in matrices of 4,048 blocks and more; the
    codes of odd experts are so small that other scales store the same numbers.
    `edge_blocks` puts the blocks of `edge_blocks()` at the start of every expert.
    """

    seed: int = 0
    fill: Fill = "table"
    edge_blocks: bool = True


def chunks(tensor: Tensor, filling: Filling) -> Iterator[memoryview]:
    """The stored bytes of a Hugging Face tensor, in pieces of at most one expert."""
    if tensor.kind not in ("blocks", "scales", "experts"):
        yield from _dense(tensor, filling)
        return
    base = tensor.name.removesuffix("_blocks").removesuffix("_scales")
    count = tensor.shape[0]
    if tensor.kind == "experts":
        columns, rows = tensor.shape[1:]
        for expert in range(count):
            yield _dequantised(base, expert, rows, columns, filling).data
    else:
        rows, blocks_per_row = tensor.shape[1:3]
        make = expert_blocks if tensor.kind == "blocks" else expert_scales
        for expert in range(count):
            yield make(base, expert, rows, blocks_per_row, filling).data


def expert_blocks(base: str, expert: int, rows: int, blocks_per_row: int, filling: Filling) -> Bytes:
    """Packed codes of one expert, [rows, blocks_per_row, 16]: low nibble first."""
    if filling.fill == "gauss":
        blocks = _gaussian(base, expert, rows, blocks_per_row, filling.seed)[0]
    elif filling.fill == "every block":
        ascending = np.arange(rows * blocks_per_row * 16).astype(np.uint8)
        blocks = (ascending & np.uint8((0xFF, 0xDD)[expert % 2])).reshape(rows, blocks_per_row, 16)
    else:
        rng = _generator(filling.seed, base + "_blocks", expert)
        words = _look_up(rng, _code_table(), rows * blocks_per_row * 8)
        blocks = words.view(np.uint8).reshape(rows, blocks_per_row, 16)
    if filling.edge_blocks:
        edges = edge_blocks()[0]
        blocks.reshape(-1, 16)[: len(edges)] = edges
    return blocks


def expert_scales(base: str, expert: int, rows: int, blocks_per_row: int, filling: Filling) -> Bytes:
    """E8M0 scales of one expert, [rows, blocks_per_row]."""
    if filling.fill == "gauss":
        scales = _gaussian(base, expert, rows, blocks_per_row, filling.seed)[1]
    elif filling.fill == "every block":
        scales = (np.arange(rows * blocks_per_row) // 16 % 253).astype(np.uint8).reshape(rows, blocks_per_row)
    else:
        rng = _generator(filling.seed, base + "_scales", expert)
        scales = _look_up(rng, _scale_table(blocks_per_row), rows * blocks_per_row)
        scales = scales.reshape(rows, blocks_per_row)
    if filling.edge_blocks:
        edges = edge_blocks()[1]
        scales.reshape(-1)[: len(edges)] = edges
    return scales


def edge_blocks() -> tuple[Bytes, Bytes]:
    """Hand-made blocks: packed codes [n, 16] and scales [n]. Every value is finite in BF16."""
    zeros, negative_zeros = np.full(16, 0x00, np.uint8), np.full(16, 0x88, np.uint8)
    ascending = np.arange(0x10, 0x100, 0x22, dtype=np.uint8)  # codes 0, 1, 2 ... 15
    every_code = np.concatenate([ascending, ascending[::-1]])
    cases = [(zeros, 0), (zeros, 127), (negative_zeros, 127)]
    cases += [(every_code, scale) for scale in (0, 1, 100, 252)]
    # The greatest code is 1, 2 ... 5: another scale stores the same numbers.
    cases += [(np.full(16, code | (code - 1) << 4, np.uint8), 118 + code) for code in range(1, 6)]
    return np.stack([codes for codes, _ in cases]), np.array([scale for _, scale in cases], np.uint8)


def _dense(tensor: Tensor, filling: Filling) -> Iterator[memoryview]:
    deviation = {"weight": tensor.shape[-1] ** -0.5, "embedding": 1.0, "bias": 0.02, "sink": 1.0, "norm": 0.1}
    table = _normal_table(1.0 if tensor.kind == "norm" else 0.0, deviation[tensor.kind])
    rng = _generator(filling.seed, tensor.name)
    count = math.prod(tensor.shape)
    for start in range(0, count, _CHUNK):
        yield table[_indices(rng, min(_CHUNK, count - start))].data


def _generator(seed: int, name: str, expert: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode()), expert]))


def _indices(rng: np.random.Generator, count: int) -> Bits16:
    return rng.integers(0, 1 << 16, count, dtype=np.uint16)


def _look_up(rng: np.random.Generator, table: NDArray[Item], count: int) -> NDArray[Item]:
    """`count` random entries of a table of 65,536."""
    out = np.empty(count, table.dtype)
    for start in range(0, count, _CHUNK):
        part = out[start : start + _CHUNK]
        part[:] = table[_indices(rng, part.size)]
    return out


@cache
def _normal_table(mean: float, deviation: float) -> Bits16:
    """65,536 normal numbers as BF16 bits."""
    values = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32) * deviation + mean
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


@cache
def _code_table() -> Bits16:
    """65,536 words of four random codes."""
    shares = np.concatenate([_CODE_SHARES, _CODE_SHARES])
    codes = np.random.default_rng(0).choice(16, (1 << 16, 4), p=shares / shares.sum())
    words: Bits16 = (codes << [0, 4, 8, 12]).sum(axis=1).astype("<u2")
    return words


@cache
def _scale_table(blocks_per_row: int) -> Bytes:
    """65,536 scales that fit weights of variance 1 / columns."""
    deviation = (blocks_per_row * 32) ** -0.5
    centre = 127 + math.ceil(math.log2(2.1 * deviation / 6))
    scales = np.arange(centre - 3, centre + 3)
    return np.random.default_rng(0).choice(scales, 1 << 16, p=_SCALE_SHARES).astype(np.uint8)


@cache
def _value_table() -> NDArray[np.uint32]:
    """Two BF16 numbers (the low code first) for every scale and packed byte, [256 * 256]."""
    values = np.concatenate([MAGNITUDES, -MAGNITUDES])
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.ldexp(values, np.arange(256)[:, None] - 127).astype(np.float32)
    bits = scaled.view(np.uint32) >> 16
    packed = np.arange(256)
    pairs: NDArray[np.uint32] = (bits[:, packed & 15] | bits[:, packed >> 4] << 16).astype("<u4").reshape(-1)
    return pairs


def _dequantised(base: str, expert: int, rows: int, columns: int, filling: Filling) -> Bits16:
    """One expert as BF16 bits, transposed to [columns, rows]."""
    blocks = expert_blocks(base, expert, rows, columns // 32, filling)
    scales = expert_scales(base, expert, rows, columns // 32, filling).astype(np.uint16) << 8
    out = np.empty((columns, rows), np.uint16)
    for start in range(0, rows, _BAND):
        band = slice(start, start + _BAND)
        pairs = _value_table()[scales[band, :, None] | blocks[band]]
        out[:, band] = pairs.view("<u2").reshape(-1, columns).T
    return out


def _gaussian(base: str, expert: int, rows: int, blocks_per_row: int, seed: int) -> tuple[Bytes, Bytes]:
    """Quantised normal numbers whose rows differ in size: blocks [rows, n, 16] and scales [rows, n]."""
    rng = _generator(seed, base, expert)
    blocks = np.empty((rows, blocks_per_row, 16), np.uint8)
    scales = np.empty((rows, blocks_per_row), np.uint8)
    for start in range(0, rows, _BAND):
        band = slice(start, min(start + _BAND, rows))
        values = rng.standard_normal((band.stop - start, blocks_per_row, 32), np.float32)
        sizes = np.exp(0.25 * rng.standard_normal((band.stop - start, 1, 1), np.float32))
        blocks[band], scales[band] = quantise(values * sizes * (blocks_per_row * 32) ** -0.5)
    return blocks, scales


def quantise(values: NDArray[np.float32]) -> tuple[Bytes, Bytes]:
    """MXFP4 blocks [..., 16] and scales [...] of numbers [..., 32].

    The exponent is ceil(log2(max / 6)), so nothing is clipped; elements round half to even and keep their
    sign.
    """
    mantissa, exponent = np.frexp(np.abs(values).max(axis=-1))
    scale = np.where(mantissa > 0, np.clip(exponent - np.where(mantissa <= 0.75, 3, 2) + 127, 0, 252), 0)
    scaled = np.ldexp(values, 127 - scale[..., None])
    size = np.abs(scaled)
    codes = np.zeros(values.shape, np.uint8)
    for half_way in (0.25, 1.25, 2.5, 5):
        codes += size > half_way
    for half_way in (0.75, 1.75, 3.5):
        codes += size >= half_way
    codes |= np.signbit(scaled).astype(np.uint8) << 3
    return codes[..., 0::2] | codes[..., 1::2] << np.uint8(4), scale.astype(np.uint8)
