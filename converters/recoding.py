"""How the numbers of a tensor get from the encoding in which they are read to the one in which they are written.

A recoding turns one chunk into another, and tells what it found out on the way: how much was lost, which scales
were not canonical. It is a plain value, so that it can be sent to another process with the task that it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.survival import Survival, survival
from gptoss_convert.encodings import Chunk, Encoding, LossClass, convert, loss_class
from gptoss_convert.encodings.bf16_to_f16 import HalfFigures, bf16_to_f16, half_figures
from gptoss_convert.encodings.conversion import temporary_bytes
from gptoss_convert.encodings.deviation import Deviation, deviation
from gptoss_convert.encodings.int8_block import minus_zeros, mxfp4_scales
from gptoss_convert.encodings.mxfp4_canonical import noncanonical_scales
from gptoss_convert.encodings.mxfp4_quantiser import QuantisationFigures, ScaleRule, quantise
from gptoss_convert.encodings.transpose import row_major

NO_DEVIATION = Deviation()
NO_FIGURES = QuantisationFigures()
NO_SURVIVAL = Survival()
NO_HALVES = HalfFigures()


@dataclass(frozen=True)
class Findings:
    """What a recoding found out about some rows; sums over the pieces of a tensor."""

    deviation: Deviation = NO_DEVIATION
    """What rounding did; empty where the encodings promise that nothing is rounded."""
    quantisation: QuantisationFigures = NO_FIGURES
    """What quantising to MXFP4 did; empty for other encodings."""
    survival: Survival = NO_SURVIVAL
    """What is left of a fine-tune; empty where no base is known."""
    halves: HalfFigures = NO_HALVES
    """How numbers fit the range of float16; empty for other encodings, and where they were float16 before."""
    signs_of_zero: int = 0
    """Zeros that lost their minus sign, which changes the canonical hash and no result."""
    rounded_in_graph: int = 0
    """Numbers that the file keeps, and an ONNX graph rounds to float16 when it decodes them."""

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            self.deviation + other.deviation,
            self.quantisation + other.quantisation,
            self.survival + other.survival,
            self.halves + other.halves,
            self.signs_of_zero + other.signs_of_zero,
            self.rounded_in_graph + other.rounded_in_graph,
        )

    @property
    def changed(self) -> bool:
        """Whether any value was rounded to another."""
        return self.deviation.different > 0 or self.quantisation.squared_error > 0

    @property
    def relative_error(self) -> float:
        """Root of the squared error relative to the squared values, whichever way they were rounded."""
        return max(self.deviation.relative_error, self.quantisation.relative_error)

    def as_dict(self) -> dict[str, Any]:
        """Return what was found as JSON-ready data; None for what was not looked at."""
        rounding, quantisation, left = self.deviation, self.quantisation, self.survival
        return {
            "rounding": {
                "values": rounding.values,
                "different": rounding.different,
                "largest_error": rounding.largest_error,
                "signal_to_noise": rounding.signal_to_noise,
                "relative_error": rounding.relative_error,
            }
            if rounding.values
            else None,
            "quantisation": {
                "blocks": quantisation.blocks,
                "signal_to_noise": quantisation.signal_to_noise,
                "relative_error": quantisation.relative_error,
                "compared_blocks": quantisation.comparison.blocks,
                "relative_error_by_rule": {
                    str(rule): error for rule, error in quantisation.comparison.relative_error.items()
                },
                "clipped_blocks": quantisation.clipped_blocks,
                "clipped_values": quantisation.clipped_values,
                "kept_blocks": quantisation.kept_blocks,
            }
            if quantisation.values
            else None,
            "survival": {
                "relative_change": left.relative_change,
                "share_tuned": left.share_tuned,
                "share_moved": left.share_moved,
                "share_kept": left.share_kept,
                "rounded_away": left.rounded_away,
            }
            if left.values
            else None,
            "half_precision": {
                "values": self.halves.values,
                "subnormal": self.halves.subnormal,
                "vanished": self.halves.vanished,
            }
            if self.halves.values
            else None,
            "signs_of_zero": self.signs_of_zero,
            "rounded_in_graph": self.rounded_in_graph,
        }


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
        """Return an upper estimate of the memory that a row takes, besides its chunk and the result.

        0 says that the recoding works in pieces of its own, so that it is best given all rows of a task.
        """

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
        values = source.encoding.decode(chunk)
        found = deviation(values, target.encoding.decode(converted))
        halves = half_figures(values, converted[0]) if target.encoding.name == "f16" else NO_HALVES
        return Recoded(converted, Findings(found, halves=halves))


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


@dataclass(frozen=True)
class HalvingRecoding:
    """Converts bfloat16 to float16, and counts what does not fit its range."""

    def temporary_bytes(self, source: Tensor, target: Tensor) -> int:
        """Return 0: it works in small pieces."""
        return 0

    def recode(self, source: Tensor, target: Tensor, start: int, chunk: Chunk) -> Recoded:
        """Return `chunk` in float16."""
        with source.named_errors():
            halved = bf16_to_f16(row_major(chunk[0]))
        return Recoded((halved.halves,), Findings(halved.deviation, halves=halved.figures))


@dataclass(frozen=True)
class SignlessRecoding:
    """Converts MXFP4 to an encoding with one zero only, and counts the zeros that lose their sign."""

    def temporary_bytes(self, source: Tensor, target: Tensor) -> int:
        """Return the temporaries of the conversion."""
        return PLAIN.temporary_bytes(source, target)

    def recode(self, source: Tensor, target: Tensor, start: int, chunk: Chunk) -> Recoded:
        """Return `chunk` converted."""
        recoded = PLAIN.recode(source, target, start, chunk)
        found = recoded.findings + Findings(signs_of_zero=minus_zeros(chunk[0]))
        return Recoded(recoded.chunk, found)


class ScaleNames(Protocol):
    """Where scales are named that blocks should keep if they suit them."""

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the scales of rows `start` to `stop`, 255 where none is named."""


