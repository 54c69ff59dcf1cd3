"""Comparison of two checkpoints number by number, streaming; no runtime is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gptoss_convert.checkpoint import Checkpoint, Tensor
from gptoss_convert.encodings import Array, Chunk, LossClass, loss_class
from gptoss_convert.encodings.deviation import Deviation, deviation, squared_sum
from gptoss_convert.errors import VerificationError

STEP_BYTES = 1 << 20
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
    total = Deviation()
    for expected_chunk, chunk in _pairs_of_chunks(reference, artifact):
        with reference.named_errors():
            expected = reference.encoding.decode(expected_chunk)
        if reference.encoding == artifact.encoding and _same_bytes(expected_chunk, chunk):
            total += Deviation(values=expected.size, squared_signal=squared_sum(expected))
            continue
        with artifact.named_errors():
            values = artifact.encoding.decode(chunk)
        piece = deviation(expected, values)
        total += piece
        found = LossClass.worst((found, LossClass.LOSSY if piece.different else LossClass.VALUE_EXACT))
    return TensorComparison(
        name=reference.name,
        reference=reference.encoding.name,
        artifact=artifact.encoding.name,
        expected=loss_class(reference.encoding, artifact.encoding),
        found=found,
        values=total.values,
        different=total.different,
        largest_error=total.largest_error,
        signal_to_noise=total.signal_to_noise,
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
