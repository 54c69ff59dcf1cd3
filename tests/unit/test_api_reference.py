"""docs/api.md tells of every public name, in the words of the code."""

import dataclasses

import pytest

import gptoss_convert as gc
from tests.support.api_reference import GROUPS, PAGE, api_reference, field_docstrings

OPTIONS = (
    "Bf16Options",
    "GgufOptions",
    "LogitsOptions",
    "Mxfp4Options",
    "OnnxOptions",
    "Resources",
    "VerifyOptions",
)


def test_the_page_is_that_of_the_code() -> None:
    is_current = PAGE.read_text(encoding="utf-8") == api_reference()
    assert is_current, "docs/api.md is stale: run `python -m tests.support.api_reference` in the root"


def test_every_public_name_has_its_place() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(gc.__all__)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_explained(name: str) -> None:
    item = getattr(gc, name)
    assert set(field_docstrings(item)) == {field.name for field in dataclasses.fields(item)}
