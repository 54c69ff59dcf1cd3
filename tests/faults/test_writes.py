"""Writes that fail and runs that are stopped: what was there stays, and nothing half-finished looks finished.

What can be gone on with afterwards is in `test_resume.py`.
"""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gptoss_convert
from gptoss_convert import Plan, Resources
from gptoss_convert.errors import InputError, OutputError
from tests.cli.command import Outcome, environment, run_here, run_process
from tests.cli.samples import SPLIT_SIZE, Samples

OLD = b"an older model"
STEPS = ("open", "posix_fallocate", "pwrite", "fsync", "replace")
"""The functions of `os` through which an output goes, in order; the first `pwrite` is that of the header."""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where an older file lies; its folder is otherwise empty."""
    path = tmp_path / "output" / "x.gguf"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


@pytest.fixture
def plan(samples: Samples, output: Path) -> Plan:
    return gptoss_convert.plan_gguf(gptoss_convert.open_checkpoint(samples.path("huggingface")), output)


@pytest.fixture
def split_plan(samples: Samples, output: Path) -> Plan:
    options = gptoss_convert.GgufOptions(split_max_size=SPLIT_SIZE)
    return gptoss_convert.plan_gguf(gptoss_convert.open_checkpoint(samples.path("huggingface")), output, options)


class Fault:
    """Stands in for a function of `os`: its call number `number` (from 1) fails."""

    def __init__(self, function: Callable[..., Any], number: int, error: int = errno.EIO) -> None:
        self._function = function
        self._number = number
        self._error = error
        self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == self._number:
            raise OSError(self._error, os.strerror(self._error))
        return self._function(*arguments)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def finals(folder: Path) -> dict[str, bytes]:
    """Every file in a folder but those of a run that can be resumed."""
    return {name: content for name, content in contents(folder).items() if ".partial" not in name}


def converted(plan: Plan) -> bytes:
    """Carry out a plan that has one file, and return its bytes."""
    gptoss_convert.execute(plan, replace=True)
    (path,) = (file.path for file in plan.files)
    return path.read_bytes()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("step", ["open", "pwrite", "fsync", "replace"])
def test_failing_step_names_the_output_and_the_cause(
    step: str, error: int, plan: Plan, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, step, Fault(getattr(os, step), 1, error))
    with pytest.raises(OutputError) as caught:
        gptoss_convert.execute(plan, replace=True)
    assert str(output) in str(caught.value)
    assert os.strerror(error) in str(caught.value)


@pytest.mark.parametrize("step", ["open", "posix_fallocate", "pwrite"])
def test_step_that_fails_before_anything_is_finished_leaves_nothing_else(
    step: str, plan: Plan, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, step, Fault(getattr(os, step), 1, errno.ENOSPC))
    with pytest.raises(OutputError):
        gptoss_convert.execute(plan, replace=True)
    assert contents(output.parent) == {output.name: OLD}


def test_any_failing_write_after_the_header_leaves_the_older_file(
    plan: Plan, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Fault(os.pwrite, number=0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", counter)
        converted(plan)
    output.write_bytes(OLD)
    for number in range(2, counter.calls + 1):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", Fault(os.pwrite, number))
            with pytest.raises(OutputError):
                gptoss_convert.execute(plan, replace=True)
        assert finals(output.parent) == {output.name: OLD}, number


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("open", 1),
        ("open", 2),
        pytest.param("posix_fallocate", 2),
        pytest.param("pwrite", 2),
        ("pwrite", 20),
        ("fsync", 2),
        ("replace", 1),
        pytest.param("replace", 2),
    ],
)
def test_failing_step_of_a_split_output_leaves_the_older_set(
    step: str, number: int, split_plan: Plan, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in split_plan.files:
        file.path.write_bytes(OLD)
    older = contents(output.parent)
    monkeypatch.setattr(os, step, Fault(getattr(os, step), number))
    with pytest.raises(OutputError):
        gptoss_convert.execute(split_plan, replace=True)
    assert finals(output.parent) == older


def test_first_part_of_a_split_output_appears_last(
    split_plan: Plan, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", Fault(os.replace, len(split_plan.files)))
    with pytest.raises(OutputError):
        gptoss_convert.execute(split_plan)
    assert not any("-00001-of-" in name for name in finals(output.parent))


def test_short_writes_and_reads_change_nothing(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = converted(plan)
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: write(file, data[: len(data) // 2 + 1], offset))
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: read(file, [views[0][:1000]], offset))
    assert converted(plan) == expected


@pytest.mark.parametrize("missing", ["posix_fallocate", "posix_fadvise", "pwrite", "preadv"])
def test_systems_without_a_function_write_the_same_bytes(
    missing: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = converted(plan)
    monkeypatch.delattr(os, missing)
    assert converted(plan) == expected


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_systems_that_cannot_reserve_space_will_do(
    error: int, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = converted(plan)
    monkeypatch.setattr(os, "posix_fallocate", Fault(os.posix_fallocate, 1, error))
    assert converted(plan) == expected


def test_read_error_names_the_source_and_leaves_the_older_file(
    plan: Plan, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", Fault(os.preadv, 20))
    with pytest.raises(InputError, match=r"Input/output error.*model\.safetensors"):
        gptoss_convert.execute(plan, replace=True)
    assert finals(output.parent) == {output.name: OLD}


def test_source_that_becomes_shorter_is_an_error(samples: Samples, tmp_path: Path, output: Path) -> None:
    source = samples.copy("huggingface", tmp_path)
    plan = gptoss_convert.plan_gguf(gptoss_convert.open_checkpoint(source), output)

    def shorten(tensor: str, nbytes: int) -> None:
        os.truncate(source / "model.safetensors", 1000)

    with pytest.raises(InputError, match=r"shorter.*model\.safetensors"):
        gptoss_convert.execute(plan, resources=Resources(jobs=1), replace=True, progress=shorten)
    assert contents(output.parent) == {output.name: OLD}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exception_of_the_caller_leaves_the_older_file(
    error: type[BaseException], plan: Plan, output: Path
) -> None:
    def fail(tensor: str, nbytes: int) -> None:
        raise error

    with pytest.raises(error):
        gptoss_convert.execute(plan, replace=True, progress=fail)
    assert finals(output.parent) == {output.name: OLD}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_permissions_follow_the_umask(umask: int, mode: int, plan: Plan, output: Path) -> None:
    output.chmod(0o400)
    before = os.umask(umask)
    try:
        gptoss_convert.execute(plan, replace=True)
    finally:
        os.umask(before)
    assert output.stat().st_mode & 0o777 == mode


# A disk that is really full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize(
    "reserves", [pytest.param(True, id="space is reserved"), pytest.param(False, id="it is not")]
)
def test_disk_that_fills_up_during_the_run(
    reserves: bool, samples: Samples, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The disk is full for real; what is free is misreported, as if another program took it a moment later.
    (disk / "other").write_bytes(bytes(300_000))
    (disk / "x.gguf").write_bytes(OLD)
    before = contents(disk)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**12))
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate")

    outcome = run_here("to-gguf", samples.path("huggingface"), "-o", disk / "x.gguf", "--force")

    assert outcome.exit_code == 5
    assert "No space left on device" in outcome.stderr
    assert finals(disk) == before
    assert (contents(disk) != before) == ("--resume goes on with it" in outcome.stderr)


def test_disk_without_enough_space_is_refused_before_anything_is_written(samples: Samples, disk: Path) -> None:
    (disk / "other").write_bytes(bytes(300_000))
    outcome = run_here("to-gguf", samples.path("huggingface"), "-o", disk / "x.gguf")
    assert outcome.exit_code == 5
    assert "not enough space" in outcome.stderr
    assert [path.name for path in disk.iterdir()] == ["other"]


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_limit_on_the_size_of_files_is_an_error_in_one_line(samples: Samples, tmp_path: Path) -> None:
    outcome = run_process(
        "to-gguf", samples.path("huggingface"), "-o", "x.gguf", cwd=tmp_path, preexec_fn=limit_files
    )
    assert outcome == Outcome(5, "", f"error: cannot write: File too large ({tmp_path / 'x.gguf'})\n")


def test_limit_on_the_size_of_files_leaves_nothing(samples: Samples, tmp_path: Path) -> None:
    run_process("to-gguf", samples.path("huggingface"), "-o", "x.gguf", cwd=tmp_path, preexec_fn=limit_files)
    assert contents(tmp_path) == {}


# Signals

DRIVER = """
import os, sys
from gptoss_convert.cli import run

