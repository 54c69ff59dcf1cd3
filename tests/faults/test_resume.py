"""Runs that are stopped and gone on with: the same bytes as if nothing had happened, whatever happened and when."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gptoss_convert
from gptoss_convert import Plan, Report, Resources
from gptoss_convert.converters import execute as execute_module
from gptoss_convert.converters import tasks
from gptoss_convert.errors import BudgetError, GptossConvertError, InputError, OutputError
from gptoss_convert.formats import storage
from tests.cli.command import Outcome, environment, run_here, run_process
from tests.cli.samples import SPLIT_SIZE, Samples
from tests.faults.test_writes import stopped
from tests.support.kill_loop import HALF_WAY, KillLoop

OLD = b"an older model"
SMALL = Resources(jobs=1, memory=256 << 10)
"""Many small tasks, in an order that does not depend on timing."""

Planned = Callable[[Path, Path], Plan]
"""Plans the conversion of a source to an output."""


def gguf(source: Path, folder: Path) -> Plan:
    return gptoss_convert.plan_gguf(gptoss_convert.open_checkpoint(source), folder / "out.gguf")


def split_gguf(source: Path, folder: Path) -> Plan:
    options = gptoss_convert.GgufOptions(split_max_size=SPLIT_SIZE)
    return gptoss_convert.plan_gguf(gptoss_convert.open_checkpoint(source), folder / "out.gguf", options)


def bf16(source: Path, folder: Path) -> Plan:
    return gptoss_convert.plan_bf16(gptoss_convert.open_checkpoint(source), folder / "out").with_manifest()


PLANS: dict[str, Planned] = {"a file": gguf, "several files": split_gguf, "a folder": bf16}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def older(plan: Plan) -> dict[str, bytes]:
    """Put older files in the places of those that will be written, and return what there is then."""
    for file in plan.files:
        file.path.parent.mkdir(exist_ok=True)
        file.path.write_bytes(OLD)
    return contents(plan.output.parent)


class Faults:
    """Lets one call of a function of `os` fail, and counts them."""

    def __init__(self, name: str, number: int, error: int) -> None:
        self._function = getattr(os, name)
        self._number = number
        self._error = error
        self.calls = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self._number:
            raise OSError(self._error, os.strerror(self._error))
        return self._function(*arguments, **named)


@pytest.fixture
def undisturbed(samples: Samples, tmp_path: Path) -> Callable[[Planned], dict[str, bytes]]:
    """What a run writes that nothing disturbs."""

    def written(planned: Planned) -> dict[str, bytes]:
        folder = tmp_path / "undisturbed"
        folder.mkdir()
        gptoss_convert.execute(planned(samples.path("huggingface"), folder), resources=SMALL)
        return contents(folder)

    return written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "output"
    path.mkdir()
    return path


def stop_after(count: int) -> Callable[[str, int], None]:
    """A receiver of progress that interrupts the run when `count` tasks are done."""
    calls = iter(range(count - 1))

    def stop(tensor: str, nbytes: int) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return stop


def interrupt(plan: Plan, count: int = 20, resources: Resources = SMALL) -> None:
    """Let a run be interrupted when it has done some tasks."""
    with pytest.raises(KeyboardInterrupt):
        gptoss_convert.execute(plan, resources=resources, progress=stop_after(count))


def tasks_done(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list that gets longer with every task that is done."""
    done: list[object] = []
    run_task = tasks.run_task

    def counted(*arguments: Any) -> Any:
        done.append(arguments)
        return run_task(*arguments)

    monkeypatch.setattr(execute_module, "run_task", counted)
    return done


# Every call that can fail, one after the other

