"""Comparison of two checkpoints number by number, streaming; no runtime is needed."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from types import MappingProxyType
from typing import Any

import numpy as np

from gptoss_convert.canonical_hash import Progress, ignore_progress
from gptoss_convert.checkpoint import Checkpoint, Tensor
from gptoss_convert.encodings import ENCODINGS, Array, Chunk, LossClass, convert, loss_class
from gptoss_convert.encodings.deviation import LARGEST_DECIBELS, LARGEST_ERROR, squared_sum
from gptoss_convert.encodings.transpose import row_major
from gptoss_convert.errors import InputError
from gptoss_convert.parallel import in_order
from gptoss_convert.verify.declaration import Declaration
from gptoss_convert.verify.differences import Differences, WorstBlock, differences
from gptoss_convert.verify.layers import errors_by_layer

STEP_BYTES = 1 << 20
"""Bytes of float32 values that are compared at once."""
PIECE_BYTES = 2 << 20
"""Stored bytes of a tensor that are read at once."""
LARGEST_GROUP = 64 << 20
"""A storage that moves whole matrices best may do so up to this size."""

_MXFP4 = ENCODINGS["mxfp4"]


class Basis(enum.StrEnum):
    """What a comparison of a tensor rests on."""

    NUMBERS = "numbers"
    """All numbers of both sides."""
    HASH = "hash"
    """Canonical hashes of all numbers."""
    SAMPLE = "sample"
    """A few numbers that a pack has of the reference; `values` and all that follows count these."""


NOTHING_DECLARED: Mapping[str, LossClass] = MappingProxyType({})


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
    largest_block_error: float | None = None
    """What rounding to the artifact's encoding takes from a block at most, relative to it; None if not known."""
    relative_error: float = 0.0
    """Frobenius norm of the error relative to that of the reference; 0 when every value is equal."""
    different_blocks: int = 0
    """Blocks of 32 values of a row with one that is not equal."""
    worst_block: WorstBlock | None = None
    """None when every value is equal."""
    signs_of_zero: int = 0
    """Zeros that have the other sign."""
    rescaled_blocks: int = 0
    """MXFP4 blocks of equal values that have another scale."""
    new_nan: int = 0
    """NaN where the reference has a finite value."""
    new_infinite: int = 0
    """Infinities where the reference has a finite value."""
    declared: LossClass | None = None
    """What the artifact's manifest says of its conversion from the reference; None if it says nothing."""
    problem: str | None = None
    """Why numbers of the artifact could not be compared; the other facts are of those that could."""
    basis: Basis = Basis.NUMBERS

    @property
    def promised(self) -> LossClass:
        """The better one of what the encodings promise and what is declared."""
        return min(self.expected, self.declared or self.expected, key=lambda item: item.severity)

    @property
    def failure(self) -> str | None:
        """Why the numbers are not as good as promised, in a clause; None if they are."""
        if self.problem is not None:
            return self.problem
        if self.found.severity > self.promised.severity:
            source = "declared" if self.promised is not self.expected else "promised by the encodings"
            return f"is {self.found} where {self.promised} is {source}: {self._what_differs}"
        if self.signal_to_noise is not None and self.signal_to_noise < self.least_signal_to_noise:
            return (
                f"keeps {self.signal_to_noise:.1f} dB where rounding to {self.artifact} leaves "
                f"{self.least_signal_to_noise:.1f}: {self._what_differs}"
            )
        block, largest = self.worst_block, self.largest_block_error
        if block is not None and largest is not None and block.relative_error > largest:
            return (
                f"loses {block.relative_error:.3g} of a block where rounding to {self.artifact} takes "
                f"{largest:g} at most: {self._what_differs}"
            )
        return None

    @property
    def passed(self) -> bool:
        """Whether the numbers are as good as the encodings promise and the manifest declares."""
        return self.failure is None

    @property
    def _what_differs(self) -> str:
        if self.worst_block is None:
            return f"{self.signs_of_zero} zero(s) of other sign, {self.rescaled_blocks} block(s) of other scale"
        text = f"{self.different} of {self.values} values in {self.different_blocks} block(s) differ"
        if self.new_nan or self.new_infinite:
            text += f", {self.new_nan} of them became NaN and {self.new_infinite} infinite"
        return f"{text}, most in {self.worst_block.place}"

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        return asdict(self) | {"promised": self.promised, "passed": self.passed, "failure": self.failure}


