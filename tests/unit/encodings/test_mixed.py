"""Even and odd rows in two encodings."""

import pickle

import numpy as np
import pytest

from gptoss_convert.encodings import ENCODINGS, EncodingError, LossClass, loss_class
from gptoss_convert.encodings.ggml import GgmlQuantised
from gptoss_convert.encodings.mixed import Mixed
from gptoss_convert.encodings.opaque import Opaque

Q4_0 = GgmlQuantised("q4_0", 32, 18)
MIXED = Mixed(ENCODINGS["mxfp4"], Q4_0)


def test_it_is_named_after_both() -> None:
    assert MIXED.name == "mxfp4+q4_0"
    assert Mixed(Q4_0, ENCODINGS["mxfp4"]) != MIXED
    assert pickle.loads(pickle.dumps(MIXED)) == MIXED


def test_size_is_that_of_both_halves() -> None:
    assert MIXED.nbytes((2, 6, 64)) == ENCODINGS["mxfp4"].nbytes((2, 3, 64)) + Q4_0.nbytes((2, 3, 64))


def test_chunks_are_float32() -> None:
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    assert MIXED.decode((values,)) is values
    assert MIXED.row_nbytes(32) == 128
    with pytest.raises(EncodingError, match=r"mxfp4\+q4_0"):
        MIXED.encode(values)


@pytest.mark.parametrize(
    ("even", "odd", "rounds", "can_decode"),
    [
        ("mxfp4", ENCODINGS["bf16"], False, True),
        ("mxfp4", ENCODINGS["q8_0"], True, True),
        ("bf16", Q4_0, True, True),
        ("bf16", Opaque("q8_1", 32, 40), True, False),
    ],
)
def test_it_is_as_good_as_the_worse_half(even: str, odd: GgmlQuantised, rounds: bool, can_decode: bool) -> None:
    for mixed in (Mixed(ENCODINGS[even], odd), Mixed(odd, ENCODINGS[even])):
        assert mixed.rounds is rounds
        assert mixed.can_decode is can_decode
        assert not mixed.can_encode


def test_only_float32_holds_the_numbers() -> None:
    assert loss_class(MIXED, ENCODINGS["f32"]) is LossClass.VALUE_EXACT
    assert loss_class(MIXED, ENCODINGS["bf16"]) is LossClass.LOSSY
