"""Journals with sound checksums that no run of ours wrote: a line that is not one counts as the end."""

import json
import os
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gptoss_convert
from gptoss_convert import Plan
from gptoss_convert.errors import OutputError
from tests.cli.command import run_here
from tests.cli.samples import SPLIT_SIZE, Samples
from tests.faults.test_resume import SMALL, bf16, contents, folder, gguf, interrupt, older, split_gguf, stop_after
from tests.faults.test_writes import stopped

__all__ = ["folder"]

DEEP = b"[" * 100_000 + b"]" * 100_000
Lines = list[dict[str, Any]]


def line(content: object) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def record(**facts: object) -> Callable[[Lines], list[object]]:
    return lambda lines: [lines[0], lines[1] | facts, *lines[2:]]


def written(place: int, value: object) -> Callable[[Lines], list[object]]:
    def change(lines: Lines) -> list[object]:
        entry = next(entry for entry in lines if "written" in entry)
        run = list(entry["written"][0])
        run[place] = value
        return [lines[0], entry | {"written": [run]}]

    return change


HOSTILE: dict[str, Callable[[Lines], list[object]]] = {
    "nested deeply": lambda lines: [lines[0], b'{"a":' + DEEP + b"}"],
    "no JSON": lambda lines: [lines[0], b"hello"],
    "no UTF-8": lambda lines: [lines[0], b'{"a":"\xff"}'],
    "digits": lambda lines: [lines[0], b'{"nbytes":' + b"9" * 5000 + b"}"],
    "two numbers for rows": record(rows=[1, 2]),
    "rows are a number": record(rows=5),
    "rows are lists": record(rows=[[1], [2], [3]]),
    "no bytes": lambda lines: [lines[0], {key: lines[1][key] for key in lines[1].keys() - {"nbytes"}}],
    "bytes are text": record(nbytes="x"),
    "another file": written(0, 99),
    "a negative file": written(0, -1),
    "a negative offset": written(1, -9),
    "an offset beyond any": written(1, 1 << 80),
    "a negative length": written(2, -1),
    "a length beyond any": written(2, 1 << 60),
    "endless pieces": written(4, 1 << 61),
    "findings are a list": record(findings=[1]),
    "digests are no base64": record(digests="!!!"),
    "scales of another shape": record(named_scales=[1, 2, "eJw="]),
}


def unfinished(source: Path, folder: Path) -> Plan:
    """Interrupt a conversion that converts something."""
    options = gptoss_convert.GgufOptions(dense="q8_0")
    plan = gptoss_convert.plan_gguf(gptoss_convert.open_checkpoint(source), folder / "out.gguf", options)
    interrupt(plan, 40)
    return plan


@pytest.mark.parametrize("kind", HOSTILE)
def test_line_that_is_none_of_ours_is_not_believed(
    kind: str, samples: Samples, folder: Path, tmp_path: Path
) -> None:
    plan = unfinished(samples.path("huggingface"), folder)
    journal = folder / "out.gguf.partial.journal"
    lines = [json.loads(text[9:]) for text in journal.read_bytes().splitlines()]
    journal.write_bytes(b"".join(map(line, HOSTILE[kind](lines))))
    gptoss_convert.execute(plan, resources=SMALL, resume=True)
    (output,) = contents(folder).values()
    undisturbed = tmp_path / "undisturbed.gguf"
    words = ("to-gguf", samples.path("huggingface"), "-o", undisturbed, "--dense", "q8_0", "-q")
    assert run_here(*words).exit_code == 0
    assert output == undisturbed.read_bytes()


@pytest.mark.parametrize("memory", [0, -1, 1, "x", 1 << 80])
def test_heading_with_an_impossible_size_of_tasks_is_none(memory: object, samples: Samples, folder: Path) -> None:
    plan = unfinished(samples.path("huggingface"), folder)
    journal = folder / "out.gguf.partial.journal"
    first = json.loads(journal.read_bytes().splitlines()[0][9:])
    journal.write_bytes(line(first | {"memory_per_job": memory}))
    outcome = run_here("to-gguf", plan.source, "-o", plan.output, "--dense", "q8_0", "-q", "--resume")
    assert outcome.exit_code == 5
    assert "no journal tells about" in outcome.stderr


# Names


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_beginning_anew_after_a_kill_between_names_puts_the_older_files_back(
    number: int, samples: Samples, folder: Path
) -> None:
    source = samples.path("huggingface")
    before = older(split_gguf(source, folder))
    options = ("--split-max-size", str(SPLIT_SIZE), "--jobs", "1")
    killed = stopped("replace", number, signal.SIGKILL, source, folder / "out.gguf", *options)
    assert killed == -signal.SIGKILL
    with pytest.raises(KeyboardInterrupt):
        gptoss_convert.execute(split_gguf(source, folder), resources=SMALL, replace=True, progress=stop_after(20))
    there = {name: data for name, data in contents(folder).items() if ".partial" not in name}
    assert there == before


@pytest.mark.parametrize("number", [1, 2, 3])
def test_ctrl_c_right_after_a_rename_leaves_the_older_set(
    number: int, samples: Samples, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = split_gguf(samples.path("huggingface"), folder)
    before = older(plan)
    rename, calls = os.replace, iter(range(1, 1 << 30))

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        if next(calls) == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gptoss_convert.execute(plan, resources=SMALL, replace=True)
    there = {name: data for name, data in contents(folder).items() if ".partial" not in name}
    assert there == before
    gptoss_convert.execute(plan, resources=SMALL, replace=True, resume=True)
    assert len(contents(folder)) == len(plan.files)


def test_file_that_somebody_put_in_the_place_of_a_published_one_stays(samples: Samples, folder: Path) -> None:
    source = samples.path("huggingface")
    killed = stopped("replace", 1, signal.SIGKILL, source, folder / "out.gguf", "--jobs", "1")
    assert killed == -signal.SIGKILL
    (folder / "out.gguf.partial").rename(folder / "kept")
    theirs = bytes((folder / "kept").stat().st_size)
    (folder / "out.gguf").write_bytes(theirs)
    outcome = run_here("to-gguf", source, "-o", folder / "out.gguf", "-q", "--resume")
    assert outcome.exit_code == 5
    assert "output exists" in outcome.stderr
    assert (folder / "out.gguf").read_bytes() == theirs


def test_file_that_took_the_place_of_the_partial_one_is_not_published(samples: Samples, folder: Path) -> None:
    plan = gguf(samples.path("huggingface"), folder)

    def swap(tensor: str, nbytes: int) -> None:
        place = folder / "out.gguf.partial"
        copy = place.read_bytes()
        place.unlink()
        place.write_bytes(copy)

    with pytest.raises(OutputError, match=r"took the place of|cannot be read"):
        gptoss_convert.execute(plan, resources=SMALL, progress=swap, recheck=False)
    assert not plan.output.exists()


@pytest.mark.parametrize("name", ["out.partial", "out.partial.journal", "out.partial.lock"])
def test_link_in_the_place_of_an_unfinished_output_is_refused(
    name: str, samples: Samples, folder: Path, tmp_path: Path
) -> None:
    plan = bf16(samples.path("huggingface"), folder)
    interrupt(plan)
    place, precious = folder / name, tmp_path / "precious"
    if place.is_dir() or place.is_file():
        place.rename(precious)
    else:
        precious.write_text("precious")
    place.symlink_to(precious)
    before = contents(tmp_path)
    for resume in (True, False):
        with pytest.raises(OutputError, match=r"a link has the name|cannot write"):
            gptoss_convert.execute(plan, resources=SMALL, resume=resume)
        assert contents(tmp_path) == before
