"""What goes where: standard output, standard error, terminals, pipes, and names that strangers chose."""

import os
import pty
import re
import subprocess
import tty
from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.formats import open_checkpoint
from tests.cli.command import PROGRAM, Outcome, environment, run_here, run_process
from tests.cli.samples import SHAPE, Samples
from tests.support.checkpoints import Entry, write_safetensors
from tests.support.layouts import huggingface_tensors

HOSTILE = "a\x1b[31mred\r\n[bold]b[/bold]\u202ec"
ESCAPED = r"a\x1b[31mred\r\n[bold]b[/bold]\u202ec"
ESCAPE = "\x1b"
BAR = re.compile("[━╸╺]")
VERIFY = ["verify", "SRC", "SRC", "--weights"]


# Quiet


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "SRC"],
        ["to-gguf", "SRC", "-o", "OUT"],
        VERIFY,
        pytest.param(
            ["to-gguf", "SRC", "-o", "OUT", "--dry-run"],
        ),
    ],
    ids=" ".join,
)
def test_quiet_prints_nothing(arguments: list[str], samples: Samples, tmp_path: Path) -> None:
    places = {"SRC": samples.path("huggingface"), "OUT": tmp_path / "x.gguf"}
    command = [str(places.get(argument, argument)) for argument in arguments]
    assert run_process(*command, "--quiet") == Outcome(0, "", "")


def test_quiet_prints_errors(tmp_path: Path) -> None:
    outcome = run_here("inspect", tmp_path, "-q")
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("error: ")


def test_quiet_does_not_change_the_exit_code_of_problems(samples: Samples, tmp_path: Path) -> None:
    source = samples.copy("huggingface", tmp_path)
    (source / "tokenizer.json").unlink()
    assert run_here("inspect", source, "-q") == Outcome(1, "", "")


# Progress


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, let a line of progress follow the other."""
    monkeypatch.setattr("gptoss_convert.console.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.delenv("CI", raising=False)


def progress_lines(outcome: Outcome) -> list[str]:
    return [line for line in outcome.stderr.splitlines() if " left  " in line]


@pytest.mark.usefixtures("impatient")
def test_progress_without_a_terminal_is_lines_on_standard_error(samples: Samples, tmp_path: Path) -> None:
    outcome = run_here("to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf")
    lines = progress_lines(outcome)
    assert lines[-1].startswith("100 %  ")
    names = open_checkpoint(samples.path("huggingface")).tensors.keys()
    assert {line.split()[-1] for line in lines} == set(names)
    assert " left  " not in outcome.stdout


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("option", ["--no-progress", "--quiet", "--json"])
def test_progress_can_be_switched_off(option: str, samples: Samples, tmp_path: Path) -> None:
    outcome = run_here("to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf", option)
    assert progress_lines(outcome) == []


@pytest.mark.usefixtures("impatient")
def test_there_is_no_progress_in_the_logs_of_ci(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")
    outcome = run_here("to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf")
    assert progress_lines(outcome) == []


def test_a_short_run_shows_no_progress_without_a_terminal(samples: Samples, tmp_path: Path) -> None:
    outcome = run_process("to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf")
    assert re.fullmatch(r"done in [^\n]*\nnext: [^\n]*\nrun:  [^\n]*\n", outcome.stderr)


def on_terminal(stream: str, *arguments: str | Path, **variables: str) -> str:
    """Run a command with one of its streams on a terminal, and return what that shows."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    streams: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: theirs}
    environ = environment({"TERM": "xterm-256color", **variables})
    with subprocess.Popen([*PROGRAM, *map(str, arguments)], env=environ, **streams) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert process.returncode == 0
    return shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux says so when nobody has the other end open any more
        return b""


@pytest.mark.parametrize("variables", [{}, {"CI": "1"}, {"NO_COLOR": "1"}], ids=str)
def test_a_terminal_gets_a_bar(variables: dict[str, str], samples: Samples, tmp_path: Path) -> None:
    shown = on_terminal("stderr", "to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf", **variables)
    assert BAR.search(shown)
    assert "321.9/321.9 kB" in shown


@pytest.mark.parametrize("option", ["--no-progress", "--quiet", "--json", "--dry-run"])
def test_the_bar_can_be_switched_off(option: str, samples: Samples, tmp_path: Path) -> None:
    shown = on_terminal("stderr", "to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf", option)
    assert not BAR.search(shown)
    assert ESCAPE not in shown


def test_the_bar_stays_off_standard_output(samples: Samples, tmp_path: Path) -> None:
    shown = on_terminal("stdout", "to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf")
    assert not BAR.search(shown)


# Colour


@pytest.mark.parametrize("arguments", [["inspect", "SRC"], ["to-gguf", "SRC", "-o", "OUT", "--dry-run"], VERIFY])
def test_no_escape_sequences_without_a_terminal(arguments: list[str], samples: Samples, tmp_path: Path) -> None:
    places = {"SRC": samples.path("huggingface"), "OUT": tmp_path / "x.gguf"}
    outcome = run_process(*(str(places.get(argument, argument)) for argument in arguments))
    assert ESCAPE not in outcome.stdout + outcome.stderr


def test_no_color_gives_no_escape_sequences(samples: Samples) -> None:
    assert ESCAPE not in on_terminal("stdout", "inspect", samples.path("huggingface"), NO_COLOR="1")


