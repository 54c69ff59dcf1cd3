"""What a pack keeps of the numbers of a tensor: its canonical hash, and a few of them.

Equal hashes prove that all numbers are equal. Where an encoding rounds, hashes differ, and the few numbers tell
whether more than rounding happened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gptoss_convert.canonical_hash import Progress, hash_tensor
from gptoss_convert.checkpoint import Checkpoint, FileWriter, Storage, Tensor
from gptoss_convert.encodings import ENCODINGS, Chunk, Float32, Order
from gptoss_convert.errors import OutputError, UnsupportedError
from gptoss_convert.parallel import in_order
from gptoss_convert.verify.differences import BLOCK

SAMPLED_BLOCKS = 64
"""Blocks of a tensor of which the numbers are kept; all of them if there are no more."""

_GOLDEN = 0x9E3779B1
"""2^32 over the golden ratio: its multiples are spread evenly, so that no period of a tensor is met (Weyl 1916)."""
_MXFP4 = ENCODINGS["mxfp4"]
_CODES = (*range(8), 0, *range(9, 16))
_POSITIVE = np.array([low | high << 4 for high in _CODES for low in _CODES], np.uint8)
"""Two MXFP4 codes of a byte, with 8, which is minus zero, replaced by 0."""


@dataclass(frozen=True)
class Place:
    """Numbers of a row that are kept."""

    row: int
    """All dimensions but the last flattened."""
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What is kept of a tensor."""

    encoding: str
    """In which the reference stores it."""
    sha256: str
    sha256_of_positive_zeros: str | None
    """The canonical hash with all zeros positive, if that is another one; known of MXFP4 only."""


def sampled_places(shape: Sequence[int]) -> list[Place]:
    """Return the blocks of which the numbers are kept: one from each of so many equal stretches of the tensor."""
    columns = shape[-1]
    per_row = -(-columns // BLOCK)
    total = math.prod(shape[:-1]) * per_row
    count = min(total, SAMPLED_BLOCKS)
    places = []
    for index in range(count):
        first, end = index * total // count, (index + 1) * total // count
        block = first + (index * _GOLDEN % (1 << 32)) * (end - first) // (1 << 32)
        row, place = divmod(block, per_row)
        places.append(Place(row, place * BLOCK, min((place + 1) * BLOCK, columns)))
    return places


def sampled_numbers(shape: Sequence[int]) -> int:
    """Return how many numbers of a tensor are kept."""
    return sum(place.stop - place.start for place in sampled_places(shape))


def sample(tensor: Tensor) -> Float32:
    """Return the numbers that are kept, float32, one place after the other.

    Raises:
        InputError: the file is damaged.
    """
    return np.concatenate([_numbers(tensor, place) for place in sampled_places(tensor.shape)])


def _numbers(tensor: Tensor, place: Place) -> Float32:
    chunk = tensor.read(place.row, place.row + 1)
    with tensor.named_errors():
        return tensor.encoding.decode(chunk)[0, place.start : place.stop]


def fingerprints(
    checkpoint: Checkpoint, *, jobs: int, progress: Progress
) -> Iterator[tuple[Tensor, Fingerprint, Float32]]:
    """Yield each tensor of a sound checkpoint in canonical order, with what is kept of it.

    Args:
        checkpoint: the reference.
        jobs: tensors at a time.
        progress: told the name of a tensor and the bytes that it takes.

    Raises:
        InputError: a file is damaged.
        UnsupportedError: a tensor is in an encoding that packs cannot name.
    """
    for tensor in checkpoint.tensors.values():
        if ENCODINGS.get(tensor.encoding.name) != tensor.encoding:
            raise UnsupportedError(
                "a pack cannot be made of numbers in this encoding",
                file=tensor.file,
                tensor=tensor.name,
                found=tensor.encoding.name,
                expected=" or ".join(ENCODINGS),
                hint="record the model that this file was made of",
            )
    with ThreadPoolExecutor(jobs) as pool:
        for tensor, (fingerprint, numbers) in in_order(pool, jobs, _kept, checkpoint.tensors.values()):
            progress(tensor.name, tensor.nbytes)
            yield tensor, fingerprint, numbers


def _kept(tensor: Tensor) -> tuple[Fingerprint, Float32]:
    digest, positive = hash_tensor(tensor), None
    if tensor.encoding == _MXFP4:
        positive = hash_tensor(replace(tensor, storage=_PositiveZeros(tensor.storage)))
    return (
        Fingerprint(
            encoding=tensor.encoding.name,
            sha256=digest,
            sha256_of_positive_zeros=None if positive == digest else positive,
        ),
        sample(tensor),
    )


@dataclass(frozen=True)
class _PositiveZeros:
    """Rows of MXFP4 in which every zero is positive, as encodings without signs of zero store them."""

    stored: Storage

    @property
    def files(self) -> tuple[Path, ...]:
        return self.stored.files

    @property
    def row_group(self) -> int:
        return self.stored.row_group

    @property
    def order(self) -> Order:
        return self.stored.order

    def read(self, start: int, stop: int) -> Chunk:
        codes, scales = self.stored.read(start, stop)
        return _POSITIVE[codes], scales

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        raise OutputError("a view of a tensor cannot be written", file=self.files[0])
