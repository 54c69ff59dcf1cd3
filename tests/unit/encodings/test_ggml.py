"""Types of ggml that are decoded by gguf-py and never made."""

import pickle
import warnings

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_convert.encodings import ENCODINGS, EncodingError, LossClass, convert, loss_class
from gptoss_convert.encodings.ggml import GgmlQuantised, ggml_encoding
from gptoss_convert.encodings.opaque import Opaque

Kind = gguf.GGMLQuantizationType
COPIED_ONLY = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "Q1_0")
"""Types that gguf-py has no decoder for."""
DECODED = [kind for kind in Kind if kind.name not in COPIED_ONLY and kind.name.lower() not in ENCODINGS]
MADE_BY_GGUF_PY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0")


def quantised(kind: Kind) -> GgmlQuantised:
    found = ggml_encoding(kind.value)
    assert isinstance(found, GgmlQuantised)
    return found


def blocks(kind: Kind, rows: int, columns: int) -> NDArray[np.uint8]:
    """Rows of this type: made by gguf-py where it can, else random bytes that stand for finite numbers."""
    rng = np.random.default_rng(kind.value)
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    if kind.name in MADE_BY_GGUF_PY:
        made: NDArray[np.uint8] = gguf.quants.quantize(rng.standard_normal((rows, columns), np.float32), kind)
        return made
    pieces = rng.integers(0, 256, (rows * columns // block, nbytes)).astype(np.uint8)
    with warnings.catch_warnings(action="ignore"):
        while (wrong := ~np.isfinite(gguf.quants.dequantize(pieces, kind)).all(axis=-1)).any():
            pieces[wrong] = rng.integers(0, 256, (int(wrong.sum()), nbytes))
    return pieces.reshape(rows, -1)


def test_every_type_that_gguf_py_decodes_is_decoded() -> None:
    assert {kind.name for kind in DECODED} >= {
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
    }
    assert all(isinstance(ggml_encoding(kind.value), GgmlQuantised) for kind in DECODED)


@pytest.mark.parametrize("name", COPIED_ONLY)
def test_other_types_are_known_by_size(name: str) -> None:
    assert isinstance(ggml_encoding(Kind[name].value), Opaque)


@pytest.mark.parametrize("number", [4, 5, 31, 99, 1 << 31])
def test_numbers_without_type_are_none(number: int) -> None:
    assert ggml_encoding(number) is None


@pytest.mark.parametrize("kind", DECODED)
def test_numbers_are_those_of_gguf_py_in_pieces_of_any_size(kind: Kind) -> None:
    encoding = quantised(kind)
    data = blocks(kind, 21, 512)
    expected = gguf.quants.dequantize(data, kind)
    assert encoding.nbytes((21, 512)) == data.nbytes
    for rows in (1, 4, 21):
        pieces = [encoding.decode((data[start : start + rows],)) for start in range(0, 21, rows)]
        np.testing.assert_array_equal(np.concatenate(pieces), expected)


@pytest.mark.parametrize("kind", DECODED)
def test_every_second_row_is_decoded_like_a_copy_of_it(kind: Kind) -> None:
    data = blocks(kind, 6, 256)
    np.testing.assert_array_equal(quantised(kind).decode((data[1::2],)), gguf.quants.dequantize(data, kind)[1::2])


@pytest.mark.parametrize("kind", DECODED)
def test_no_rows_are_no_numbers(kind: Kind) -> None:
    assert quantised(kind).decode((blocks(kind, 2, 512)[:0],)).shape == (0, 512)


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q4_K", "Q6_K", "IQ4_XS", "IQ2_S", "TQ2_0"])
def test_numbers_that_are_not_finite_are_refused(name: str) -> None:
    encoding = quantised(Kind[name])
    with pytest.raises(EncodingError, match=f"{encoding.name}.*not finite"):
        encoding.decode((np.full((1, encoding.row_nbytes(256)), 0xFF, np.uint8),))


@pytest.mark.parametrize("kind", DECODED)
def test_they_are_copied_and_never_made(kind: Kind) -> None:
    encoding = quantised(kind)
    data = blocks(kind, 2, 256)
    assert convert((data,), encoding, encoding)[0] is data
    assert encoding.can_decode
    assert not encoding.can_encode
    with pytest.raises(EncodingError, match=encoding.name):
        encoding.encode(np.zeros((1, 256), np.float32))


@pytest.mark.parametrize("kind", DECODED)
def test_only_float32_holds_their_numbers(kind: Kind) -> None:
    classes = {name: loss_class(quantised(kind), other) for name, other in ENCODINGS.items()}
    assert classes.pop("f32") is LossClass.VALUE_EXACT
    assert set(classes.values()) == {LossClass.LOSSY}
    assert loss_class(quantised(kind), quantised(kind)) is LossClass.BYTE_EXACT


def test_encodings_that_round_are_those_in_which_gpt_oss_is_not_published() -> None:
    assert {name: encoding.rounds for name, encoding in ENCODINGS.items()} == {
        "f32": False,
        "f16": False,
        "bf16": False,
        "mxfp4": False,
        "q8_0": True,
        "int8-block": False,  # holds what was published
        "int4-block": True,
    }
    assert all(quantised(kind).rounds for kind in DECODED)


@pytest.mark.parametrize("kind", DECODED)
def test_pickling_keeps_all_facts(kind: Kind) -> None:
    encoding = quantised(kind)
    copy = pickle.loads(pickle.dumps(encoding))
    assert copy == encoding
    assert (copy.name, copy.block, copy.bytes_per_block) == (encoding.name, *gguf.GGML_QUANT_SIZES[kind])
    data = blocks(kind, 1, 256)
    np.testing.assert_array_equal(copy.decode((data,)), encoding.decode((data,)))
