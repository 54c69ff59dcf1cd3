"""Sizes of people become bytes."""

import pytest

from gptoss_convert.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"), [("16GB", 16 * 10**9), ("16GiB", 16 * 2**30), (" 600 MiB ", 600 * 2**20)]
)
def test_units_are_decimal_or_binary(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "laptop-16gb", "1e9"])
def test_what_is_no_size_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(ValueError, match=f"{text!r} is no size"):
        parse_size(text)
