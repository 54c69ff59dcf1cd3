"""How numbers get from one encoding to another, and what is found out about them on the way."""

import json
import pickle
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.recoding import (
    NOTHING_FOUND,
    PLAIN,
    Findings,
    HalvingRecoding,
    NamingRecoding,
    QuantisingRecoding,
    Recoding,
    SignlessRecoding,
)
from gptoss_convert.encodings import ENCODINGS, Array, Chunk, Order
from gptoss_convert.encodings.bf16_to_f16 import HalfFigures
from gptoss_convert.encodings.deviation import deviation
from gptoss_convert.encodings.mxfp4_canonical import noncanonical_scales
from gptoss_convert.encodings.mxfp4_quantiser import ScaleRule, quantise
from gptoss_convert.errors import InputError
from tests.support.memory import InMemory

MXFP4, BF16, F32 = (ENCODINGS[name] for name in ("mxfp4", "bf16", "f32"))
ROWS, COLUMNS = 12, 96
RNG = np.random.default_rng(5)
NUMBERS = RNG.standard_normal((ROWS, COLUMNS)).astype(np.float32)
BLOCKS: Chunk = (
    RNG.integers(0, 256, (ROWS, COLUMNS // 2), np.uint8),
    RNG.integers(0, 253, (ROWS, COLUMNS // 32), np.uint8),
)


def tensor(encoding: str, chunk: Chunk, order: Order = "C") -> Tensor:
    columns = chunk[0].shape[1] * (2 if encoding == "mxfp4" else 1)
    return Tensor("t", (len(chunk[0]), columns), ENCODINGS[encoding], InMemory(chunk, order=order))


def target(encoding: str, order: Order = "C", columns: int = COLUMNS) -> Tensor:
    return Tensor("t", (ROWS, columns), ENCODINGS[encoding], InMemory((), order=order))


def assert_same(found: Chunk, expected: Chunk) -> None:
    for part, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(part, other)


# --- plain


@pytest.mark.parametrize("name", ["bf16", "f16", "q8_0"])
def test_rounding_is_measured(name: str) -> None:
    encoding = ENCODINGS[name]
    found = PLAIN.recode(tensor("f32", (NUMBERS,)), target(name), 0, (NUMBERS,))
    assert_same(found.chunk, encoding.encode(NUMBERS))
    assert found.findings.deviation == deviation(NUMBERS, encoding.decode(found.chunk))
    assert found.findings.changed
    assert found.findings.relative_error > 0
    assert found.named_scales is None


def test_rounding_that_changes_nothing_is_told_so() -> None:
    """Such as norms in F32 that came from BF16."""
    numbers = BF16.decode(BF16.encode(NUMBERS))
    found = PLAIN.recode(tensor("f32", (numbers,)), target("bf16"), 0, (numbers,))
    assert found.findings.deviation.values == numbers.size
    assert not found.findings.changed
    assert found.findings.relative_error == 0


@pytest.mark.parametrize(("source", "other"), [("mxfp4", "mxfp4"), ("mxfp4", "bf16"), ("bf16", "f32")])
def test_what_the_encodings_promise_is_not_measured(source: str, other: str) -> None:
    chunk = BLOCKS if source == "mxfp4" else BF16.encode(NUMBERS)
    found = PLAIN.recode(tensor(source, chunk), target(other), 0, chunk)
    assert found.findings == NOTHING_FOUND


@pytest.mark.parametrize("recoding", [PLAIN, NamingRecoding()])
def test_decoded_blocks_lie_as_the_target_does(recoding: Recoding) -> None:
    found = recoding.recode(tensor("mxfp4", BLOCKS), target("bf16", "F"), 0, BLOCKS)
    assert found.chunk[0].flags.f_contiguous
    np.testing.assert_array_equal(found.chunk[0].astype(np.uint32) << 16, MXFP4.decode(BLOCKS).view(np.uint32))


def test_bytes_that_are_no_numbers_are_an_error_that_names_the_tensor() -> None:
    chunk = BLOCKS[0], np.full_like(BLOCKS[1], 255)
    for recoding in (PLAIN, NamingRecoding()):
        with pytest.raises(InputError, match=r"255.*tensor t"):
            recoding.recode(tensor("mxfp4", chunk), target("bf16"), 0, chunk)


# --- naming


def test_scales_that_values_do_not_tell_are_named() -> None:
    found = NamingRecoding().recode(tensor("mxfp4", BLOCKS), target("bf16"), 0, BLOCKS)
    expected = noncanonical_scales(*BLOCKS)
    if expected is None:
        assert found.named_scales is None
    else:
        np.testing.assert_array_equal(found.named_scales, expected)
    small = BLOCKS[0] & 0x55, BLOCKS[1] | 1
    named = NamingRecoding().recode(tensor("mxfp4", small), target("bf16"), 0, small).named_scales
    np.testing.assert_array_equal(named, small[1])
    large = BLOCKS[0] | 0x66, BLOCKS[1]
    assert NamingRecoding().recode(tensor("mxfp4", large), target("bf16"), 0, large).named_scales is None


# --- quantising


@dataclass(frozen=True)
class Names:
    """Scales by row, with the rows that were asked for."""

    scales: bytes

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        return np.frombuffer(self.scales, np.uint8).reshape(-1, COLUMNS // 32)[start:stop]


@pytest.mark.parametrize("encoding", ["bf16", "f32", "f16"])
@pytest.mark.parametrize("rule", ScaleRule)
def test_numbers_are_quantised_by_the_rule(rule: ScaleRule, encoding: str) -> None:
    chunk = ENCODINGS[encoding].encode(NUMBERS)
    found = QuantisingRecoding(rule).recode(tensor(encoding, chunk), target("mxfp4"), 0, chunk)
    expected = quantise(ENCODINGS[encoding].decode(chunk), rule)
    assert_same(found.chunk, (expected.codes, expected.scales))
    figures = found.findings.quantisation
    assert figures.relative_error == pytest.approx(expected.figures.relative_error, rel=1e-9)
    assert found.findings.changed
    assert found.findings.survival.values == found.findings.deviation.values == 0


@given(
    codes=hnp.arrays(np.uint8, (ROWS, COLUMNS // 2)).flatmap(
        lambda codes: st.sampled_from([0xFF, 0x99, 0xBB, 0xDD, 0x88]).map(lambda mask: codes & np.uint8(mask))
    ),
    scales=hnp.arrays(np.uint8, (ROWS, COLUMNS // 32), elements=st.integers(0, 252)),
    start=st.integers(0, ROWS - 1),
    rule=st.sampled_from(ScaleRule),
)
def test_named_scales_restore_every_byte(codes: Array, scales: Array, start: int, rule: ScaleRule) -> None:
    decoded = PLAIN.recode(tensor("mxfp4", (codes, scales)), target("bf16"), 0, (codes, scales)).chunk
    recoding = QuantisingRecoding(rule, named=Names(scales.tobytes()))
    found = recoding.recode(tensor("bf16", decoded), target("mxfp4"), start, (decoded[0][start:],))
    assert_same(found.chunk, (codes[start:], scales[start:]))
    assert not found.findings.changed
    assert found.findings.quantisation.kept_blocks == scales[start:].size


@given(
    codes=hnp.arrays(np.uint8, (ROWS, COLUMNS // 2)),
    scales=hnp.arrays(np.uint8, (ROWS, COLUMNS // 32), elements=st.integers(0, 252)),
    named=hnp.arrays(np.uint8, (ROWS, COLUMNS // 32)),
)
def test_names_of_other_weights_change_no_value(codes: Array, scales: Array, named: Array) -> None:
    decoded = PLAIN.recode(tensor("mxfp4", (codes, scales)), target("bf16"), 0, (codes, scales)).chunk
    recoding = QuantisingRecoding(ScaleRule.MSE, named=Names(named.tobytes()))
    found = recoding.recode(tensor("bf16", decoded), target("mxfp4"), 0, decoded)
    np.testing.assert_array_equal(
        MXFP4.decode(found.chunk).view(np.uint32), MXFP4.decode((codes, scales)).view(np.uint32)
    )
    assert not found.findings.changed


@pytest.mark.parametrize("encoding", ["bf16", "f32"])
@pytest.mark.parametrize("small", [2.0**-20, 2.0**-100, 2.0**-133])
def test_number_that_vanishes_beside_large_ones_was_rounded(encoding: str, small: float) -> None:
    """However small it is: only what changed no value may be called exact."""
    numbers = np.zeros((ROWS, COLUMNS), np.float32)
    numbers[:, ::2], numbers[3, 7] = 6.0, small
    chunk = ENCODINGS[encoding].encode(numbers)
    for recoding in (QuantisingRecoding(ScaleRule.MSE), PLAIN):
        found = recoding.recode(tensor(encoding, chunk), target("mxfp4"), 0, chunk)
        decoded = MXFP4.decode(found.chunk)
        assert np.count_nonzero(decoded != numbers) == 1
        assert found.findings.changed
    numbers[3, 7] = 0
    chunk = ENCODINGS[encoding].encode(numbers)
    assert (
        not QuantisingRecoding(ScaleRule.MSE)
        .recode(tensor(encoding, chunk), target("mxfp4"), 0, chunk)
        .findings.changed
    )


def test_what_is_left_of_a_change_is_measured_against_the_same_rows() -> None:
    base = tensor("mxfp4", (BLOCKS[0], BLOCKS[1] // 8 + 110))
    original = MXFP4.decode(base.read(0, ROWS))
    tuned = (original * np.float32(1.1)).astype(np.float32)
    chunk = (tuned[4:],)
    found = QuantisingRecoding(ScaleRule.MSE, base=base).recode(tensor("f32", (tuned,)), target("mxfp4"), 4, chunk)
    left = found.findings.survival
    quantised = MXFP4.decode(found.chunk)
    assert left.values == 8 * COLUMNS
    assert left.tuned == np.count_nonzero(tuned[4:] != original[4:])
    assert left.moved == np.count_nonzero(quantised != original[4:])


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_number_that_is_not_finite_is_an_error_that_names_the_tensor(value: float) -> None:
    numbers = NUMBERS.copy()
    numbers[3, 3] = value
    with pytest.raises(InputError, match=r"not finite .*tensor t"):
        QuantisingRecoding(ScaleRule.MSE).recode(tensor("f32", (numbers,)), target("mxfp4"), 0, (numbers,))


# --- findings


def test_findings_add_up_and_are_ready_for_json() -> None:
    chunk = BF16.encode(NUMBERS)
    base = tensor("mxfp4", MXFP4.encode(NUMBERS))
    recoding = QuantisingRecoding(ScaleRule.MSE, base=base)
    source = tensor("bf16", chunk)
    whole = recoding.recode(source, target("mxfp4"), 0, chunk).findings
    parts = [recoding.recode(source, target("mxfp4"), s, (chunk[0][s : s + 5],)).findings for s in (0, 5, 10)]
    total = sum(parts, NOTHING_FOUND)
    assert total.quantisation.values == whole.quantisation.values
    assert total.quantisation.kept_blocks == whole.quantisation.kept_blocks
    assert total.relative_error == pytest.approx(whole.relative_error, rel=1e-9)
    assert total.survival.tuned == whole.survival.tuned
    facts = json.loads(json.dumps(total.as_dict()))
    assert facts["rounding"] is None
    assert facts["quantisation"]["blocks"] == ROWS * COLUMNS // 32
    assert facts["survival"]["share_tuned"] == total.survival.share_tuned
    assert Findings().as_dict() == {
        "rounding": None,
        "quantisation": None,
        "survival": None,
        "half_precision": None,
        "signs_of_zero": 0,
        "rounded_in_graph": 0,
    }


@pytest.mark.parametrize("source_encoding", ["bf16", "f32"])
def test_halving_tells_how_numbers_fit_the_range_of_float16(source_encoding: str) -> None:
    """By the kernel for bfloat16 as by the way through float32."""
    numbers = np.zeros((1, 32), np.float32)
    numbers[0, :4] = [2.0**-15, 2.0**-30, -(2.0**-24), 1.0]
    chunk = ENCODINGS[source_encoding].encode(numbers)
    recoding = HalvingRecoding() if source_encoding == "bf16" else PLAIN
    recoded = recoding.recode(tensor(source_encoding, chunk), target("f16"), 0, chunk)
    np.testing.assert_array_equal(recoded.chunk[0], numbers.astype(np.float16))
    assert recoded.findings.halves == HalfFigures(values=32, subnormal=2, vanished=1)
    assert recoded.findings.deviation.different == 1
    twice = recoded.findings + recoded.findings
    assert twice.as_dict()["half_precision"] == {"values": 64, "subnormal": 4, "vanished": 2}


def test_zeros_that_lose_their_sign_are_counted() -> None:
    chunk = MXFP4.encode(np.where(np.arange(64) % 4 == 0, -0.0, 1.0).astype(np.float32).reshape(2, 32))
    recoded = SignlessRecoding().recode(tensor("mxfp4", chunk), target("int8-block"), 0, chunk)
    assert recoded.findings == Findings(signs_of_zero=16)
    assert (recoded.findings + recoded.findings).as_dict()["signs_of_zero"] == 32


# --- values, and memory


@pytest.mark.parametrize(
    "recoding",
    [
        PLAIN,
        NamingRecoding(),
        HalvingRecoding(),
        SignlessRecoding(),
        QuantisingRecoding(ScaleRule.EVEN, named=Names(b"\xff" * ROWS * 3)),
    ],
)
def test_recodings_are_values(recoding: Recoding) -> None:
    assert pickle.loads(pickle.dumps(recoding)) == recoding


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("encoding", ["bf16", "f32", "f16"])
def test_estimate_of_memory_for_quantising_is_an_upper_one(encoding: str, with_base: bool, order: Order) -> None:
    """What numpy takes beyond chunk and result, a fixed amount for pieces apart."""
    rows, columns = 512, 4096
    numbers = np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)
    chunk = tuple(np.asarray(part, order=order) for part in ENCODINGS[encoding].encode(numbers))
    base = tensor("mxfp4", MXFP4.encode(numbers)) if with_base else None
    recoding = QuantisingRecoding(ScaleRule.MSE, base=base)
    source, output = tensor(encoding, chunk, order), target("mxfp4", columns=columns)
    recoding.recode(source, output, 0, tuple(part[:1] for part in chunk))
    tracemalloc.start()
    result = recoding.recode(source, output, 0, chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    taken = peak - sum(part.nbytes for part in result.chunk)
    assert taken <= rows * recoding.temporary_bytes(source, output) + (8 << 20)
