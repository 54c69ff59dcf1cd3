"""Whatever happens to a runtime is a result, and nothing of it stays behind."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from gptoss_convert.errors import InputError
from gptoss_convert.verify.runners import Runtime
from gptoss_convert.verify.runners.launch import Run, Status, run_in_child
from gptoss_convert.verify.runners.protocol import Settings
from tests.support.runners import scripted

RUNNERS = Path(scripted.__file__).parent
SCRIPTED = Runtime(
    name="scripted", module="scripted", formats=(), needs=(("numpy", "nowhere"),), install="pip install scripted"
)
PROMPTS = ([1, 2, 3], [4, 5])


@pytest.fixture(autouse=True)
def _runners_on_the_path_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(RUNNERS), prepend=os.pathsep)


def run(folder: Path, behaviour: str, timeout: float | None = None, settings: Settings | None = None) -> Run:
    return run_in_child(SCRIPTED, folder / behaviour, PROMPTS, folder / "run", settings or Settings(), timeout)


def test_completed_run_leaves_a_recording_and_facts(tmp_path: Path) -> None:
    settings = Settings(threads=3, dtype="bfloat16", imitates="another", provider="one")
    found = run(tmp_path, "work", settings=settings)
    assert (found.status, found.reason, found.runtime) == (Status.COMPLETED, None, "scripted")
    assert (found.artifact, found.settings) == (tmp_path / "work", settings)
    assert found.versions == {"scripted": "1.0"}
    assert found.load_seconds is not None
    assert found.run_seconds is not None
    assert found.log_tail == "a line of the log\n"
    recording = found.recording()
    assert recording.prompt_lengths == (3, 2)
    np.testing.assert_allclose(np.exp(recording.distributions(0, 5).logprobs), 0.25)


def test_memory_is_that_of_the_child_at_its_peak(tmp_path: Path) -> None:
    ballast = np.ones(2 * scripted.ALLOCATED, np.uint8)  # must not count, though the child starts from here
    usual, large = (run(tmp_path, behaviour).memory for behaviour in ("work", "allocate"))
    del ballast
    assert usual is not None
    assert large is not None
    assert usual.resident < scripted.ALLOCATED
    assert scripted.ALLOCATED < large.resident < 1.5 * scripted.ALLOCATED
    if sys.platform == "linux":
        assert usual.private is not None
        assert large.private is not None
        assert 0.9 * scripted.ALLOCATED < large.private - usual.private < 1.1 * scripted.ALLOCATED
        assert large.private < large.resident


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("raise", "ended with exit code 1; last line of its log: RuntimeError: this runtime is broken"),
        ("leave", "ended with exit code 3; last line of its log: a line of the log"),
        ("abort", "ended by signal SIGABRT; last line of its log: a line of the log"),
        (
            "kill",
            (
                "ended by signal SIGKILL, as the system does when memory runs out; "
                "last line of its log: a line of the log"
            ),
        ),
        ("stumble", "ended by signal SIGSEGV; last line of its log: a line of the log"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_crash_is_a_result(tmp_path: Path, behaviour: str, reason: str) -> None:
    found = run(tmp_path, behaviour)
    assert (found.status, found.reason) == (Status.KILLED if behaviour == "kill" else Status.CRASHED, reason)
    assert found.log_tail.startswith("a line of the log\n")
    if behaviour != "stumble":
        with pytest.raises(InputError):
            found.recording()


def test_refusal_is_a_result_with_its_one_line(tmp_path: Path) -> None:
    found = run(tmp_path, "refuse")
    assert found.status == Status.REFUSED
    assert found.reason == f"this runtime does not like it ({tmp_path / 'refuse'})"
    assert "Traceback" in found.log_tail
    assert found.versions == {"scripted": "1.0"}
    assert found.memory is not None


def test_model_that_does_not_fit_is_not_loaded(tmp_path: Path) -> None:
    found = run(tmp_path, "large")
    assert found.status == Status.TOO_LARGE
    assert found.reason is not None
    assert "expected 1125899.9 GB; end other programs" in found.reason
    assert found.load_seconds is None


def test_runner_that_does_not_know_its_memory_is_run(tmp_path: Path) -> None:
    runtime = replace(SCRIPTED, module="scripted_plain")
    found = run_in_child(runtime, tmp_path / "large", PROMPTS, tmp_path / "run", Settings())
    assert found.status == Status.COMPLETED


def test_runtime_that_is_not_installed_is_not_started(tmp_path: Path) -> None:
    runtime = replace(SCRIPTED, needs=(("numpy",), ("nowhere", "nowhere_else")))
    found = run_in_child(runtime, tmp_path / "work", PROMPTS, tmp_path / "run", Settings())
    assert found.status == Status.MISSING
    assert found.reason == "scripted is not installed; install it with: pip install scripted"
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_run_that_takes_too_long_is_ended_though_it_does_not_react(tmp_path: Path) -> None:
    found = run(tmp_path, "freeze", timeout=6)
    assert (found.status, found.reason) == (Status.TIMED_OUT, "not finished after 6 seconds")
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_nothing_of_an_earlier_run_is_taken_for_the_result(tmp_path: Path) -> None:
    assert run(tmp_path, "work").status == Status.COMPLETED
    found = run(tmp_path, "leave")
    assert found.status == Status.CRASHED
    with pytest.raises(InputError):
        found.recording()


def test_empty_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without token ids"):
        run_in_child(SCRIPTED, tmp_path / "work", ([1], []), tmp_path / "run", Settings())


@pytest.mark.parametrize("end", ["SIGINT", "SIGKILL"])
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_child_ends_with_its_parent(tmp_path: Path, end: str) -> None:
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from gptoss_convert.verify.runners import Runtime\n"
        "from gptoss_convert.verify.runners.launch import run_in_child\n"
        "from gptoss_convert.verify.runners.protocol import Settings\n"
        "folder = Path(sys.argv[1])\n"
        "runtime = Runtime(name='scripted', module='scripted', formats=(), needs=(), install='')\n"
        "run_in_child(runtime, folder / 'wait', [[1], [2]], folder / 'run', Settings())\n"
    )
    parent = subprocess.Popen([sys.executable, "-P", "-c", script, str(tmp_path)], stderr=subprocess.PIPE)
    try:
        child = int(eventually(lambda: text_of(tmp_path / "pid")))
        os.kill(parent.pid, signal.Signals[end])
        _, complaint = parent.communicate(timeout=20)
    finally:
        parent.kill()
    assert parent.returncode != 0
    if end == "SIGINT":
        assert complaint.rstrip().endswith(b"KeyboardInterrupt")
        assert is_gone(child)
    assert eventually(lambda: is_gone(child))


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def eventually(found):
    """Return what `found` returns once it is true, within 20 seconds."""
    deadline = time.monotonic() + 20
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


@pytest.mark.parametrize(
    ("behaviour", "status", "reason"),
    [
        ("fill", Status.TOO_LARGE, "No space left on device"),
        ("exhaust", Status.TOO_LARGE, "MemoryError"),
        ("miss", Status.MISSING, "a library of the runtime is of another version"),
        ("misread", Status.CRASHED, "Input/output error"),
    ],
)
def test_what_the_machine_lacks_is_told_from_a_crash(
    behaviour: str, status: Status, reason: str, tmp_path: Path
) -> None:
    found = run(tmp_path, behaviour)
    assert found.status is status
    assert reason in (found.reason or "")
