"""Wrong usage: exit code 2 and a hint, before anything is read or written."""

from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.encodings import ENCODINGS
from gptoss_convert.formats.gguf.container import TYPE_NUMBERS
from gptoss_convert.options import EXPERT_ENCODINGS, Size
from tests.cli.command import run_here, run_process
from tests.cli.samples import Samples


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Usage:"),
        (["convert"], "No such command 'convert'"),
        (["--nothing"], "No such option"),
        (["inspect"], "Missing argument 'SRC'"),
        (["inspect", "a", "b"], "unexpected extra argument"),
        (["inspect", "a", "--force"], "No such option"),
        (["to-gguf", "a"], "Missing option '-o'"),
        (["to-gguf", "-o", "x.gguf"], "Missing argument 'SRC'"),
        (["to-gguf", "a", "-o", "x.gguf", "--dense", "mxfp4"], "'mxfp4' is not one of"),
        (["to-gguf", "a", "-o", "x.gguf", "--experts", "q4_k"], "'q4_k' is not one of"),
        (["to-gguf", "a", "-o", "x.gguf", "--jobs", "0"], "0 is not in the range"),
        (["to-gguf", "a", "-o", "x.gguf", "--jobs", "many"], "'many' is not a valid integer"),
        (["to-gguf", "a", "-o", "x.gguf", "--max-memory", "much"], "'much' is no size"),
        (["to-gguf", "a", "-o", "x.gguf", "--tensor-type", "q8_0"], "'q8_0': write for example"),
        (["to-gguf", "a", "-o", "x.gguf", "--tensor-type", "*=q4_k"], "'*=q4_k': write for example"),
        (["to-gguf", "a", "-o", "x.gguf", "--tensor-type", "=q8_0"], "'=q8_0': write for example"),
        (["demo", "here"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(arguments: list[str], words: str, tmp_path: Path) -> None:
    outcome = run_process(*arguments, cwd=tmp_path)
    assert outcome.exit_code == 2
    assert words in outcome.stderr
    assert outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("500", 500),
        ("1B", 1),
        ("60M", 60_000_000),
        ("60MB", 60_000_000),
        ("60 kB", 60_000),
        ("4GB", 4_000_000_000),
        ("4gb", 4_000_000_000),
        ("4GiB", 4 * 2**30),
        ("1.5KiB", 1536),
        ("0.5T", 500_000_000_000),
        ("2TiB", 2 * 2**40),
    ],
)
def test_sizes_are_decimal_or_binary(text: str, nbytes: int) -> None:
    assert Size().convert(text, None, None) == nbytes


@pytest.mark.parametrize(
    "text",
    ["", "B", "GB", "-1", "0", "0GB", "0.1", "4XB", "4GBB", "4iB", "1e9", "nan", "inf", "1,5GB", "4GB 5",
     pytest.param("9" * 400)],
)  # fmt: skip
def test_what_is_no_size_is_refused(text: str, tmp_path: Path) -> None:
    outcome = run_here("to-gguf", tmp_path, "-o", tmp_path / "x.gguf", "--max-memory", text)
    assert outcome.exit_code == 2
    assert f"{text!r} is no size" in outcome.stderr


@pytest.mark.parametrize("variables", [{}, {"GPTOSS_CONVERT_JOBS": "0", "GPTOSS_CONVERT_TO_GGUF_JOBS": "0"}])
def test_no_environment_variable_is_needed_or_read(
    variables: dict[str, str], samples: Samples, tmp_path: Path
) -> None:
    outcome = run_process("to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf", "-q", env=variables)
    assert outcome.exit_code == 0


def test_debug_adds_the_traceback_to_the_one_line(tmp_path: Path) -> None:
    first, *_, last = run_here("inspect", tmp_path / "nothing", "--debug").stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert last.startswith("error: nothing is there")


@pytest.mark.parametrize(
    ("raised", "exit_code", "line"),
    [
        (ZeroDivisionError("x"), 70, "error: internal error: ZeroDivisionError('x')"),
        (KeyboardInterrupt(), 130, "interr"),
    ],
)
def test_unforeseen_exception_is_one_line(
    raised: BaseException, exit_code: int, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Any) -> None:
        raise raised

    monkeypatch.setattr("gptoss_convert.formats.open_checkpoint", fail)
    outcome = run_here("inspect", tmp_path)
    assert outcome.exit_code == exit_code
    assert outcome.stderr.strip().startswith(line)
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_every_encoding_that_gguf_holds_can_be_named() -> None:
    assert set(EXPERT_ENCODINGS) == set(TYPE_NUMBERS) <= set(ENCODINGS)
