"""The kernels in C; what they do to numbers is tested beside numpy's results, in `tests/unit/encodings`."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert import kernels
from gptoss_convert.formats.gguf import container
from gptoss_convert.formats.gguf.container import StringArray
from gptoss_convert.kernels import NATIVE, Native


def compiler() -> str | None:
    """The compiler that extensions are built with, if there is one."""
    return shutil.which((os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0])


def test_kernels_are_compiled_where_there_is_a_compiler() -> None:
    assert NATIVE is not None or compiler() is None, "install the package again: pip install -e ."


@pytest.mark.parametrize(("chosen", "expected"), [("numpy", True), ("", NATIVE is None)])
def test_numpy_can_be_chosen(chosen: str, expected: bool) -> None:
    script = "from gptoss_convert.kernels import NATIVE; print(NATIVE is None)"
    environment = {**os.environ, kernels.VARIABLE: chosen}
    command = [sys.executable, "-P", "-c", script]
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == f"{expected}\n"


@pytest.fixture
def native() -> Native:
    if NATIVE is None:
        assert compiler() is None
        pytest.skip("no compiler, and no kernels in C")
    return NATIVE


# --- arguments: a wrong one is an error, and never a wrong address

BYTES = [np.zeros(shape, np.uint8) for shape in ((4, 16), (4, 1), (4, 1), (4, 1))]


@pytest.mark.parametrize(
    "values", [np.zeros(32, np.uint16), np.zeros((4, 32)), np.zeros((4, 33), np.uint16)], ids=str
)
def test_values_to_quantise_are_a_matrix_of_whole_blocks(native: Native, values: Any) -> None:
    codes, scales, named, odd = BYTES
    with pytest.raises(ValueError, match=r"matrix|shapes"):
        native.quantise(values, -1, named, codes, scales, odd)


@pytest.mark.parametrize("wrong", range(4))
def test_arrays_of_the_wrong_shape_are_refused(native: Native, wrong: int) -> None:
    codes, scales, named, odd = (
        np.zeros((3, array.shape[1]), np.uint8) if index == wrong else array for index, array in enumerate(BYTES)
    )
    with pytest.raises(ValueError, match="shapes"):
        native.quantise(np.zeros((4, 32), np.uint16), -1, named, codes, scales, odd)


@pytest.mark.parametrize(
    ("pairs", "stored"), [(65_535, (32, 4)), (65_536, (32, 3)), (65_536, (31, 4)), (65_536, (4, 32))]
)
def test_arrays_that_do_not_fit_codes_are_refused(native: Native, pairs: int, stored: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="shapes"):
        native.decode_columns(*BYTES[:2], np.zeros(pairs, np.uint32), np.zeros(stored, np.uint16))


# --- merges

tokens = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]) | st.sampled_from('"\\/,[]'))
merges = st.lists(st.tuples(tokens, tokens))


@given(merges, st.sampled_from([None, 1]), st.booleans())
def test_pairs_are_joined(pairs: list[tuple[str, str]], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(pairs, indent=indent, ensure_ascii=ascii_only)
    joined = None if NATIVE is None else NATIVE.join_pairs(text.encode())
    if joined is None:
        assert NATIVE is None or "\\u" in text
    else:
        assert joined.decode() == "".join(f"{left} {right}\n" for left, right in pairs)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "{}", '[["a","b"]', '[["a","b"]],', '[["a","b"],]', '[["a"]]', '[["a","b","c"]]', '["a b"]'),
        *(
            '[["a","b]]',
            '[["a",1]]',
            '[["a","b\\',
            r'[["a","b\"',
            '[["a ","b"]]',
            '[["a\n","b"]]',
            r'[["\n","b"]]',
        ),
    ],
)
def test_other_text_is_left_to_the_parser(native: Native, text: str) -> None:
    assert native.join_pairs(text.encode()) is None


@given(
    st.binary() | merges.map(lambda pairs: json.dumps(pairs).encode()), st.integers(0, 100), st.binary(max_size=2)
)
def test_damaged_text_does_no_harm(text: bytes, place: int, damage: bytes) -> None:
    if NATIVE is not None:
        damaged = text[:place] + damage + text[place + 1 :]
        joined = NATIVE.join_pairs(damaged)
        if joined is not None:
            pairs = json.loads(damaged.decode("utf-8", "replace"))
            assert joined.decode("utf-8", "replace") == "".join(f"{left} {right}\n" for left, right in pairs)


# --- strings with their lengths


@given(st.lists(st.text()))
def test_strings_are_stored_the_same_without_kernels(items: list[str]) -> None:
    stored = StringArray.of(items)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(container, "NATIVE", None)
        assert StringArray.of(items) == stored


def test_each_text_has_its_length_before_it(native: Native) -> None:
    assert native.prefix_lengths(b"") == b""
    assert native.prefix_lengths(b"ab\0\0c\0") == struct.pack("<Q2sQQs", 2, b"ab", 0, 1, b"c")


def test_a_text_without_an_end_is_refused(native: Native) -> None:
    with pytest.raises(ValueError, match="no end"):
        native.prefix_lengths(b"ab\0c")
