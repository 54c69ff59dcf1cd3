"""Errors: one line, whatever strangers wrote into it."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.errors import (
    LONGEST_FACT,
    BudgetError,
    GptossConvertError,
    InputError,
    OptionError,
    OutputError,
    UnsupportedError,
    VerificationError,
    printable,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (GptossConvertError, 70),
        (VerificationError, 1),
        (OptionError, 2),
        (InputError, 3),
        (UnsupportedError, 4),
        (OutputError, 5),
        (BudgetError, 6),
    ],
)
def test_exit_code(kind: type[GptossConvertError], code: int) -> None:
    assert kind.exit_code == code
    assert issubclass(kind, GptossConvertError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InputError("it broke"), "it broke"),
        (InputError("it broke", file=Path("a/b")), "it broke (a/b)"),
        (InputError("it broke", tensor="t"), "it broke (tensor t)"),
        (InputError("it broke", file="f", tensor="t"), "it broke (f, tensor t)"),
        (InputError("it broke", found=0), "it broke: found 0"),
        (InputError("it broke", found=[1], expected=[2]), "it broke: found [1], expected [2]"),
        (InputError("it broke", hint="mend it"), "it broke; mend it"),
    ],
)
def test_text(error: InputError, text: str) -> None:
    assert str(error) == text


@given(st.text(), st.text(), st.text())
def test_text_is_one_printable_line(what: str, tensor: str, found: str) -> None:
    assert str(InputError(what, tensor=tensor, found=found)).isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("äö 世界", "äö 世界"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb", "a\\nb"),
        ("\ud800", "\\ud800"),
        ("\u202e", "\\u202e"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_facts_are_ready_for_json() -> None:
    error = OutputError("it broke", file=Path("f"), tensor="t", found=1, expected=2, hint="mend it")
    assert json.loads(json.dumps(error.as_dict())) == {
        "error": "OutputError",
        "what": "it broke",
        "file": "f",
        "tensor": "t",
        "found": "1",
        "expected": "2",
        "hint": "mend it",
        "exit_code": 5,
    }


def test_facts_of_any_length_are_shortened() -> None:
    long = "x" * 100_000
    error = InputError(long, tensor=long, found=long, expected=long)
    assert len(str(error)) < 6 * LONGEST_FACT
    assert error.found == "x" * LONGEST_FACT + "..."
    assert InputError("", found="x" * LONGEST_FACT).found == "x" * LONGEST_FACT


def test_hint_is_added_to_a_copy_that_has_none() -> None:
    error = InputError("it broke", file="f", tensor="t", found=1, expected=2)
    hinted = error.with_hint("mend it")
    assert type(hinted) is InputError
    assert hinted.as_dict() == error.as_dict() | {"hint": "mend it"}
    assert hinted.with_hint("other").hint == "mend it"
    assert error.hint is None


@pytest.mark.parametrize("kind", [InputError, OutputError, UnsupportedError])
def test_pickling_keeps_all_facts(kind: type[GptossConvertError]) -> None:
    error = kind("it broke", file=Path("f"), tensor="t", found=1, expected=2, hint="mend it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), copy.as_dict()) == (str(error), error.as_dict())


@pytest.mark.parametrize("value", [1 << 80_000, [1 << 80_000], {"a": -(1 << 80_000)}], ids=["int", "list", "dict"])
def test_number_that_python_does_not_write_is_no_failure(value: object) -> None:
    """Hexadecimal numbers of TOML can have any length; as decimals they may have 4300 digits."""
    assert str(InputError("x", found=value)) == f"x: found {type(value).__name__} too long to be shown"