STEPS = ("open", "posix_fallocate", "pwrite", "write", "preadv", "copy_file_range", "fsync", "replace", "mkdir")
"""The functions of `os` through which a conversion reads and writes."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", PLANS)
def test_whatever_call_fails_the_older_output_stays_and_resuming_gives_the_same_bytes(
    kind: str,
    step: str,
    samples: Samples,
    folder: Path,
    undisturbed: Callable[[Planned], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = undisturbed(PLANS[kind])
    source = samples.path("huggingface")
    number = calls = 1
    failed = 0
    while number <= calls:
        shutil.rmtree(folder)
        folder.mkdir()
        plan = PLANS[kind](source, folder)
        before = older(plan)
        storage._opened.cache_clear()
        faults = Faults(step, number, errno.EIO if step in ("preadv", "open") else errno.ENOSPC)
        error: GptossConvertError | None = None
        with monkeypatch.context() as patch:
            patch.setattr(os, step, faults)
            try:
                gptoss_convert.execute(plan, resources=SMALL, replace=True)
            except GptossConvertError as caught:
                error = caught
        calls = max(calls, faults.calls)
        if error is not None:
            failed += 1
            assert os.strerror(errno.EIO) in str(error) or os.strerror(errno.ENOSPC) in str(error), error
            there = {name: data for name, data in contents(folder).items() if ".partial" not in name}
            assert there == before, f"{step} {number}"
            gptoss_convert.execute(plan, resources=SMALL, replace=True, resume=True)
        assert contents(folder) == expected, f"{step} {number}"
        # Small files, and the many tasks in the middle, go the same way.
        number += 1 if number < 30 or number > calls - 30 else 7
    assert failed or step in ("copy_file_range", "mkdir")


# Interrupted in this process


@pytest.mark.parametrize("count", [1, 7, 30])
@pytest.mark.parametrize("kind", PLANS)
def test_resumed_run_writes_the_same_bytes_and_does_nothing_twice(
    kind: str,
    count: int,
    samples: Samples,
    folder: Path,
    undisturbed: Callable[[Planned], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = undisturbed(PLANS[kind])
    done = tasks_done(monkeypatch)
    plan = PLANS[kind](samples.path("huggingface"), folder)
    interrupt(plan, count)
    first = len(done)
    assert first >= count
    report = gptoss_convert.execute(plan, resources=SMALL, resume=True)
    assert contents(folder) == expected
    shutil.rmtree(folder)
    folder.mkdir()
    assert len(done) == len(list(all_tasks(plan)))
    assert facts(gptoss_convert.execute(plan, resources=SMALL)) == facts(report)


def all_tasks(plan: Plan) -> Iterator[object]:
    return tasks.tasks(plan, SMALL)


def facts(report: Report) -> dict[str, Any]:
    return report.as_dict()


@pytest.mark.parametrize(
    "options",
    [("to-mxfp4", "--rule", "mse"), ("to-mxfp4", "--rule", "floor"), ("to-gguf", "--dense", "q8_0"), ("to-bf16",)],
    ids=" ".join,
)
def test_report_after_resuming_says_the_same(
    options: tuple[str, ...], samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of the quantiser, rounding, names of scales, hashes: all of it is in the JSON document."""
    command, *more = options
    source = samples.path("bf16" if command != "to-bf16" else "huggingface")
    limits = ("--jobs", "1", "--max-memory", "256KiB")
    outputs = tmp_path / "undisturbed", tmp_path / "resumed"
    words: list[tuple[str | Path, ...]] = [
        (command, source, "-o", output, "--json", "--manifest", *limits, *more) for output in outputs
    ]
    writes = Faults("pwrite", 0, errno.ENOSPC)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", writes)
        expected = run_here(*words[0])
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", Faults("pwrite", writes.calls * 2 // 3, errno.ENOSPC))
        assert run_here(*words[1]).exit_code == 5
    assert (tmp_path / "resumed.partial.journal").exists()
    found = run_here(*words[1], "--resume")
    assert (found.exit_code, expected.exit_code) == (0, 0)
    assert json.loads(found.stdout)["report"] == json.loads(expected.stdout)["report"]


@pytest.mark.parametrize("jobs", [1, 3])
def test_jobs_of_the_second_run_do_not_matter(
    jobs: int, samples: Samples, folder: Path, undisturbed: Callable[[Planned], dict[str, bytes]]
) -> None:
    """Tasks are those of the first run, so that even the last digits of the manifest are the same."""
    expected = undisturbed(bf16)
    plan = bf16(samples.path("huggingface"), folder)
    interrupt(plan)
    gptoss_convert.execute(plan, resources=Resources(jobs=jobs, memory=64 << 20), resume=True)
    assert contents(folder) == expected


def test_too_little_memory_for_the_tasks_of_the_first_run_is_an_error(samples: Samples, folder: Path) -> None:
    plan = gguf(samples.path("huggingface"), folder)
    interrupt(plan, resources=Resources(jobs=1, memory=1 << 20))
    with pytest.raises(BudgetError, match="too little memory to go on"):
        gptoss_convert.execute(plan, resources=SMALL, resume=True)