@dataclass(frozen=True)
class WeightsResult:
    """What all tensors of an artifact say together."""

    tensors: tuple[TensorComparison, ...]
    """In canonical order."""
    not_compared: tuple[str, ...] = ()
    """Tensors that the artifact lacks, or has in another shape."""
    declaration: Declaration | None = None
    """What the manifest beside the artifact says; None if there is none."""

    @property
    def loss(self) -> LossClass:
        """The worst that was found in any tensor."""
        return LossClass.worst(tensor.found for tensor in self.tensors)

    @property
    def worst(self) -> TensorComparison | None:
        """The tensor with the worst numbers, one that failed before all others; None where nothing differs."""
        candidates = [item for item in self.tensors if item.different or not item.passed]
        return max(
            candidates, key=lambda item: (not item.passed, item.found.severity, item.relative_error), default=None
        )

    @property
    def failed(self) -> tuple[TensorComparison, ...]:
        """The tensors whose numbers are not as good as promised."""
        return tuple(item for item in self.tensors if not item.passed)

    @property
    def passed(self) -> bool:
        """Whether all tensors were compared and are as good as promised, and the manifest is the artifact's."""
        return not (self.failed or self.not_compared or (self.declaration and self.declaration.findings))

    @property
    def reason(self) -> str:
        """Why it passed or not, in one sentence."""
        failed = self.failed
        if failed and self.worst is not None:
            more = f"; {len(failed)} of {len(self.tensors)} tensors fail" if len(failed) > 1 else ""
            return f"tensor {self.worst.name} {self.worst.failure}{more}"
        if self.not_compared:
            more = f" and {len(self.not_compared) - 1} more" if len(self.not_compared) > 1 else ""
            return f"tensor {self.not_compared[0]}{more} could not be compared"
        if self.declaration is not None and self.declaration.findings:
            return self.declaration.findings[0]
        sampled = sum(item.basis is Basis.SAMPLE for item in self.tensors)
        if sampled:
            return (
                f"{len(self.tensors) - sampled} tensors are {LossClass.VALUE_EXACT} by their hash; {sampled} are "
                "lossy as promised, as far as a few numbers of each tell"
            )
        if self.worst is None:
            return f"all {len(self.tensors)} tensors are {self.loss}"
        return (
            f"all {len(self.tensors)} tensors are as good as promised: {self.loss}, relative error "
            f"{self.worst.relative_error:.2e} at most, in {self.worst.name}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        return {
            "passed": self.passed,
            "reason": self.reason,
            "loss": str(self.loss),
            "worst_tensor": None if self.worst is None else self.worst.name,
            "not_compared": list(self.not_compared),
            "manifest": None if self.declaration is None else self.declaration.as_dict(),
            "layers": [item.as_dict() for item in errors_by_layer(self.tensors)],
            "tensors": [tensor.as_dict() for tensor in self.tensors],
        }


def verify_weights(
    reference: Checkpoint,
    artifact: Checkpoint,
    *,
    declaration: Declaration | None = None,
    jobs: int = 1,
    progress: Progress = ignore_progress,
) -> WeightsResult:
    """Compare all tensors of two checkpoints, and hold them against what the artifact's manifest declares.

    Args:
        reference: what the artifact should be.
        artifact: may lack tensors.
        declaration: from `read_declaration`; None if there is no manifest.
        jobs: threads, each of which holds some megabytes.
        progress: is told the name of a tensor and how many stored bytes of the reference were compared.

    Raises:
        InputError: a file of the reference is damaged. What is wrong with the artifact is in the result.
    """
    declared = NOTHING_DECLARED if declaration is None else declaration.losses(reference)
    tensors = tuple(compare_weights(reference, artifact, declared=declared, jobs=jobs, progress=progress))
    compared = {item.name for item in tensors}
    return WeightsResult(tensors, tuple(name for name in reference.tensors if name not in compared), declaration)


def compare_weights(
    reference: Checkpoint,
    artifact: Checkpoint,
    *,
    declared: Mapping[str, LossClass] = NOTHING_DECLARED,
    jobs: int = 1,
    progress: Progress = ignore_progress,
) -> Iterator[TensorComparison]:
    """Compare the tensors that both checkpoints have in the same shape, in canonical order.

    `declared` is what a manifest says of tensors; all else, and the errors, are as in `verify_weights`.
    """
    pairs = (
        (tensor, other)
        for name, tensor in reference.tensors.items()
        if (other := artifact.tensors.get(name)) is not None and other.shape == tensor.shape
    )
    yield from _compare_pairs(pairs, declared, jobs, progress)


def compare_tensor(reference: Tensor, artifact: Tensor) -> TensorComparison:
    """Compare two tensors of the same shape.

    Raises:
        InputError: a file of the reference is damaged.
    """
    (comparison,) = _compare_pairs([(reference, artifact)], NOTHING_DECLARED, 1, ignore_progress)
    return comparison


