"""Comparison of two checkpoints number by number, streaming; no runtime is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gptoss_convert.checkpoint import Checkpoint, Tensor
from gptoss_convert.encodings import Array, Chunk, EncodingError, Float32, LossClass, loss_class
from gptoss_convert.errors import VerificationError

CHUNK_BYTES = 1 << 20
"""Bytes of float32 values that are compared at once."""


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
    signal_to_noise: float
    """Signal-to-quantisation-noise ratio in dB; infinite when every value is equal."""

    @property
    def passed(self) -> bool:
        """Whether the numbers are as good as the encodings promise."""
        severity = list(LossClass)
        return severity.index(self.found) <= severity.index(self.expected)


def compare_weights(reference: Checkpoint, artifact: Checkpoint) -> Iterator[TensorComparison]:
    """Compare all tensors of two checkpoints in canonical order, holding no more than a chunk of each.

    Raises:
        VerificationError: the artifact lacks a tensor or has it in another shape.
        InputError: a file is damaged.
    """
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
    group = max(reference.source.row_group, artifact.source.row_group)
    rows = max(CHUNK_BYTES // (4 * reference.columns), group)
    for start in range(0, reference.rows, rows):
        stop = min(start + rows, reference.rows)
        left, right = reference.read(start, stop), artifact.read(start, stop)
        expected_values = _decoded(reference, left)
        squared_signal += float(np.square(expected_values, dtype=np.float64).sum())
        if reference.encoding is artifact.encoding and _same_bytes(left, right):
            continue
        values = _decoded(artifact, right)
        unequal = ~((expected_values == values) | (np.isnan(expected_values) & np.isnan(values)))
        count = int(unequal.sum())
        found = max(found, LossClass.LOSSY if count else LossClass.VALUE_EXACT, key=list(LossClass).index)
        different += count
        if count:
            error = np.abs(expected_values[unequal].astype(np.float64) - values[unequal])
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
    )


def _same_bytes(left: Chunk, right: Chunk) -> bool:
    return all(np.array_equal(_bits(a), _bits(b)) for a, b in zip(left, right, strict=True))


def _bits(part: Array) -> Array:
    """Return the part as unsigned integers, for which zeros of different sign differ and NaN equals itself."""
    return part.view(f"u{part.dtype.itemsize}")


def _decoded(tensor: Tensor, chunk: Chunk) -> Float32:
    try:
        return tensor.encoding.decode(chunk)
    except EncodingError as error:
        raise tensor.error(error) from None


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
