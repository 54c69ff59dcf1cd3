"""How the numbers of a tensor get from the encoding in which they are read to the one in which they are written.

A recoding turns one chunk into another, and tells what it found out on the way: how much was lost, which scales
were not canonical. It is a plain value, so that it can be sent to another process with the task that it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.encodings import Chunk, LossClass, convert, loss_class
from gptoss_convert.encodings.conversion import temporary_bytes
from gptoss_convert.encodings.deviation import Deviation, deviation
from gptoss_convert.encodings.mxfp4_canonical import noncanonical_scales


@dataclass(frozen=True)
class Findings:
    """What a recoding found out about some rows; sums over the pieces of a tensor."""

    deviation: Deviation = field(default_factory=Deviation)
    """What rounding did; empty where the encodings promise that nothing is rounded."""

    def __add__(self, other: Findings) -> Findings:
        return Findings(self.deviation + other.deviation)

    @property
    def changed(self) -> bool:
        """Whether any value was rounded to another."""
        return self.deviation.different > 0


NOTHING_FOUND = Findings()


@dataclass(frozen=True)
class Recoded:
    """A chunk in the target's encoding, and what was found out."""

    chunk: Chunk
    findings: Findings = NOTHING_FOUND
    named_scales: NDArray[np.uint8] | None = None
    """Scales `[rows, blocks]` of the blocks that are not canonical, 255 for all others; None if there are none."""


class Recoding(Protocol):
    """Turns chunks of one tensor into chunks of another."""

    def temporary_bytes(self, source: Tensor, target: Tensor) -> int:
        """Return an upper estimate of the memory that a row takes, besides its chunk and the result."""

    def recode(self, source: Tensor, target: Tensor, start: int, chunk: Chunk) -> Recoded:
        """Return `chunk`, the rows of `source` from `start` on, in the encoding of `target`.

        Raises:
            InputError: numbers that are not sound, or that the target cannot hold.
        """


@dataclass(frozen=True)
class PlainRecoding:
    """Converts, and measures what was rounded where the encodings do not promise that nothing is."""

    def temporary_bytes(self, source: Tensor, target: Tensor) -> int:
        """Return the temporaries of the conversion and of measuring it."""
        return temporary_bytes(source.encoding, target.encoding, source.columns)

    def recode(self, source: Tensor, target: Tensor, start: int, chunk: Chunk) -> Recoded:
        """Return `chunk` converted."""
        with source.named_errors():
            converted = convert(chunk, source.encoding, target.encoding, target.storage.order)
        if loss_class(source.encoding, target.encoding) is not LossClass.LOSSY:
            return Recoded(converted)
        found = deviation(source.encoding.decode(chunk), target.encoding.decode(converted))
        return Recoded(converted, Findings(found))


@dataclass(frozen=True)
class NamingRecoding:
    """Decodes MXFP4, and names the scales that cannot be told from the values."""

    def temporary_bytes(self, source: Tensor, target: Tensor) -> int:
        """Return the temporaries of the conversion."""
        return PLAIN.temporary_bytes(source, target)

    def recode(self, source: Tensor, target: Tensor, start: int, chunk: Chunk) -> Recoded:
        """Return `chunk` decoded."""
        recoded = PLAIN.recode(source, target, start, chunk)
        return Recoded(recoded.chunk, recoded.findings, noncanonical_scales(*chunk))


PLAIN = PlainRecoding()