@dataclass(frozen=True)
class _Piece:
    """Rows `start` to `stop` of two tensors, `step` of which are compared at a time."""

    reference: Tensor
    artifact: Tensor
    start: int
    stop: int
    step: int

    @property
    def is_last(self) -> bool:
        return self.stop == self.reference.rows


@dataclass(frozen=True)
class _Found:
    """What some rows of a tensor say."""

    loss: LossClass
    differences: Differences
    signal: float | None = None
    """Sum of the squares of the reference; None if it was not needed, and so not decoded."""
    problem: str | None = None

    def __add__(self, other: _Found) -> _Found:
        return _Found(
            LossClass.worst((self.loss, other.loss)),
            self.differences + other.differences,
            self.signal + other.signal if self.signal is not None and other.signal is not None else None,
            self.problem or other.problem,
        )


def _compare_pairs(
    pairs: Iterable[tuple[Tensor, Tensor]], declared: Mapping[str, LossClass], jobs: int, progress: Progress
) -> Iterator[TensorComparison]:
    pieces = (piece for pair in pairs for piece in _pieces(*pair))
    with ThreadPoolExecutor(jobs) as pool:
        found: list[tuple[_Piece, _Found]] = []
        for piece, result in in_order(pool, jobs, _compare_piece, pieces):
            found.append((piece, result))
            progress(piece.reference.name, (piece.stop - piece.start) * _row_nbytes(piece.reference))
            if piece.is_last:
                total = sum((item.differences for _, item in found), Differences())
                signal = 0.0
                if total.different:
                    # Most tensors are exact and never need it, so the reference is decoded for it only now.
                    unknown = [piece for piece, item in found if item.signal is None]
                    signal = sum(item.signal for _, item in found if item.signal is not None)
                    signal += sum(value for _, value in in_order(pool, jobs, _signal, unknown))
                yield _comparison(
                    piece, [item for _, item in found], total, signal, declared.get(piece.reference.name)
                )
                found = []


def _comparison(
    piece: _Piece, found: list[_Found], total: Differences, signal: float, declared: LossClass | None
) -> TensorComparison:
    reference, artifact = piece.reference, piece.artifact
    ratio = signal / total.squared_error if total.squared_error else None
    return TensorComparison(
        name=reference.name,
        reference=reference.encoding.name,
        artifact=artifact.encoding.name,
        expected=loss_class(reference.encoding, artifact.encoding),
        found=LossClass.worst(item.loss for item in found),
        values=total.values,
        different=total.different,
        largest_error=total.largest_error,
        signal_to_noise=None if ratio is None else 10 * math.log10(ratio) if ratio else -LARGEST_DECIBELS,
        least_signal_to_noise=artifact.encoding.least_signal_to_noise,
        largest_block_error=artifact.encoding.largest_block_error,
        relative_error=0.0 if ratio is None else ratio**-0.5 if ratio else LARGEST_ERROR,
        different_blocks=total.blocks,
        worst_block=total.worst,
        signs_of_zero=total.signs_of_zero,
        rescaled_blocks=total.rescaled_blocks,
        new_nan=total.new_nan,
        new_infinite=total.new_infinite,
        declared=declared,
        problem=next((item.problem for item in found if item.problem is not None), None),
    )


def _row_nbytes(tensor: Tensor) -> int:
    return tensor.encoding.row_nbytes(tensor.columns)