def test_no_color_gives_a_bar_without_colours(samples: Samples, tmp_path: Path) -> None:
    arguments = ("to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf")
    shown = on_terminal("stderr", *arguments, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*m", shown)


def test_a_dumb_terminal_gets_no_escape_sequences(samples: Samples) -> None:
    assert ESCAPE not in on_terminal("stdout", "inspect", samples.path("huggingface"), TERM="dumb")


def test_colour_can_be_forced(samples: Samples) -> None:
    outcome = run_process("inspect", samples.path("huggingface"), env=environment({"FORCE_COLOR": "1"}))
    assert ESCAPE in outcome.stdout


# Names that strangers chose


def with_hostile_tensor(samples: Samples, folder: Path) -> Path:
    source = samples.copy("huggingface", folder)
    entries = [
        Entry(tensor.name, tensor.dtype, tensor.shape, bytes(tensor.nbytes))
        for tensor in huggingface_tensors(SHAPE)
    ]
    write_safetensors(source / "model.safetensors", [*entries, Entry(HOSTILE, "BF16", [1], b"\0\0")])
    return source


@pytest.mark.parametrize("command", ["inspect", "to-gguf"])
def test_control_characters_in_tensor_names_are_escaped(command: str, samples: Samples, tmp_path: Path) -> None:
    source = with_hostile_tensor(samples, tmp_path)
    options = ["-o", str(tmp_path / "x.gguf")] if command == "to-gguf" else []
    outcome = run_here(command, source, *options)
    assert ESCAPED in outcome.stdout + outcome.stderr
    assert_clean(outcome)


def assert_clean(outcome: Outcome) -> None:
    text = (outcome.stdout + outcome.stderr).replace("\n", "")
    assert [character for character in text if not character.isprintable()] == []


def test_control_characters_in_paths_are_escaped(samples: Samples, tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b[31mred\n"
    folder.mkdir()
    source = samples.copy("huggingface", folder)
    for command in (["inspect", source], ["to-gguf", source, "-o", folder / "x.gguf"], ["inspect", folder]):
        outcome = run_here(*map(str, command))
        assert r"a\x1b[31mred\n" in outcome.stdout + outcome.stderr
        assert_clean(outcome)


def test_control_characters_in_metadata_are_escaped(samples: Samples, tmp_path: Path) -> None:
    output = tmp_path / "x.gguf"
    run_here("to-gguf", samples.path("huggingface"), "-o", output, "--name", "a\x1b[31mred\nb", "--license", "mit")
    outcome = run_here("inspect", output)
    assert r"a\x1b[31mred\nb" in outcome.stdout
    assert_clean(outcome)


def test_markup_in_names_is_printed_as_it_is(samples: Samples, tmp_path: Path) -> None:
    source = samples.copy("huggingface", tmp_path).rename(tmp_path / "[red]model")
    assert run_here("inspect", source).stdout.startswith(f"{source}: ")


@pytest.mark.parametrize(
    "card",
    ["---\n- a list\n---\n", "---\nbase_model: [[a]]\n---\n"],
    ids=["card is a list", "base model is a list"],
)
def test_nothing_foreign_reaches_standard_error(card: str, samples: Samples, tmp_path: Path) -> None:
    source = samples.copy("huggingface", tmp_path)
    (source / "README.md").write_text(card)
    outcome = run_process("to-gguf", source, "-o", tmp_path / "x.gguf", "-q")
    assert [line for line in outcome.stderr.splitlines() if not line.startswith("error: ")] == []


# Pipes and encodings


STREAMED = [["--help"], ["inspect", "SRC"], ["inspect", "SRC", "--json"], ["to-gguf", "SRC", "-o", "OUT"], VERIFY]
"""Commands that print a lot."""


def into(stdout: int, arguments: list[str], samples: Samples, folder: Path) -> tuple[int, str]:
    """Run a command with its standard output elsewhere, and return exit code and errors."""
    places = {"SRC": samples.path("huggingface"), "OUT": folder / "x.gguf"}
    command = [*PROGRAM, *(str(places.get(argument, argument)) for argument in arguments)]
    done = subprocess.run(command, env=environment(), stdout=stdout, stderr=subprocess.PIPE, text=True)
    return done.returncode, done.stderr


@pytest.fixture
def closed_pipe() -> int:
    """A pipe that nobody reads from."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("arguments", STREAMED, ids=" ".join)
def test_a_closed_pipe_is_no_error_message(
    arguments: list[str], closed_pipe: int, samples: Samples, tmp_path: Path
) -> None:
    _, errors = into(closed_pipe, arguments, samples, tmp_path)
    os.close(closed_pipe)
    assert errors == ""


def test_a_closed_pipe_is_no_failed_check(closed_pipe: int, samples: Samples, tmp_path: Path) -> None:
    exit_code, _ = into(closed_pipe, ["inspect", "SRC"], samples, tmp_path)
    os.close(closed_pipe)
    assert exit_code != 1


@pytest.mark.parametrize("arguments", STREAMED[:3], ids=" ".join)
def test_standard_output_that_cannot_be_written_exits_5(
    arguments: list[str], samples: Samples, tmp_path: Path
) -> None:
    with Path("/dev/full").open("wb") as full:
        exit_code, errors = into(full.fileno(), arguments, samples, tmp_path)
    assert exit_code == 5
    assert len(errors.splitlines()) == 1


def test_standard_output_may_be_closed(samples: Samples, tmp_path: Path) -> None:
    command = [*PROGRAM, "to-gguf", str(samples.path("huggingface")), "-o", str(tmp_path / "x.gguf")]
    assert subprocess.run(command, env=environment(), preexec_fn=lambda: os.close(1)).returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_terminals_that_know_few_characters(encoding: str, samples: Samples, tmp_path: Path) -> None:
    variables = environment({"PYTHONIOENCODING": encoding})
    output = tmp_path / "日本.gguf"
    assert run_process("to-gguf", samples.path("huggingface"), "-o", output, env=variables).exit_code == 0
    assert run_process("inspect", output, env=variables).exit_code == 0
