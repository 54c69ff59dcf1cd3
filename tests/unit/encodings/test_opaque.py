"""Encodings without codec."""

import pickle

import numpy as np
import pytest

from gptoss_convert.encodings import ENCODINGS, EncodingError, LossClass, loss_class
from gptoss_convert.encodings.opaque import Opaque

Q4_K = Opaque("q4_k", 256, 144)


def test_sizes_are_known() -> None:
    assert Q4_K.bits_per_weight == 4.5
    assert Q4_K.row_nbytes(512) == 288
    assert Q4_K.nbytes((3, 512)) == 864
    assert not Q4_K.fits(32)


def test_numbers_are_not() -> None:
    assert not Q4_K.can_decode
    with pytest.raises(EncodingError, match="q4_k"):
        Q4_K.decode((np.zeros((1, 144), np.uint8),))
    with pytest.raises(EncodingError, match="q4_k"):
        Q4_K.encode(np.zeros((1, 256), np.float32))


@pytest.mark.parametrize("name", list(ENCODINGS))
def test_conversions_are_lossy(name: str) -> None:
    assert loss_class(Q4_K, ENCODINGS[name]) is LossClass.LOSSY
    assert loss_class(ENCODINGS[name], Q4_K) is LossClass.LOSSY


def test_copies_are_byte_exact() -> None:
    assert loss_class(Q4_K, Opaque("q4_k", 256, 144)) is LossClass.BYTE_EXACT


@pytest.mark.parametrize("other", [Opaque("q4_k", 256, 145), Opaque("q5_k", 256, 144)])
def test_encodings_of_another_name_or_size_differ(other: Opaque) -> None:
    assert other != Q4_K


def test_pickling_keeps_all_facts() -> None:
    copy = pickle.loads(pickle.dumps(Q4_K))
    assert copy == Q4_K
    assert (copy.name, copy.block, copy.parts) == (Q4_K.name, Q4_K.block, Q4_K.parts)
