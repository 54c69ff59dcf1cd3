"""What an encoding is: a way to store real numbers, independent of any file.

A *chunk* holds some rows of one tensor in one encoding. It is a tuple of arrays, one per *part* of the
encoding, each of shape `[rows, items per row]`. Plain floats have one part; block encodings have two, the
codes and the scales. How the parts lie in a file (apart, or interleaved in records) is the file format's
business, so a chunk looks the same whichever file it came from.
"""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Chunk: TypeAlias = tuple[Array, ...]
Float32: TypeAlias = NDArray[np.float32]
Order: TypeAlias = Literal["C", "F"]
"""Memory order of a part: rows one after the other, or columns, which is how transposed matrices lie in files."""


class EncodingError(ValueError):
    """Numbers that an encoding cannot hold, or bytes that are no numbers; the caller adds file and tensor."""


class LossClass(enum.StrEnum):
    """What a conversion does to the numbers."""

    BYTE_EXACT = "byte-exact"
    """The encoding stays; every code and scale is kept, at most in another order."""
    VALUE_EXACT = "value-exact"
    """Another encoding that holds every value of the first one exactly."""
    LOSSY = "lossy"
    """Values are rounded."""

    @property
    def severity(self) -> int:
        """0 for the best class, and more for worse ones."""
        return list(LossClass).index(self)

    @classmethod
    def worst(cls, classes: Iterable[LossClass]) -> LossClass:
        """Return the worst of some classes; byte-exact if there are none."""
        return max(classes, key=lambda item: item.severity, default=cls.BYTE_EXACT)


@dataclass(frozen=True)
class Part:
    """One array of a chunk: `per_block` items of `dtype` for every block of a row."""

    name: str
    dtype: np.dtype[Any]
    per_block: int

    @property
    def bytes_per_block(self) -> int:
        """Bytes that this part takes for one block."""
        return self.dtype.itemsize * self.per_block


@dataclass(frozen=True)
class Span:
    """The values that an encoding can represent, as far as exactness is concerned.

    Every value is an integer of at most `precision` bits times a power of two, is a multiple of
    `2**lowest_bit`, and is at most `largest` in magnitude.
    """

    precision: int
    lowest_bit: int
    largest: float

    def holds(self, other: Span) -> bool:
        """Return whether a float format of this span represents every value of `other`."""
        return (
            self.precision >= other.precision
            and self.lowest_bit <= other.lowest_bit
            and self.largest >= other.largest
        )


class Encoding(ABC):
    """A codec between float32 values and chunks. Instances have no state; equal name and parts make them equal."""

    name: str
    block: int
    """Elements per block; a row must be a whole number of blocks."""
    parts: tuple[Part, ...]
    span: Span
    least_signal_to_noise: float
    """Decibels that numbers rounded to this encoding keep even if they are badly distributed; less is a fault."""
    largest_block_error: float | None = None
    """What rounding to this encoding takes at most from 32 numbers of a row, as the norm of the error relative to
    theirs, with some room; None if nothing is promised."""
    rounds: bool = False
    """Whether a model that is stored in it lost something by that: gpt-oss is published in bf16 and mxfp4."""
    signed_zeros: bool = True
    """Whether zeros keep their sign; if not, a conversion that keeps every value may still change the hash."""
    can_decode: bool = True
    can_encode: bool = True

    @property
    def bits_per_weight(self) -> float:
        """Storage per element in bits, scales included."""
        return 8 * self.bytes_per_block / self.block

    @property
    def bytes_per_block(self) -> int:
        """Bytes of all parts for one block."""
        return sum(part.bytes_per_block for part in self.parts)

    def holds(self, other: Encoding) -> bool:
        """Return whether every value of `other` is stored exactly; by default only those of the same encoding."""
        return self == other

    def fits(self, columns: int) -> bool:
        """Return whether a row of `columns` elements is a whole number of blocks."""
        return columns % self.block == 0

    def row_nbytes(self, columns: int) -> int:
        """Return the bytes that a row of `columns` elements takes, all parts together."""
        if not self.fits(columns):
            raise EncodingError(f"{self.name} needs rows of whole blocks of {self.block}, not of {columns}")
        return columns // self.block * self.bytes_per_block

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes that a tensor of `shape` (in elements) takes."""
        return math.prod(shape[:-1]) * self.row_nbytes(shape[-1])

    @abstractmethod
    def decode(self, chunk: Chunk) -> Float32:
        """Return the values of `chunk` as float32 `[rows, columns]`.

        Raises:
            EncodingError: a code stands for no finite float32 value although the encoding is for finite ones.
        """

    @abstractmethod
    def encode(self, values: Float32) -> Chunk:
        """Return float32 `values` `[rows, columns]` in this encoding, rounded where it has to be.

        Raises:
            EncodingError: a value is outside the range of the encoding.
        """

    @property
    def takes_any_bytes(self) -> bool:
        """Whether `check` has nothing to find, so that bytes can be copied unseen."""
        return type(self).check is Encoding.check

    def check(self, chunk: Chunk) -> None:  # noqa: B027 - most encodings have no invalid bytes
        """Raise `EncodingError` if `chunk` holds bytes that no sound checkpoint contains."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Encoding) and (self.name, self.parts) == (other.name, other.parts)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"<encoding {self.name}>"


def loss_class(source: Encoding, target: Encoding) -> LossClass:
    """Return what storing `source` numbers in `target` does to them, derived from the two encodings alone.

    `value-exact` is a promise that the run keeps: bytes for which it would not hold raise `EncodingError`.
    """
    if source == target:
        return LossClass.BYTE_EXACT
    return LossClass.VALUE_EXACT if target.holds(source) else LossClass.LOSSY


def split_blocks(values: Float32, block: int) -> Float32:
    """Return `values` `[rows, columns]` viewed as `[rows, columns / block, block]`."""
    rows, columns = values.shape
    return values.reshape(rows, columns // block, block)
