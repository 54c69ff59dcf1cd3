"""Comparison of two checkpoints number by number, streaming; no runtime is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gptoss_convert.checkpoint import Checkpoint, Tensor
from gptoss_convert.encodings import Array, Chunk, Float32, LossClass, loss_class
from gptoss_convert.errors import VerificationError

STEP_BYTES = 1 << 20
"""Bytes of float32 values that are compared at once."""
LARGEST_DECIBELS = 1000.0
"""Stands for a ratio without bound, negative for noise where there should be zeros."""
LARGEST_ERROR = 1e39
"""Stands for the error of a number that became infinite or NaN: more than any two float32 numbers differ."""


@dataclass(frozen=True)
class TensorComparison:
    """How a tensor of an artifact relates to the same tensor of the reference."""

    name: str
    reference: str
    """Encoding of the reference."""
    artifact: str
    """Encoding of the artifact."""
    expected: LossClass
    """What the two encodings promise."""
    found: LossClass
    """What the numbers say."""
    values: int
    different: int
    """Values that are not equal; zeros of different sign are equal."""
    largest_error: float
    signal_to_noise: float | None
    """Signal-to-quantisation-noise ratio in dB; None when every value is equal."""
    least_signal_to_noise: float
    """What rounding to the artifact's encoding leaves in dB; less means that more than rounding happened."""

    @property
    def passed(self) -> bool:
        """Whether the numbers are as good as the encodings promise."""
        if self.found.severity > self.expected.severity:
            return False
        return self.signal_to_noise is None or self.signal_to_noise >= self.least_signal_to_noise


def compare_weights(reference: Checkpoint, artifact: Checkpoint) -> Iterator[TensorComparison]:
    """Compare all tensors of two checkpoints in canonical order, holding no more than a chunk of each.

    Raises:
        VerificationError: the artifact lacks a tensor, has one too many, or has it in another shape.
        InputError: a file is damaged.
    """
    for name in sorted(artifact.tensors.keys() - reference.tensors.keys()):
        raise VerificationError("artifact has a tensor that the reference has not", file=artifact.path, tensor=name)
    for name, tensor in reference.tensors.items():
        other = artifact.tensors.get(name)
        if other is None or other.shape != tensor.shape:
            raise VerificationError(
                "artifact has not the tensors of the reference",
                file=artifact.path,
                tensor=name,
                found="nothing" if other is None else f"shape {list(other.shape)}",
                expected=f"shape {list(tensor.shape)}",
            )
        yield compare_tensor(tensor, other)


def compare_tensor(reference: Tensor, artifact: Tensor) -> TensorComparison:
    """Compare two tensors of the same shape.

    Raises:
        InputError: a file is damaged.
    """
    found = LossClass.BYTE_EXACT
    different = 0
    largest_error = squared_error = squared_signal = 0.0
    for expected_chunk, chunk in _pairs_of_chunks(reference, artifact):
        with reference.named_errors():
            expected = reference.encoding.decode(expected_chunk)
        squared_signal += _squared(expected)
        if reference.encoding == artifact.encoding and _same_bytes(expected_chunk, chunk):
            continue
        with artifact.named_errors():
            values = artifact.encoding.decode(chunk)
        unequal = ~((expected == values) | (np.isnan(expected) & np.isnan(values)))
        count = int(unequal.sum())
        found = LossClass.worst((found, LossClass.LOSSY if count else LossClass.VALUE_EXACT))
        different += count
        if count:
            error = np.abs(expected[unequal].astype(np.float64) - values[unequal])
            error = np.nan_to_num(error, nan=LARGEST_ERROR, posinf=LARGEST_ERROR)
            largest_error = max(largest_error, float(error.max()))
            squared_error += float(np.square(error).sum())
    return TensorComparison(
        name=reference.name,
        reference=reference.encoding.name,
        artifact=artifact.encoding.name,
        expected=loss_class(reference.encoding, artifact.encoding),
        found=found,
        values=math.prod(reference.shape),
        different=different,
        largest_error=largest_error,
        signal_to_noise=_decibels(squared_signal, squared_error),
        least_signal_to_noise=artifact.encoding.least_signal_to_noise,
    )


def _pairs_of_chunks(reference: Tensor, artifact: Tensor) -> Iterator[tuple[Chunk, Chunk]]:
    """Yield the same rows of both tensors, few enough to decode; row groups are read in one piece."""
    step = max(STEP_BYTES // (4 * reference.columns), 1)
    group = max(reference.storage.row_group, artifact.storage.row_group)
    rows = -(-step // group) * group
    for start in range(0, reference.rows, rows):
        stop = min(start + rows, reference.rows)
        left, right = reference.read(start, stop), artifact.read(start, stop)
        for first in range(0, stop - start, step):
            few = slice(first, first + step)
            yield tuple(part[few] for part in left), tuple(part[few] for part in right)


def _same_bytes(left: Chunk, right: Chunk) -> bool:
    return all(np.array_equal(_bits(a), _bits(b)) for a, b in zip(left, right, strict=True))


def _bits(part: Array) -> Array:
    """Return the part as unsigned integers, for which zeros of different sign differ and NaN equals itself."""
    return part.view(f"u{part.dtype.itemsize}")


def _squared(values: Float32) -> float:
    """Return the sum of the squares of all finite values."""
    total = float(np.square(values, dtype=np.float64).sum())
    return total if math.isfinite(total) else _squared(values[np.isfinite(values)])


def _decibels(signal: float, noise: float) -> float | None:
    if noise == 0:
        return None
    return 10 * math.log10(signal / noise) if signal > 0 else -LARGEST_DECIBELS
