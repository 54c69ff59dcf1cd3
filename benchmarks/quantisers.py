"""MXFP4 quantisers: how much each loses, what becomes of fine-tunes, how fast ours is. Prints Markdown tables."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.converters.survival import Survival, survival
from gptoss_convert.encodings import ENCODINGS, Array, Chunk
from gptoss_convert.encodings.mxfp4_canonical import canonical_blocks
from gptoss_convert.encodings.mxfp4_format import BLOCK, LARGEST_EXACT_SCALE, MAGNITUDES, SCALE_BIAS
from gptoss_convert.encodings.mxfp4_quantiser import QuantisationFigures, ScaleRule, quantise
from tests.peers.quantisers import PEERS
from tests.support.weight_kinds import Bits16, to_bfloat16, trained_experts, weight_kinds

MXFP4, BF16 = ENCODINGS["mxfp4"], ENCODINGS["bf16"]
CHANGES = (0.003, 0.01, 0.03, 0.1)
"""Sizes of fine-tunes, relative to the root mean square of the weights."""
TUNING_RULES = (ScaleRule.MSE, ScaleRule.EVEN, ScaleRule.FLOOR, ScaleRule.RCEIL)

Quantiser = Callable[[Bits16], tuple[NDArray[np.float32], NDArray[np.uint8]]]
"""Takes bits of bfloat16 `[rows, columns]`, and returns what they became and scale bytes `[rows, columns / 32]`."""


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


# --- (a) how much is lost


def losses(rows: int, columns: int) -> Iterator[str]:
    """Yield a table of relative root-mean-square errors and of blocks whose largest number is cut off."""
    kinds = weight_kinds(rows, columns)
    quantisers: Mapping[str, Quantiser] = {
        **{rule.name: of_rule(rule) for rule in ScaleRule},
        "NEAR": near,
        **{name: decoding(peer) for name, peer in PEERS.items()},
    }
    return table(
        ["", *kinds],
        ([name, *(loss(quantiser, kind) for kind in kinds.values())] for name, quantiser in quantisers.items()),
    )


def loss(quantiser: Quantiser, matrices: Sequence[Bits16]) -> str:
    error = signal = 0.0
    cut_off = blocks = 0
    for bits in matrices:
        values = BF16.decode((bits,)).astype(np.float64)
        found, scales = quantiser(bits)
        error += float(np.square(found - values).sum())
        signal += float(np.square(values).sum())
        cut_off += int((largest_of(values) > np.ldexp(6.0, scales.astype(np.int32) - SCALE_BIAS)).sum())
        blocks += scales.size
    return f"{100 * (error / signal) ** 0.5:.2f} % / {100 * cut_off / blocks:.0f} %"


def largest_of(values: Array) -> Array:
    largest: Array = np.abs(values).reshape(len(values), -1, BLOCK).max(axis=-1)
    return largest


def of_rule(rule: ScaleRule) -> Quantiser:
    def quantiser(bits: Bits16) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        found = quantise(bits, rule)
        return MXFP4.decode((found.codes, found.scales)), found.scales

    return quantiser


def decoding(peer: Callable[[Bits16], Chunk]) -> Quantiser:
    def quantiser(bits: Bits16) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        codes, scales = peer(bits)
        return MXFP4.decode((codes, scales)), scales

    return quantiser


def near(bits: Bits16) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Quantise with the scale round(log2(largest / 6)), as MLX did before it rounded up."""
    values = BF16.decode((bits,))
    with np.errstate(divide="ignore"):
        exponents = np.rint(np.log2(largest_of(values.astype(np.float64)) / 6))
    scales = np.clip(exponents + SCALE_BIAS, 0, LARGEST_EXACT_SCALE).astype(np.uint8)
    units = np.repeat(scales.astype(np.int32), BLOCK, axis=-1) - SCALE_BIAS
    codes = np.digitize(np.ldexp(np.abs(values), -units), (MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2)
    return np.ldexp(np.copysign(MAGNITUDES[codes], values), units), scales


# --- (b) what becomes of fine-tunes


def fine_tunes() -> Iterator[str]:
    """Yield a table of what is left of Gaussian changes to the experts of the built-in model."""
    bases = [canonical_blocks(*chunk) for chunk in trained_experts()]
    head = [
        "change / weights",
        "rule",
        "scales",
        "blocks rescaled",
        "values moved",
        "error / change",
        "change kept",
    ]
    return table(
        head,
        (
            [f"{100 * change:g} %", rule.name, "kept" if keep else "new", *fine_tune(bases, change, rule, keep)]
            for change in CHANGES
            for rule in TUNING_RULES
            for keep in (False, True)
        ),
    )


def fine_tune(bases: Sequence[Chunk], change: float, rule: ScaleRule, keep: bool) -> list[str]:
    rng = np.random.default_rng(0)
    figures, left = QuantisationFigures(), Survival()
    rescaled = 0
    for base in bases:
        values = MXFP4.decode(base)
        size = change * float(np.sqrt(np.square(values, dtype=np.float64).mean()))
        bits = to_bfloat16(values + size * rng.standard_normal(values.shape))
        found = quantise(bits, rule, base[1] if keep else None)
        figures += found.figures
        left += survival(values, BF16.decode((bits,)), MXFP4.decode((found.codes, found.scales)))
        rescaled += int(np.count_nonzero(found.scales != base[1]))
    return [
        f"{100 * rescaled / figures.blocks:.2f} %",
        f"{100 * left.share_moved:.2f} %",
        f"{(figures.squared_error / left.squared_change) ** 0.5:.2f}",
        f"{100 * (left.share_kept or 0):.0f} %",
    ]


# --- (c) speed


def speeds(rows: int, columns: int, rounds: int) -> Iterator[str]:
    """Yield a table of megabytes of BF16, two bytes a number, in a second of processor time of one thread."""
    values = np.random.default_rng(0).standard_normal((rows, columns)) * 0.02
    bits, wide = to_bfloat16(values), values.astype(np.float32)
    layouts: dict[str, Array] = {
        "BF16, F order": np.asfortranarray(bits),
        "BF16, C order": bits,
        "float32, F order": np.asfortranarray(wide),
        "float32, C order": wide,
    }
    copied = np.empty_like(bits)
    jobs: dict[tuple[str, str], Callable[[], object]] = {
        ("memcpy", "BF16, C order"): partial(np.copyto, copied, bits)
    }
    for rule in ScaleRule:
        for layout, array in layouts.items():
            jobs[rule.name, layout] = partial(quantise, array, rule)
    named = quantise(bits).scales
    for layout, array in layouts.items():
        jobs["MSE, scales named", layout] = partial(quantise, array, named=named)
    seconds: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    for _ in range(rounds):
        for job, run in jobs.items():
            started = time.thread_time()
            run()
            seconds[job].append(time.thread_time() - started)
    speed = {job: f"{bits.nbytes / 1e6 / statistics.median(times):.0f}" for job, times in seconds.items()}
    names = dict.fromkeys(name for name, _ in jobs)
    return table(["MB/s", *layouts], ([name, *(speed.get((name, each), "") for each in layouts)] for name in names))


def measure(rows: int, columns: int, rounds: int) -> Iterator[str]:
    """Yield all tables as lines of text."""
    yield "Relative root-mean-square error / blocks whose largest number is cut off"
    yield from losses(rows, columns)
    yield ""
    yield "Fine-tunes of MXFP4 experts"
    yield from fine_tunes()
    yield ""
    yield "Speed"
    yield from speeds(2880, 2880, rounds)
