"""What every refusal has in common."""

from collections.abc import Sequence
from pathlib import Path

from tests.cli.command import Outcome

LONGEST_LINE = 1000
"""Characters of an error that people still read, the path of the test's folder not counted."""


def contents(folder: Path) -> dict[Path, bytes]:
    """Every regular file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_line(outcome: Outcome, exit_code: int, words: Sequence[str], folder: Path) -> None:
    """Check what an error looks like; `words` are looked for without the path of the test's folder."""
    line, *others = outcome.stderr.splitlines()
    assert others == []
    assert line.startswith("error: ")
    text = line.replace(str(folder), "")
    assert len(text) <= LONGEST_LINE
    assert [word for word in words if word not in text] == []
    assert outcome.exit_code == exit_code
    assert outcome.stdout == ""
