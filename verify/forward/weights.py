"""Weights as torch tensors, decoded when they are needed.

Large matrices come through `Weights.stream`: a thread reads and decodes the next ones while torch computes with the
present ones. They live in two sets of buffers that are used in turn, because fresh memory of this size costs as
much as decoding into it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Checkpoint, Tensor
from gptoss_convert.encodings import Array, convert
from gptoss_convert.encodings.transpose import row_major
from gptoss_convert.verify.forward.precision import PRECISIONS, Precision, stored_numbers

_STEP_BYTES = 1 << 20
"""Bytes of float32 values that are decoded at once, so that they stay in the cache."""


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of a tensor; a row is the last dimension, all others are flattened."""

    name: str
    start: int
    stop: int


class Weights:
    """The tensors of a checkpoint in one precision; a context manager, which ends its thread."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        self.precision = precision
        self._tensors = checkpoint.tensors
        self._thread = ThreadPoolExecutor(1, "decoder")
        self._buffers: dict[tuple[int, int], torch.Tensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def whole(self, name: str) -> torch.Tensor:
        """Return a tensor in its shape.

        Raises:
            InputError: the file is damaged.
        """
        return self._whole(self._tensors[name], self.precision)

    def exact(self, name: str) -> torch.Tensor:
        """Return a tensor in its shape, in float32 at least.

        Raises:
            InputError: the file is damaged.
        """
        exact = self.precision if self.precision.dtype == torch.float64 else PRECISIONS["float32"]
        return self._whole(self._tensors[name], exact)

    def rows(self, name: str, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return some rows of a tensor, `[len(indices), columns]`; each of them is read once.

        Raises:
            InputError: the file is damaged.
        """
        tensor = self._tensors[name]
        used, places = np.unique(indices, return_inverse=True)
        read = torch.empty(len(used), tensor.columns, dtype=self.precision.dtype)
        for place, index in enumerate(used.tolist()):
            _fill(read[place : place + 1], tensor, index, self.precision)
        return read[torch.from_numpy(places)]

    def stream(self, groups: Iterable[Sequence[Rows]]) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield matrices `[rows, columns]` group by group. They are overwritten when the next group is asked for.

        Raises:
            InputError: the file is damaged.
        """
        pending: Future[tuple[torch.Tensor, ...]] | None = None
        try:
            for number, group in enumerate(groups):
                # The group that is computed with has the buffers of the other parity.
                following = self._thread.submit(self._decode, group, number % 2)
                if pending is not None:
                    yield pending.result()
                pending = following
            if pending is not None:
                yield pending.result()
        finally:
            if pending is not None:
                pending.exception()  # whoever uses the buffers next must not meet the thread in them

    def _decode(self, group: Sequence[Rows], parity: int) -> tuple[torch.Tensor, ...]:
        matrices = []
        for place, rows in enumerate(group):
            tensor = self._tensors[rows.name]
            matrix = self._buffer((parity, place), (rows.stop - rows.start) * tensor.columns)
            matrix = matrix.view(rows.stop - rows.start, tensor.columns)
            _fill(matrix, tensor, rows.start, self.precision)
            matrices.append(matrix)
        return tuple(matrices)

    def _buffer(self, key: tuple[int, int], size: int) -> torch.Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[key] = torch.empty(size, dtype=self.precision.dtype)
        return buffer[:size]

    @staticmethod
    def _whole(tensor: Tensor, precision: Precision) -> torch.Tensor:
        matrix = torch.empty(tensor.rows, tensor.columns, dtype=precision.dtype)
        _fill(matrix, tensor, 0, precision)
        return matrix.view(tensor.shape)


def _fill(matrix: torch.Tensor, tensor: Tensor, start: int, precision: Precision) -> None:
    """Fill `matrix` `[rows, columns]` with the rows of `tensor` from `start` on."""
    chunk = tuple(_in_rows(part) for part in tensor.read(start, start + len(matrix)))
    numbers = stored_numbers(matrix)
    step = max(_STEP_BYTES // (4 * tensor.columns), 1)
    with tensor.named_errors():
        for first in range(0, len(numbers), step):
            few = tuple(part[first : first + step] for part in chunk)
            numbers[first : first + step] = convert(few, tensor.encoding, precision.encoding)[0]


def _in_rows(part: Array) -> Array:
    return part if part.flags.c_contiguous else row_major(part)
