"""Weights of an artifact against what a pack keeps of the reference's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from gptoss_convert.canonical_hash import Progress, hash_tensor, ignore_progress
from gptoss_convert.checkpoint import Checkpoint, Tensor
from gptoss_convert.encodings import Float32, LossClass, loss_class
from gptoss_convert.encodings.deviation import LARGEST_DECIBELS, LARGEST_ERROR, squared_sum
from gptoss_convert.errors import GptossConvertError
from gptoss_convert.parallel import in_order
from gptoss_convert.verify.declaration import Declaration
from gptoss_convert.verify.differences import Differences, differences
from gptoss_convert.verify.pack.fingerprint import Fingerprint, sample, sampled_places
from gptoss_convert.verify.pack.reader import Pack
from gptoss_convert.verify.weights import NOTHING_DECLARED, Basis, TensorComparison, WeightsResult


def verify_weights_by_pack(
    pack: Pack,
    artifact: Checkpoint,
    *,
    declaration: Declaration | None = None,
    jobs: int = 1,
    progress: Progress = ignore_progress,
) -> WeightsResult:
    """Compare the canonical hash of each tensor, and the few numbers of those whose hash is another one.

    Bytes of the reference are not known, so nothing better than value-exact is promised or found.

    Args:
        pack: what is kept of the reference.
        artifact: may lack tensors.
        declaration: from `read_declaration`; None if there is no manifest.
        jobs: tensors at a time, each of which takes some megabytes.
        progress: is told the name of a tensor and how many bytes it takes in the reference.

    Raises:
        InputError: the pack is damaged. What is wrong with the artifact is in the result.
    """
    declared = NOTHING_DECLARED if declaration is None else declaration.losses(pack.model)
    pairs = [
        (tensor, other)
        for name, tensor in pack.model.tensors.items()
        if (other := artifact.tensors.get(name)) is not None and other.shape == tensor.shape
    ]
    compared: list[TensorComparison] = []
    with ThreadPoolExecutor(jobs) as pool:
        for (expected, found), state in in_order(pool, jobs, lambda pair: _looked_at(pack, *pair), pairs):
            compared.append(_comparison(pack, expected, found, state, declared.get(expected.name)))
            progress(expected.name, expected.nbytes)
    names = {item.name for item in compared}
    return WeightsResult(
        tuple(compared), tuple(name for name in pack.model.tensors if name not in names), declaration
    )


@dataclass(frozen=True)
class _State:
    """What was found out about a tensor of the artifact."""

    is_equal: bool
    numbers: Float32 | None
    """At the places of which the pack has the reference's; None if they were not needed, or cannot be read."""
    problem: str | None


def _looked_at(pack: Pack, expected: Tensor, found: Tensor) -> _State:
    try:
        if hash_tensor(found) in _equal_digests(pack.fingerprints[expected.name], found):
            return _State(True, None, None)
        return _State(False, sample(found), None)
    except GptossConvertError as error:
        return _State(False, None, f"cannot be compared: {error}")


def _equal_digests(fingerprint: Fingerprint, found: Tensor) -> set[str]:
    """Return the hashes that a tensor of the same numbers may have; without signs of zero there is but one."""
    if found.encoding.signed_zeros or fingerprint.sha256_of_positive_zeros is None:
        return {fingerprint.sha256}
    return {fingerprint.sha256_of_positive_zeros}


def _comparison(
    pack: Pack, expected: Tensor, found: Tensor, state: _State, declared: LossClass | None
) -> TensorComparison:
    exact = LossClass.VALUE_EXACT
    promised = LossClass.worst([loss_class(expected.encoding, found.encoding), exact])
    comparison = TensorComparison(
        name=expected.name,
        reference=expected.encoding.name,
        artifact=found.encoding.name,
        expected=promised,
        found=exact if state.is_equal else LossClass.LOSSY,
        values=math.prod(expected.shape),
        different=0,
        largest_error=0.0,
        signal_to_noise=None,
        least_signal_to_noise=found.encoding.least_signal_to_noise,
        largest_block_error=found.encoding.largest_block_error,
        declared=None if declared is None else LossClass.worst([declared, exact]),
        problem=state.problem,
        basis=Basis.HASH,
    )
    if state.numbers is None:
        return comparison
    comparison = _sampled(comparison, pack.samples(expected.name), state.numbers, expected.shape)
    if comparison.promised is LossClass.LOSSY:
        return comparison
    source = "promised by the encodings" if promised is exact else "declared"
    where = "" if comparison.worst_block is None else f", most in {comparison.worst_block.place}"
    return replace(
        comparison,
        problem=f"has another canonical hash where {exact} is {source}: {comparison.different} of the "
        f"{comparison.values} numbers that the pack has of it differ{where}",
    )


def _sampled(
    comparison: TensorComparison, expected: Float32, found: Float32, shape: tuple[int, ...]
) -> TensorComparison:
    """Return the comparison with the figures of the numbers that the pack has."""
    total = sum(_differences(expected, found, shape), Differences())
    signal = squared_sum(expected)
    ratio = signal / total.squared_error if total.squared_error else None
    return replace(
        comparison,
        values=total.values,
        different=total.different,
        largest_error=total.largest_error,
        signal_to_noise=None if ratio is None else 10 * math.log10(ratio) if ratio else -LARGEST_DECIBELS,
        relative_error=0.0 if ratio is None else ratio**-0.5 if ratio else LARGEST_ERROR,
        different_blocks=total.blocks,
        worst_block=total.worst,
        signs_of_zero=total.signs_of_zero,
        new_nan=total.new_nan,
        new_infinite=total.new_infinite,
        basis=Basis.SAMPLE,
    )


def _differences(expected: Float32, found: Float32, shape: tuple[int, ...]) -> Iterator[Differences]:
    done = 0
    for place in sampled_places(shape):
        numbers = slice(done, done + place.stop - place.start)
        done = numbers.stop
        result = differences(expected[None, numbers], found[None, numbers], place.row, shape)
        if result.worst is not None:
            result = replace(result, worst=replace(result.worst, column=place.start))
        yield result