@dataclass(frozen=True)
class QuantisingRecoding:
    """Quantises to MXFP4 by a rule; blocks keep the scale that is named for them where it is as good."""

    rule: ScaleRule
    named: ScaleNames | None = None
    base: Tensor | None = None
    """The tensor in MXFP4 that this one was tuned from: it names every scale, and what is left is measured."""

    def temporary_bytes(self, source: Tensor, target: Tensor) -> int:
        """Return a row of float32 where numbers have to be decoded; all else is done in pieces."""
        return 0 if source.encoding.name in _TAKEN_AS_THEY_ARE else 4 * source.columns

    def recode(self, source: Tensor, target: Tensor, start: int, chunk: Chunk) -> Recoded:
        """Return `chunk` quantised."""
        stop = start + len(chunk[0])
        base = None if self.base is None else self.base.read(start, stop)
        named = base[1] if base is not None else self._named(source, start, stop, chunk)
        with source.named_errors():
            taken = source.encoding.name in _TAKEN_AS_THEY_ARE
            quantised = quantise(chunk[0] if taken else source.encoding.decode(chunk), self.rule, named)
        result = (quantised.codes, quantised.scales)
        left = NO_SURVIVAL
        if base is not None and self.base is not None:
            with self.base.named_errors():
                left = _survival((self.base.encoding, base), (source.encoding, chunk), (target.encoding, result))
        return Recoded(result, Findings(quantisation=quantised.figures, survival=left))

    def _named(self, source: Tensor, start: int, stop: int, chunk: Chunk) -> NDArray[np.uint8] | None:
        """Return the scales that are named beside the source, or that its own blocks tell."""
        if self.named is not None:
            return self.named.read(start, stop)
        return mxfp4_scales(chunk[1]) if source.encoding.name == "int8-block" else None


_TAKEN_AS_THEY_ARE = ("bf16", "f32")
"""Encodings whose chunks the quantiser takes."""
_ROWS_COMPARED_AT_ONCE = 64


def _survival(*encoded: tuple[Encoding, Chunk]) -> Survival:
    """Compare base, tuned and quantised rows, a few at a time."""
    total = NO_SURVIVAL
    for start in range(0, len(encoded[0][1][0]), _ROWS_COMPARED_AT_ONCE):
        rows = slice(start, start + _ROWS_COMPARED_AT_ONCE)
        base, tuned, quantised = (
            codec.decode(tuple(row_major(part[rows]) for part in chunk)) for codec, chunk in encoded
        )
        total += survival(base, tuned, quantised)
    return total


PLAIN = PlainRecoding()
