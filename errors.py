"""The errors that this package raises on purpose.

One root, one class per kind of cause. Each class fixes the exit code of the command line, and each
error carries the facts that a reader needs to act: which file, which tensor, what was found, what was
expected, what to do next. Names come from files that strangers wrote, so `str()` never passes a control
character through to a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

LONGEST_FACT = 300
"""Characters of a name or value in an error."""


class GptossConvertError(Exception):
    """Root of all errors raised on purpose; `str()` is one line."""

    exit_code: ClassVar[int] = 70

    def __init__(
        self,
        what: str,
        *,
        file: Path | str | None = None,
        tensor: str | None = None,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what if len(what) <= 2 * LONGEST_FACT else f"{what[: 2 * LONGEST_FACT]}..."
        self.file = None if file is None else str(file)  # the system bounds its length
        self.tensor = self._shortened(tensor)
        self.found = self._shortened(found)
        self.expected = self._shortened(expected)
        self.hint = hint

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.file, self.tensor and f"tensor {self.tensor}") if part)
        facts = ", ".join(
            f"{label} {value}"
            for label, value in (("found", self.found), ("expected", self.expected))
            if value is not None
        )
        line = self.what
        if place:
            line += f" ({place})"
        if facts:
            line += f": {facts}"
        if self.hint:
            line += f"; {self.hint}"
        return printable(line)

    @staticmethod
    def _shortened(value: object) -> str | None:
        """Return `value` as text of bounded length: it may come from a hostile file."""
        if value is None:
            return None
        try:
            text = str(value)
        except ValueError:  # Python writes no integer of more than 4300 digits, which hexadecimal ones may have
            text = f"{type(value).__name__} too long to be shown"
        return text if len(text) <= LONGEST_FACT else f"{text[:LONGEST_FACT]}..."

    def with_hint(self, hint: str) -> Self:
        """Return the same error with `hint`, unless it has one."""
        facts = {"file": self.file, "tensor": self.tensor, "found": self.found, "expected": self.expected}
        return type(self)(self.what, **facts, hint=self.hint or hint)

    def as_dict(self) -> dict[str, str | int | None]:
        """Return the facts under stable keys, for `--json`."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "file": self.file,
            "tensor": self.tensor,
            "found": self.found,
            "expected": self.expected,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class VerificationError(GptossConvertError):
    """A check of a written artifact failed."""

    exit_code = 1


class OptionError(GptossConvertError):
    """An option has a value that makes no sense for this input."""

    exit_code = 2


class InputError(GptossConvertError):
    """An input file is missing, damaged, inconsistent or not what it claims to be."""

    exit_code = 3


class UnsupportedError(GptossConvertError):
    """The input is sound, but this conversion, format or runtime cannot take it."""

    exit_code = 4


class OutputError(GptossConvertError):
    """The output could not be written: it exists, or the disk is full, or access is denied."""

    exit_code = 5


class BudgetError(GptossConvertError):
    """The work does not fit the memory or disk budget that was given."""

    exit_code = 6


@contextmanager
def as_output_error(path: Path) -> Iterator[None]:
    """Turn an `OSError` into an `OutputError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror or error}", file=path) from error


def was_interrupted(error: BaseException) -> bool:
    """Return whether an interruption is behind `error`.

    A signal's `KeyboardInterrupt` may come up between two steps of the standard library that belong together, such
    as taking a lock and noting that it is taken; the error that this makes then hides it.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__context__
    return seen is not None


def printable(text: str) -> str:
    """Replace every control or otherwise unprintable character of `text` by its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