# What a power failure may leave: a journal that knows more, or less, than the disk


def damage_data(folder: Path) -> None:
    """Rows that are said to be written are not."""
    path = folder / "out.gguf.partial"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 10)
        file.write(bytes(size // 2))


def lose_file(folder: Path) -> None:
    (folder / "out.gguf.partial").unlink()


def shorten_file(folder: Path) -> None:
    os.truncate(folder / "out.gguf.partial", 1000)


def lengthen_file(folder: Path) -> None:
    with (folder / "out.gguf.partial").open("ab") as file:
        file.write(b"more")


def cut_journal(folder: Path) -> None:
    path = folder / "out.gguf.partial.journal"
    os.truncate(path, path.stat().st_size - 30)


def damage_journal(folder: Path) -> None:
    path = folder / "out.gguf.partial.journal"
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)


def zeros_in_journal(folder: Path) -> None:
    path = folder / "out.gguf.partial.journal"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 100] + bytes(4096))


@pytest.mark.parametrize(
    "damage",
    [damage_data, lose_file, shorten_file, lengthen_file, cut_journal, damage_journal, zeros_in_journal],
    ids=lambda function: function.__name__,
)
def test_what_is_damaged_is_done_again(
    damage: Callable[[Path], None],
    samples: Samples,
    folder: Path,
    undisturbed: Callable[[Planned], dict[str, bytes]],
) -> None:
    expected = undisturbed(gguf)
    plan = gguf(samples.path("huggingface"), folder)
    interrupt(plan)
    damage(folder)
    gptoss_convert.execute(plan, resources=SMALL, resume=True)
    assert contents(folder) == expected


# What must not be gone on with


def test_changed_source_is_not_gone_on_with(samples: Samples, folder: Path, tmp_path: Path) -> None:
    source = samples.copy("huggingface", tmp_path)
    interrupt(gguf(source, folder))
    os.utime(source / "model.safetensors")
    with pytest.raises(OutputError, match=r"of another conversion.*model\.safetensors.*another time") as caught:
        gptoss_convert.execute(gguf(source, folder), resume=True)
    assert "--resume" in str(caught.value)
    assert (folder / "out.gguf.partial").exists()


def test_other_options_are_not_gone_on_with(samples: Samples, folder: Path) -> None:
    source = samples.path("huggingface")
    interrupt(gguf(source, folder))
    other = gptoss_convert.plan_gguf(
        gptoss_convert.open_checkpoint(source), folder / "out.gguf", gptoss_convert.GgufOptions(dense="q8_0")
    )
    with pytest.raises(OutputError, match=r"of another conversion.*found other .*encodings"):
        gptoss_convert.execute(other, resume=True)


def test_another_rule_is_not_gone_on_with(samples: Samples, folder: Path) -> None:
    source = samples.path("bf16")
    command = ("to-mxfp4", source, "-o", folder / "out", "--quiet")
    plan = gptoss_convert.plan_mxfp4(gptoss_convert.open_checkpoint(source), folder / "out")
    interrupt(plan)
    outcome = run_here(*command, "--rule", "ceil", "--resume")
    assert outcome.exit_code == 5
    assert "way of converting" in outcome.stderr


