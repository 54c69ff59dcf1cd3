"""Bytes and numbers of other programs, kept in tests/data/golden."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_convert.encodings import ENCODINGS
from gptoss_convert.formats.gguf.blocks import pack, unpack

GOLDEN = Path(__file__).resolve().parents[2] / "data/golden"
NAMES = ("mxfp4", "q8_0", "bf16", "f16")


def load(name: str) -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN / name) as arrays:
        return dict(arrays)


def assert_same_bits(found: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_mxfp4_means_what_transformers_makes_of_it() -> None:
    golden = load("transformers-mxfp4.npz")
    experts, rows, blocks, _ = golden["blocks"].shape
    codes = golden["blocks"].reshape(experts * rows, blocks * 16)
    values = ENCODINGS["mxfp4"].decode((codes, golden["scales"].reshape(experts * rows, blocks)))
    (bits,) = ENCODINGS["bf16"].encode(values)
    np.testing.assert_array_equal(bits.reshape(experts, rows, -1).transpose(0, 2, 1), golden["bf16"])


@pytest.mark.parametrize("name", NAMES)
def test_bytes_mean_what_gguf_py_makes_of_them(name: str) -> None:
    golden = load(f"gguf-py-{name}.npz")
    encoding = ENCODINGS[name]
    assert_same_bits(encoding.decode(unpack(encoding, golden["data"])), golden["decoded"])


@pytest.mark.parametrize("name", ["q8_0", "bf16", "f16"])
def test_numbers_become_the_bytes_of_gguf_py(name: str) -> None:
    golden = load(f"gguf-py-{name}.npz")
    encoding = ENCODINGS[name]
    packed = pack(encoding, encoding.encode(golden["values"]))
    np.testing.assert_array_equal(packed.view(np.uint8), golden["data"])


def test_mxfp4_of_gguf_py_returns_from_its_numbers_byte_by_byte() -> None:
    golden = load("gguf-py-mxfp4.npz")
    encoding = ENCODINGS["mxfp4"]
    packed = pack(encoding, encoding.encode(golden["decoded"]))
    np.testing.assert_array_equal(packed.view(np.uint8), golden["data"])
