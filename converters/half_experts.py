"""Experts that a graph decodes to float16: numbers that this type does not hold are refused, or counted.

A file keeps every number of MXFP4, and the graph rounds what it decodes. Scale bytes from 104 to 140 lose nothing:
their smallest number is 2**-24, the smallest of float16, and their largest 49152 of 65504. Below, numbers are
rounded, or become zero; above, they would become infinite, and so would all that the graph computes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.recoding import Findings, Recoded, Recoding
from gptoss_convert.encodings import Array, Chunk, Encoding, Float32
from gptoss_convert.errors import UnsupportedError

LEAST_SCALE, LARGEST_SCALE = 104, 140
"""MXFP4 scale bytes between which float16 holds every number."""
_LARGEST = float(np.finfo(np.float16).max)
_LEAST_INT8_SCALE, _LARGEST_INT8_SCALE = 2.0**-24, _LARGEST / 128
"""Scales of int8 blocks between which all products are in the range of float16."""


@dataclass(frozen=True)
class HalfExpertsRecoding:
    """Recodes as another recoding does, and looks at what the graph will make of the result."""

    recoding: Recoding
    hint: str
    """What to do about numbers beyond the range of float16."""

    def temporary_bytes(self, source: Tensor, target: Tensor) -> int:
        """Return the temporaries of the other recoding; blocks that have to be looked at are few."""
        return self.recoding.temporary_bytes(source, target)

    def recode(self, source: Tensor, target: Tensor, start: int, chunk: Chunk) -> Recoded:
        """Return `chunk` recoded.

        Raises:
            InputError: numbers that are not sound, or that the target cannot hold.
            UnsupportedError: a number is beyond the range of float16.
        """
        recoded = self.recoding.recode(source, target, start, chunk)
        blocks = _unusual_blocks(target.encoding, recoded.chunk)
        if not blocks[1].size:
            return recoded
        values = target.encoding.decode(blocks)
        decoded = _as_the_graph_decodes(target.encoding, blocks)
        lost = ~np.isfinite(decoded)
        if lost.any():
            worst = np.unravel_index(np.argmax(np.where(lost, np.abs(values), -1)), values.shape)
            raise UnsupportedError(
                "number of an expert is beyond the range of f16, in which the graph computes",
                file=source.file,
                tensor=source.name,
                found=f"{values[worst]:g} in a block of scale {blocks[1][worst[0], 0]:g}",
                expected=_EXPECTED[target.encoding.name],
                hint=self.hint,
            )
        rounded = int(np.count_nonzero(decoded != values))
        return replace(recoded, findings=recoded.findings + Findings(rounded_in_graph=rounded))


_EXPECTED = {
    "mxfp4": f"scale bytes up to {LARGEST_SCALE}",
    "int8-block": f"numbers up to {_LARGEST:g}",
}
"""By encoding."""


def _unusual_blocks(encoding: Encoding, chunk: Chunk) -> Chunk:
    """Return the blocks of `chunk` whose scale is out of the range, one a row."""
    codes, scales = chunk
    least, largest = (
        (LEAST_SCALE, LARGEST_SCALE) if encoding.name == "mxfp4" else (_LEAST_INT8_SCALE, _LARGEST_INT8_SCALE)
    )
    if scales.size and scales.min() >= least and scales.max() <= largest:
        return codes[:0, : encoding.parts[0].per_block], scales[:0, :1]
    unusual: NDArray[np.bool_] = (scales < least) | (scales > largest)
    blocks = codes.reshape(*scales.shape, encoding.parts[0].per_block)
    return blocks[unusual], scales[unusual][:, None]


def _as_the_graph_decodes(encoding: Encoding, blocks: Chunk) -> Float32:
    """Return the numbers of some blocks as float16 has them; int8 blocks get their scales rounded first."""
    with np.errstate(over="ignore", invalid="ignore"):
        if encoding.name == "mxfp4":
            return _halved(encoding.decode(blocks))
        integers = encoding.decode((blocks[0], np.ones_like(blocks[1])))
        return _halved(integers * _halved(blocks[1]))


def _halved(numbers: Array) -> Float32:
    return numbers.astype(np.float16).astype(np.float32)
