"""MXFP4 as QMoE of onnxruntime's CUDA provider takes it: codes transposed, two rows of a matrix in a byte.

Source: `pack_blocks_for_qmoe` of onnxruntime-genai (models/loaders/gptoss.py), and `quant_type` "fp4" of QMoE in
onnxruntime's docs/ContribOperators.md. Codes of an expert's matrix `[rows, columns]` lie as `[columns, rows / 2]`:
byte (c, i) holds column c of row 2i in its low nibble, and that of row 2i + 1 in its high nibble. Scales lie row by
row as they do elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gptoss_convert.checkpoint import FileWriter
from gptoss_convert.encodings import Array, Chunk, Order
from gptoss_convert.encodings.transpose import row_major
from gptoss_convert.formats.storage import StoredArray

LOW, HIGH = 0x0F, 0xF0


@dataclass(frozen=True)
class RowPairsStorage:
    """Experts in MXFP4 whose codes lie transposed, and whose scales lie in rows.

    A pair of rows is a column of bytes, so arrays are in column order. Whole matrices are moved in one piece; a
    narrower range of rows is gathered from, or scattered to, each stored row, which costs a system call for each.
    """

    codes: StoredArray
    """Its rows are columns of the matrices, `items` is half of their rows."""
    scales: StoredArray
    columns: int
    """Elements of a row; even."""
    order: Order = field(default="F", init=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of codes and scales."""
        return self.codes.file.path, self.scales.file.path

    @property
    def row_group(self) -> int:
        """Rows of one matrix."""
        return 2 * self.codes.items

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop` over all matrices: codes `[rows, columns / 2]`, and scales."""
        codes = np.empty((self.columns // 2, stop - start), np.uint8).T
        for matrix, first, last in self._stripes(start, stop):
            pairs = self._read_pairs(matrix, first // 2, -(-last // 2))
            rows = _rows_of_pairs(pairs)[first % 2 :][: last - first]
            position = matrix * self.row_group + first - start
            codes[position : position + last - first] = rows
        return codes, self.scales.read(start, stop)

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        """Write the rows of `chunk` from row `start` on.

        Raises:
            ValueError: the range begins or ends within a pair of rows.
        """
        codes, scales = chunk
        if start % 2 or len(codes) % 2:
            raise ValueError(f"rows {start} to {start + len(codes)} are not whole pairs")
        for matrix, first, last in self._stripes(start, start + len(codes)):
            position = matrix * self.row_group + first - start
            pairs = _pairs_of_rows(codes[position : position + last - first])
            base = matrix * self.columns
            if pairs.shape[1] == self.codes.items:
                self.codes.write(writer, base, pairs)
            else:
                for column in range(self.columns):
                    place = self.codes.position(base + column) + first // 2
                    writer.write(self.codes.file.path, pairs[column], place)
        self.scales.write(writer, start, scales)

    def _read_pairs(self, matrix: int, first: int, last: int) -> Array:
        """Return pairs `first` to `last` of a matrix, `[columns, pairs]`."""
        base = matrix * self.columns
        if last - first == self.codes.items:
            return self.codes.read(base, base + self.columns)
        pairs = np.empty((self.columns, last - first), np.uint8)
        for column in range(self.columns):
            self.codes.file.read_into(pairs[column], self.codes.position(base + column) + first)
        return pairs

    def _stripes(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (matrix, first row, last row) for each matrix that rows `start` to `stop` touch."""
        while start < stop:
            matrix, first = divmod(start, self.row_group)
            last = min(first + stop - start, self.row_group)
            yield matrix, first, last
            start += last - first


def _rows_of_pairs(pairs: Array) -> Array:
    """Return codes `[2 * pairs, columns / 2]`, in column order, of `pairs` `[columns, pairs]`."""
    even, odd = pairs[0::2], pairs[1::2]
    rows = np.empty((len(even), 2 * pairs.shape[1]), np.uint8)
    rows[:, 0::2] = (even & LOW) | (odd << 4)
    rows[:, 1::2] = (even >> 4) | (odd & HIGH)
    return rows.T


def _pairs_of_rows(codes: Array) -> Array:
    """Return pairs `[columns, rows / 2]` of `codes` `[rows, columns / 2]`."""
    columns = row_major(codes.T)
    even, odd = columns[:, 0::2], columns[:, 1::2]
    pairs = np.empty((2 * len(columns), even.shape[1]), np.uint8)
    pairs[0::2] = (even & LOW) | (odd << 4)
    pairs[1::2] = (even >> 4) | (odd & HIGH)
    return pairs