step, number, *arguments = sys.argv[1:]
function = getattr(os, step)
calls = 0

def announced(*values):
    global calls
    calls += 1
    if calls == int(number):
        print("now", flush=True)
        sys.stdin.read()
    return function(*values)

setattr(os, step, announced)
sys.exit(run(arguments))
"""
"""Runs a command; before the n-th call of a function of `os`, it says so and waits until its input ends."""

MOMENTS = [("pwrite", 2), ("pwrite", 20), ("fsync", 1), ("replace", 1)]


def heed_interrupts() -> None:
    """Undo what a shell does to tests in the background: they, and what they start, do not get Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stopped(
    step: str,
    number: int,
    how: signal.Signals,
    source: Path,
    output: Path,
    *options: str,
    command: str = "to-gguf",
) -> int:
    """Send a signal to a conversion at a moment, and return its exit code."""
    words = [sys.executable, "-P", "-c", DRIVER, step, str(number)]
    words += [command, str(source), "-o", str(output), "--force", "-q", "--jobs", "1", *options]
    with subprocess.Popen(
        words,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=heed_interrupts,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        process.send_signal(how)
        process.communicate(timeout=20)
    return process.returncode


@pytest.mark.parametrize(
    ("step", "number"),
    [
        pytest.param("posix_fallocate", 1),
        pytest.param("pwrite", 1),
        *MOMENTS,
    ],
)
def test_interrupted_run_exits_130(step: str, number: int, samples: Samples, output: Path) -> None:
    assert stopped(step, number, signal.SIGINT, samples.path("huggingface"), output) == 130
    assert finals(output.parent) == {output.name: OLD}


@pytest.mark.parametrize(("step", "number"), MOMENTS)
def test_killed_run_leaves_the_older_file_as_it_was(step: str, number: int, samples: Samples, output: Path) -> None:
    assert stopped(step, number, signal.SIGKILL, samples.path("huggingface"), output) == -signal.SIGKILL
    assert output.read_bytes() == OLD


@pytest.mark.parametrize(("step", "number"), MOMENTS)
def test_terminated_run_ends_like_an_interrupted_one(
    step: str, number: int, samples: Samples, output: Path
) -> None:
    assert stopped(step, number, signal.SIGTERM, samples.path("huggingface"), output) == 130
    assert finals(output.parent) == {output.name: OLD}


def test_run_that_was_stopped_before_anything_was_finished_leaves_nothing(samples: Samples, output: Path) -> None:
    assert stopped("posix_fallocate", 1, signal.SIGINT, samples.path("huggingface"), output) == 130
    assert contents(output.parent) == {output.name: OLD}


def test_leftover_of_a_killed_run_makes_room_for_the_next(samples: Samples, output: Path) -> None:
    source = samples.path("huggingface")
    stopped("pwrite", 20, signal.SIGKILL, source, output)
    assert set(contents(output.parent)) == {
        "x.gguf", "x.gguf.partial", "x.gguf.partial.journal", "x.gguf.partial.lock",
    }  # fmt: skip
    outcome = run_here("to-gguf", source, "-o", output, "--force")
    assert outcome.exit_code == 0
    assert "note: begins anew and removes an unfinished output" in outcome.stderr
    assert set(contents(output.parent)) == {"x.gguf"}