def test_another_version_does_not_go_on(samples: Samples, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = gguf(samples.path("huggingface"), folder)
    interrupt(plan)
    monkeypatch.setattr("gptoss_convert.converters.journal.__version__", "99")
    with pytest.raises(OutputError, match=r"found written by version .*, this is 99"):
        gptoss_convert.execute(plan, resume=True)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", ["a file", "a folder"])
def test_file_of_another_program_is_not_removed(kind: str, resume: bool, samples: Samples, folder: Path) -> None:
    plan = PLANS[kind](samples.path("huggingface"), folder)
    theirs = folder / f"{plan.output.name}.partial"
    theirs.write_bytes(b"a download of a browser")
    with pytest.raises(OutputError, match="no journal tells about"):
        gptoss_convert.execute(plan, resume=resume)
    assert contents(folder) == {theirs.name: b"a download of a browser"}


def test_source_with_the_name_of_the_unfinished_output_is_refused(samples: Samples, tmp_path: Path) -> None:
    source = shutil.copyfile(samples.path("gguf"), tmp_path / "out.gguf.partial")
    with pytest.raises(OutputError, match="source has the name"):
        gptoss_convert.execute(gguf(source, tmp_path))
    assert source.exists()


def test_source_that_changed_during_the_run_is_an_error_and_nothing_appears(
    samples: Samples, folder: Path, tmp_path: Path
) -> None:
    source = samples.copy("huggingface", tmp_path)
    plan = gguf(source, folder)

    def touch(tensor: str, nbytes: int) -> None:
        os.utime(source / "config.json")

    with pytest.raises(InputError, match=r"source changed while it was read.*config\.json"):
        gptoss_convert.execute(plan, progress=touch)
    assert contents(folder) == {}


# Rechecking


def spoil(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the disk change a byte of write number `number`, behind our back."""
    pwrite, calls = os.pwrite, iter(range(1, 1 << 30))

    def changed(descriptor: int, data: memoryview, offset: int) -> int:
        if next(calls) != number:
            return pwrite(descriptor, data, offset)
        wrong = bytearray(data)
        wrong[len(wrong) // 2] ^= 1
        return pwrite(descriptor, wrong, offset)

    monkeypatch.setattr(os, "pwrite", changed)


@pytest.mark.parametrize("number", [1, 2, 20])
@pytest.mark.parametrize("kind", PLANS)
def test_byte_that_changed_on_its_way_is_found_and_mended(
    kind: str,
    number: int,
    samples: Samples,
    folder: Path,
    undisturbed: Callable[[Planned], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = undisturbed(PLANS[kind])
    plan = PLANS[kind](samples.path("huggingface"), folder)
    with monkeypatch.context() as patch:
        spoil(patch, number)
        with pytest.raises(OutputError, match=r"reads back differently|cannot be read"):
            gptoss_convert.execute(plan, resources=SMALL)
    assert not plan.output.exists()
    gptoss_convert.execute(plan, resources=SMALL, resume=True)
    assert contents(folder) == expected


def test_copy_that_changed_on_its_way_is_found(
    samples: Samples, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = gptoss_convert.plan_bf16(gptoss_convert.open_checkpoint(samples.path("huggingface")), folder / "out")

    def wrong(source: int, target: int, count: int, offset: int, target_offset: int) -> int:
        return os.pwrite(target, bytes(count), target_offset)

    monkeypatch.setattr(os, "copy_file_range", wrong)
    with pytest.raises(OutputError, match="reads back differently"):
        gptoss_convert.execute(plan)


def test_recheck_can_be_left_out(samples: Samples, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 20)
    command = ("to-gguf", samples.path("huggingface"), "-o", folder / "x.gguf", "--quiet")
    assert run_here(*command, "--no-recheck").exit_code == 0


# Two writers


def test_second_writer_is_refused(samples: Samples, folder: Path) -> None:
    plan = gguf(samples.path("huggingface"), folder)
    outcomes: list[Outcome] = []

    def again(tensor: str, nbytes: int) -> None:
        if not outcomes:
            words = ("to-gguf", samples.path("huggingface"), "-o", folder / "out.gguf", "--force")
            outcomes.append(run_process(*words))

    gptoss_convert.execute(plan, progress=again)
    (outcome,) = outcomes
    assert outcome.exit_code == 5
    assert "another process is writing this output" in outcome.stderr
    assert f"found process {os.getpid()} on " in outcome.stderr
    assert list(contents(folder)) == ["out.gguf"]


def test_threads_of_one_process_are_two_writers_too(samples: Samples, folder: Path) -> None:
    plan = gguf(samples.path("huggingface"), folder)
    errors: list[OutputError] = []

    def second() -> None:
        try:
            gptoss_convert.execute(gguf(samples.path("huggingface"), folder))
        except OutputError as error:
            errors.append(error)

    def again(tensor: str, nbytes: int) -> None:
        if not errors:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    gptoss_convert.execute(plan, progress=again)
    assert "another process is writing" in str(errors[0])


# The command line


def test_interrupted_run_prints_the_command_that_goes_on(samples: Samples, tmp_path: Path) -> None:
    output = tmp_path / "a model.gguf"
    code, stderr = interrupted(samples.path("huggingface"), output)
    assert code == 130
    line, end = filter(None, stderr.splitlines())
    assert end == "interrupted"
    match = re.fullmatch(r"\d+% is written and stays; go on with: gptoss-convert (.*)", line)
    assert match is not None
    arguments = shlex.split(match[1])
    assert arguments[-1] == "--resume"
    outcome = run_here(*(word for word in arguments if word != "-q"))
    assert outcome.exit_code == 0
    assert re.match(r"note: resumes an unfinished output, of which \d+% is written", outcome.stderr)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def interrupted(source: Path, output: Path) -> tuple[int, str]:
    """Send Ctrl-C to a conversion when it has done some tasks; return exit code and standard error."""
    script = (
        "import os, signal, sys\n"
        "from gptoss_convert.cli import run\n"
        "from gptoss_convert.converters import execute\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "do, calls = execute.run_task, iter(range(10))\n"
        "def counted(*arguments):\n"
        "    next(calls, None) is None and os.kill(os.getpid(), signal.SIGINT)\n"
        "    return do(*arguments)\n"
        "execute.run_task = counted\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    command: list[str | Path] = [
        sys.executable,
        "-P",
        "-c",
        script,
        "to-gguf",
        source,
        "-o",
        output,
        "--jobs",
        "1",
        "-q",
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_resuming_nothing_begins_anew(samples: Samples, tmp_path: Path) -> None:
    outcome = run_here("to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf", "--resume")
    assert outcome.exit_code == 0
    assert "note: nothing is there to resume; begins anew" in outcome.stderr


def test_dry_run_tells_of_an_unfinished_output_and_leaves_it(samples: Samples, folder: Path) -> None:
    interrupt(gguf(samples.path("huggingface"), folder))
    before = contents(folder)
    command = ("to-gguf", samples.path("huggingface"), "-o", folder / "out.gguf", "--dry-run")
    assert "--resume would go on with it" in run_here(*command).stderr
    assert "note: resumes an unfinished output" in run_here(*command, "--resume").stderr
    assert contents(folder) == before


@pytest.mark.parametrize("number", [1, 2])
def test_run_that_was_killed_while_parts_got_their_names_is_completed(
    number: int, samples: Samples, folder: Path, undisturbed: Callable[[Planned], dict[str, bytes]]
) -> None:
    expected = {name.replace("out", "x"): data for name, data in undisturbed(split_gguf).items()}
    source = samples.path("huggingface")
    options = ("--split-max-size", str(SPLIT_SIZE), "--jobs", "1")
    assert stopped("replace", number, signal.SIGKILL, source, folder / "x.gguf", *options) == -signal.SIGKILL
    assert run_here("to-gguf", source, "-o", folder / "x.gguf", *options, "--resume").exit_code == 0
    assert contents(folder) == expected


@pytest.mark.parametrize("number", [1, 2])
def test_run_that_was_killed_while_a_folder_took_the_place_of_another_is_completed(
    number: int, samples: Samples, folder: Path
) -> None:
    source = samples.path("huggingface")
    older(gptoss_convert.plan_bf16(gptoss_convert.open_checkpoint(source), folder / "x"))
    options = ("--jobs", "1")
    killed = stopped("replace", number, signal.SIGKILL, source, folder / "x", *options, command="to-bf16")
    assert killed == -signal.SIGKILL
    assert run_here("to-bf16", source, "-o", folder / "x", *options, "--force", "--resume").exit_code == 0
    assert [path.name for path in folder.iterdir()] == ["x"]
    assert OLD not in contents(folder).values()


def test_interruption_that_another_error_hides_leaves_what_was_written(
    samples: Samples, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a signal comes while the standard library waits for a lock."""

    def interrupted(*arguments: Any) -> Any:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("cannot release un-acquired lock")

    command = ("to-gguf", samples.path("huggingface"), "-o", folder / "x.gguf", "--jobs", "1")
    with monkeypatch.context() as patch:
        patch.setattr("gptoss_convert.converters.execute.recheck_written", interrupted)
        outcome = run_here(*command)
    assert outcome.exit_code == 130
    assert "go on with" in outcome.stderr
    assert run_here(*command, "--resume").exit_code == 0


# At random moments


def test_killed_runs_end_with_the_same_bytes(tmp_path: Path) -> None:
    """`python -m benchmarks kill-loop` does this for many more rounds."""
    outcome = KillLoop(tmp_path, seed=7).run(14, kills=14)
    assert outcome.faults == []
    assert outcome.most_redone <= 2
    assert outcome.kills.total() >= 14
    assert outcome.moments[HALF_WAY] >= 14