def _pieces(reference: Tensor, artifact: Tensor) -> Iterator[_Piece]:
    """Yield pieces of about `PIECE_BYTES`, or whole groups of rows where one of the tensors is best read so."""
    rows = max(PIECE_BYTES // max(_row_nbytes(reference), _row_nbytes(artifact)), 1)
    groups = [tensor.storage.row_group for tensor in (reference, artifact) if _is_grouped(tensor, rows)]
    whole = max(groups, default=rows)
    step = whole if len(groups) == 2 else rows
    for start in range(0, reference.rows, whole):
        yield _Piece(reference, artifact, start, min(start + whole, reference.rows), step)


def _is_grouped(tensor: Tensor, rows: int) -> bool:
    """Return whether `rows` would be gathered from all over a group, and the group is small enough for memory."""
    return rows < tensor.storage.row_group <= LARGEST_GROUP // _row_nbytes(tensor)


def _rows_of(tensor: Tensor, piece: _Piece) -> Iterator[Chunk]:
    """Yield the rows of a piece, one step after the other; a group is read at once."""
    if not _is_grouped(tensor, piece.step):
        for start in range(piece.start, piece.stop, piece.step):
            yield tensor.read(start, min(start + piece.step, piece.stop))
        return
    chunk = tensor.read(piece.start, piece.stop)
    for start in range(0, piece.stop - piece.start, piece.step):
        yield tuple(part[start : start + piece.step] for part in chunk)


class _DamagedArtifactError(Exception):
    """Numbers of the artifact cannot be read: a finding, where those of the reference are an error."""


@contextmanager
def _errors_of_artifact(artifact: Tensor) -> Iterator[None]:
    try:
        with artifact.named_errors():
            yield
    except InputError as error:
        raise _DamagedArtifactError(str(error)) from error


def _compare_piece(piece: _Piece) -> _Found:
    """Compare the rows of a piece; what follows damaged numbers in it is not compared."""
    found = _Found(LossClass.BYTE_EXACT, Differences(), signal=0.0)
    left, right = _rows_of(piece.reference, piece), _rows_of(piece.artifact, piece)
    try:
        for start, expected in zip(count(piece.start, piece.step), left, strict=False):
            with _errors_of_artifact(piece.artifact):
                rows = next(right)
            found += _compare_rows(piece.reference, expected, piece.artifact, rows, start)
    except _DamagedArtifactError as error:
        found += _Found(LossClass.LOSSY, Differences(), problem=f"cannot be compared: {error}")
    return found


def _compare_rows(reference: Tensor, left: Chunk, artifact: Tensor, right: Chunk, first_row: int) -> _Found:
    """Compare as little as is needed: bytes, or bytes in the wider encoding, or numbers."""
    same = Differences(values=len(left[0]) * reference.columns)
    if reference.encoding == artifact.encoding:
        if _same_bytes(left, right):
            return _Found(LossClass.BYTE_EXACT, same)
    elif _same_in_the_wider_encoding(reference, left, artifact, right):
        return _Found(LossClass.VALUE_EXACT, same)
    if reference.encoding.can_decode and artifact.encoding.can_decode:
        return _compare_numbers(reference, left, artifact, right, first_row)
    return _Found(LossClass.LOSSY, same, problem="has other bytes, and they cannot be decoded")


def _same_in_the_wider_encoding(reference: Tensor, left: Chunk, artifact: Tensor, right: Chunk) -> bool:
    """Return whether the narrower one of two encodings holds the same numbers, zeros with their sign."""
    if artifact.encoding.holds(reference.encoding) and artifact.encoding.signed_zeros:
        with reference.named_errors():
            widened = convert(left, reference.encoding, artifact.encoding, artifact.storage.order)
        return _same_bytes(widened, right)
    if reference.encoding.holds(artifact.encoding):
        with _errors_of_artifact(artifact):
            widened = convert(right, artifact.encoding, reference.encoding, reference.storage.order)
        return _same_bytes(left, widened)
    return False


def _compare_numbers(reference: Tensor, left: Chunk, artifact: Tensor, right: Chunk, first_row: int) -> _Found:
    """Decode both a step at a time, for what is decoded is larger than what is stored."""
    total, signal = Differences(), 0.0
    for few in _steps(reference.columns, len(left[0])):
        few_left, few_right = (tuple(part[few] for part in chunk) for chunk in (left, right))
        with reference.named_errors():
            expected = reference.encoding.decode(few_left)
        with _errors_of_artifact(artifact):
            values = artifact.encoding.decode(few_right)
        rescaled = few_left[1] != few_right[1] if reference.encoding == artifact.encoding == _MXFP4 else None
        total += differences(expected, values, first_row + few.start, reference.shape, rescaled)
        signal += squared_sum(expected)
    return _Found(LossClass.LOSSY if total.different else LossClass.VALUE_EXACT, total, signal)


def _signal(piece: _Piece) -> float:
    """Return the sum of the squares of the reference's finite values."""
    reference, signal = piece.reference, 0.0
    for chunk in _rows_of(reference, piece):
        for few in _steps(reference.columns, len(chunk[0])):
            with reference.named_errors():
                signal += squared_sum(reference.encoding.decode(tuple(part[few] for part in chunk)))
    return signal


def _steps(columns: int, rows: int) -> Iterator[slice]:
    step = max(STEP_BYTES // (4 * columns), 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _same_bytes(left: Chunk, right: Chunk) -> bool:
    return all(_same_bits(a, b) for a, b in zip(left, right, strict=True))


def _same_bits(left: Array, right: Array) -> bool:
    """Compare bits, for which zeros of different sign differ and NaN equals itself; any memory order."""
    in_columns = [part.strides[0] < part.strides[1] for part in (left, right)]
    if all(in_columns):
        left, right = left.T, right.T
    elif any(in_columns):
        left, right = row_major(left), row_major(right)
    if left.flags.c_contiguous and right.flags.c_contiguous and left.nbytes % 8 == 0:
        return bool((left.reshape(-1).view(np.uint64) == right.reshape(-1).view(np.uint64)).all())
    bits = f"u{left.dtype.itemsize}"
    return np.array_equal(left.view(bits), right.view(bits))
